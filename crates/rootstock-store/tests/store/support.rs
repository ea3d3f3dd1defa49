//! What the tests share: chunks made of numbers, small stores, short cuts.

use std::{collections::HashSet, ops::ControlFlow, sync::Arc};

use rootstock_core::ChunkId;
use rootstock_image::frame::{Encoder, Frame};
use rootstock_store::{
    ChunkStore, CollectError, CollectReport, LiveSet, PackId, PutError, PutOutcome, StoreOptions,
    disk::{Disk, SimDisk},
    objects::{DirectoryObjects, Objects},
};

/// Packs of a few chunks, so that little data makes many.
pub(crate) const PACK_BYTES: u32 = 8 << 10;

pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        pack_bytes: PACK_BYTES,
        open_threads: 1,
        ..StoreOptions::default()
    }
}

/// The chunk with this number: 0.5 to 2.5 KiB, every third compressible.
pub(crate) fn raw(number: u64) -> Vec<u8> {
    let len = 512 + (number * 389) % 2048;
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    if number.is_multiple_of(3) {
        let pattern: Vec<u8> = (0..16).map(noise).collect();
        pattern.into_iter().cycle().take(len as usize).collect()
    } else {
        (0..len).map(noise).collect()
    }
}

pub(crate) fn id(number: u64) -> ChunkId {
    ChunkId::of(&raw(number))
}

pub(crate) fn frame(number: u64) -> Frame {
    Encoder::new().encode(id(number), &raw(number))
}

pub(crate) fn put(store: &ChunkStore, number: u64) -> Result<PutOutcome, PutError> {
    store.put(&frame(number))
}

/// Puts these chunks and flushes.
pub(crate) fn put_all(store: &ChunkStore, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        put(store, number).unwrap();
    }
    store.flush().unwrap();
}

pub(crate) fn assert_reads(store: &ChunkStore, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        match store.read(id(number)) {
            Ok(bytes) => assert_eq!(bytes, raw(number), "chunk number {number}"),
            Err(error) => panic!("chunk number {number}: {error}"),
        }
    }
}

pub(crate) fn live(numbers: impl IntoIterator<Item = u64>) -> HashSet<ChunkId> {
    numbers.into_iter().map(id).collect()
}

pub(crate) fn collect(
    store: &ChunkStore,
    live: &dyn LiveSet,
) -> Result<CollectReport, CollectError> {
    collect_pinned(store, live, &HashSet::new())
}

pub(crate) fn collect_pinned(
    store: &ChunkStore,
    live: &dyn LiveSet,
    pinned: &HashSet<PackId>,
) -> Result<CollectReport, CollectError> {
    let collection = store.begin_collection()?;
    collection.sweep(live, pinned, &mut |_| ControlFlow::Continue(()))
}

pub(crate) fn open(objects: &Arc<dyn Objects>) -> ChunkStore {
    ChunkStore::open(Arc::clone(objects), options()).unwrap()
}

/// A store on a simulated disk.
pub(crate) fn open_on(disk: &SimDisk) -> ChunkStore {
    open(&objects_on(Arc::new(disk.clone())))
}

pub(crate) fn objects_on(disk: Arc<dyn Disk>) -> Arc<dyn Objects> {
    Arc::new(DirectoryObjects::new(disk, "chunks").unwrap())
}
