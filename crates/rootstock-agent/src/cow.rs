//! The machine's disk: a base that never changes under the machine's own writes.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use rootstock_core::BLOCK_BYTES;
use rootstock_volume::{
    BlockDevice, BlockError, Segment, Segments, StatusExtent, Zero, device::check_range,
};

use crate::overlay::{BLOCK, Fill, Overlay, Place};

/// A disk whose writes go to an [`Overlay`].
pub(crate) struct CowDisk<B> {
    base: B,
    overlay: RwLock<Overlay>,
}

/// Blocks of one kind that follow each other.
enum Run {
    Base,
    Zero,
    Slots(Vec<u32>),
}

impl<B: BlockDevice> CowDisk<B> {
    /// The disk of `base` and what `overlay` holds.
    pub(crate) fn new(base: B, overlay: Overlay) -> Self {
        Self {
            base,
            overlay: RwLock::new(overlay),
        }
    }

    /// How full the overlay is.
    pub(crate) fn fill(&self) -> Fill {
        self.shared().fill()
    }

    // A panic under the lock leaves whole entries, so the overlay goes on.
    fn shared(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<u64, BlockError> {
        let range = check_range(offset_bytes, len_bytes, self.size_bytes())?;
        Ok(range.end())
    }

    /// Calls `each` with every run of a range: its kind, its first byte and its
    /// length. Slots are read under the lock, the base outside it.
    fn each_run(
        &self,
        offset_bytes: u64,
        end: u64,
        mut each: impl FnMut(&Run, u64, u64) -> Result<bool, BlockError>,
    ) -> Result<bool, BlockError> {
        let mut next = offset_bytes;
        while next < end {
            let (run, run_end) = self.run_at(next, end);
            if !each(&run, next, run_end - next)? {
                return Ok(false);
            }
            next = run_end;
        }
        Ok(true)
    }

    fn run_at(&self, from: u64, end: u64) -> (Run, u64) {
        let overlay = self.shared();
        let mut block = from / BLOCK_BYTES;
        let mut run = match overlay.place(block) {
            Place::Base => Run::Base,
            Place::Zero => Run::Zero,
            Place::Slot(slot) => Run::Slots(vec![slot]),
        };
        loop {
            block += 1;
            if block * BLOCK_BYTES >= end {
                return (run, end);
            }
            match (overlay.place(block), &mut run) {
                (Place::Base, Run::Base) | (Place::Zero, Run::Zero) => {}
                (Place::Slot(slot), Run::Slots(slots)) => slots.push(slot),
                _ => return (run, block * BLOCK_BYTES),
            }
        }
    }

    /// Appends stored blocks. A slot may have been given to another block since
    /// its place was looked up, so the places are looked up again under the same
    /// lock as the read.
    fn read_slots(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let first = offset_bytes / BLOCK_BYTES;
        let last = (offset_bytes + len_bytes).div_ceil(BLOCK_BYTES);
        let overlay = self.shared();
        let mut slots = Vec::with_capacity((last - first) as usize);
        for block in first..last {
            let Place::Slot(slot) = overlay.place(block) else {
                return Ok(false);
            };
            slots.push(slot);
        }
        let mut bytes = Vec::new();
        overlay
            .read(&slots, &mut bytes)
            .map_err(|source| BlockError::Io {
                doing: "read what was written",
                offset_bytes,
                source,
            })?;
        let from = (offset_bytes - first * BLOCK_BYTES) as usize;
        out.push(Bytes::from(bytes).slice(from..from + len_bytes as usize));
        Ok(true)
    }

    /// Writes a part of one block: the rest comes from below.
    fn write_part(&self, offset_bytes: u64, data: &[u8]) -> Result<(), BlockError> {
        let block = offset_bytes / BLOCK_BYTES;
        let start = block * BLOCK_BYTES;
        let at = (offset_bytes - start) as usize;
        // The base never changes, so it is read before the lock is taken; a disk
        // may end within a block.
        let inside = BLOCK_BYTES.min(self.size_bytes() - start) as usize;
        let mut below = vec![0; BLOCK];
        if self.shared().place(block) == Place::Base {
            let mut segments = Segments::new();
            self.base.read(start, inside as u32, &mut segments)?;
            segments.copy_to(&mut below[..inside]);
        }
        let mut overlay = self.exclusive();
        match overlay.place(block) {
            Place::Base => {}
            Place::Zero => below.fill(0),
            Place::Slot(slot) => {
                below.clear();
                overlay
                    .read(&[slot], &mut below)
                    .map_err(|source| BlockError::Io {
                        doing: "read what was written",
                        offset_bytes,
                        source,
                    })?;
            }
        }
        below[at..at + data.len()].copy_from_slice(data);
        overlay
            .write(block, &below)
            .map_err(|source| BlockError::NoSpace { source })
    }

    /// Divides a range into the part before its first whole block, its whole
    /// blocks, and the part after them.
    fn divide(offset_bytes: u64, end: u64) -> [(u64, u64); 3] {
        let first = offset_bytes.next_multiple_of(BLOCK_BYTES).min(end);
        let last = (end / BLOCK_BYTES * BLOCK_BYTES).max(first);
        [(offset_bytes, first), (first, last), (last, end)]
    }
}

impl<B: BlockDevice> BlockDevice for CowDisk<B> {
    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<(), BlockError> {
        let end = self.check(offset_bytes, u64::from(len_bytes))?;
        let mut pieces = Segments::new();
        let mut next = offset_bytes;
        while next < end {
            let (run, run_end) = self.run_at(next, end);
            let len = run_end - next;
            match run {
                Run::Base => self.base.read(next, len as u32, &mut pieces)?,
                Run::Zero => pieces.push_zero(len as u32),
                // Changed meanwhile: look again.
                Run::Slots(_) if !self.read_slots(next, len, &mut pieces)? => continue,
                Run::Slots(_) => {}
            }
            next = run_end;
        }
        append(out, &pieces);
        Ok(())
    }

