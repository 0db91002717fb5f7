//! Reads the instructions of kernel programs out of an object: the encoding of RFC 9669, where each
//! function begins, and which one calls which. Judges nothing.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use object::{RelocationTarget, SectionKind, SymbolKind};

/// Bytes of an instruction; a load of 64 immediate bits takes two.
const SLOT: usize = 8;

const CLASS_LD: u8 = 0;
const CLASS_LDX: u8 = 1;
const CLASS_ST: u8 = 2;
const CLASS_STX: u8 = 3;
const CLASS_ALU: u8 = 4;
const CLASS_JMP: u8 = 5;
const CLASS_JMP32: u8 = 6;
const CLASS_ALU64: u8 = 7;

const LOAD_64_IMMEDIATE: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const GOTO_LONG: u8 = 0x06;
const MODE: u8 = 0xe0;
const MODE_MEM: u8 = 0x60;
const MODE_MEM_SIGNED: u8 = 0x80;
const MODE_ATOMIC: u8 = 0xc0;
const SIZE: u8 = 0x18;
const SIZE_BYTE: u8 = 0x10;
const COMPARE_EXCHANGE: i64 = 0xf1;
const FETCH: i64 = 1;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction {
    /// Its place, in slots from the begin of the function.
    pub(super) at: i64,
    pub(super) opcode: u8,
    pub(super) dst: u8,
    pub(super) src: u8,
    pub(super) offset: i64,
    pub(super) imm: i64,
}

/// What a load or store touches.
pub(super) struct Access {
    pub(super) base: u8,
    pub(super) offset: i64,
    pub(super) is_load: bool,
    pub(super) is_byte: bool,
}

impl Instruction {
    fn read(at: usize, bytes: &[u8]) -> anyhow::Result<Self> {
        let &[opcode, registers, o0, o1, i0, i1, i2, i3] = bytes else {
            bail!("instruction {at} is cut off after {} bytes", bytes.len());
        };
        Ok(Self {
            at: i64::try_from(at)?,
            opcode,
            dst: registers & 0xf,
            src: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]).into(),
            imm: i32::from_le_bytes([i0, i1, i2, i3]).into(),
        })
    }

    const fn class(&self) -> u8 {
        self.opcode & 7
    }

    /// Whether the next instruction need not be what runs next.
    pub(super) const fn ends_block(&self) -> bool {
        matches!(self.class(), CLASS_JMP | CLASS_JMP32) && self.opcode != CALL
    }

    /// The slot that it may jump to.
    pub(super) const fn jumps_to(&self) -> Option<i64> {
        match self.opcode {
            GOTO_LONG => Some(self.at + 1 + self.imm),
            CALL | EXIT => None,
            _ if self.ends_block() => Some(self.at + 1 + self.offset),
            _ => None,
        }
    }

    pub(super) const fn is_call(&self) -> bool {
        self.opcode == CALL
    }

    /// `dst = src`, all 64 bits.
    pub(super) const fn is_copy(&self) -> bool {
        self.opcode == 0xbf && self.offset == 0
    }

    /// `dst += imm`, all 64 bits.
    pub(super) const fn is_addition(&self) -> bool {
        self.opcode == 0x07
    }

    /// The register that has another value afterwards; a call changes more.
    pub(super) const fn writes(&self) -> Option<u8> {
        match self.class() {
            CLASS_LDX | CLASS_ALU | CLASS_ALU64 => Some(self.dst),
            CLASS_LD if self.opcode == LOAD_64_IMMEDIATE => Some(self.dst),
            // The old packet loads, which answer in r0.
            CLASS_LD => Some(0),
            CLASS_STX if self.opcode & MODE == MODE_ATOMIC => match self.imm {
                COMPARE_EXCHANGE => Some(0),
                operation if operation & FETCH != 0 => Some(self.src),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) const fn access(&self) -> Option<Access> {
        let is_load = self.class() == CLASS_LDX;
        let is_store = matches!(self.class(), CLASS_ST | CLASS_STX);
        if !(is_load || is_store)
            || !matches!(self.opcode & MODE, MODE_MEM | MODE_MEM_SIGNED | MODE_ATOMIC)
        {
            return None;
        }
        let base = if is_load { self.src } else { self.dst };
        let is_byte = self.opcode & SIZE == SIZE_BYTE;
        Some(Access { base, offset: self.offset, is_load, is_byte })
    }
}

/// What a function calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// A helper of the kernel, by its number.
    Helper(i64),
    /// A function of the kernel, by its type's number.
    Kernel(i64),
    /// Another function of the object, by its symbol.
    Function(String),
}

