//! Which slots of an overlay's data file are free.
//!
//! A bitmap with a summary, the lowest free slot first, so that the file stays
//! short and hot; runs are kept together, since a run is one `pwrite` now and one
//! `pread` later.

use std::ops::Range;

use super::map::SLOTS_MAX;

/// Free slots (64 MiB) that may lie about before new runs are broken up to fill them.
const SLACK_SLOTS: u32 = 16 * 1024;

/// How many free runs are looked at for one that is long enough.
const RUNS_LOOKED_AT_MAX: usize = 256;

/// The free slots of a data file.
pub(super) struct Slots {
    /// Bit set: free.
    words: Vec<u64>,
    /// Bit set: the word has a free slot.
    summary: Vec<u64>,
    /// Slots the file has room for; those beyond are made by writing to them.
    total: u32,
    free: u32,
    /// No summary word below this one has a bit set.
    low: usize,
}

impl Slots {
    /// `total` slots, all of them free.
    pub(super) fn new(total: u32) -> Self {
        let mut slots = Self {
            words: Vec::new(),
            summary: Vec::new(),
            total: 0,
            free: 0,
            low: 0,
        };
        slots.grow(total);
        slots.release(0..total);
        slots
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.total - self.free
    }

    /// One past the highest slot that the file has room for.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Takes 1 to `want` slots that follow each other: fewer than `want` only when
    /// free space is broken up, `None` when a data file cannot be longer.
    pub(super) fn take(&mut self, want: u32) -> Option<Range<u32>> {
        if let Some(run) = self.find(want) {
            self.mark(run.clone(), false);
            return Some(run);
        }
        let end = self.total.saturating_add(want).min(SLOTS_MAX);
        let run = self.total..end;
        self.grow(end);
        (!run.is_empty()).then_some(run)
    }

    /// Marks slots that the map uses, when a volume is opened; `false` when one
    /// is in use already.
    pub(super) fn occupy(&mut self, run: Range<u32>) -> bool {
        if run.end > self.total {
            let gap = self.total..run.start.max(self.total);
            self.grow(run.end);
            self.release(gap.clone());
            if run.start < gap.start {
                return self.occupy(run.start..gap.start);
            }
            return true;
        }
        let free = run.clone().all(|slot| self.is_free(slot));
        if free {
            self.mark(run, false);
        }
        free
    }

    /// Gives slots back.
    pub(super) fn release(&mut self, run: Range<u32>) {
        if !run.is_empty() {
            self.mark(run, true);
        }
    }

