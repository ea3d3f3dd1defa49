//! Making an overlay's state durable, and the views that hold on to one.
//!
//! Data first, then the transaction that points to it, then the slots that this
//! transaction replaced are free. Group commit comes by itself: flushes wait for
//! the one that is running, and all but the first of them find nothing to do.

use std::{
    io,
    ops::{ControlFlow, Range},
    sync::{Arc, PoisonError, TryLockError, atomic::Ordering},
};

use rootstock_core::{BLOCK_BYTES, ByteRange, Extents};

use super::{
    Overlay, Retired,
    changed::Changed,
    log::{Log, Recorded},
    map::{BlockMap, Run},
    slots::runs_of,
};
use crate::device::BlockError;

/// What one flush makes durable.
struct Batch {
    state: Recorded,
    changed: Changed,
    retired: Retired,
    full: bool,
    rewrite: bool,
}

/// A flushed state that stays readable while writes go on.
pub(crate) struct PinnedState {
    overlay: Arc<Overlay>,
    state: Recorded,
}

impl PinnedState {
    pub(crate) fn map(&self) -> &BlockMap {
        &self.state.map
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }
}

impl Drop for PinnedState {
    fn drop(&mut self) {
        let mut state = self.overlay.write_state();
        if let Some(count) = state.views.get_mut(&self.state.generation) {
            *count -= 1;
            if *count == 0 {
                state.views.remove(&self.state.generation);
            }
        }
        let free = state.take_unneeded();
        drop(state);
        self.overlay.recycle(free);
    }
}

impl super::State {
    /// The retired slots that no view needs any more.
    fn take_unneeded(&mut self) -> Retired {
        let oldest = self.views.keys().next().copied().unwrap_or(u64::MAX);
        let mut free = Retired::default();
        while let Some((generation, _)) = self.waiting.front()
            && *generation <= oldest
        {
            if let Some((_, retired)) = self.waiting.pop_front() {
                free.extend(retired);
            }
        }
        free
    }

    /// Takes what is to be flushed, if anything is.
    fn take_batch(&mut self) -> Option<Batch> {
        let idle = self.pending.is_empty() && self.unlogged.is_empty();
        if idle && !self.full_next && !self.resized {
            return None;
        }
        let mut changed = std::mem::take(&mut self.pending);
        for range in std::mem::take(&mut self.unlogged).iter() {
            changed.insert(range.start / BLOCK_BYTES..range.end() / BLOCK_BYTES);
        }
        self.resized = false;
        Some(Batch {
            state: Recorded {
                map: self.map.clone(),
                size_bytes: self.size_bytes,
                generation: self.generation + 1,
            },
            changed,
            retired: std::mem::take(&mut self.retired),
            full: std::mem::take(&mut self.full_next),
            rewrite: std::mem::take(&mut self.rewrite),
        })
    }

    /// Takes back a batch that may or may not be on the disk.
    fn restore(&mut self, batch: Batch) {
        // A reset since then leaves nothing of the batch to be logged.
        if !self.full_next {
            for range in batch.changed.to_extents().iter() {
                self.unlogged.insert(range);
            }
        }
        self.retired.extend(batch.retired);
        self.full_next |= batch.full;
        self.resized = true;
        self.rewrite = true;
    }
}

impl Overlay {
    /// Makes all writes so far durable.
    pub(crate) fn flush(&self) -> Result<(), BlockError> {
        self.flush_holding(self.lock_log()).map(|_| ())
    }

