//! Changes the probe object before it is loaded, where the loader has no word for it: the length of
//! a map's value, and instructions that the running kernel does not know.

use std::ops::Range;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind};
use orb8_common::setting;

/// The object is not what the build makes.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// Not an ELF file that can be read.
    #[error("the probe object cannot be read: {0}; rebuild it")]
    Elf(#[from] object::Error),
    /// A map is missing.
    #[error("the probe object has no map `{0}`; rebuild it")]
    NoMap(&'static str),
    /// A program asks for a setting that there is not.
    #[error("a program of the probe object asks for setting {0}, which is unknown; rebuild it")]
    NoSetting(u32),
}

/// Offset of `value_size` in `struct bpf_map_def`: behind type and key size.
const VALUE_SIZE: u64 = 8;

/// Sets the length of the values of a map.
///
/// # Errors
/// If the object has no such map.
pub(super) fn set_value_size(
    object: &mut [u8],
    map: &'static str,
    bytes: u32,
) -> Result<(), PatchError> {
    let at = {
        let elf = object::File::parse(&*object)?;
        let symbol = elf.symbol_by_name(map).ok_or(PatchError::NoMap(map))?;
        let section = symbol.section_index().ok_or(PatchError::NoMap(map))?;
        let (start, _) =
            elf.section_by_index(section)?.file_range().ok_or(PatchError::NoMap(map))?;
        usize::try_from(start + symbol.address() + VALUE_SIZE).unwrap_or(usize::MAX)
    };
    let field = object.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>());
    *field.ok_or(PatchError::NoMap(map))? = bytes.to_ne_bytes();
    Ok(())
}

/// An atomic operation on a double word (include/uapi/linux/bpf.h): BPF_STX | BPF_ATOMIC | BPF_DW.
const ATOMIC_64: u8 = 0xdb;
/// The operations that return what was there, and that kernels before 5.12 refuse also where they
/// are never reached: BPF_XCHG, BPF_CMPXCHG.
const RETURNING: [i32; 2] = [0xe1, 0xf1];
/// `r0 = 0`: BPF_ALU64 | BPF_MOV | BPF_K.
const ZERO_R0: [u8; 8] = [0xb7, 0, 0, 0, 0, 0, 0, 0];

/// Takes out of the programs what only newer kernels know. Nothing may then reach these places,
/// which is so where there is no cache. Returns how many there were.
///
/// # Errors
/// If the object is no ELF file.
pub(super) fn without_exchanges(object: &mut [u8]) -> Result<usize, PatchError> {
    each_instruction(object, |instruction| {
        let found = instruction[0] == ATOMIC_64 && RETURNING.contains(&operand(instruction));
        if found {
            instruction.copy_from_slice(&ZERO_R0);
        }
        found
    })
}

/// A call (include/uapi/linux/bpf.h): BPF_JMP | BPF_CALL.
const CALL: u8 = 0x85;
/// What stands in the programs for the cast of a context to the kernel's own type.
const CAST: i32 = 0x0b8c_a570;
/// BPF_PSEUDO_KFUNC_CALL as the source register: the operand is a function's BTF number.
const KERNEL_FUNCTION: u8 = 2 << 4;

/// Puts the kernel's function that casts a context where the programs ask for it. Returns in how
/// many places.
///
/// # Errors
/// If the object is no ELF file.
pub(super) fn set_cast(object: &mut [u8], function: u32) -> Result<usize, PatchError> {
    each_instruction(object, |instruction| {
        let found = instruction[0] == CALL && operand(instruction) == CAST;
        if found {
            instruction[1] = KERNEL_FUNCTION;
            instruction[4..8].copy_from_slice(&function.to_ne_bytes());
        }
        found
    })
}

/// The settings of the programs, see [`orb8_common::setting`].
pub(super) type Settings = [u64; setting::COUNT];

/// A load of a 64-bit constant, an instruction of 16 bytes: BPF_LD | BPF_DW | BPF_IMM.
const LOAD_64: u8 = 0x18;

/// Puts the settings into the instructions. Returns in how many places.
///
/// # Errors
/// If the object is no ELF file, or has a setting that there is not.
pub(super) fn set_settings(object: &mut [u8], settings: &Settings) -> Result<usize, PatchError> {
    let mut places = 0;
    for code in programs(object)? {
        let Some(code) = object.get_mut(code) else { continue };
        let mut at = 0;
        while let Some(load) = code.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<16>()) {
            if load[0] != LOAD_64 {
                at += 8;
                continue;
            }
            at += 16;
            let [low, high] = [operand(&load[..8]), operand(&load[8..])].map(i32::cast_unsigned);
            if load[1] >> 4 != 0 || u64::from(high) << 32 != setting::MARK {
                continue;
            }
            let value = settings.get(low as usize).ok_or(PatchError::NoSetting(low))?;
            let [low, high] = operands(*value);
            load[4..8].copy_from_slice(&low);
            load[12..].copy_from_slice(&high);
            places += 1;
        }
    }
    Ok(places)
}

