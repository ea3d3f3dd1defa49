//! Many threads on one volume: no torn block, no lost byte, no stuck flush.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rootstock_store::disk::{Disk, RealDisk};
use rootstock_volume::{BlockDevice, OverlayOptions, Segments};

use crate::bench_disk::{BLOCK, Setup, pattern, read_all};

const BLOCKS: usize = 16;
const ROUNDS: u64 = 3000;

/// A block that says which write it is of, in every word.
fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK / 8)
}

fn stamp_of(block: &[u8]) -> u64 {
    let stamp = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    assert!(block == block_of(stamp), "a block is a mix of two writes");
    stamp
}

#[test]
fn readers_writers_flushes_and_views() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir.path()).expect("a disk"));
    let setup = Setup {
        base: vec![0; BLOCKS * BLOCK],
        size_bytes: (BLOCKS * BLOCK) as u64,
        options: OverlayOptions {
            checkpoint_bytes: 1 << 20,
            log_bytes_min: 4096,
        },
    };
    let volume = setup.create(disk.clone()).expect("a volume");
    let done = AtomicBool::new(false);
    // The newest stamp whose write has returned, for each block: each block has one
    // writer, so that what a reader sees may never go back.
    let written: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (volume, written) = (&volume, &written);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        let block = writer * 4 + (round as usize * 7 + writer) % 4;
                        let data = block_of(round);
                        volume
                            .write((block * BLOCK) as u64, &data)
                            .expect("written");
                        written[block].store(round, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                let mut out = Segments::new();
                while !done.load(Ordering::SeqCst) {
                    let least: Vec<u64> = written
                        .iter()
                        .map(|stamp| stamp.load(Ordering::SeqCst))
                        .collect();
                    out.clear();
                    volume
                        .read(0, (BLOCKS * BLOCK) as u32, &mut out)
                        .expect("readable");
                    for (block, least) in out.to_vec().chunks(BLOCK).zip(least) {
                        assert!(stamp_of(block) >= least, "a reader saw an old block");
                    }
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let view = volume.snapshot_view().expect("a view");
                let first = read_all(&view);
                for block in first.chunks(BLOCK) {
                    stamp_of(block);
                }
                assert!(first == read_all(&view), "a view changed");
                volume.discard(0, 0).expect("nothing to discard");
            }
        });
        for writer in writers {
            writer.join().expect("a writer");
        }
        done.store(true, Ordering::SeqCst);
    });
    let last = read_all(&volume);
    assert_eq!(volume.stats().used_bytes % BLOCK as u64, 0);
    volume.flush().expect("flushed");
    assert!(
        volume.stats().used_bytes <= (BLOCKS * BLOCK) as u64,
        "slots leaked"
    );
    drop(volume);
    assert!(read_all(&setup.open(&disk).expect("opens")) == last);
}

#[test]
fn writes_to_parts_of_one_block_all_stay() {
    let disk = Arc::new(rootstock_store::disk::SimDisk::new());
    let setup = Setup {
        base: pattern(1, 4 * BLOCK),
        size_bytes: (4 * BLOCK) as u64,
        options: OverlayOptions::default(),
    };
    let volume = setup.create(disk).expect("a volume");
    let parts = 8;
    let part_bytes = 2 * BLOCK / parts;
    thread::scope(|scope| {
        for part in 0..parts {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..200_u8 {
                    let offset = BLOCK + part * part_bytes;
                    volume
                        .write(offset as u64, &vec![round; part_bytes])
                        .expect("written");
                }
            });
        }
    });
    let mut expected = setup.first();
    expected[BLOCK..3 * BLOCK].fill(199);
    assert!(read_all(&volume) == expected, "a part was lost");
}
