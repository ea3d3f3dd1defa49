//! A machine's writes: 4 KiB blocks in memory above a disk that never changes.
//!
//! A block is stored, or zeroed, or the base's. Stored blocks take slots of a
//! [`SlotStore`], compressed by the kernel's zram where there is one. The number
//! of slots is the bound: when they are used up, a write fails at once.

use std::collections::HashMap;
use std::io;

use rootstock_core::{BLOCK_BYTES, ByteRange, Extents};

pub(crate) mod memory;
pub(crate) mod zram;

/// A block's length in bytes.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

/// The most runs of zeroed blocks that are remembered apart: 48 MB of memory.
const ZERO_RUNS_MAX: usize = 1 << 20;

/// Where slots are kept.
pub(crate) trait SlotStore: Send + Sync {
    /// Fills `out`, whole slots long, from the slots that begin with `slot`.
    fn read(&self, slot: u32, out: &mut [u8]) -> io::Result<()>;

    /// Writes whole slots.
    fn write(&mut self, slot: u32, data: &[u8]) -> io::Result<()>;

    /// Says that a slot's content is not needed any more.
    fn release(&mut self, slot: u32);

    /// What the slots take of the machine's memory, when the store can say:
    /// otherwise it is the slots' own size.
    fn used_bytes(&self) -> Option<u64>;
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not written: the base has it.
    Base,
    /// Made zero.
    Zero,
    /// In this slot.
    Slot(u32),
}

/// How full an overlay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    /// What the writes take of the machine's memory.
    pub(crate) used_bytes: u64,
    /// What they may take.
    pub(crate) bytes_max: u64,
    /// The part that is used, of slots or of memory, whichever is nearer its end.
    pub(crate) percent: u8,
}

impl Fill {
    /// Both together; the fuller one counts.
    pub(crate) fn with(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        Self {
            used_bytes: self.used_bytes + other.used_bytes,
            bytes_max: self.bytes_max + other.bytes_max,
            percent: self.percent.max(other.percent),
        }
    }
}

/// The writes of one machine.
pub(crate) struct Overlay {
    store: Box<dyn SlotStore>,
    slots: HashMap<u64, u32>,
    /// Blocks, not bytes.
    zeroed: Extents,
    free: Vec<u32>,
    next: u32,
    slots_max: u32,
    bytes_max: u64,
}

impl Overlay {
    /// An empty overlay of at most `slots_max` blocks, which is to take no more
    /// than `bytes_max` of memory.
    pub(crate) fn new(store: Box<dyn SlotStore>, slots_max: u32, bytes_max: u64) -> Self {
        Self {
            store,
            slots: HashMap::new(),
            zeroed: Extents::new(),
            free: Vec::new(),
            next: 0,
            slots_max,
            bytes_max,
        }
    }

    /// What a block is.
    pub(crate) fn place(&self, block: u64) -> Place {
        match self.slots.get(&block) {
            Some(slot) => Place::Slot(*slot),
            None if self.zeroed.contains(ByteRange::new(block, 1)) => Place::Zero,
            None => Place::Base,
        }
    }

    /// Appends stored blocks to `out`: slots that follow each other in one read.
    pub(crate) fn read(&self, slots: &[u32], out: &mut Vec<u8>) -> io::Result<()> {
        for run in runs(slots) {
            let from = out.len();
            out.resize(from + run.len() * BLOCK, 0);
            self.store.read(run[0], &mut out[from..])?;
        }
        Ok(())
    }

