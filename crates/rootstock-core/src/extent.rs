//! Sets of byte ranges: free space, holes, dirty data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A range of bytes: `start..start + len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
}

impl ByteRange {
    /// The range from `start`, `len` bytes long.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, len }
    }

    /// One past the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// What both ranges cover, if anything.
    #[must_use]
    pub fn intersection(&self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self::new(start, end - start))
    }
}

/// A set of bytes, kept as disjoint ranges that do not touch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    /// Start to end (exclusive).
    ranges: BTreeMap<u64, u64>,
}

impl Extents {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range, joining it with those it touches.
    pub fn insert(&mut self, range: ByteRange) {
        if range.len == 0 {
            return;
        }
        let (mut start, mut end) = (range.start, range.end());
        if let Some((&s, &e)) = self.ranges.range(..=start).next_back()
            && e >= start
        {
            if e >= end {
                return;
            }
            start = s;
        }
        while let Some((&s, &e)) = self.ranges.range(start..=end).next() {
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: ByteRange) {
        if range.len == 0 {
            return;
        }
        let (start, end) = (range.start, range.end());
        if let Some((&s, &e)) = self.ranges.range(..start).next_back()
            && e > start
        {
            self.ranges.insert(s, start);
            if e > end {
                self.ranges.insert(end, e);
            }
        }
        while let Some((&s, &e)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&s);
            if e > end {
                self.ranges.insert(end, e);
            }
        }
    }

    /// Whether every byte of the range is in the set.
    #[must_use]
    pub fn contains(&self, range: ByteRange) -> bool {
        range.len == 0
            || self
                .ranges
                .range(..=range.start)
                .next_back()
                .is_some_and(|(_, &end)| end >= range.end())
    }

    /// The parts of `range` that are in the set, in order.
    pub fn within(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let first = self
            .ranges
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        self.ranges
            .range(first..range.end().max(first))
            .filter_map(move |(&start, &end)| {
                ByteRange::new(start, end - start).intersection(range)
            })
    }

    /// The parts of `range` that are not in the set.
    #[must_use]
    pub fn outside(&self, range: ByteRange) -> Self {
        let mut rest = Self::new();
        rest.insert(range);
        for part in self.within(range) {
            rest.remove(part);
        }
        rest
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges
            .iter()
            .map(|(&start, &end)| ByteRange::new(start, end - start))
    }

    /// How many bytes are in the set.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.iter().map(|range| range.len).sum()
    }

    /// How many ranges the set is kept as: what its memory grows with.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl FromIterator<ByteRange> for Extents {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_bytes(steps in prop::collection::vec((any::<bool>(), 0_u64..64, 0_u64..20), 0..40)) {
            let mut set = Extents::new();
            let mut model = [false; 96];
            for (add, start, len) in steps {
                let range = ByteRange::new(start, len);
                if add { set.insert(range) } else { set.remove(range) }
                model[start as usize..(start + len) as usize].fill(add);
                let bytes: Vec<u64> = set.iter().flat_map(|r| r.start..r.end()).collect();
                let expected: Vec<u64> = (0..96).filter(|i| model[*i as usize]).collect();
                prop_assert_eq!(bytes, expected);
                let mut last_end = None;
                for r in set.iter() {
                    prop_assert!(r.len > 0 && last_end.is_none_or(|end| end < r.start));
                    last_end = Some(r.end());
                }
            }
            for start in 0..80_u64 {
                for len in 0..16_u64 {
                    let range = ByteRange::new(start, len);
                    let inside = |i: u64| model[i as usize];
                    prop_assert_eq!(set.contains(range), (start..start + len).all(inside));
                    let within: Vec<u64> = set.within(range).flat_map(|r| r.start..r.end()).collect();
                    prop_assert_eq!(within, (start..start + len).filter(|i| inside(*i)).collect::<Vec<_>>());
                    let outside: Vec<u64> = set.outside(range).iter().flat_map(|r| r.start..r.end()).collect();
                    prop_assert_eq!(outside, (start..start + len).filter(|i| !inside(*i)).collect::<Vec<_>>());
                }
            }
        }
    }
}
