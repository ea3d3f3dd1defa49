//! What is told of what takes space.

use proptest::prelude::*;

use super::*;
use Provisioning::{Deallocated, Mapped};

/// Bytes, and what they are.
type Stretch = (u64, Provisioning);

/// First block, blocks, state.
type Told = (u64, u32, u8);

fn descriptors(reply: &Reply) -> Vec<Told> {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |all, byte| (all << 8) | u64::from(*byte))
    };
    let list = reply.data_in.get(8..).unwrap_or_default();
    list.chunks_exact(16)
        .map(|one| (number(&one[..8]), number(&one[8..12]) as u32, one[12]))
        .collect()
}

#[test]
fn stretches_become_blocks() {
    let all = ByteRange::new(0, 100 * 512);
    let from = ByteRange::new(10 * 512, 90 * 512);
    #[rustfmt::skip]
    let cases: [(ByteRange, u32, &[Stretch], &[Told]); 8] = [
        (all, 4096, &[(51_200, Mapped)], &[(0, 100, 0)]),
        (all, 4096, &[], &[(0, 100, 0)]),
        (all, 4096, &[(512, Mapped), (512, Mapped), (50_176, Deallocated)], &[(0, 2, 0), (2, 98, 1)]),
        // Only one has room.
        (all, 24, &[(512, Mapped), (50_688, Deallocated)], &[(0, 1, 0)]),
        (from, 4096, &[(512, Deallocated)], &[(10, 1, 1), (11, 89, 0)]),
        // A block that is mapped in part.
        (all, 4096, &[(600, Deallocated), (100, Mapped), (u64::MAX, Deallocated)], &[(0, 1, 1), (1, 1, 0), (2, 98, 1)]),
        (all, 4096, &[(600, Mapped), (200, Deallocated), (300, Mapped)], &[(0, 100, 0)]),
        (all, 20, &[], &[]),
    ];
    for (range, allocation, stretches, expected) in cases {
        let status = LbaStatus::new(range, 512, allocation);
        let reply = status.reply(stretches.iter().copied());
        assert_eq!(descriptors(&reply), expected, "{stretches:?}");
    }
}

#[test]
fn a_stretch_longer_than_a_number_is_told_in_parts() {
    let blocks = (1_u64 << 33) + 5;
    let status = LbaStatus::new(ByteRange::new(0, blocks * 512), 512, 4096);
    let reply = status.reply([(blocks * 512, Deallocated)]);
    let max = u32::MAX;
    assert_eq!(
        descriptors(&reply),
        [
            (0, max, 1),
            (max.into(), max, 1),
            (2 * u64::from(max), 7, 1)
        ]
    );
}

proptest! {
    #[test]
    fn descriptors_follow_one_another(
        stretches in prop::collection::vec((0..5000_u64, any::<bool>()), 0..50),
        first in 0..50_u64,
        allocation in 0..600_u32,
    ) {
        let range = ByteRange::new(first * 512, (100 - first) * 512);
        let status = LbaStatus::new(range, 512, allocation);
        let stretches = stretches.iter().map(|(len, mapped)| {
            (*len, if *mapped { Mapped } else { Deallocated })
        });
        let reply = status.reply(stretches);
        prop_assert!(reply.data_in.len() <= allocation as usize);
        let mut at = first;
        for (lba, blocks, _) in descriptors(&reply) {
            prop_assert_eq!(lba, at);
            prop_assert!(blocks > 0);
            at += u64::from(blocks);
        }
        prop_assert!(at <= 100);
    }
}