    /// Stores whole blocks from `block` on. After an error some hold the new data.
    pub(crate) fn write(&mut self, block: u64, data: &[u8]) -> io::Result<()> {
        debug_assert!(data.len().is_multiple_of(BLOCK), "whole blocks");
        let count = data.len() / BLOCK;
        let mut slots = Vec::with_capacity(count);
        let mut fresh = Vec::new();
        for number in 0..count as u64 {
            let slot = match self.slots.get(&(block + number)) {
                Some(slot) => *slot,
                None => match self.take() {
                    Some(slot) => {
                        fresh.push(slot);
                        slot
                    }
                    None => break,
                },
            };
            slots.push(slot);
        }
        if slots.len() < count {
            self.free.extend(fresh);
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut done = 0;
        for run in runs(&slots) {
            let len = run.len() * BLOCK;
            if let Err(error) = self.store.write(run[0], &data[done..done + len]) {
                // Nothing of this call is entered: what was there before stays
                // where it was not overwritten in place.
                self.free.extend(fresh);
                return Err(error);
            }
            done += len;
        }
        for (number, slot) in slots.iter().enumerate() {
            self.slots.insert(block + number as u64, *slot);
        }
        self.zeroed.remove(ByteRange::new(block, count as u64));
        Ok(())
    }

    /// Makes whole blocks zero and gives their slots back.
    pub(crate) fn zero(&mut self, block: u64, count: u64) -> io::Result<()> {
        if self.zeroed.range_count() >= ZERO_RUNS_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.drop_slots(block, count);
        self.zeroed.insert(ByteRange::new(block, count));
        Ok(())
    }

    /// How full it is.
    pub(crate) fn fill(&self) -> Fill {
        let slots = u64::from(self.next) - self.free.len() as u64;
        let used_bytes = self.store.used_bytes().unwrap_or(slots * BLOCK_BYTES);
        let part = |used: u64, max: u64| (used.saturating_mul(100) / max.max(1)).min(100) as u8;
        Fill {
            used_bytes,
            bytes_max: self.bytes_max,
            percent: part(slots, u64::from(self.slots_max)).max(part(used_bytes, self.bytes_max)),
        }
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.next >= self.slots_max {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    fn drop_slots(&mut self, block: u64, count: u64) {
        let mut drop = |slot| {
            self.store.release(slot);
            self.free.push(slot);
        };
        // Whichever is shorter: the range, or all that is stored.
        if count < self.slots.len() as u64 {
            (block..block + count)
                .filter_map(|block| self.slots.remove(&block))
                .for_each(&mut drop);
        } else {
            self.slots.retain(|at, slot| {
                let inside = (block..block + count).contains(at);
                if inside {
                    drop(*slot);
                }
                !inside
            });
        }
    }
}

/// Divides slots where one does not follow the other.
fn runs(slots: &[u32]) -> impl Iterator<Item = &[u32]> {
    slots.chunk_by(|one, two| one.checked_add(1) == Some(*two))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::memory::MemorySlots;
    use proptest::prelude::*;

    const BLOCKS: u64 = 24;
    const SLOTS: u32 = 12;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, u64, u8),
        Zero(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..BLOCKS, 1..6_u64).prop_map(|(at, len)| (at, len.min(BLOCKS - at)));
        prop_oneof![
            (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
            range().prop_map(|(at, len)| Step::Zero(at, len)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_blocks_with_a_limit(steps in prop::collection::vec(step(), 0..60)) {
            let mut overlay = Overlay::new(Box::new(MemorySlots::new()), SLOTS, u64::from(SLOTS) * BLOCK_BYTES);
            // What each block holds: nothing, zeros, or a byte.
            let mut model: Vec<Option<Option<u8>>> = vec![None; BLOCKS as usize];
            for step in steps {
                match step {
                    Step::Write(at, len, byte) => {
                        let stored = |block: &Option<Option<u8>>| matches!(block, Some(Some(_)));
                        let used = model.iter().filter(|block| stored(block)).count();
                        let range = at as usize..(at + len) as usize;
                        let new = model[range.clone()].iter().filter(|block| !stored(block)).count();
                        let fits = used + new <= SLOTS as usize;
                        let written = overlay.write(at, &vec![byte; len as usize * BLOCK]);
                        prop_assert_eq!(written.is_ok(), fits);
                        if fits { model[range].fill(Some(Some(byte))) }
                    }
                    Step::Zero(at, len) => {
                        overlay.zero(at, len).expect("room");
                        model[at as usize..(at + len) as usize].fill(Some(None));
                    }
                }
                for (block, expected) in model.iter().enumerate() {
                    match (overlay.place(block as u64), expected) {
                        (Place::Base, None) | (Place::Zero, Some(None)) => {}
                        (Place::Slot(slot), Some(Some(byte))) => {
                            let mut out = Vec::new();
                            overlay.read(&[slot], &mut out).expect("readable");
                            prop_assert_eq!(out, vec![*byte; BLOCK]);
                        }
                        (found, expected) => prop_assert!(false, "{found:?} for {expected:?}"),
                    }
                }
                let stored = model.iter().filter(|block| matches!(block, Some(Some(_)))).count();
                prop_assert_eq!(overlay.fill().used_bytes, stored as u64 * BLOCK_BYTES);
                prop_assert_eq!(usize::from(overlay.fill().percent), stored * 100 / SLOTS as usize);
            }
        }
    }
}
