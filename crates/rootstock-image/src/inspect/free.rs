//! A set of free ranges that cannot grow without bound.

use rootstock_core::{ByteRange, Extents};

/// How many ranges there may be before shorter ones are kept as data, and how
/// long a range then has to be, in bytes. A range costs about 30 bytes of memory.
const STEPS: [(usize, u64); 4] = [
    (0, 1),
    (400_000, 64 << 10),
    (800_000, 1 << 20),
    (1_200_000, u64::MAX),
];

/// Collects free ranges.
#[derive(Debug, Default)]
pub(super) struct FreeSet {
    set: Extents,
    kept_bytes: u64,
}

impl FreeSet {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn insert(&mut self, range: ByteRange) {
        let count = self.set.range_count();
        let step = STEPS.iter().rev().find(|(from, _)| count >= *from);
        if step.is_some_and(|(_, len)| range.len >= *len) {
            self.set.insert(range);
        } else {
            self.kept_bytes += range.len;
        }
    }

    /// Adds another set, moved by so many bytes.
    pub(super) fn absorb(&mut self, other: &Self, offset_bytes: u64) {
        self.kept_bytes += other.kept_bytes;
        for range in other.set.iter() {
            self.insert(ByteRange::new(offset_bytes + range.start, range.len));
        }
    }

    /// Adds another set whose ranges lie elsewhere here, perhaps in pieces.
    pub(super) fn absorb_moved(&mut self, other: &Self, place: impl Fn(ByteRange, &mut Self)) {
        self.kept_bytes += other.kept_bytes;
        for range in other.set.iter() {
            place(range, self);
        }
    }

    /// Whether any byte of this range is in it.
    pub(super) fn touches(&self, range: ByteRange) -> bool {
        self.set.within(range).next().is_some()
    }

    pub(super) fn into_extents(self) -> Extents {
        self.set
    }

    /// What a person should know of it.
    pub(super) fn note(&self) -> Option<String> {
        (self.kept_bytes > 0).then(|| {
            format!(
                "free space is in so many pieces that {} bytes of it are kept as data",
                self.kept_bytes
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_bounded() {
        let mut free = FreeSet::new();
        for piece in 0..500_000 {
            free.insert(ByteRange::new(piece * 8192, 4096));
        }
        assert!(free.note().is_some());
        free.insert(ByteRange::new(1 << 40, 1 << 30));
        let set = free.into_extents();
        assert_eq!(set.range_count(), 400_001);
        assert!(set.contains(ByteRange::new(1 << 40, 1 << 30)));
    }
}
