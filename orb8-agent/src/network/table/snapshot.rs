//! The table as its last whole drain left it, and how readers and the pipeline take turns.
//!
//! A drain is counted in many batches, and between them the table is half of it. Each row says how
//! much of its volume the drain in progress brought, so that a reader leaves that out; and since
//! drains are far apart, it may let the pipeline go on between any two looks and still see one
//! drain's totals.

use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{FlowTable, SECOND_NS, narrow};
use crate::event::{FlowRecord, Volume};

/// A table that readers and the pipeline share.
///
/// Readers that take it a piece at a time keep the pipeline waiting for one piece at most: whoever
/// waits to write holds the turn, and nobody begins to read without it.
#[derive(Debug)]
pub struct Turns {
    turn: Mutex<()>,
    table: RwLock<FlowTable>,
}

impl Turns {
    pub(super) const fn new(table: FlowTable) -> Self {
        Self { turn: Mutex::new(()), table: RwLock::new(table) }
    }

    /// Takes the table for reading; a panic elsewhere does not make the flows unreadable.
    pub fn read(&self) -> RwLockReadGuard<'_, FlowTable> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the table for writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, FlowTable> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A drain whose totals a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    epoch: u32,
    interval_ns: u64,
}

impl FlowTable {
    /// The last drain that is complete.
    #[must_use]
    pub const fn snapshot(&self) -> Snapshot {
        Snapshot { epoch: self.epoch, interval_ns: self.interval_ns }
    }
}

impl Snapshot {
    /// What a row had counted by then; none if a later drain was completed and the next one has
    /// counted on the row since.
    #[must_use]
    pub fn volume(&self, table: &FlowTable, slot: usize) -> Option<Volume> {
        let row = table.rows.get(slot)?;
        let all = Volume { packets: row.flow.packets, bytes: row.flow.bytes };
        match row.flow.changed_epoch.checked_sub(self.epoch) {
            None | Some(0) => Some(all),
            Some(1) => Some(all.beyond(row.recent)),
            Some(_) => None,
        }
    }

    /// Bytes and packets a second of a row in that drain.
    #[must_use]
    pub fn rates(&self, table: &FlowTable, slot: usize) -> (f32, f32) {
        let Some(row) = table.rows.get(slot) else { return (0.0, 0.0) };
        let (bytes, packets) = match row.flow.changed_epoch.checked_sub(self.epoch) {
            Some(0) if self.epoch != 0 => (row.recent.bytes as f64, row.recent.packets as f64),
            Some(1) => (row.flow.byte_rate.into(), row.flow.packet_rate.into()),
            None | Some(_) => (0.0, 0.0),
        };
        let per_second = SECOND_NS as f64 / self.interval_ns as f64;
        (narrow(bytes * per_second), narrow(packets * per_second))
    }

    /// A row's flow as it was then; none as in [`Self::volume`], or if the row is free.
    #[must_use]
    pub fn record(&self, table: &FlowTable, slot: usize) -> Option<FlowRecord> {
        let flow = table.row(slot)?;
        let Volume { packets, bytes } = self.volume(table, slot)?;
        let (byte_rate, packet_rate) = self.rates(table, slot);
        Some(FlowRecord { packets, bytes, byte_rate, packet_rate, ..flow.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::network::table::Limits;

    #[test]
    fn whoever_waits_to_write_comes_before_the_next_piece_of_a_reader() {
        let limits = Limits {
            max_flows: 1,
            history: Duration::ZERO,
            idle: Duration::ZERO,
            drain_interval: Duration::from_secs(1),
        };
        for _ in 0..100 {
            let table = Arc::new(Turns::new(FlowTable::new(limits, 0)));
            let (order, turns) = sync_channel(2);
            let first_piece = table.read();
            let writer = {
                let (table, order) = (Arc::clone(&table), order.clone());
                thread::spawn(move || {
                    let _table = table.write();
                    order.send("drain").unwrap();
                })
            };
            // It waits for the piece, and has the turn.
            while table.turn.try_lock().is_ok() {
                thread::yield_now();
            }
            drop(first_piece);
            let second_piece = table.read();
            order.send("query").unwrap();
            drop(second_piece);
            writer.join().unwrap();
            assert_eq!(turns.try_iter().collect::<Vec<_>>(), ["drain", "query"]);
        }
    }
}
