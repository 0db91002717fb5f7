//! Ring records as user space reads them: any bytes in, a record or nothing out.

use crate::network::{FlowEvent, FlowKey, PacketEvent};

/// Takes fields off the front of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn words(&mut self) -> Option<[u32; 4]> {
        Some([self.u32()?, self.u32()?, self.u32()?, self.u32()?])
    }

    fn key(&mut self) -> Option<FlowKey> {
        Some(FlowKey {
            src: self.words()?,
            dst: self.words()?,
            src_port: self.take()?,
            dst_port: self.take()?,
            protocol: self.u8()?,
            flags: self.u8()?,
            tag: self.u16()?,
        })
    }
}

impl FlowEvent {
    /// Reads a record of the lifecycle ring; `None` if its length is not that of a record.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let mut f = Fields(bytes);
        Some(Self {
            key: f.key()?,
            owner: f.u64()?,
            time_ns: f.u64()?,
            cgroup_id: f.u64()?,
            cookie: f.u64()?,
            slot: f.u32()?,
            kind: f.u8()?,
            tcp_flags: f.u8()?,
            scope: f.u8()?,
            reserved: f.u8()?,
            bytes: f.u64()?,
        })
    }
}

impl PacketEvent {
    /// Reads a record of the packet ring; `None` if its length is not that of a record.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let mut f = Fields(bytes);
        Some(Self {
            key: f.key()?,
            owner: f.u64()?,
            time_ns: f.u64()?,
            bytes: f.u64()?,
            cgroup_id: f.u64()?,
            packets: f.u32()?,
            tcp_flags: f.u8()?,
            scope: f.u8()?,
            weight: f.u16()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes of a plain value, as a program writes them.
    fn raw<T: Copy>(value: &T) -> std::vec::Vec<u8> {
        // SAFETY: the records have no padding, which their sizes are asserted for.
        unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
        }
        .to_vec()
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let key = FlowKey {
            src: [1, 2, 3, 4],
            dst: [5, 6, 7, 8],
            src_port: [9, 10],
            dst_port: [11, 12],
            protocol: 6,
            flags: 3,
            tag: 513,
        };
        let event = FlowEvent {
            key,
            owner: 7,
            time_ns: 8,
            cgroup_id: 9,
            cookie: 10,
            slot: 11,
            kind: 1,
            tcp_flags: 2,
            scope: 1,
            reserved: 0,
            bytes: 60,
        };
        assert_eq!(FlowEvent::from_bytes(&raw(&event)), Some(event));
        let packet = PacketEvent {
            key,
            owner: 1,
            time_ns: 2,
            bytes: 3,
            cgroup_id: 6,
            packets: 4,
            tcp_flags: 5,
            scope: 1,
            weight: 7,
        };
        assert_eq!(PacketEvent::from_bytes(&raw(&packet)), Some(packet));
    }

    proptest! {
        #[test]
        fn only_records_of_the_right_length_are_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert_eq!(FlowEvent::from_bytes(&bytes).is_some(), bytes.len() == 88);
            prop_assert_eq!(PacketEvent::from_bytes(&bytes).is_some(), bytes.len() == 80);
        }
    }
}
