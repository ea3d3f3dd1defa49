//! Putting, committing, reading and collecting at the same time.

use std::{
    collections::HashSet,
    io,
    io::IoSlice,
    ops::ControlFlow,
    sync::{
        Arc, Barrier, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_store::{
    ChunkStore, PACKS_IN_FLIGHT_MAX, PutOutcome,
    disk::SimDisk,
    objects::{MemoryObjects, ObjectInfo, Objects},
};

use crate::support::{assert_reads, frame, id, objects_on, open, put, raw};

#[test]
fn a_chunk_is_stored_once_however_many_put_it() {
    let store = open(&(Arc::new(MemoryObjects::new()) as Arc<dyn Objects>));
    let start = Barrier::new(4);
    let stored = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for number in 0..50 {
                    if put(&store, number).unwrap() == PutOutcome::Stored {
                        stored.fetch_add(1, Ordering::Relaxed);
                    }
                    assert_reads(&store, [number]);
                }
                store.flush().unwrap();
            });
        }
    });
    assert_eq!(stored.into_inner(), 50);
    assert_eq!(store.stats().chunks, 50);
    assert_reads(&store, 0..50);
}

/// A commit that fails so often would never end.
const COMMIT_TRIES_MAX: u32 = 1000;
const COMMITTERS: u64 = 3;

/// The versions that a catalog would hold: sets of chunks that must read.
#[derive(Default)]
struct Catalog {
    versions: Mutex<Vec<Vec<u64>>>,
}

impl Catalog {
    fn mark(&self) -> HashSet<ChunkId> {
        let versions = self.versions.lock().unwrap();
        versions
            .iter()
            .flatten()
            .map(|number| id(*number))
            .collect()
    }

    /// Puts and commits a version as the daemon does: what the store lacks is
    /// sent, and what was collected in between is sent again.
    fn commit(&self, store: &ChunkStore, version: Vec<u64>) {
        for _ in 0..COMMIT_TRIES_MAX {
            for number in &version {
                if !store.contains(id(*number)) {
                    store.put(&frame(*number)).unwrap();
                }
            }
            store.flush().unwrap();
            let hold = store.hold();
            if version.iter().all(|number| store.contains(id(*number))) {
                self.versions.lock().unwrap().push(version);
                return;
            }
            drop(hold);
        }
        panic!("chunks are collected faster than they are committed");
    }
}

#[test]
fn commits_and_collections_race_and_no_version_loses_a_chunk() {
    let disk = SimDisk::new();
    let store = open(&objects_on(Arc::new(disk.clone())));
    let catalog = Catalog::default();
    let done = AtomicBool::new(false);
    let start = Barrier::new(COMMITTERS as usize + 1);
    std::thread::scope(|scope| {
        let committers: Vec<_> = (0..COMMITTERS)
            .map(|thread| {
                let (store, catalog, start) = (&store, &catalog, &start);
                scope.spawn(move || {
                    start.wait();
                    for round in 0..40 {
                        // Versions share chunks with each other, and with
                        // garbage of versions that were deleted.
                        let first = (thread * 7 + round * 11) % 90;
                        catalog.commit(store, (first..first + 8).collect());
                        if round % 2 == 1 {
                            let mut versions = catalog.versions.lock().unwrap();
                            versions.remove(0);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            // The first collection is under way before the first commit.
            let mut collection = store.begin_collection().unwrap();
            start.wait();
            loop {
                let mark = catalog.mark();
                let go_on = &mut |_: &_| ControlFlow::Continue(());
                collection.sweep(&mark, &[].into(), go_on).unwrap();
                if done.load(Ordering::Relaxed) {
                    break;
                }
                collection = store.begin_collection().unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The lock keeps the version from being deleted meanwhile.
                let versions = catalog.versions.lock().unwrap();
                for number in versions.last().into_iter().flatten() {
                    assert_eq!(store.read(id(*number)).unwrap(), raw(*number));
                }
            }
        });
        let results: Vec<_> = committers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    let versions = catalog.versions.into_inner().unwrap();
    assert_eq!(versions.len(), 60);
    assert_reads(&store, versions.iter().flatten().copied());
    let crashed = open(&objects_on(Arc::new(disk.crash(1))));
    assert_reads(&crashed, versions.into_iter().flatten());
}

/// Objects whose puts wait until the gate opens, and which count them.
struct Gated {
    inner: MemoryObjects,
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gated {
    fn open_gate(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }

    fn wait_for_puts(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let few = |state: &mut (bool, usize)| state.1 < count;
        drop(self.changed.wait_while(state, few).unwrap());
    }
}

impl Objects for Gated {
    fn put(&self, key: &str, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.0).unwrap());
        self.inner.put(key, parts)
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: usize) -> io::Result<Bytes> {
        self.inner.get_range(key, offset_bytes, len_bytes)
    }

    fn size(&self, key: &str) -> io::Result<u64> {
        self.inner.size(key)
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        self.inner.delete(key)
    }
}

#[test]
fn slow_objects_hold_up_neither_readers_nor_other_packs() {
    let gated = Arc::new(Gated {
        inner: MemoryObjects::new(),
        state: Mutex::new((false, 0)),
        changed: Condvar::new(),
    });
    let objects: Arc<dyn Objects> = gated.clone();
    let store = open(&objects);
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    put(&store, taken.fetch_add(1, Ordering::Relaxed)).unwrap();
                }
            });
        }
        gated.wait_for_puts(PACKS_IN_FLIGHT_MAX);
        // Two packs are on their way; nobody is told of a third before one
        // of them has arrived, and all that was taken reads.
        assert!(store.stats().unstored_bytes > 0);
        let present: Vec<u64> = (0..80).filter(|n| store.contains(id(*n))).collect();
        assert!(!present.is_empty() && present.len() < 80);
        assert_reads(&store, present);
        assert_eq!(gated.state.lock().unwrap().1, PACKS_IN_FLIGHT_MAX);
        gated.open_gate();
    });
    store.flush().unwrap();
    assert_reads(&store, 0..80);
    assert_reads(&open(&objects), 0..80);
}