/// A function of the object; the kernel starts those that are programs.
#[derive(Debug)]
pub(super) struct Function {
    /// Its symbol.
    pub(super) name: String,
    pub(super) is_program: bool,
    /// Its length as the kernel counts: a load of 64 immediate bits is two.
    pub(super) slots: usize,
    pub(super) code: Vec<Instruction>,
    pub(super) calls: Vec<Call>,
}

/// A place in the object: the section, and bytes from its begin.
pub(super) type Place = (usize, u64);

/// A section with instructions.
pub(super) struct Section {
    pub(super) bytes: Vec<u8>,
    pub(super) is_programs: bool,
    /// Where the symbol is that the instruction at a place of this section names.
    pub(super) named: BTreeMap<u64, Place>,
}

/// Where a function is, and its length in bytes.
pub(super) struct Symbol {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) bytes: u64,
}

/// Every function of an object with kernel programs.
pub(super) fn read(object: &[u8]) -> anyhow::Result<Vec<Function>> {
    let file = object::File::parse(object).context("read the object")?;
    let mut sections = BTreeMap::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let mut named = BTreeMap::new();
        for (at, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let symbol = file.symbol_by_index(symbol)?;
            if let Some(section) = symbol.section_index() {
                named.insert(at, (section.0, symbol.address()));
            }
        }
        let is_programs = section.name()? != ".text";
        let bytes = section.data()?.to_vec();
        sections.insert(section.index().0, Section { bytes, is_programs, named });
    }
    let mut symbols = vec![];
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        if let Some(section) = symbol.section_index() {
            let place = (section.0, symbol.address());
            symbols.push(Symbol { name: symbol.name()?.to_owned(), place, bytes: symbol.size() });
        }
    }
    functions(&sections, &symbols)
}

/// The functions that the symbols name.
pub(super) fn functions(
    sections: &BTreeMap<usize, Section>,
    symbols: &[Symbol],
) -> anyhow::Result<Vec<Function>> {
    let names: BTreeMap<Place, &str> =
        symbols.iter().map(|symbol| (symbol.place, symbol.name.as_str())).collect();
    symbols
        .iter()
        .map(|symbol| {
            function(sections, &names, symbol).with_context(|| format!("read {}", symbol.name))
        })
        .collect()
}

fn function(
    sections: &BTreeMap<usize, Section>,
    names: &BTreeMap<Place, &str>,
    symbol: &Symbol,
) -> anyhow::Result<Function> {
    let (index, begin) = symbol.place;
    let section = sections.get(&index).context("its section has no instructions")?;
    let (from, to) = (usize::try_from(begin)?, usize::try_from(begin + symbol.bytes)?);
    let bytes = section.bytes.get(from..to).context("it goes beyond its section")?;
    let code = instructions(bytes)?;
    let mut calls = vec![];
    for call in code.iter().filter(|instruction| instruction.is_call()) {
        calls.push(match call.src {
            0 => Call::Helper(call.imm),
            1 => Call::Function(called(section, names, symbol.place, call)?.to_owned()),
            2 => Call::Kernel(call.imm),
            other => bail!("instruction {} is a call of unknown kind {other}", call.at),
        });
    }
    let slots = bytes.len() / SLOT;
    let name = symbol.name.clone();
    Ok(Function { name, is_program: section.is_programs, slots, code, calls })
}

fn instructions(bytes: &[u8]) -> anyhow::Result<Vec<Instruction>> {
    let mut slots = bytes.chunks(SLOT).enumerate();
    let mut code = vec![];
    while let Some((at, slot)) = slots.next() {
        let instruction = Instruction::read(at, slot)?;
        if instruction.opcode == LOAD_64_IMMEDIATE && slots.next().is_none() {
            bail!("instruction {at} lacks its second half");
        }
        code.push(instruction);
    }
    Ok(code)
}

/// The function that a call goes to. Its immediate counts slots from the one behind the call or,
/// where a symbol is named, from the one behind that symbol's begin.
fn called<'a>(
    section: &Section,
    names: &BTreeMap<Place, &'a str>,
    (index, begin): Place,
    call: &Instruction,
) -> anyhow::Result<&'a str> {
    let slot = i64::try_from(SLOT)?;
    let at = begin.checked_add_signed(call.at * slot).context("a place")?;
    let (section, base) = section.named.get(&at).copied().unwrap_or((index, at));
    let target = base.checked_add_signed((call.imm + 1) * slot).map(|target| (section, target));
    let name = target.and_then(|target| names.get(&target));
    name.copied().with_context(|| format!("instruction {} calls what has no symbol", call.at))
}