/// The operands of the two halves of a load of this constant.
#[allow(clippy::cast_possible_truncation, reason = "the halves")]
fn operands(value: u64) -> [[u8; 4]; 2] {
    [value as u32, (value >> 32) as u32].map(u32::to_ne_bytes)
}

fn operand(instruction: &[u8]) -> i32 {
    i32::from_ne_bytes([instruction[4], instruction[5], instruction[6], instruction[7]])
}

/// Shows every instruction of every program; returns how many were changed. The second half of an
/// instruction of 16 bytes has operation 0, which is none of ours.
fn each_instruction(
    object: &mut [u8],
    mut change: impl FnMut(&mut [u8]) -> bool,
) -> Result<usize, PatchError> {
    let mut changed = 0;
    for code in programs(object)? {
        let Some(code) = object.get_mut(code) else { continue };
        changed += code.chunks_exact_mut(8).filter_map(|i| change(i).then_some(())).count();
    }
    Ok(changed)
}

/// Where the instructions lie in the file.
fn programs(object: &[u8]) -> Result<Vec<Range<usize>>, PatchError> {
    let elf = object::File::parse(object)?;
    let programs = elf.sections().filter(|section| section.kind() == SectionKind::Text);
    let files = programs.filter_map(|section| section.file_range());
    let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    Ok(files.map(|(start, length)| at(start)..at(start.saturating_add(length))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::object;

    #[test]
    fn every_exchange_is_taken_out_once() {
        let mut bytes = object::bytes().to_vec();
        assert!(without_exchanges(&mut bytes).expect("an object") > 0);
        assert_eq!(without_exchanges(&mut bytes).expect("an object"), 0);
        assert_eq!(bytes.len(), object::bytes().len());
    }

    #[test]
    fn the_programs_at_sockets_ask_for_the_cast_and_no_others_do() {
        let mut bytes = object::bytes().to_vec();
        let places = set_cast(&mut bytes, 7).expect("an object");
        assert!(places >= 2, "{places} places");
        assert_eq!(set_cast(&mut bytes, 7).expect("an object"), 0);
    }

    #[test]
    fn every_setting_stands_in_the_programs_and_is_put_in_once() {
        let settings: Settings =
            std::array::from_fn(|number| 0xfeed_0000_0000_0001 + number as u64);
        let count = |bytes: &[u8], value: u64| {
            let [low, high] = operands(value);
            bytes.windows(16).filter(|code| code[4..8] == low && code[12..] == high).count()
        };
        let mut bytes = object::bytes().to_vec();
        let places: Vec<usize> =
            (0..setting::COUNT).map(|number| count(&bytes, setting::mark(number))).collect();
        assert!(places.iter().all(|places| *places > 0), "{places:?}");
        let put = set_settings(&mut bytes, &settings).expect("an object");
        assert_eq!(put, places.iter().sum::<usize>());
        for (number, places) in places.iter().enumerate() {
            assert_eq!(count(&bytes, settings[number]), *places, "setting {number}");
        }
        assert_eq!(set_settings(&mut bytes, &settings).expect("an object"), 0);
    }

    #[test]
    fn a_setting_that_is_unknown_is_named() {
        let mut bytes = object::bytes().to_vec();
        let [[unknown, _], [_, mark]] = [operands(99), operands(setting::MARK)];
        let load = |code: &[u8]| code[0] == LOAD_64 && code[12..] == mark;
        let at = bytes.windows(16).position(load).expect("a setting");
        bytes[at + 4..at + 8].copy_from_slice(&unknown);
        let error = set_settings(&mut bytes, &[0; setting::COUNT]).expect_err("unknown");
        assert!(error.to_string().contains("setting 99"), "{error}");
    }

    #[test]
    fn only_the_length_of_the_value_changes() {
        let mut bytes = object::bytes().to_vec();
        set_value_size(&mut bytes, "CPUS", 0x0123_4567).expect("the map");
        let changed: Vec<_> =
            bytes.iter().zip(object::bytes()).filter(|(a, b)| a != b).map(|(a, _)| *a).collect();
        assert_eq!(changed, 0x0123_4567u32.to_ne_bytes());
    }

    #[test]
    fn a_map_that_is_missing_is_named() {
        let mut bytes = object::bytes().to_vec();
        let error = set_value_size(&mut bytes, "NOBODY", 1).expect_err("no such map");
        assert!(error.to_string().contains("`NOBODY`"), "{error}");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(without_exchanges(&mut [0; 64]).is_err());
    }
}
