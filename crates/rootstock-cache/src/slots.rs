//! What is known of each slot, in memory.

use hashbrown::HashTable;
use rootstock_core::ChunkId;

use crate::table::{Entry, PAGE_ENTRIES};

/// What may be done with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It may be written.
    Free,
    /// It is being written, and nobody reads it.
    Writing,
    /// It holds its chunk, which a power cut may take.
    Written,
    /// It holds its chunk for good.
    Kept,
    /// Forgotten; it is free when the table has forgotten it, too.
    Leaving,
    /// The disk failed here: it is not used again.
    Broken,
}

/// The slots of a cache.
pub(crate) struct Slots {
    entries: Vec<Entry>,
    states: Vec<State>,
    by_chunk: HashTable<u32>,
    free: Bits,
    /// Slots whose chunk some version needs.
    needed: Bits,
    /// Slots whose chunk was written or checked since the cache was opened.
    seen: Bits,
    /// Slots that are read past this cache: they are not written again.
    pinned: Bits,
    /// Whether one of them does not hold its chunk any more.
    has_lost_pinned: bool,
    /// Pages of the table that do not say what is here.
    dirty: Vec<bool>,
    free_count: u64,
    used_count: u64,
    used_max: u64,
    broken_count: u64,
    /// Where the search for what nobody needs goes on.
    hand: usize,
}

/// What a checkpoint writes.
#[derive(Default)]
pub(crate) struct Round {
    /// Pages with their entries.
    pub(crate) pages: Vec<(usize, Vec<Entry>)>,
    written: Vec<u32>,
    leaving: Vec<u32>,
}

