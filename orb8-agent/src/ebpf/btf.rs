//! Where the running kernel keeps what our programs read: offsets of members and numbers of
//! functions, from its own type information (BTF, Documentation/bpf/btf.rst).
//!
//! The bytes come from the kernel, but nothing here trusts them: whatever does not fit is `None`.

/// BTF that was gone through once.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type begins; type 1 is the first.
    types: Vec<u32>,
}

/// Kinds of types, as far as they are told apart here.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// `struct btf_header`: magic, version, flags, length of itself, place and length of types and
/// strings.
const HEADER: usize = 24;
const MAGIC: u32 = 0xeb9f;
/// Bytes that every type begins with: name, info, size or type.
const TYPE: usize = 12;
/// Bytes of a member: name, type, offset.
const MEMBER: usize = 12;
/// Structs without a name within each other are followed so deep.
const MAX_DEPTH: u32 = 8;

impl Btf {
    /// The running kernel's.
    #[must_use]
    pub(super) fn of_kernel() -> Option<Self> {
        Self::parse(std::fs::read("/sys/kernel/btf/vmlinux").ok()?)
    }

    /// Goes through the types once.
    #[must_use]
    pub(super) fn parse(bytes: Vec<u8>) -> Option<Self> {
        if word(&bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = word(&bytes, 4)? as usize;
        if header < HEADER {
            return None;
        }
        let at = |field| header.checked_add(word(&bytes, field)? as usize);
        let (start, strings) = (at(8)?, at(16)?);
        let end = start.checked_add(word(&bytes, 12)? as usize)?;
        let mut types = Vec::new();
        let mut next = start;
        while next < end {
            types.push(u32::try_from(next).ok()?);
            let info = word(&bytes, next + 4)?;
            next += TYPE + extra(info >> 24 & 0x1f, (info & 0xffff) as usize);
        }
        Some(Self { bytes, strings, types })
    }

    /// The number of a function.
    #[must_use]
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        self.find(kind::FUNC, name)
    }

    /// The offset in bytes of a member of a struct, also within unions and structs without a name.
    #[must_use]
    pub(super) fn member(&self, of: &str, name: &str) -> Option<u32> {
        let bits = self.member_bits(self.find(kind::STRUCT, of)?, name, 0)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    fn member_bits(&self, of: u32, name: &str, depth: u32) -> Option<u32> {
        if depth > MAX_DEPTH {
            return None;
        }
        let at = self.at(of)?;
        let info = word(&self.bytes, at + 4)?;
        if !matches!(info >> 24 & 0x1f, kind::STRUCT | kind::UNION) {
            return None;
        }
        for number in 0..(info & 0xffff) as usize {
            let member = at + TYPE + number * MEMBER;
            let offset = word(&self.bytes, member + 8)?;
            // With the flag, the high byte is the width of a bit field.
            let offset = if info >> 31 != 0 { offset & 0x00ff_ffff } else { offset };
            match self.string(word(&self.bytes, member)?)? {
                found if found == name.as_bytes() => return Some(offset),
                [] => {
                    let inner = word(&self.bytes, member + 4)?;
                    if let Some(within) = self.member_bits(inner, name, depth + 1) {
                        return offset.checked_add(within);
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let found = self.types.iter().position(|at| {
            let at = *at as usize;
            word(&self.bytes, at + 4).is_some_and(|info| info >> 24 & 0x1f == kind)
                && word(&self.bytes, at).and_then(|n| self.string(n)) == Some(name.as_bytes())
        })?;
        u32::try_from(found + 1).ok()
    }

    fn at(&self, number: u32) -> Option<usize> {
        self.types.get((number as usize).checked_sub(1)?).map(|at| *at as usize)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.bytes.get(self.strings.checked_add(offset as usize)?..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

/// Bytes that follow the beginning of a type.
const fn extra(kind: u32, count: usize) -> usize {
    match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
        kind::ENUM | kind::FUNC_PROTO => count * 8,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A BTF of types given as words, and of strings.
    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let length = u32::try_from(types.len() * 4).expect("short");
        let text = u32::try_from(strings.len()).expect("short");
        let words = [MAGIC | 1 << 16, 24, 0, length, length, text];
        let mut bytes: Vec<u8> =
            words.iter().chain(types).flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(strings);
        bytes
    }

    /// `struct a { int z; union { int x; struct { int; int y; }; }; }` and `int f(void)`.
    fn sample() -> Vec<u8> {
        let of = |kind: u32, count: u32| kind << 24 | count;
        let types: [Vec<u32>; 6] = [
            vec![0, of(kind::INT, 0), 4, 32],
            vec![1, of(kind::STRUCT, 2), 12, 7, 1, 0, 0, 3, 32],
            vec![0, of(kind::UNION, 2), 8, 3, 1, 0, 0, 4, 0],
            vec![0, of(kind::STRUCT, 2), 8, 0, 1, 0, 5, 1, 32],
            vec![0, of(kind::FUNC_PROTO, 0), 1],
            vec![9, of(kind::FUNC, 0), 5],
        ];
        btf(&types.concat(), b"\0a\0x\0y\0z\0f\0")
    }

    #[test]
    fn members_are_found_also_where_what_holds_them_has_no_name() {
        let btf = Btf::parse(sample()).expect("whole");
        assert_eq!(btf.member("a", "z"), Some(0));
        assert_eq!(btf.member("a", "x"), Some(4));
        assert_eq!(btf.member("a", "y"), Some(8));
        assert_eq!(btf.member("a", "f"), None);
        assert_eq!(btf.member("x", "y"), None);
    }

    #[test]
    fn functions_have_the_number_of_their_type() {
        let btf = Btf::parse(sample()).expect("whole");
        assert_eq!(btf.function("f"), Some(6));
        assert_eq!(btf.function("a"), None);
    }

    #[test]
    fn a_struct_that_holds_itself_ends() {
        let types = [1, kind::STRUCT << 24 | 1, 8, 0, 1, 0];
        let btf = Btf::parse(btf(&types, b"\0a\0")).expect("whole");
        assert_eq!(btf.member("a", "x"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_types_or_none(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            whole: bool,
        ) {
            if whole {
                let mut sample = sample();
                for (at, byte) in bytes.iter().enumerate().take(6) {
                    let place = (at * 37 + *byte as usize) % sample.len();
                    sample[place] ^= byte;
                }
                bytes = sample;
            }
            if let Some(btf) = Btf::parse(bytes) {
                let _any = (btf.member("a", "y"), btf.function("f"));
            }
        }
    }
}
