//! The machine's disk against a plain vector of bytes.

use proptest::prelude::*;
use rootstock_volume::{BlockDevice, BlockError, Segments, Zero};

use super::CowDisk;
use crate::overlay::{BLOCK, Overlay, memory::MemorySlots};
use crate::testing::PlainDisk;

/// Ends within a block, as a disk of 512-byte sectors may.
const SIZE: usize = 10 * BLOCK + 512;

fn disk(slots_max: u32) -> CowDisk<PlainDisk> {
    let base = PlainDisk::noise(SIZE);
    let overlay = Overlay::new(Box::new(MemorySlots::new()), slots_max, 1 << 20);
    CowDisk::new(base, overlay)
}

fn read(disk: &impl BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut out = Segments::new();
    disk.read(offset, len as u32, &mut out).expect("readable");
    out.to_vec()
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Discard(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..3 * BLOCK).prop_map(|(at, len)| (at, len.min(SIZE - at)));
    prop_oneof![
        (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        range().prop_map(|(at, len)| Step::Zero(at, len)),
        range().prop_map(|(at, len)| Step::Discard(at, len)),
    ]
}

proptest! {
    #[test]
    fn behaves_as_bytes(steps in prop::collection::vec(step(), 0..30)) {
        let disk = disk(64);
        let mut model = read(&disk, 0, SIZE);
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    disk.write(at as u64, &vec![byte; len]).expect("room");
                    model[at..at + len].fill(byte);
                }
                Step::Zero(at, len) => {
                    disk.write_zeroes(at as u64, len as u64, Zero::MayPunch).expect("room");
                    model[at..at + len].fill(0);
                }
                Step::Discard(at, len) => {
                    disk.discard(at as u64, len as u64).expect("room");
                    let first = at.next_multiple_of(BLOCK);
                    let last = (at + len) / BLOCK * BLOCK;
                    if first < last { model[first..last].fill(0) }
                }
            }
            prop_assert_eq!(&read(&disk, 0, SIZE), &model);
            let mut out = Segments::new();
            prop_assert!(disk.try_read(700, 9000, &mut out).expect("in range"));
            prop_assert_eq!(&out.to_vec()[..], &model[700..9700]);
        }
    }
}

#[test]
fn a_full_overlay_says_so_and_stays_readable() {
    let disk = disk(2);
    let before = read(&disk, 0, SIZE);
    disk.write(0, &vec![1; 2 * BLOCK]).expect("two fit");
    for (offset, len) in [(2 * BLOCK, BLOCK), (2 * BLOCK + 5, 7)] {
        let error = disk.write(offset as u64, &vec![2; len]);
        assert!(matches!(error, Err(BlockError::NoSpace { .. })));
    }
    assert_eq!(disk.fill().percent, 100);
    assert_eq!(read(&disk, 0, 2 * BLOCK), vec![1; 2 * BLOCK]);
    assert_eq!(
        read(&disk, 2 * BLOCK as u64, SIZE - 2 * BLOCK),
        before[2 * BLOCK..]
    );
    // What is overwritten or given back needs no more room.
    disk.write(9, &[3; 100]).expect("in place");
    disk.discard(0, BLOCK as u64).expect("given back");
    disk.write(5 * BLOCK as u64, &vec![4; BLOCK])
        .expect("room again");
}

#[test]
fn ranges_past_the_end_are_refused() {
    let disk = disk(8);
    let mut out = Segments::new();
    let past = SIZE as u64 - 1;
    assert!(disk.read(past, 2, &mut out).is_err());
    assert!(disk.try_read(past, 2, &mut out).is_err());
    assert!(disk.write(past, &[0; 2]).is_err());
    assert!(disk.discard(u64::MAX, 2).is_err());
    assert!(out.is_empty());
}