    fn try_read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let end = self.check(offset_bytes, u64::from(len_bytes))?;
        let mut pieces = Segments::new();
        let done = self.each_run(offset_bytes, end, |run, at, len| match run {
            Run::Base => self.base.try_read(at, len as u32, &mut pieces),
            Run::Zero => {
                pieces.push_zero(len as u32);
                Ok(true)
            }
            Run::Slots(_) => self.read_slots(at, len, &mut pieces),
        })?;
        if done {
            append(out, &pieces);
        }
        Ok(done)
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), BlockError> {
        let end = self.check(offset_bytes, data.len() as u64)?;
        let part = |from: u64, to: u64| {
            &data[(from - offset_bytes) as usize..(to - offset_bytes) as usize]
        };
        let [head, whole, tail] = Self::divide(offset_bytes, end);
        for (from, to) in [head, tail] {
            if from < to {
                self.write_part(from, part(from, to))?;
            }
        }
        if whole.0 < whole.1 {
            self.exclusive()
                .write(whole.0 / BLOCK_BYTES, part(whole.0, whole.1))
                .map_err(|source| BlockError::NoSpace { source })?;
        }
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        _zero: Zero,
    ) -> Result<(), BlockError> {
        let end = self.check(offset_bytes, len_bytes)?;
        let [head, whole, tail] = Self::divide(offset_bytes, end);
        for (from, to) in [head, tail] {
            if from < to {
                self.write_part(from, &vec![0; (to - from) as usize])?;
            }
        }
        if whole.0 < whole.1 {
            let count = (whole.1 - whole.0) / BLOCK_BYTES;
            self.exclusive()
                .zero(whole.0 / BLOCK_BYTES, count)
                .map_err(|source| BlockError::NoSpace { source })?;
        }
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        let end = self.check(offset_bytes, len_bytes)?;
        let [_, whole, _] = Self::divide(offset_bytes, end);
        if whole.0 < whole.1 {
            let count = (whole.1 - whole.0) / BLOCK_BYTES;
            self.exclusive()
                .zero(whole.0 / BLOCK_BYTES, count)
                .map_err(|source| BlockError::NoSpace { source })?;
        }
        Ok(())
    }

    /// There is nothing more durable than memory here.
    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        _extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        // The kernel never asks; all of it may hold data.
        self.check(offset_bytes, len_bytes)?;
        Ok(vec![StatusExtent {
            len_bytes,
            hole: false,
            zero: false,
        }])
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        self.base.prefetch(offset_bytes, len_bytes);
    }
}

/// Whole answers only: after an error nothing is appended.
fn append(out: &mut Segments, pieces: &Segments) {
    for piece in pieces.iter() {
        match piece {
            Segment::Zero(len) => out.push_zero(*len),
            Segment::Bytes(bytes) => out.push(bytes.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
