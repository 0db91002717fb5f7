//! The probe object that `build.rs` obtained, embedded into the agent.

/// Bytes with the alignment that an ELF reader needs.
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/orb8-probes.o")));

/// The ELF object with all programs and maps.
#[must_use]
pub fn bytes() -> &'static [u8] {
    &OBJECT.0
}
