//! Putting and reading, step by step.

use std::{io, sync::Arc};

use rootstock_core::{ChunkId, FrameId};
use rootstock_image::frame::Codec;
use rootstock_store::{
    ChunkStore, OpenError, PutError, PutOutcome, ReadError, StoreOptions,
    disk::{RealDisk, SimDisk},
    objects::{FaultyObjects, MemoryObjects, Objects},
};

use crate::support::{
    PACK_BYTES, assert_reads, frame, id, objects_on, open, open_on, options, put, put_all, raw,
};

fn memory() -> Arc<dyn Objects> {
    Arc::new(MemoryObjects::new())
}

#[test]
fn a_chunk_is_read_at_once_and_after_a_restart() {
    let objects = memory();
    let store = open(&objects);
    assert_eq!(put(&store, 1).unwrap(), PutOutcome::Stored);
    assert_eq!(put(&store, 1).unwrap(), PutOutcome::Present);
    assert!(store.contains(id(1)) && !store.contains(id(2)));
    assert_reads(&store, [1]);
    assert_eq!(store.pack_of(id(1)), None, "still in memory");
    assert!(open(&objects).read(id(1)).is_err(), "not durable yet");

    store.flush().unwrap();
    assert!(store.pack_of(id(1)).is_some());
    for store in [store, open(&objects)] {
        assert_reads(&store, [1]);
        let stored = store.frame(id(1)).unwrap();
        assert_eq!(stored.bytes, frame(1).bytes);
        assert_eq!(stored.frame_id, FrameId::of(&stored.bytes));
        assert_eq!(store.raw_bytes(id(1)), Some(raw(1).len() as u32));
        assert!(matches!(store.read(id(2)), Err(ReadError::Missing { chunk }) if chunk == id(2)));
    }
}

#[test]
fn on_a_real_disk_too() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()).unwrap());
    let objects = objects_on(disk);
    let store = open(&objects);
    put_all(&store, 0..200);
    let many = open(&objects);
    assert_reads(&many, 0..200);
    assert_eq!(many.stats(), store.stats());
    assert!(many.stats().packs > 20);
    let scrubbed: u64 = many
        .packs()
        .into_iter()
        .map(|pack| many.scrub_pack(pack).unwrap().chunks)
        .sum();
    assert_eq!(scrubbed, 200);
}

#[test]
fn zeros_are_a_marker() {
    let store = open(&memory());
    assert_eq!(store.put_raw(&[0; 4096]).unwrap(), ChunkId::ZERO);
    assert!(store.contains(ChunkId::ZERO));
    assert_eq!(store.stats().chunks, 0);
    let page = store.put_raw(b"a page").unwrap();
    assert_eq!(page, ChunkId::of(b"a page"));
    assert_eq!(store.read(page).unwrap(), b"a page".as_slice());
}

#[test]
fn frames_that_lie_are_refused() {
    let store = open(&memory());
    let mut wrong_id = frame(1);
    wrong_id.chunk = id(2);
    let mut wrong_bytes = frame(1);
    wrong_bytes.bytes[7] ^= 1;
    let mut wrong_length = frame(3);
    assert_eq!(wrong_length.codec, Codec::Zstd);
    wrong_length.raw_bytes -= 1;
    let mut zero = frame(1);
    zero.chunk = ChunkId::ZERO;
    for bad in [wrong_id, wrong_bytes, wrong_length, zero] {
        assert!(matches!(store.put(&bad), Err(PutError::Frame { .. })));
    }
    assert_eq!(store.stats().chunks, 0);
}

#[test]
fn packs_close_at_their_size() {
    let objects = memory();
    let store = open(&objects);
    put_all(&store, 0..100);
    let packs = objects.list("packs/").unwrap();
    assert!(packs.len() > 10);
    for pack in packs {
        // One index of at most 16 records, and the footer.
        assert!(pack.len_bytes < u64::from(PACK_BYTES) + 16 * 80 + 64);
    }
    let stats = store.stats();
    let raw_bytes: usize = (0..100).map(|n| raw(n).len()).sum();
    assert_eq!((stats.chunks, stats.raw_bytes), (100, raw_bytes as u64));
    assert!(stats.frame_bytes < stats.raw_bytes && stats.frame_bytes < stats.pack_bytes);
    assert_eq!((stats.unstored_bytes, stats.damaged), (0, 0));
}

