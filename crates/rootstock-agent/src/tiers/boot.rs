//! What a boot pack brings: to the disk where there is one, else to memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rootstock_core::ChunkId;

use super::Tiers;
use crate::remote::Fetch;
use crate::replay::{ChunkSink, Landing};

/// A disk that has no room for so long takes the boot's time: memory has some.
const ROOM_LIMIT: Duration = Duration::from_secs(1);

/// Takes the chunks of a boot pack.
pub(crate) struct BootSink<F> {
    tiers: Arc<Tiers<F>>,
    landing: Arc<Landing>,
    /// Whether the disk had no room in time for the last chunk.
    is_late: AtomicBool,
}

impl<F: Fetch + 'static> BootSink<F> {
    /// For the disk of `tiers`, or `landing` without one.
    pub(crate) fn new(tiers: Arc<Tiers<F>>, landing: Arc<Landing>) -> Self {
        tiers.boot_began();
        Self {
            tiers,
            landing,
            is_late: AtomicBool::new(false),
        }
    }
}

impl<F: Fetch + 'static> ChunkSink for BootSink<F> {
    fn offer(&self, chunk: ChunkId, raw: Bytes) {
        // From the disk's queue it is read before it is written, too.
        let kept = self.tiers.disk().is_some_and(|disk| {
            let is_patient = !self.is_late.load(Ordering::Relaxed);
            let limit = if is_patient {
                ROOM_LIMIT
            } else {
                Duration::ZERO
            };
            let kept = disk.store_within(chunk, raw.clone(), limit);
            self.is_late.store(!kept, Ordering::Relaxed);
            kept
        });
        if !kept {
            self.landing.offer(chunk, raw);
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
