//! How many machines hold the chunk of a version that the fewest hold.

use std::{sync::Arc, time::Instant};

use rootstock_api::swarm::LiveCopies;
use rootstock_core::Digest;

use super::{Bits, MEMBERS_MAX, Tracker};

/// Bits of the largest count.
const PLANES: usize = (MEMBERS_MAX.ilog2() + 1) as usize;

/// Who holds a version, taken out of the tracker so that counting holds nobody up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holders {
    machines: u32,
    /// Those that hold all of it.
    whole: u32,
    bitmaps: Vec<Arc<[u8]>>,
}

impl Tracker {
    /// The members that hold some of a version and serve it to others.
    pub(crate) fn holders(&self, version: Digest, now: Instant) -> Holders {
        let mut holders = Holders::default();
        for (id, member) in &self.members {
            let serves = member.address.is_some()
                && member.is_there(now)
                && self.liars.left_out(*id, now).is_none();
            let holding = member.holdings.iter().find(|one| one.version == version);
            let Some(holding) = holding.filter(|one| serves && one.held_chunks > 0) else {
                continue;
            };
            holders.machines += 1;
            match &holding.bits {
                Bits::All => holders.whole += 1,
                Bits::Some(bytes) => holders.bitmaps.push(Arc::clone(bytes)),
                Bits::Unknown => {}
            }
        }
        holders
    }
}

impl Holders {
    /// Whether nobody holds any of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.machines == 0
    }

    /// How many copies there are of the rarest of this many chunks; none when nobody
    /// holds any of them.
    pub(crate) fn copies(&self, count: u32) -> Option<LiveCopies> {
        (!self.is_empty()).then(|| LiveCopies {
            rarest_count: self.whole + rarest(count, &self.bitmaps),
            machine_count: self.machines,
        })
    }
}

/// The fewest bitmaps, of at most [`MEMBERS_MAX`], that have one and the same of `count`
/// bits. Words of 64 bits are counted side by side: plane `k` has bit `k` of each count.
fn rarest(count: u32, bitmaps: &[Arc<[u8]>]) -> u32 {
    let words = (count as usize).div_ceil(64);
    let in_word = |word: usize| {
        let mut planes = [0_u64; PLANES];
        for bitmap in bitmaps {
            add(&mut planes, word_of(bitmap, word));
        }
        let bits = (count as usize - word * 64).min(64);
        least(&planes, u64::MAX >> (64 - bits))
    };
    (0..words).map(in_word).min().unwrap_or(0)
}

/// Adds one to the counts of the bits that are set.
fn add(planes: &mut [u64; PLANES], bits: u64) {
    let mut carry = bits;
    for plane in planes {
        (*plane, carry) = (*plane ^ carry, *plane & carry);
        if carry == 0 {
            return;
        }
    }
}

/// The least count of those bits.
fn least(planes: &[u64; PLANES], bits: u64) -> u32 {
    let mut left = bits;
    let mut least = 0;
    for (plane, set) in planes.iter().enumerate().rev() {
        match left & !set {
            0 => least |= 1 << plane,
            zeros => left = zeros,
        }
    }
    least
}

fn word_of(bitmap: &[u8], word: usize) -> u64 {
    let mut bytes = [0; 8];
    let rest = bitmap.get(word * 8..).unwrap_or_default();
    let len_bytes = rest.len().min(8);
    bytes[..len_bytes].copy_from_slice(&rest[..len_bytes]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_many_as_there_can_be_are_counted() {
        let bitmap: Arc<[u8]> = vec![0xff, 0x01].into();
        let bitmaps = vec![bitmap; MEMBERS_MAX];
        assert_eq!(rarest(9, &bitmaps), MEMBERS_MAX as u32);
        assert_eq!(rarest(10, &bitmaps), 0);
        assert_eq!(rarest(0, &bitmaps), 0);
        assert_eq!(rarest(9, &[]), 0);
    }

    proptest! {
        #[test]
        fn the_rarest_is_what_one_finds_bit_by_bit(
            count in 1_u32..200,
            bitmaps in prop::collection::vec(prop::collection::vec(any::<u8>(), 25), 0..40),
        ) {
            let bitmaps: Vec<Arc<[u8]>> = bitmaps.into_iter().map(Arc::from).collect();
            let has = |bitmap: &[u8], bit: usize| bitmap[bit / 8] >> (bit % 8) & 1 == 1;
            let holders = |bit: u32| bitmaps.iter().filter(|b| has(b, bit as usize)).count();
            let expected = (0..count).map(holders).min();
            prop_assert_eq!(Some(rarest(count, &bitmaps) as usize), expected);
        }
    }
}
