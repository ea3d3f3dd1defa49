//! Collections: what goes, what stays, and what may happen meanwhile.

use std::{
    collections::HashSet,
    io,
    ops::ControlFlow,
    sync::{Arc, Barrier, Mutex},
};

use rootstock_store::{
    ChunkStore, CollectError, PutError, PutOutcome,
    objects::{FaultyObjects, MemoryObjects, Objects},
};

use crate::support::{assert_reads, collect, collect_pinned, id, live, open, put, put_all};

fn setup() -> (Arc<dyn Objects>, ChunkStore) {
    let objects: Arc<dyn Objects> = Arc::new(MemoryObjects::new());
    let store = open(&objects);
    put_all(&store, 0..60);
    (objects, store)
}

fn stored_bytes(objects: &Arc<dyn Objects>) -> u64 {
    let objects = objects.list("").unwrap();
    objects.iter().map(|object| object.len_bytes).sum()
}

#[test]
fn what_nobody_needs_goes() {
    let (objects, store) = setup();
    let before = stored_bytes(&objects);
    let report = collect(&store, &live((0..60).step_by(5))).unwrap();
    assert_reads(&store, (0..60).step_by(5));
    assert!((0..60).all(|number| store.contains(id(number)) == (number % 5 == 0)));
    assert_eq!(report.chunks_removed, 48);
    let after = stored_bytes(&objects);
    assert_eq!(report.freed_bytes(), before - after);
    assert_eq!(store.stats().pack_bytes, after);
    assert!(after * 3 < before);
    assert_reads(&open(&objects), (0..60).step_by(5));

    let again = collect(&store, &live((0..60).step_by(5))).unwrap();
    assert_eq!(again.freed_bytes(), 0);
    collect(&store, &live([])).unwrap();
    assert_eq!(stored_bytes(&objects), 0);
    assert_eq!(store.stats(), open(&objects).stats());
}

#[test]
fn small_packs_are_merged() {
    let objects: Arc<dyn Objects> = Arc::new(MemoryObjects::new());
    let store = open(&objects);
    for number in 0..30 {
        put_all(&store, [number]);
    }
    assert_eq!(store.stats().packs, 30);
    collect(&store, &live(0..30)).unwrap();
    assert!(store.stats().packs < 15, "{:?}", store.stats());
    assert_reads(&store, 0..30);
    assert_reads(&open(&objects), 0..30);
}

#[test]
fn pinned_packs_stay() {
    let (objects, store) = setup();
    let pinned = store.pack_of(id(7)).unwrap();
    collect_pinned(&store, &live([]), &HashSet::from([pinned])).unwrap();
    assert_eq!(store.packs(), [pinned]);
    assert_reads(&store, [7]);
    assert_eq!(objects.list("").unwrap().len(), 1);
}

#[test]
fn what_came_after_the_beginning_stays() {
    let (_, store) = setup();
    let collection = store.begin_collection().unwrap();
    assert!(matches!(store.begin_collection(), Err(CollectError::Busy)));
    // New, present before, and asked about: none of them is in the mark.
    put_all(&store, 100..110);
    assert_eq!(put(&store, 3).unwrap(), PutOutcome::Present);
    assert!(store.contains(id(4)));
    collection
        .sweep(&live([]), &HashSet::new(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_reads(&store, (100..110).chain([3, 4]));
    assert!(!store.contains(id(50)));
    // The next one knows nothing of this.
    collect(&store, &live([])).unwrap();
    assert_eq!(store.stats().chunks, 0);
}

#[test]
fn a_collection_that_is_dropped_or_stopped_ends() {
    let (_, store) = setup();
    drop(store.begin_collection().unwrap());
    let collection = store.begin_collection().unwrap();
    let mut calls = 0;
    let report = collection
        .sweep(&live([0]), &HashSet::new(), &mut |progress| {
            calls += 1;
            assert!(progress.packs_done <= progress.packs_total);
            ControlFlow::Break(())
        })
        .unwrap();
    assert!(report.cancelled && calls == 1 && report.packs_deleted == 1);
    assert_reads(&store, [0]);
    collect(&store, &live([0])).unwrap();
    assert_eq!(store.stats().chunks, 1);
}

#[test]
fn a_hold_is_waited_for() {
    let (_, store) = setup();
    let hold = store.hold();
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| collect(&store, &live([])).unwrap());
        // Whenever the collector comes to it, nothing may go yet.
        for _ in 0..1000 {
            assert_eq!(store.stats().chunks, 60);
        }
        assert!((0..60).all(|number| store.raw_bytes(id(number)).is_some()));
        drop(hold);
        collector.join().unwrap();
    });
    assert_eq!(store.stats().chunks, 0);
}

#[test]
fn a_rest_that_cannot_be_stored_loses_nothing() {
    let faulty = Arc::new(FaultyObjects::new(Arc::new(MemoryObjects::new())));
    let objects: Arc<dyn Objects> = faulty.clone();
    let store = open(&objects);
    put_all(&store, 0..60);
    faulty.fail_put(0, io::ErrorKind::StorageFull);
    let error = collect(&store, &live((0..60).step_by(5))).unwrap_err();
    assert!(matches!(error, CollectError::Put(PutError::NoSpace { .. })));
    assert_reads(&store, (0..60).step_by(5));
    collect(&store, &live((0..60).step_by(5))).unwrap();
    assert_reads(&open(&objects), (0..60).step_by(5));
    assert_eq!(store.stats().chunks, 12);
}

#[test]
fn a_commit_under_way_is_marked() {
    let (_, store) = setup();
    let catalog = Mutex::new(live([]));
    let hold = store.hold();
    assert!(store.contains(id(5)), "asked before the collection begins");
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            start.wait();
            let collection = store.begin_collection().unwrap();
            let mark = catalog.lock().unwrap().clone();
            collection
                .sweep(&mark, &HashSet::new(), &mut |_| ControlFlow::Continue(()))
                .unwrap();
        });
        start.wait();
        // Time for a collector that does not wait.
        for _ in 0..10_000 {
            std::thread::yield_now();
        }
        catalog.lock().unwrap().insert(id(5));
        drop(hold);
        collector.join().unwrap();
    });
    assert_reads(&store, [5]);
    assert!(!store.contains(id(6)));
}