    fn is_free(&self, slot: u32) -> bool {
        self.words[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    fn grow(&mut self, total: u32) {
        self.total = total;
        let words = (total as usize).div_ceil(64);
        self.words.resize(words.max(self.words.len()), 0);
        let summary = self.words.len().div_ceil(64);
        self.summary.resize(summary, 0);
    }

    fn mark(&mut self, run: Range<u32>, free: bool) {
        let count = run.end - run.start;
        for slot in run {
            let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
            debug_assert_eq!(self.words[word] & bit == 0, free, "slot {slot} taken twice");
            if free {
                self.words[word] |= bit;
            } else {
                self.words[word] &= !bit;
            }
            let summary = 1_u64 << (word % 64);
            if self.words[word] == 0 {
                self.summary[word / 64] &= !summary;
            } else {
                self.summary[word / 64] |= summary;
                self.low = self.low.min(word / 64);
            }
        }
        if free {
            self.free += count;
        } else {
            self.free -= count;
        }
    }

    /// A free run of `want` slots, or a shorter one when too much is free.
    fn find(&mut self, want: u32) -> Option<Range<u32>> {
        if self.free == 0 {
            return None;
        }
        while self.low < self.summary.len() && self.summary[self.low] == 0 {
            self.low += 1;
        }
        let mut from = self.low as u32 * 64 * 64;
        let mut longest = None::<Range<u32>>;
        for _ in 0..RUNS_LOOKED_AT_MAX {
            let Some(run) = self.next_run(from, want) else {
                break;
            };
            let len = run.end - run.start;
            if len == want {
                return Some(run);
            }
            from = run.end;
            if longest
                .as_ref()
                .is_none_or(|best| len > best.end - best.start)
            {
                longest = Some(run);
            }
        }
        longest.filter(|_| self.free > SLACK_SLOTS && self.free > self.total / 3)
    }

    /// The first free run at or after `from`, cut at `len_max`.
    fn next_run(&self, from: u32, len_max: u32) -> Option<Range<u32>> {
        let start = self.next_free(from)?;
        let mut end = start + 1;
        while end - start < len_max && end < self.total {
            let left = self.words[end as usize / 64] >> (end % 64);
            let ones = left.trailing_ones();
            if ones == 0 {
                break;
            }
            end += ones;
            if end % 64 != 0 {
                break;
            }
        }
        Some(start..end.min(start + len_max))
    }

    fn next_free(&self, from: u32) -> Option<u32> {
        let mut word = from as usize / 64;
        let first = self.words.get(word)? >> (from % 64) << (from % 64);
        if first != 0 {
            return Some(word as u32 * 64 + first.trailing_zeros());
        }
        word += 1;
        let mut at = word / 64;
        let mut bits = self.summary.get(at)? >> (word % 64) << (word % 64);
        while bits == 0 {
            at += 1;
            bits = *self.summary.get(at)?;
        }
        let word = at as u32 * 64 + bits.trailing_zeros();
        Some(word * 64 + self.words[word as usize].trailing_zeros())
    }
}

/// Sorts slot numbers and joins those that follow each other.
pub(super) fn runs_of(mut slots: Vec<u32>) -> Vec<Range<u32>> {
    slots.sort_unstable();
    let mut runs: Vec<Range<u32>> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some(run) if run.end == slot => run.end += 1,
            _ => runs.push(slot..slot + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_hands_a_slot_out_twice(steps in prop::collection::vec((1_u32..200, any::<prop::sample::Index>(), any::<bool>()), 0..60), total in 0_u32..300) {
            let mut slots = Slots::new(total);
            let mut used: BTreeSet<u32> = BTreeSet::new();
            let mut runs: Vec<Range<u32>> = Vec::new();
            for (want, which, give_back) in steps {
                if give_back && !runs.is_empty() {
                    let run = runs.swap_remove(which.index(runs.len()));
                    for slot in run.clone() { used.remove(&slot); }
                    slots.release(run);
                } else {
                    let run = slots.take(want).expect("room");
                    prop_assert!(!run.is_empty() && run.end - run.start <= want);
                    for slot in run.clone() { prop_assert!(used.insert(slot)); }
                    runs.push(run);
                }
                prop_assert_eq!(slots.used() as usize, used.len());
                prop_assert_eq!(slots.free as usize, slots.words.iter().map(|w| w.count_ones() as usize).sum::<usize>());
            }
            let mut again = Slots::new(total.min(slots.total));
            for run in runs { prop_assert!(again.occupy(run.clone())); prop_assert!(!again.occupy(run)); }
            prop_assert_eq!(again.used() as usize, used.len());
        }
    }

    #[test]
    fn a_long_run_is_not_broken_up_for_little() {
        let mut slots = Slots::new(100);
        let all = slots.take(100).expect("all");
        assert_eq!(all, 0..100);
        slots.release(3..4);
        slots.release(50..60);
        assert_eq!(slots.take(256), Some(100..356));
        assert_eq!(slots.take(10), Some(50..60));
        assert_eq!(slots.take(1), Some(3..4));
        assert_eq!(slots.take(1), Some(356..357));
    }

    #[test]
    fn runs_are_joined() {
        assert_eq!(runs_of(vec![5, 1, 2, 9, 3]), [1..4, 5..6, 9..10]);
    }
}
