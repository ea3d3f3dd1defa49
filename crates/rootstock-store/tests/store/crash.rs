//! The power is cut at every operation of a workload, and each cut leaves
//! several states: what was flushed is there, nothing is wrong, nothing leaks.

use std::{collections::BTreeSet, io, io::IoSlice, os::fd::BorrowedFd, sync::Arc};

use rootstock_core::ByteRange;
use rootstock_store::{
    ChunkStore, CollectError, PutError, ReadError,
    disk::{Disk, DiskFile, Fault, SimDisk},
    objects::{DirectoryObjects, Objects},
};

use crate::support::{assert_reads, collect, id, live, objects_on, open, options, put, raw};

/// Numbers of all chunks that the workload knows.
const NUMBERS: u64 = 64;

/// States tried for each cut.
const SEEDS: u64 = 6;

#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Put(#[from] PutError),
    #[error(transparent)]
    Collect(#[from] CollectError),
}

/// What must be there after a crash.
#[derive(Default)]
struct Promise {
    put: BTreeSet<u64>,
    durable: BTreeSet<u64>,
}

impl Promise {
    fn put(
        &mut self,
        store: &ChunkStore,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Result<(), Stopped> {
        for number in numbers {
            put(store, number)?;
            self.put.insert(number);
        }
        Ok(())
    }

    fn flush(&mut self, store: &ChunkStore) -> Result<(), Stopped> {
        store.flush()?;
        self.durable = self.put.clone();
        Ok(())
    }

    /// Collects all but the numbers that `live` takes.
    fn collect(
        &mut self,
        store: &ChunkStore,
        is_live: impl Fn(u64) -> bool,
    ) -> Result<(), Stopped> {
        self.put.retain(|number| is_live(*number));
        self.durable.retain(|number| is_live(*number));
        collect(store, &live(self.put.iter().copied()))?;
        Ok(())
    }

    /// A life of a store: fills, small flushes, garbage, rewriting, merging,
    /// and chunks that come back after they were removed.
    fn workload(&mut self, store: &ChunkStore) -> Result<(), Stopped> {
        self.put(store, 0..3)?;
        self.flush(store)?;
        self.put(store, 3..24)?;
        self.flush(store)?;
        self.put(store, 24..26)?;
        self.collect(store, |number| number % 3 == 0 || number > 20)?;
        self.put(store, 26..30)?;
        self.flush(store)?;
        self.put(store, [1, 2, 3, 4])?;
        self.flush(store)?;
        self.collect(store, |number| number % 2 == 0)?;
        self.flush(store)?;
        self.put(store, 30..40)?;
        self.collect(store, |number| number >= 26)?;
        self.flush(store)
    }
}

/// How the store is put on the simulated disk: as it is, or on one that lies.
type Wrap = fn(SimDisk) -> Arc<dyn Disk>;

fn honest(disk: SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk)
}

/// Runs the workload with the power cut at operation `nth`, and checks what is
/// left. `Ok(false)` when the workload was over before.
fn cut_at(nth: u64, wrap: Wrap) -> Result<bool, String> {
    let disk = SimDisk::new();
    disk.fail_at(nth, Fault::PowerCut);
    let mut promise = Promise::default();
    let over = match DirectoryObjects::new(wrap(disk.clone()), "chunks") {
        Err(_) => false,
        Ok(objects) => {
            let store = open(&(Arc::new(objects) as Arc<dyn Objects>));
            promise.workload(&store).is_ok()
        }
    };
    for seed in 0..SEEDS {
        // A crash right after the crash must not matter either.
        let crashed = disk.crash(seed);
        check(&crashed, &promise).map_err(|error| format!("cut at {nth}, seed {seed}: {error}"))?;
        check(&crashed.crash(seed), &promise)
            .map_err(|error| format!("cut at {nth}, seed {seed}, twice: {error}"))?;
    }
    // The last operations may be deletions, whose errors are only logged.
    Ok(over && disk.operations() <= nth)
}

