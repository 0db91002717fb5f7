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
    let programs: Vec<_> = {
        let elf = object::File::parse(&*object)?;
        let programs = elf.sections().filter(|section| section.kind() == SectionKind::Text);
        programs.filter_map(|section| section.file_range()).collect()
    };
    let mut found = 0;
    for (start, length) in programs {
        let range = [start, start + length].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        for instruction in object[range[0]..range[1]].chunks_exact_mut(8) {
            let operand = i32::from_ne_bytes([
                instruction[4],
                instruction[5],
                instruction[6],
                instruction[7],
            ]);
            if instruction[0] == ATOMIC_64 && RETURNING.contains(&operand) {
                instruction.copy_from_slice(&ZERO_R0);
                found += 1;
            }
        }
    }
    Ok(found)
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
