//! Runs of free blocks in a bitmap, as ext and NTFS have them.

/// Calls `run(start, end)` for each run of zero bits among the first `bits`, which the
/// bitmap has to have, in whole words.
pub(super) fn zero_runs(bitmap: &[u8], bits: u64, mut run: impl FnMut(u64, u64)) {
    let (words, _) = bitmap.as_chunks::<8>();
    let bits_there = words.len() as u64 * 64;
    debug_assert!(bits <= bits_there, "{bits} bits in {bits_there}");
    // What is not there is not free.
    let bits = bits.min(bits_there);
    let mut start = None;
    for (base, word) in (0..bits).step_by(64).zip(words) {
        let word = u64::from_le_bytes(*word);
        let mut bit = 0;
        // Steps from one change to the next, not from bit to bit.
        while bit < 64 {
            let rest = word >> bit;
            let ones = u64::from(rest.trailing_ones());
            if ones > 0 {
                if let Some(start) = start.take().filter(|start| *start < bits) {
                    run(start, (base + bit).min(bits));
                }
                bit += ones;
            } else {
                start.get_or_insert(base + bit);
                bit += u64::from(rest.trailing_zeros());
            }
        }
    }
    if let Some(start) = start.filter(|start| *start < bits) {
        run(start, bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_of_zero_bits(bitmap in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 32), bits in 0_u64..=256) {
            let mut seen = vec![true; bits as usize];
            let mut last_end = None;
            zero_runs(&bitmap, bits, |start, end| {
                assert!(start < end && end <= bits && last_end.is_none_or(|last| last < start));
                last_end = Some(end);
                seen[start as usize..end as usize].fill(false);
            });
            let model: Vec<bool> = (0..bits as usize).map(|bit| bitmap[bit / 8] >> (bit % 8) & 1 == 1).collect();
            prop_assert_eq!(seen, model);
        }
    }
}
