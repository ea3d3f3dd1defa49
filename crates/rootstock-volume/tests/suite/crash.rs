//! The power cut at every operation of a script, and a disk that lies about syncs.

use std::{io, io::IoSlice, os::fd::BorrowedFd, sync::Arc};

use rootstock_core::ByteRange;
use rootstock_store::disk::{Disk, DiskFile, Fault, SimDisk};
use rootstock_volume::{OpenError, OverlayOptions};

use crate::bench_disk::{BLOCK, Setup, Step, arc, pattern, read_all};

fn setup() -> Setup {
    Setup {
        base: pattern(5, 12 * BLOCK),
        size_bytes: 16 * BLOCK as u64,
        options: OverlayOptions {
            checkpoint_bytes: 1 << 30,
            // Every other flush or so writes a new log.
            log_bytes_min: 500,
        },
    }
}

fn script() -> Vec<Step> {
    let write = |block: usize, blocks: usize, seed| Step::Write {
        offset: block * BLOCK,
        len: blocks * BLOCK,
        seed,
    };
    let mut steps = vec![
        write(0, 4, 1),
        write(9, 2, 2),
        Step::Flush,
        write(1, 2, 3),
        Step::Write {
            offset: 5000,
            len: 9000,
            seed: 4,
        },
        write(1, 1, 5),
        Step::Flush,
        Step::Discard {
            offset: 0,
            len: 3 * BLOCK,
        },
        write(11, 4, 6),
        Step::Flush,
        Step::Zero {
            offset: 9 * BLOCK + 100,
            len: 2 * BLOCK,
            allocate: false,
        },
        write(2, 3, 7),
        Step::Flush,
        Step::Grow {
            bytes: 3 * BLOCK as u64,
        },
        write(15, 4, 8),
        Step::Flush,
        Step::Reset,
        write(3, 2, 9),
        Step::Flush,
    ];
    for seed in 20..26 {
        steps.extend([write(seed as usize % 7, 2, seed), Step::Flush]);
    }
    steps
}

/// Runs the script until it fails; gives the states that may be on the disk, none
/// when the volume may not be there yet.
fn run(setup: &Setup, disk: Arc<dyn Disk>) -> Vec<Vec<u8>> {
    let mut now = setup.first();
    let Ok(volume) = setup.create(disk) else {
        return Vec::new();
    };
    let mut durable = vec![now.clone()];
    for step in script() {
        let step = step.within(now.len());
        now = step.apply(&setup.base, &now);
        if step.run(&volume).is_err() {
            if step.is_durable() {
                durable.push(now);
            }
            break;
        }
        if step.is_durable() {
            durable = vec![now.clone()];
        }
    }
    durable
}

/// What is wrong with what a crash left, if anything is.
fn judge(setup: &Setup, crashed: SimDisk, durable: &[Vec<u8>]) -> Result<(), String> {
    match setup.open(&arc(crashed)) {
        Ok(volume) => {
            let mut out = rootstock_volume::Segments::new();
            let len = rootstock_volume::BlockDevice::size_bytes(&volume) as u32;
            rootstock_volume::BlockDevice::read(&volume, 0, len, &mut out)
                .map_err(|error| error.to_string())?;
            let found = out.to_vec();
            let expected = durable.contains(&found) || durable.is_empty() && found == setup.first();
            expected.then_some(()).ok_or_else(|| "a mix".to_owned())
        }
        Err(OpenError::NotAVolume { .. } | OpenError::Io { .. }) if durable.is_empty() => {
            // It can be made after all.
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn every_cut_leaves_a_flushed_state() {
    let setup = setup();
    let whole = SimDisk::new();
    run(&setup, Arc::new(whole.clone()));
    let operations = whole.operations();
    assert!(operations > 80, "the script does much: {operations}");
    assert_eq!(
        read_all(&setup.open(&arc(whole)).expect("opens")).len(),
        19 * BLOCK
    );
    for nth in 0..operations {
        let disk = SimDisk::new();
        disk.fail_at(nth, Fault::PowerCut);
        let durable = run(&setup, Arc::new(disk.clone()));
        for seed in 0..12 {
            let crashed = disk.crash(seed);
            if let Err(what) = judge(&setup, crashed.crash(0), &durable) {
                panic!("operation {nth}, seed {seed}: {what}");
            }
            // A crash while the crash is mended changes nothing.
            let again = disk.crash(seed);
            again.fail_at(seed % 3, Fault::PowerCut);
            let _ = setup.open(&arc(again.clone()));
            if let Err(what) = judge(&setup, again.crash(seed + 1), &durable) {
                panic!("operation {nth}, seed {seed}, second crash: {what}");
            }
        }
        if durable.is_empty() {
            let disk = disk.crash(nth);
            match setup.create(Arc::new(disk)) {
                Ok(volume) => assert_eq!(read_all(&volume), setup.first()),
                Err(error) => assert!(matches!(error, OpenError::Exists { .. }), "{error}"),
            }
        }
    }
}

/// A disk that says it has synced and has not.
struct Liar(SimDisk);

struct LyingFile(Box<dyn DiskFile>);

impl Disk for Liar {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LyingFile(self.0.create(path)?)))
    }
    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LyingFile(self.0.open(path)?)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        self.0.remove_dir(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn write_vectored_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write_vectored_at(offset, parts)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.0.punch(range)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_disk_that_ignores_syncs_is_found_out() {
    let setup = setup();
    let disk = SimDisk::new();
    let durable = run(&setup, Arc::new(Liar(disk.clone())));
    let caught = (0..20)
        .filter(|seed| judge(&setup, disk.crash(*seed), &durable).is_err())
        .count();
    assert!(caught > 15, "only {caught} of 20 crashes were noticed");
}