impl Slots {
    /// The slots that a table names.
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        let count = entries.len();
        let mut slots = Self {
            states: vec![State::Free; count],
            by_chunk: HashTable::with_capacity(count),
            free: Bits::new(count),
            needed: Bits::new(count),
            seen: Bits::new(count),
            pinned: Bits::new(count),
            has_lost_pinned: false,
            dirty: vec![false; count.div_ceil(PAGE_ENTRIES)],
            free_count: 0,
            used_count: 0,
            used_max: count as u64,
            broken_count: 0,
            hand: 0,
            entries,
        };
        for slot in 0..count as u32 {
            let entry = slots.entries[slot as usize];
            // Two slots with one chunk would be a fault of ours; the second is spare.
            if entry == Entry::FREE || slots.find(entry.chunk).is_some() {
                slots.set_free(slot);
                continue;
            }
            slots.states[slot as usize] = State::Kept;
            slots.used_count += 1;
            slots.index(slot);
        }
        slots
    }

    /// Bounds how many chunks are held.
    pub(crate) fn set_used_max(&mut self, used_max: u64) {
        self.used_max = used_max.min(self.entries.len() as u64);
    }

    pub(crate) fn used_max(&self) -> u64 {
        self.used_max - self.broken_count.min(self.used_max)
    }

    pub(crate) fn used_count(&self) -> u64 {
        self.used_count
    }

    pub(crate) fn broken_count(&self) -> u64 {
        self.broken_count
    }

    /// Where a chunk is, and its length.
    pub(crate) fn find(&self, chunk: ChunkId) -> Option<(u32, u32)> {
        let hash = hash(chunk);
        let slot = *self
            .by_chunk
            .find(hash, |slot| self.entries[*slot as usize].chunk == chunk)?;
        Some((slot, self.entries[slot as usize].len_bytes))
    }

    /// All chunks that are held.
    pub(crate) fn chunks(&self) -> Vec<ChunkId> {
        let held = self.by_chunk.iter();
        held.map(|slot| self.entries[*slot as usize].chunk)
            .collect()
    }

    /// Whether nothing but the disk's own failure can change what is in a slot.
    pub(crate) fn is_kept(&self, slot: u32) -> bool {
        self.states[slot as usize] == State::Kept
    }

    /// Whether what is in a slot was written or checked since the cache was opened.
    pub(crate) fn is_seen(&self, slot: u32) -> bool {
        self.seen.get(slot as usize)
    }

    pub(crate) fn has_lost_pinned(&self) -> bool {
        self.has_lost_pinned
    }

    /// Has a slot never written again.
    pub(crate) fn pin(&mut self, slot: u32) {
        self.pinned.set(slot as usize, true);
    }

    /// A chunk was read and was right.
    pub(crate) fn checked(&mut self, slot: u32, chunk: ChunkId) {
        let at = slot as usize;
        if self.holds(at) && self.entries[at].chunk == chunk {
            self.seen.set(at, true);
        }
    }

    /// A free slot: `want`, or the next one after it, around the end.
    pub(crate) fn reserve(&mut self, want: u32) -> Option<u32> {
        if self.used_count >= self.used_max() || self.free_count == 0 {
            return None;
        }
        let slot = self.free.next(want as usize % self.entries.len())? as u32;
        self.free.set(slot as usize, false);
        self.free_count -= 1;
        self.used_count += 1;
        self.states[slot as usize] = State::Writing;
        Some(slot)
    }

    /// A reserved slot was written. Whether it was entered: another may have
    /// brought the same chunk meanwhile.
    pub(crate) fn enter(&mut self, slot: u32, entry: Entry) -> bool {
        if self.find(entry.chunk).is_some() {
            self.cancel(slot);
            return false;
        }
        self.entries[slot as usize] = entry;
        self.states[slot as usize] = State::Written;
        self.needed.set(slot as usize, true);
        self.seen.set(slot as usize, true);
        self.dirty[slot as usize / PAGE_ENTRIES] = true;
        self.index(slot);
        true
    }

    /// A reserved slot was not written after all.
    pub(crate) fn cancel(&mut self, slot: u32) {
        self.used_count -= 1;
        self.set_free(slot);
    }

    /// The disk failed at this slot, whatever it holds.
    pub(crate) fn break_slot(&mut self, slot: u32) {
        match self.states[slot as usize] {
            State::Writing => self.used_count -= 1,
            State::Written | State::Kept => self.unlink(slot),
            State::Free | State::Leaving | State::Broken => return,
        }
        self.states[slot as usize] = State::Broken;
        self.broken_count += 1;
    }

    /// Forgets a slot's chunk if it is still this one. The slot is free after the
    /// next checkpoint.
    pub(crate) fn forget(&mut self, slot: u32, chunk: ChunkId) {
        let at = slot as usize;
        if self.holds(at) && self.entries[at].chunk == chunk {
            self.unlink(slot);
            self.states[at] = State::Leaving;
        }
    }

    /// Marks what the versions of this machine need, and nothing else.
    pub(crate) fn set_needed(&mut self, chunks: impl IntoIterator<Item = ChunkId>) {
        self.needed = Bits::new(self.entries.len());
        for chunk in chunks {
            if let Some((slot, _)) = self.find(chunk) {
                self.needed.set(slot as usize, true);
            }
        }
    }

    /// Forgets up to `count` chunks that nobody needs; how many.
    pub(crate) fn forget_unneeded(&mut self, count: u64) -> u64 {
        let mut forgotten = 0;
        for _ in 0..self.entries.len() {
            if forgotten == count {
                break;
            }
            let at = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            if self.holds(at) && !self.needed.get(at) {
                self.forget(at as u32, self.entries[at].chunk);
                forgotten += 1;
            }
        }
        forgotten
    }

    /// What a checkpoint has to write now.
    pub(crate) fn begin_round(&mut self) -> Round {
        let mut round = Round::default();
        for page in 0..self.dirty.len() {
            if !std::mem::take(&mut self.dirty[page]) {
                continue;
            }
            let first = page * PAGE_ENTRIES;
            let end = (first + PAGE_ENTRIES).min(self.entries.len());
            let entries = (first..end).map(|at| {
                match self.states[at] {
                    State::Written => round.written.push(at as u32),
                    State::Leaving => round.leaving.push(at as u32),
                    _ => {}
                }
                if self.holds(at) {
                    self.entries[at]
                } else {
                    Entry::FREE
                }
            });
            let entries = entries.collect();
            round.pages.push((page, entries));
        }
        round
    }

    /// A checkpoint is durable.
    pub(crate) fn settle(&mut self, round: &Round) {
        for slot in &round.written {
            if self.states[*slot as usize] == State::Written {
                self.states[*slot as usize] = State::Kept;
            }
        }
        for slot in &round.leaving {
            debug_assert_eq!(self.states[*slot as usize], State::Leaving);
            // A pinned one leaves for good; the next opening finds it free.
            if !self.pinned.get(*slot as usize) {
                self.set_free(*slot);
            }
        }
    }

    fn holds(&self, at: usize) -> bool {
        matches!(self.states[at], State::Written | State::Kept)
    }

    /// Takes a slot's chunk out of the index.
    fn unlink(&mut self, slot: u32) {
        let at = slot as usize;
        let chunk = self.entries[at].chunk;
        let found = self
            .by_chunk
            .find_entry(hash(chunk), |other| *other == slot);
        if let Ok(found) = found {
            found.remove();
        }
        self.entries[at] = Entry::FREE;
        self.has_lost_pinned |= self.pinned.get(at);
        self.needed.set(at, false);
        self.seen.set(at, false);
        self.dirty[at / PAGE_ENTRIES] = true;
        self.used_count -= 1;
    }

    fn index(&mut self, slot: u32) {
        let entries = &self.entries;
        let of = |slot: &u32| hash(entries[*slot as usize].chunk);
        self.by_chunk.insert_unique(of(&slot), slot, of);
    }

    fn set_free(&mut self, slot: u32) {
        self.states[slot as usize] = State::Free;
        self.entries[slot as usize] = Entry::FREE;
        self.free.set(slot as usize, true);
        self.free_count += 1;
    }
}

