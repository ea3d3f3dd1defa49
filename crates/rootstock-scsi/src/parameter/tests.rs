//! Which parameter lists are accepted.

use proptest::prelude::*;

use super::*;
use crate::testing::{BLOCKS, unit};

fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
    let len = 16 * descriptors.len() as u16;
    let mut list = (len + 6).to_be_bytes().to_vec();
    list.extend_from_slice(&len.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    for (lba, blocks) in descriptors {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    list
}

fn ranges(ranges: &[(u64, u64)]) -> Result<Action, Sense> {
    Ok(Action::Unmap {
        ranges: ranges
            .iter()
            .map(|(lba, blocks)| ByteRange::new(lba * 512, blocks * 512))
            .collect(),
    })
}

#[test]
fn unmap_lists() {
    let done = || Ok(Action::Done(Reply::good()));
    let mut partial = list(&[(1, 2), (3, 4)]);
    partial[3] -= 8;
    let short = &list(&[(1, 2)])[..20];
    let cases: [(&[u8], Result<Action, Sense>); 12] = [
        (&list(&[(1, 2), (8, 1)]), ranges(&[(1, 2), (8, 1)])),
        (&list(&[(1, 2), (8, 0)]), ranges(&[(1, 2)])),
        (&list(&[(BLOCKS - 2, 2)]), ranges(&[(BLOCKS - 2, 2)])),
        (&list(&[(BLOCKS - 2, 3)]), Err(Sense::LBA_OUT_OF_RANGE)),
        (&list(&[(u64::MAX, 3)]), Err(Sense::LBA_OUT_OF_RANGE)),
        (&list(&[(BLOCKS, 0)]), done()),
        (&list(&[]), done()),
        (&[0; 7], Err(Sense::PARAMETER_LIST_LENGTH)),
        (short, Err(Sense::PARAMETER_LIST_LENGTH)),
        (&partial, ranges(&[(1, 2)])),
        (&list(&[(0, 1); 257]), Err(Sense::parameter_byte(2))),
        (
            &list(&[(0, 1 << 20), (0, 1)]),
            Err(Sense::INVALID_FIELD_IN_PARAMETERS),
        ),
    ];
    for (list, expected) in cases {
        assert_eq!(unmap(&unit(), list), expected, "{list:x?}");
    }
}

#[test]
fn a_block_of_zeros_takes_no_space() {
    let range = ByteRange::new(512, 2048);
    let filled = Action::Fill {
        range,
        block: vec![7; 512],
    };
    assert_eq!(
        write_same(range, 512, &[0; 512]),
        Ok(Action::Zero { range })
    );
    assert_eq!(write_same(range, 512, &[7; 512]), Ok(filled));
    for len in [0, 511, 513] {
        assert!(write_same(range, 512, &vec![0; len]).is_err());
    }
}

proptest! {
    #[test]
    fn any_unmap_list_stays_inside(list in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Action::Unmap { ranges }) = unmap(&unit(), &list) {
            for range in ranges {
                prop_assert!(range.len > 0 && range.end() <= unit().size_bytes());
            }
        }
    }
}
