//! Many threads on one volume: no torn block, no lost byte, no stuck flush.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rootstock_store::disk::{Disk, RealDisk};
use rootstock_volume::{
    Base, BlockDevice, BlockError, OverlayOptions, Segments, StatusExtent, Volume,
};

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

/// A disk far away: while it is read, somebody writes to the second block of the volume
/// that lies above it.
#[derive(Default)]
struct Far {
    above: OnceLock<Weak<Volume>>,
    stamp: AtomicU64,
}

impl BlockDevice for Far {
    fn size_bytes(&self) -> u64 {
        (2 * BLOCK) as u64
    }

    fn read(&self, offset: u64, len: u32, out: &mut Segments) -> Result<(), BlockError> {
        assert!(
            offset + u64::from(len) <= BLOCK as u64,
            "the second block is not asked for: it was written"
        );
        if let Some(volume) = self.above.get().and_then(Weak::upgrade) {
            let stamp = self.stamp.fetch_add(1, Ordering::SeqCst) + 1;
            volume.write(BLOCK as u64, &block_of(stamp))?;
        }
        out.push(vec![0; len as usize].into());
        Ok(())
    }

    fn try_read(&self, _: u64, _: u32, _: &mut Segments) -> Result<bool, BlockError> {
        Ok(false)
    }

    fn status(&self, _: u64, len_bytes: u64, _: usize) -> Result<Vec<StatusExtent>, BlockError> {
        Ok(vec![StatusExtent {
            len_bytes,
            hole: false,
            zero: false,
        }])
    }

    fn prefetch(&self, _: u64, _: u64) {}
}

#[test]
fn a_reader_that_loses_every_race_keeps_nobody_from_writing() {
    let disk = Arc::new(rootstock_store::disk::SimDisk::new());
    let far = Arc::new(Far::default());
    let base = Base {
        device: far.clone(),
        id: rootstock_core::Digest::of(b"far"),
    };
    let size = far.size_bytes();
    let volume = Volume::create(disk, "v", base, size, OverlayOptions::default());
    let volume = Arc::new(volume.expect("a volume"));
    volume.write(BLOCK as u64, &block_of(9)).expect("written");
    far.above.set(Arc::downgrade(&volume)).expect("is first");
    // Each read of the base changes what the reader looked up before it.
    let read = read_all(&*volume);
    let last = far.stamp.load(Ordering::SeqCst);
    assert!(last > 3, "it lost {last} races");
    assert_eq!(stamp_of(&read[..BLOCK]), 0);
    assert_eq!(stamp_of(&read[BLOCK..]), last);
}
