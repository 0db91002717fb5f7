//! A packet view that a subscriber keeps open, and what of its packets that subscriber was not told.

use crate::datapath::PacketWatch;

/// Closed where waiting for the kernel harms nobody.
pub(super) struct OpenWatch {
    watch: Option<Box<dyn PacketWatch>>,
    /// Of the kernel's skipped packets, those that were told.
    skipped: u64,
    /// Of the sampled ones, the most that were told.
    sampled: u64,
}

impl OpenWatch {
    /// Nothing was told yet.
    pub(super) const fn new(watch: Box<dyn PacketWatch>) -> Self {
        Self { watch: Some(watch), skipped: 0, sampled: 0 }
    }

    /// Packets that were skipped, and those that were sampled away, since they were taken last.
    pub(super) fn take(&mut self) -> (u64, u64) {
        let Some(watch) = &self.watch else { return (0, 0) };
        let (skipped, sampled) = (watch.skipped(), watch.sampled());
        let more = (skipped.saturating_sub(self.skipped), sampled.saturating_sub(self.sampled));
        self.skipped = skipped;
        // They become fewer when a packet stands for them; told they are once.
        self.sampled = self.sampled.max(sampled);
        more
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        let watch = self.watch.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(watch));
        }
    }
}
