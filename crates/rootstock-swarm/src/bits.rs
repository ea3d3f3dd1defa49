//! A set of numbers below a bound.

/// A bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    len: usize,
    ones: usize,
}

impl Bits {
    /// None of `len` numbers.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self {
            words: vec![0; len.div_ceil(64)],
            len,
            ones: 0,
        }
    }

    /// All of `len` numbers.
    #[must_use]
    pub fn full(len: usize) -> Self {
        let mut bits = Self::new(len);
        for at in 0..len {
            bits.set(at);
        }
        bits
    }

    /// How many numbers there could be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there can be none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many there are.
    #[must_use]
    pub fn ones(&self) -> usize {
        self.ones
    }

    /// Whether `at` is one of them; nothing past the end is.
    #[must_use]
    pub fn has(&self, at: usize) -> bool {
        at < self.len && self.words[at / 64] >> (at % 64) & 1 == 1
    }

    /// Adds a number; whether it was not there. Nothing past the end is added.
    pub fn set(&mut self, at: usize) -> bool {
        let is_new = at < self.len && !self.has(at);
        if is_new {
            self.words[at / 64] |= 1 << (at % 64);
            self.ones += 1;
        }
        is_new
    }

    /// Removes a number; whether it was there.
    pub fn clear(&mut self, at: usize) -> bool {
        let was = self.has(at);
        if was {
            self.words[at / 64] &= !(1 << (at % 64));
            self.ones -= 1;
        }
        was
    }

    /// Whether `other` lacks any of them.
    pub(crate) fn exceeds(&self, other: &Self) -> bool {
        let words = self.words.iter().enumerate();
        let mut more = words.map(|(at, word)| word & !other.words.get(at).copied().unwrap_or(0));
        more.any(|word| word != 0)
    }

    /// Those of them that `other` lacks, from `start` on and around, `max` at most.
    pub(crate) fn without(&self, other: &Self, start: usize, max: usize) -> Vec<usize> {
        self.scan(start, max, |at| {
            self.words[at] & !other.words.get(at).copied().unwrap_or(0)
        })
    }

    /// Those of the bound that neither is, from `start` on and around, `max` at most.
    pub(crate) fn lacking(&self, other: &Self, start: usize, max: usize) -> Vec<usize> {
        let mut found = self.scan(start, max, |at| {
            !(self.words[at] | other.words.get(at).copied().unwrap_or(0))
        });
        found.retain(|at| *at < self.len);
        found
    }

    fn scan(&self, start: usize, max: usize, word_at: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut found = Vec::with_capacity(max.min(64));
        let count = self.words.len();
        if count == 0 {
            return found;
        }
        let (first, bit) = ((start / 64) % count, start % 64);
        // The first word comes twice: what is before the start comes last.
        for step in 0..=count {
            let at = (first + step) % count;
            let mut word = word_at(at);
            if step == 0 {
                word &= !0 << bit;
            } else if step == count {
                word &= !(!0 << bit);
            }
            while word != 0 {
                if found.len() == max {
                    return found;
                }
                found.push(at * 64 + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
        found
    }

    /// All of them, least bit first.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes(0, self.len)
    }

    /// The bytes from number `first` (a multiple of eight) on, least bit first, at most
    /// `max` of them.
    pub(crate) fn bytes(&self, first: usize, max: usize) -> Vec<u8> {
        let end = self.len.div_ceil(8).min(first / 8 + max);
        let byte = |at: usize| (self.words[at / 8] >> (at % 8 * 8)) as u8;
        (first / 8..end).map(byte).collect()
    }

    /// Sets the numbers from `first` (a multiple of eight) on to what `bytes` say.
    pub(crate) fn set_bytes(&mut self, first: usize, bytes: &[u8], mut each: impl FnMut(usize)) {
        for (at, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let number = first + at * 8 + bit;
                if self.set(number) {
                    each(number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(len: usize, numbers: &BTreeSet<usize>) -> Bits {
        let mut bits = Bits::new(len);
        for at in numbers {
            bits.set(*at);
        }
        bits
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            len in 1_usize..300,
            one in prop::collection::btree_set(0_usize..300, 0..60),
            other in prop::collection::btree_set(0_usize..300, 0..60),
            start in 0_usize..400,
        ) {
            let (a, b) = (of(len, &one), of(len, &other));
            let one: BTreeSet<usize> = one.into_iter().filter(|at| *at < len).collect();
            let other: BTreeSet<usize> = other.into_iter().filter(|at| *at < len).collect();
            prop_assert_eq!(a.ones(), one.len());
            let without: BTreeSet<usize> = a.without(&b, start, 1000).into_iter().collect();
            prop_assert_eq!(&without, &one.difference(&other).copied().collect());
            prop_assert_eq!(a.exceeds(&b), !without.is_empty());
            let lacking: BTreeSet<usize> = a.lacking(&b, start, 1000).into_iter().collect();
            let neither = (0..len).filter(|at| !one.contains(at) && !other.contains(at));
            prop_assert_eq!(lacking, neither.collect());
            let mut copy = Bits::new(len);
            copy.set_bytes(0, &a.bytes(0, 8), |_| {});
            copy.set_bytes(64, &a.bytes(64, 1000), |_| {});
            prop_assert_eq!(&copy, &a);
            for at in &one {
                prop_assert!(copy.clear(*at) && !copy.clear(*at));
            }
            prop_assert_eq!(copy.ones(), 0);
        }
    }
}
