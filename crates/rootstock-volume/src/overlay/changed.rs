//! The blocks that were changed since a flush: one look at a small map per block.

use std::{collections::BTreeMap, ops::Range};

use rootstock_core::{BLOCK_BYTES, ByteRange, Extents};

/// Blocks in one entry: 2 MiB of disk, as in a leaf of the block map.
const GROUP_BLOCKS: u64 = 512;
const WORDS: usize = GROUP_BLOCKS as usize / 64;

/// Ranges of more blocks than this are kept as ranges: a discard of a whole disk
/// takes no more memory than one of a file.
const GROUPED_BLOCKS_MAX: u64 = 2 * GROUP_BLOCKS;

/// A set of blocks. Random writes are its common case, and a set of ranges would
/// search and split for each of them.
#[derive(Debug, Default)]
pub(super) struct Changed {
    groups: BTreeMap<u64, [u64; WORDS]>,
    /// In bytes, of whole blocks.
    wide: Extents,
}

impl Changed {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.wide.is_empty()
    }

    /// Adds a block; whether it was there already.
    pub(super) fn mark(&mut self, block: u64) -> bool {
        let (group, word, bit) = place(block);
        let word = &mut self.groups.entry(group).or_default()[word];
        let known = *word & bit != 0;
        *word |= bit;
        known || self.is_in_wide(block)
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        let (group, word, bit) = place(block);
        let words = self.groups.get(&group);
        words.is_some_and(|words| words[word] & bit != 0) || self.is_in_wide(block)
    }

    pub(super) fn insert(&mut self, blocks: Range<u64>) {
        if blocks.end.saturating_sub(blocks.start) > GROUPED_BLOCKS_MAX {
            self.wide.insert(bytes_of(&blocks));
            return;
        }
        for block in blocks {
            self.mark(block);
        }
    }

    /// The same in bytes, joined. It takes a while, so a flush does it outside the
    /// state's lock.
    pub(super) fn to_extents(&self) -> Extents {
        let mut extents = self.wide.clone();
        let mut run = 0..0;
        for (group, words) in &self.groups {
            for (index, word) in words.iter().enumerate() {
                let first = group * GROUP_BLOCKS + index as u64 * 64;
                let mut left = *word;
                while left != 0 {
                    let start = left.trailing_zeros();
                    let ones = (left >> start).trailing_ones();
                    let found = first + u64::from(start)..first + u64::from(start + ones);
                    if found.start == run.end {
                        run.end = found.end;
                    } else {
                        extents.insert(bytes_of(&run));
                        run = found;
                    }
                    left = match left.checked_shr(start + ones) {
                        Some(rest) => rest << (start + ones),
                        None => 0,
                    };
                }
            }
        }
        extents.insert(bytes_of(&run));
        extents
    }

    fn is_in_wide(&self, block: u64) -> bool {
        !self.wide.is_empty() && self.wide.contains(bytes_of(&(block..block + 1)))
    }
}

/// The group, the word in it and the bit in that of a block.
fn place(block: u64) -> (u64, usize, u64) {
    let inside = block % GROUP_BLOCKS;
    (
        block / GROUP_BLOCKS,
        (inside / 64) as usize,
        1 << (inside % 64),
    )
}

/// The bytes of a range of blocks.
pub(super) fn bytes_of(blocks: &Range<u64>) -> ByteRange {
    ByteRange::new(
        blocks.start * BLOCK_BYTES,
        (blocks.end - blocks.start) * BLOCK_BYTES,
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set(steps in prop::collection::vec((0_u64..6, 0_u64..1100, 0_u64..1100), 0..20)) {
            let mut changed = Changed::default();
            let mut model = BTreeSet::new();
            for (near, start, len) in steps {
                // Near the edges of words and groups, where mistakes would be.
                let start = (start / 64 * 64 + near).saturating_sub(3);
                if len % 3 == 0 {
                    prop_assert_eq!(changed.mark(start), !model.insert(start));
                } else {
                    changed.insert(start..start + len);
                    model.extend(start..start + len);
                }
            }
            prop_assert_eq!(changed.is_empty(), model.is_empty());
            let extents = changed.to_extents();
            for block in 0..2300 {
                prop_assert_eq!(changed.contains(block), model.contains(&block));
                prop_assert_eq!(extents.contains(bytes_of(&(block..block + 1))), model.contains(&block));
            }
        }
    }

    #[test]
    fn a_huge_range_takes_no_memory() {
        let mut changed = Changed::default();
        changed.insert(3..1 << 32);
        assert!(changed.groups.is_empty());
        assert!(changed.mark(1 << 31) && !changed.mark(2));
        let extents = changed.to_extents();
        assert_eq!(
            extents.iter().collect::<Vec<_>>(),
            [bytes_of(&(2..1 << 32))]
        );
    }
}