fn check(disk: &SimDisk, promise: &Promise) -> Result<(), String> {
    let objects: Arc<dyn Objects> = DirectoryObjects::new(Arc::new(disk.clone()), "chunks")
        .map(Arc::new)
        .map_err(|error| format!("objects: {error}"))?;
    let store = ChunkStore::open(Arc::clone(&objects), options()).map_err(|e| e.to_string())?;
    check_chunks(&store, promise)?;
    // Nothing is on the disk that the store does not know.
    let known: BTreeSet<String> = store
        .packs()
        .iter()
        .map(|pack| format!("chunks/{}", pack.key()))
        .collect();
    let found: BTreeSet<String> = disk.files().into_iter().collect();
    if known != found {
        return Err(format!("files {found:?}, known {known:?}"));
    }
    // And what is not needed can be had back.
    collect(&store, &live(promise.durable.iter().copied())).map_err(|e| e.to_string())?;
    check_chunks(&store, promise)?;
    if promise.durable.is_empty() && !disk.files().is_empty() {
        return Err(format!("left over: {:?}", disk.files()));
    }
    Ok(())
}

fn check_chunks(store: &ChunkStore, promise: &Promise) -> Result<(), String> {
    for number in 0..NUMBERS {
        match store.read(id(number)) {
            Ok(bytes) if bytes == raw(number) => {}
            Ok(_) => return Err(format!("chunk number {number} is wrong")),
            Err(ReadError::Missing { .. }) if !promise.durable.contains(&number) => {}
            Err(error) => return Err(format!("chunk number {number}: {error}")),
        }
    }
    Ok(())
}

/// The first cut that leaves something bad, over the whole workload.
fn cut_everywhere(wrap: Wrap) -> Result<u64, String> {
    let mut nth = 0;
    while !cut_at(nth, wrap)? {
        nth += 1;
        assert!(nth < 1000, "the workload does not end");
    }
    Ok(nth)
}

#[test]
fn every_cut_leaves_a_good_store() {
    let cuts = cut_everywhere(honest).unwrap();
    assert!(cuts > 60, "only {cuts} operations: the workload shrank");
}

#[test]
fn a_disk_that_does_not_sync_is_caught() {
    for wrap in [without_sync_data as Wrap, without_sync_dir] {
        let caught = cut_everywhere(wrap).unwrap_err();
        assert!(caught.starts_with("cut at "), "{caught}");
    }
}

#[test]
fn every_error_can_be_tried_again() {
    for fault in [Fault::NoSpace, Fault::Io] {
        let mut nth = 0;
        loop {
            let disk = SimDisk::new();
            let store = open(&objects_on(Arc::new(disk.clone())));
            let start = disk.operations();
            disk.fail_at(start + nth, fault);
            let mut promise = Promise::default();
            if promise.workload(&store).is_err() {
                // Whatever failed, all that was taken reads, and the whole
                // workload goes through now.
                assert_reads(&store, promise.put.iter().copied());
                promise.workload(&store).unwrap();
            }
            assert_reads(&store, promise.put.iter().copied());
            check(&disk.crash(nth), &promise)
                .unwrap_or_else(|error| panic!("{fault:?} at {nth}: {error}"));
            nth += 1;
            if disk.operations() <= start + nth {
                break;
            }
        }
        assert!(nth > 60, "{nth}");
    }
}

/// A disk that says it synced.
struct Liar {
    disk: SimDisk,
    skips: Skips,
}

#[derive(Clone, Copy, PartialEq)]
enum Skips {
    Data,
    Dirs,
}

fn without_sync_data(disk: SimDisk) -> Arc<dyn Disk> {
    Arc::new(Liar {
        disk,
        skips: Skips::Data,
    })
}

fn without_sync_dir(disk: SimDisk) -> Arc<dyn Disk> {
    Arc::new(Liar {
        disk,
        skips: Skips::Dirs,
    })
}

impl Liar {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        match self.skips {
            Skips::Data => Box::new(LiarFile(file)),
            Skips::Dirs => file,
        }
    }
}

impl Disk for Liar {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.create(path)?))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.open(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        match self.skips {
            Skips::Data => self.disk.sync_dir(dir),
            Skips::Dirs => Ok(()),
        }
    }
}

struct LiarFile(Box<dyn DiskFile>);

impl DiskFile for LiarFile {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset_bytes, buffer)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset_bytes, data)
    }

    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write_vectored_at(offset_bytes, parts)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.0.punch(range)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.raw_fd()
    }
}
