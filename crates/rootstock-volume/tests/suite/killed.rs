//! The process killed at every operation of a script: what was answered is there, flushed or not.

use std::sync::Arc;

use rootstock_store::disk::{Disk, Fault, SimDisk};
use rootstock_volume::OverlayOptions;

use crate::bench_disk::{BLOCK, Setup, Step, arc, pattern, read_all};

fn setup() -> Setup {
    Setup {
        base: pattern(5, 12 * BLOCK),
        size_bytes: 16 * BLOCK as u64,
        options: OverlayOptions {
            checkpoint_bytes: 1 << 30,
            log_bytes_min: 500,
        },
    }
}

fn write(block: usize, blocks: usize, seed: u64) -> Step {
    Step::Write {
        offset: block * BLOCK,
        len: blocks * BLOCK,
        seed,
    }
}

/// Slots are used again and again between few flushes.
fn script() -> Vec<Step> {
    let mut steps = Vec::new();
    for round in 0..4_usize {
        for seed in 0..6_usize {
            let at = (seed * 5 + round) % 11;
            steps.push(write(at, 1 + seed % 4, (10 * round + seed) as u64));
        }
        steps.push(Step::Discard {
            offset: (round + 2) * BLOCK,
            len: 3 * BLOCK,
        });
        steps.push(write(round + 3, 2, 70 + round as u64));
        if round == 1 {
            steps.extend([
                Step::Grow {
                    bytes: 3 * BLOCK as u64,
                },
                write(14, 4, 90),
            ]);
        }
        if round == 2 {
            steps.extend([Step::Reset, write(1, 3, 91)]);
        } else {
            steps.push(Step::Flush);
        }
        steps.push(write(round, 2, 80 + round as u64));
    }
    steps
}

/// Runs `steps` on an opened volume until one fails; gives what is answered, and what
/// would be if that one had been.
fn go_on(
    setup: &Setup,
    disk: &SimDisk,
    volume: &rootstock_volume::Volume,
    now: Vec<u8>,
    steps: &[Step],
) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut now = now;
    for step in steps {
        let step = step.clone().within(now.len());
        let next = step.apply(&setup.base, &now);
        // Who is killed does not answer.
        if step.run(volume).is_err() || disk.list("").is_err() {
            return (now, Some(next));
        }
        now = next;
    }
    (now, None)
}

/// Each block is as answered, or as the write that was not answered would have it.
fn is_between(found: &[u8], answered: &[u8], next: Option<&Vec<u8>>) -> bool {
    let next = next.map_or(answered, Vec::as_slice);
    let blocks = found.chunks(BLOCK).enumerate();
    let of = |of: &'_ [u8], at: usize| of.chunks(BLOCK).nth(at).map(<[u8]>::to_vec);
    (found.len() == answered.len() || found.len() == next.len())
        && blocks.into_iter().all(|(at, block)| {
            let block = Some(block.to_vec());
            let zeros = Some(vec![0; BLOCK]);
            block == of(answered, at)
                || block == of(next, at)
                || (at * BLOCK >= answered.len() && block == zeros)
        })
}

/// Which blocks, for messages.
fn differing(found: &[u8], expected: &[u8]) -> Vec<usize> {
    let pairs = found.chunks(BLOCK).zip(expected.chunks(BLOCK)).enumerate();
    pairs
        .filter(|(_, (one, other))| one != other)
        .map(|(at, _)| at)
        .collect()
}

#[test]
fn every_kill_leaves_what_was_answered() {
    let setup = setup();
    let whole = SimDisk::new();
    let volume = setup.create(Arc::new(whole.clone())).expect("made");
    let made = whole.operations();
    let (expected, failed) = go_on(&setup, &whole, &volume, setup.first(), &script());
    assert!(failed.is_none());
    let operations = whole.operations();
    drop(volume);
    let again = setup.open(&arc(whole.killed())).expect("opens");
    assert_eq!(read_all(&again), expected);
    for nth in made..operations {
        let disk = SimDisk::new();
        disk.fail_at(nth, Fault::PowerCut);
        let volume = setup.create(Arc::new(disk.clone())).expect("made");
        let (answered, next) = go_on(&setup, &disk, &volume, setup.first(), &script());
        drop(volume);
        // Killed again while it is opened, at each of the operations of that.
        for opening in 0..8 {
            let disk = disk.killed();
            disk.fail_at(opening, Fault::PowerCut);
            let opened = setup.open(&arc(disk.clone()));
            let disk = disk.killed();
            drop(opened);
            let volume = setup.open(&arc(disk.clone())).expect("opens");
            let found = read_all(&volume);
            assert!(
                is_between(&found, &answered, next.as_ref()),
                "operation {nth}, opening {opening}: {:?}",
                differing(&found, &answered)
            );
            // It goes on from there, and is killed once more.
            let (expected, failed) = go_on(&setup, &disk, &volume, found, &script()[..9]);
            assert!(failed.is_none());
            let volume = setup.open(&arc(disk.killed())).expect("opens");
            assert!(
                read_all(&volume) == expected,
                "operation {nth}, killed later"
            );
        }
        // The power cut is another matter: only what was flushed is sure.
        drop(setup.open(&arc(disk.crash(nth))).expect("opens"));
    }
}

/// What a failed flush leaves is not taken for more than it is.
#[test]
fn a_kill_after_a_failed_flush_leaves_a_volume_that_opens() {
    let setup = setup();
    let whole = SimDisk::new();
    setup.create(Arc::new(whole.clone())).expect("made");
    let made = whole.operations();
    for nth in 0..60 {
        let disk = SimDisk::new();
        disk.fail_at(made + nth, Fault::Io);
        let volume = setup.create(Arc::new(disk.clone())).expect("made");
        for step in script() {
            let step = step.within(setup.size_bytes as usize);
            // One of them fails.
            let _ = step.run(&volume);
        }
        rootstock_volume::BlockDevice::flush(&volume).expect("the disk is well again");
        let flushed = read_all(&volume);
        drop(volume);
        let volume = setup.open(&arc(disk.killed())).expect("opens");
        assert!(read_all(&volume) == flushed, "operation {nth}");
    }
}