    /// Flushes unless a flush is already under way and the backlog is bearable.
    pub(crate) fn checkpoint(&self) -> Result<(), BlockError> {
        let log = match self.log.try_lock() {
            Ok(log) => log,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock)
                if self.unflushed_bytes() < self.options.checkpoint_bytes.saturating_mul(2) =>
            {
                return Ok(());
            }
            Err(TryLockError::WouldBlock) => {
                self.log.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        self.flush_holding(log).map(|_| ())
    }

    /// Flushes and keeps what was flushed readable.
    pub(crate) fn pin(self: &Arc<Self>) -> Result<PinnedState, BlockError> {
        let log = self.lock_log();
        let flushed = self.flush_batch(log, Pin::Yes)?;
        Ok(PinnedState {
            overlay: Arc::clone(self),
            state: flushed,
        })
    }

    fn flush_holding(&self, log: std::sync::MutexGuard<'_, Option<Log>>) -> Result<(), BlockError> {
        self.flush_batch(log, Pin::No).map(|_| ())
    }

    fn flush_batch(
        &self,
        mut log: std::sync::MutexGuard<'_, Option<Log>>,
        pin: Pin,
    ) -> Result<Recorded, BlockError> {
        let mut state = self.write_state();
        let Some(batch) = state.take_batch() else {
            let flushed = Recorded {
                map: state.map.clone(),
                size_bytes: state.size_bytes,
                generation: state.generation,
            };
            if pin == Pin::Yes {
                *state.views.entry(flushed.generation).or_default() += 1;
            }
            return Ok(flushed);
        };
        let unflushed = self.unflushed_bytes.swap(0, Ordering::Relaxed);
        if let Some(recent) = &mut *self.lock_recent() {
            recent.taken(batch.state.generation);
        }
        drop(state);
        if let Some(log) = &mut *log
            && let Err(error) = self.make_durable(log, &batch)
        {
            self.unflushed_bytes.fetch_add(unflushed, Ordering::Relaxed);
            let later = unflushed.saturating_add(self.options.checkpoint_bytes);
            self.checkpoint_at_bytes.store(later, Ordering::Relaxed);
            let mut state = self.write_state();
            if let Some(recent) = &mut *self.lock_recent() {
                recent.give_up(&error);
            }
            state.restore(batch);
            return Err(error);
        }
        let Batch {
            state: flushed,
            retired,
            ..
        } = batch;
        self.checkpoint_at_bytes
            .store(self.options.checkpoint_bytes, Ordering::Relaxed);
        let mut state = self.write_state();
        state.generation = flushed.generation;
        if pin == Pin::Yes {
            *state.views.entry(flushed.generation).or_default() += 1;
        }
        if !retired.is_empty() {
            state.waiting.push_back((flushed.generation, retired));
        }
        let free = state.take_unneeded();
        drop(state);
        drop(log);
        self.recycle(free);
        Ok(flushed)
    }

    fn make_durable(&self, log: &mut Log, batch: &Batch) -> Result<(), BlockError> {
        let changed = batch.changed.to_extents();
        if batch.rewrite {
            self.rewrite(batch, &changed)?;
        }
        let failed = |source| BlockError::io("flush the volume's writes", 0, source);
        self.data.sync_data().map_err(failed)?;
        log.record(&batch.state, &changed, batch.full)
            .map_err(failed)
    }

    /// Writes the batch's data again, unchanged, after a sync that failed: the
    /// kernel may have dropped it, and would then say that all is well.
    fn rewrite(&self, batch: &Batch, changed: &Extents) -> Result<(), BlockError> {
        for range in changed.iter() {
            let blocks = range.start / BLOCK_BYTES..range.end() / BLOCK_BYTES;
            let mut runs: Vec<(u64, u32, Vec<u32>)> = Vec::new();
            let _: ControlFlow<()> = batch.state.map.visit(blocks, |blocks, run| {
                if let Run::Data(entries) = run {
                    let placed: Vec<_> = entries.iter().filter_map(|e| e.placed()).collect();
                    let crcs = placed.iter().map(|(_, crc)| *crc).collect();
                    runs.push((blocks.start, placed[0].0, crcs));
                }
                ControlFlow::Continue(())
            });
            for (block, slot, crcs) in runs {
                let offset_bytes = block * BLOCK_BYTES;
                let failed =
                    |source| BlockError::io("write unflushed data again", offset_bytes, source);
                let data = self.read_slots(slot, crcs.len()).map_err(failed)?;
                super::read::check(offset_bytes, &data, &crcs)?;
                self.data
                    .write_at(u64::from(slot) * BLOCK_BYTES, &data)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Frees slots that nothing needs, and gives back the space of discarded ones.
    fn recycle(&self, free: Retired) {
        let discarded = runs_of(free.discarded);
        if !discarded.is_empty() {
            // Before punching, since a reader may still be at the old data.
            self.frees.fetch_add(1, Ordering::SeqCst);
        }
        for run in &discarded {
            if let Err(error) = self.punch(run) {
                tracing::debug!(%error, "cannot give back discarded space");
                break;
            }
        }
        if !discarded.is_empty() {
            let mut slots = self.lock_slots();
            for run in discarded {
                slots.release(run);
            }
        }
        self.release(free.replaced);
    }

    fn punch(&self, run: &Range<u32>) -> io::Result<()> {
        self.data.punch(ByteRange::new(
            u64::from(run.start) * BLOCK_BYTES,
            run.len() as u64 * BLOCK_BYTES,
        ))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pin {
    Yes,
    No,
}
