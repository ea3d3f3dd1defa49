//! What a boot pack brings: to the disk where there is one, else to memory.

use std::sync::Arc;

use bytes::Bytes;
use rootstock_core::ChunkId;

use super::Tiers;
use crate::remote::Fetch;
use crate::replay::{ChunkSink, Landing};

/// Takes the chunks of a boot pack.
pub(crate) struct BootSink<F> {
    tiers: Arc<Tiers<F>>,
    landing: Arc<Landing>,
}

impl<F: Fetch + 'static> BootSink<F> {
    /// For the disk of `tiers`, or `landing` without one.
    pub(crate) fn new(tiers: Arc<Tiers<F>>, landing: Arc<Landing>) -> Self {
        tiers.boot_began();
        Self { tiers, landing }
    }
}

impl<F: Fetch + 'static> ChunkSink for BootSink<F> {
    fn offer(&self, chunk: ChunkId, raw: Bytes) {
        match self.tiers.disk() {
            // From there it is read before it is written, too.
            Some(disk) if disk.is_on() => disk.store(chunk, raw),
            _ => self.landing.offer(chunk, raw),
        }
    }

    fn has(&self, chunk: ChunkId) -> bool {
        self.landing.has(chunk) || self.tiers.disk().is_some_and(|disk| disk.has(chunk))
    }
}

/// The stream is at its end, however it came to it.
impl<F> Drop for BootSink<F> {
    fn drop(&mut self) {
        self.tiers.boot_ended();
    }
}
