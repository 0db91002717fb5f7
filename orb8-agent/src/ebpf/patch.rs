//! Changes the probe object before it is loaded, where the loader has no word for it: the length of
//! a map's value, and instructions that the running kernel does not know.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind};

/// The object is not what the build makes.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// Not an ELF file that can be read.
    #[error("the probe object cannot be read: {0}; rebuild it")]
    Elf(#[from] object::Error),
    /// A map is missing.
    #[error("the probe object has no map `{0}`; rebuild it")]
    NoMap(&'static str),
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

fn operand(instruction: &[u8]) -> i32 {
    i32::from_ne_bytes([instruction[4], instruction[5], instruction[6], instruction[7]])
}

/// Shows every instruction of every program; returns how many were changed. The second half of an
/// instruction of 16 bytes has operation 0, which is none of ours.
fn each_instruction(
    object: &mut [u8],
    mut change: impl FnMut(&mut [u8]) -> bool,
) -> Result<usize, PatchError> {
    let programs: Vec<_> = {
        let elf = object::File::parse(&*object)?;
        let programs = elf.sections().filter(|section| section.kind() == SectionKind::Text);
        programs.filter_map(|section| section.file_range()).collect()
    };
    let mut changed = 0;
    for (start, length) in programs {
        let [start, end] =
            [start, start + length].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        let Some(code) = object.get_mut(start..end) else { continue };
        changed += code.chunks_exact_mut(8).filter_map(|i| change(i).then_some(())).count();
    }
    Ok(changed)
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