#[test]
fn a_full_disk_is_said_and_waited_for() {
    let disk = SimDisk::new();
    let store = open_on(&disk);
    put_all(&store, 0..10);
    disk.set_capacity_bytes(Some(disk.used_bytes() + 2000));

    // Memory is bounded: sooner or later a put is refused.
    let mut taken = 10;
    let error = loop {
        match put(&store, taken) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "the pack buffer grows without end");
    };
    assert!(matches!(error, PutError::NoSpace { .. }), "{error}");
    assert!(error.to_string().starts_with("no space left for pack"));
    assert!(matches!(store.flush(), Err(PutError::NoSpace { .. })));
    assert_reads(&store, 0..taken);
    assert!(
        disk.files()
            .iter()
            .all(|file| file.starts_with("chunks/packs/"))
    );
    // What was flushed is not hurt by a stop now.
    assert_reads(&open_on(&disk.crash(1)), 0..10);

    disk.set_capacity_bytes(None);
    put(&store, taken).unwrap();
    store.flush().unwrap();
    assert_reads(&store, 0..=taken);
    assert_reads(&open_on(&disk.crash(1)), 0..=taken);
}

#[test]
fn a_failed_write_is_tried_again() {
    let faulty = Arc::new(FaultyObjects::new(memory()));
    let objects: Arc<dyn Objects> = faulty.clone();
    let store = open(&objects);
    put(&store, 1).unwrap();
    faulty.fail_put(0, io::ErrorKind::Other);
    assert!(matches!(store.flush(), Err(PutError::Io { .. })));
    assert_reads(&store, [1]);
    store.flush().unwrap();
    assert_reads(&open(&objects), [1]);
}

#[test]
fn a_read_error_is_not_damage() {
    let faulty = Arc::new(FaultyObjects::new(memory()));
    let objects: Arc<dyn Objects> = faulty.clone();
    let store = open(&objects);
    put_all(&store, [1]);
    faulty.fail_get(0, io::ErrorKind::TimedOut);
    assert!(matches!(store.read(id(1)), Err(ReadError::Io { .. })));
    assert!(store.contains(id(1)));
    assert_reads(&store, [1]);
}

#[test]
fn a_chunk_is_one_read_of_the_disk() {
    let faulty = Arc::new(FaultyObjects::new(memory()));
    let objects: Arc<dyn Objects> = faulty.clone();
    let store = open(&objects);
    put_all(&store, 0..20);
    let before = faulty.gets_done();
    assert_reads(&store, 0..20);
    assert_eq!(faulty.gets_done() - before, 20);
}

#[test]
fn what_is_no_pack_is_named() {
    let id = "ab".repeat(32);
    let cases: [(&str, &[u8], &str); 4] = [
        ("packs/notes", b"hello", "'packs/notes' is not a pack"),
        ("packs/cd/KEY", b"hello", "is not a pack"),
        ("packs/ab/KEY", &[7; 500], "both its ends are damaged"),
        (
            "packs/ab/KEY",
            b"RSTKPACK\x02\0\0\0\0\0\0\0",
            "has format 2, and this release reads format 1",
        ),
    ];
    for (key, content, expected) in cases {
        let objects = memory();
        let key = key.replace("KEY", &id);
        objects.put(&key, &[io::IoSlice::new(content)]).unwrap();
        let error = ChunkStore::open(objects, options())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected) && error.contains(&key), "{error}");
    }
    let options = StoreOptions {
        pack_bytes: 1,
        ..options()
    };
    let error = ChunkStore::open(memory(), options);
    assert!(matches!(error, Err(OpenError::PackBytes { .. })));
}