/// Ids are digests already: their first bytes are as good as any hash of them.
fn hash(chunk: ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&chunk.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// A bit for each slot.
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn new(count: usize) -> Self {
        Self {
            words: vec![0; count.div_ceil(64)],
        }
    }

    fn get(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, at: usize, value: bool) {
        let bit = 1 << (at % 64);
        if value {
            self.words[at / 64] |= bit;
        } else {
            self.words[at / 64] &= !bit;
        }
    }

    /// The first bit that is set from `from` on, around the end.
    fn next(&self, from: usize) -> Option<usize> {
        let (first, count) = (from / 64, self.words.len());
        let head = self.words[first] & (u64::MAX << (from % 64));
        if head != 0 {
            return Some(first * 64 + head.trailing_zeros() as usize);
        }
        // The first word again at the end, for what lies before `from` in it.
        (1..=count).find_map(|step| {
            let word = (first + step) % count;
            let bits = self.words[word];
            (bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_bit_is_found_around_the_end() {
        let mut bits = Bits::new(200);
        assert_eq!(bits.next(5), None);
        for at in [3, 70, 199] {
            bits.set(at, true);
        }
        for (from, expected) in [(0, 3), (3, 3), (4, 70), (71, 199), (199, 199)] {
            assert_eq!(bits.next(from), Some(expected), "{from}");
        }
        bits.set(199, false);
        assert_eq!(bits.next(71), Some(3));
        assert!(bits.get(70) && !bits.get(71));
    }

    #[test]
    fn a_slot_is_free_only_after_the_table_forgot_it() {
        let mut slots = Slots::new(vec![Entry::FREE; 2]);
        let chunk = ChunkId::of(b"one");
        let entry = Entry {
            chunk,
            len_bytes: 4096,
        };
        let slot = slots.reserve(1).expect("free");
        assert_eq!(slot, 1);
        assert!(slots.enter(slot, entry) && !slots.is_kept(slot));
        let round = slots.begin_round();
        slots.settle(&round);
        assert!(slots.is_kept(slot));
        assert_eq!(slots.forget_unneeded(9), 0);
        slots.set_needed([]);
        assert_eq!(slots.forget_unneeded(9), 1);
        assert_eq!(slots.find(chunk), None);
        assert_eq!(slots.reserve(1), Some(0));
        assert_eq!(slots.reserve(1), None);
        let round = slots.begin_round();
        assert_eq!(round.pages, [(0, vec![Entry::FREE; 2])]);
        slots.settle(&round);
        assert_eq!(slots.reserve(1), Some(1));
        slots.break_slot(1);
        assert_eq!((slots.used_max(), slots.broken_count()), (1, 1));
    }

    #[test]
    fn a_pinned_slot_is_not_written_again() {
        let mut slots = Slots::new(vec![Entry::FREE; 2]);
        let chunk = ChunkId::of(b"one");
        let slot = slots.reserve(0).expect("free");
        let entry = Entry {
            chunk,
            len_bytes: 4096,
        };
        assert!(slots.enter(slot, entry));
        let round = slots.begin_round();
        slots.settle(&round);
        slots.pin(slot);
        slots.forget(slot, chunk);
        for _ in 0..2 {
            let round = slots.begin_round();
            slots.settle(&round);
        }
        assert_eq!(slots.reserve(0), Some(1));
        assert_eq!(slots.reserve(0), None);
    }
}
