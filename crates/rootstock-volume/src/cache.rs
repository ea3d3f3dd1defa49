//! Decompressed chunks and decoded manifest leaves, within a byte budget.
//!
//! Whoever asks first for a chunk decompresses it, and all who ask meanwhile wait
//! for that one. Chunks are handed out as slices of the cached buffer: an evicted
//! chunk lives on until the last reply that holds it has been sent.

use std::{
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use quick_cache::{
    OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use rootstock_core::{ChunkId, Digest, units::CHUNK_BYTES};
use rootstock_image::manifest::{Leaf, LookupError, Manifest, PAGE_ENTRIES, PageSource};
use rootstock_store::{ChunkStore, ReadError};

/// The most bytes of decoded manifest leaves, beside the chunks: 128 KiB each,
/// 1 GiB of disk for each.
pub const LEAF_BYTES_MAX: u64 = 16 << 20;

/// A shard of the cache holds at least this many bytes, so that a chunk is always
/// a small part of one.
const SHARD_BYTES_MIN: u64 = 8 << 20;

/// What an entry costs beside its bytes.
const ENTRY_BYTES: u64 = 128;

/// Where a cache's chunks come from: a store, or a server far away.
pub trait ChunkSource: Send + Sync {
    /// A chunk's raw bytes, checked against its id. May wait for as long as it
    /// takes.
    ///
    /// # Errors
    /// [`ReadError`] when the chunk is not to be had, or is damaged.
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError>;
}

impl<S: ChunkSource> ChunkSource for Arc<S> {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        (**self).read(chunk)
    }
}

impl ChunkSource for ChunkStore {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        Self::read(self, chunk)
    }
}

/// Chunks, decompressed and checked, shared by all disks of a server or a machine.
pub struct ChunkCache<S = ChunkStore> {
    source: S,
    chunks: Cache<ChunkId, Bytes, ChunkWeight, BuildHasherDefault<IdHasher>>,
    leaves: Cache<LeafKey, Arc<Leaf>, LeafWeight, BuildHasherDefault<IdHasher>>,
}

/// How the cache does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of cached chunks.
    pub used_bytes: u64,
    /// The budget.
    pub capacity_bytes: u64,
    /// Cached chunks.
    pub chunks: u64,
    /// Lookups that found their chunk.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
}

impl<S: ChunkSource> ChunkCache<S> {
    /// A cache of `capacity_bytes` of chunks from `source`.
    #[must_use]
    pub fn new(source: S, capacity_bytes: u64) -> Self {
        Self {
            source,
            chunks: cache(capacity_bytes, CHUNK_BYTES, ChunkWeight),
            leaves: cache(LEAF_BYTES_MAX, PAGE_ENTRIES * 32, LeafWeight),
        }
    }

    /// Where the chunks come from.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.source
    }

    /// A chunk, read and decompressed if need be.
    ///
    /// # Errors
    /// [`ReadError`]: what cannot be read right is not cached, and the next who
    /// asks tries again.
    pub fn get(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        self.chunks
            .get_or_insert_with(&chunk, || self.source.read(chunk))
    }

    /// A chunk if it is in the cache.
    #[must_use]
    pub fn peek(&self, chunk: ChunkId) -> Option<Bytes> {
        self.chunks.get(&chunk)
    }

    /// How the cache does.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            used_bytes: self.chunks.weight(),
            capacity_bytes: self.chunks.capacity(),
            chunks: self.chunks.len() as u64,
            hits: self.chunks.hits(),
            misses: self.chunks.misses(),
        }
    }

    /// The leaf of a manifest that holds a chunk.
    pub(crate) fn leaf(
        &self,
        manifest: &Manifest,
        key: LeafKey,
    ) -> Result<Arc<Leaf>, LookupError<ReadError>> {
        self.leaves.get_or_insert_with(&key, || {
            manifest.leaf(&Pages(&self.source), key.first).map(Arc::new)
        })
    }

    /// The leaf if it is in the cache.
    pub(crate) fn peek_leaf(&self, key: LeafKey) -> Option<Arc<Leaf>> {
        self.leaves.get(&key)
    }
}

/// A manifest's pages in the store. They are not cached: their decoded leaves are.
pub(crate) struct Pages<'a, S = ChunkStore>(pub(crate) &'a S);

impl<S: ChunkSource> PageSource for Pages<'_, S> {
    type Error = ReadError;
    type Bytes = Bytes;

    fn page(&self, id: ChunkId) -> Result<Bytes, ReadError> {
        self.0.read(id)
    }
}

/// A leaf's place: its manifest and the number of its first chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LeafKey {
    pub(crate) manifest: Digest,
    pub(crate) first: u64,
}

fn cache<K: Eq + Hash, V: Clone, W: Weighter<K, V> + Clone>(
    capacity_bytes: u64,
    item_bytes: u64,
    weighter: W,
) -> Cache<K, V, W, BuildHasherDefault<IdHasher>> {
    let capacity_bytes = capacity_bytes.max(item_bytes);
    let shards = (capacity_bytes / SHARD_BYTES_MIN).clamp(1, 64);
    #[expect(clippy::expect_used, reason = "both mandatory options are set")]
    let options = OptionsBuilder::new()
        .estimated_items_capacity((capacity_bytes / item_bytes) as usize)
        .weight_capacity(capacity_bytes)
        .shards((shards as usize).next_power_of_two())
        .build()
        .expect("complete options");
    Cache::with_options(
        options,
        weighter,
        BuildHasherDefault::default(),
        DefaultLifecycle::default(),
    )
}

#[derive(Clone)]
struct ChunkWeight;

impl Weighter<ChunkId, Bytes> for ChunkWeight {
    fn weight(&self, _: &ChunkId, chunk: &Bytes) -> u64 {
        chunk.len() as u64 + ENTRY_BYTES
    }
}

#[derive(Clone)]
struct LeafWeight;

impl Weighter<LeafKey, Arc<Leaf>> for LeafWeight {
    fn weight(&self, _: &LeafKey, leaf: &Arc<Leaf>) -> u64 {
        let ids = if leaf.is_zero() {
            0
        } else {
            leaf.chunks().end - leaf.chunks().start
        };
        ids * size_of::<ChunkId>() as u64 + ENTRY_BYTES
    }
}

/// Ids are digests already: their first bytes are as good as any hash of them.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(word) = bytes.first_chunk() {
            self.write_u64(u64::from_le_bytes(*word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// The length of a digest, the same for all.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use rootstock_store::{
        StoreOptions,
        objects::{FaultyObjects, MemoryObjects},
    };

    use super::*;

    #[test]
    fn a_chunk_is_read_once_however_many_wait() {
        let objects = Arc::new(FaultyObjects::new(Arc::new(MemoryObjects::new())));
        let store = ChunkStore::open(objects.clone(), StoreOptions::default()).expect("a store");
        let raw = vec![7; CHUNK_BYTES as usize];
        let id = store.put_raw(&raw).expect("stored");
        store.flush().expect("flushed");
        let cache = ChunkCache::new(store, 1 << 20);
        assert!(cache.peek(id).is_none());
        let before = objects.gets_done();
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(cache.get(id).expect("readable"), raw);
                });
            }
        });
        assert_eq!(objects.gets_done() - before, 1);
        assert!(cache.peek(id).is_some());
        assert!(matches!(
            cache.get(ChunkId::of(b"never put")),
            Err(ReadError::Missing { .. })
        ));
    }

    #[test]
    fn the_budget_holds() {
        let store = ChunkStore::open(Arc::new(MemoryObjects::new()), StoreOptions::default());
        let store = store.expect("a store");
        let cache = ChunkCache::new(store.clone(), 1 << 20);
        for seed in 0..64_u32 {
            let raw = seed.to_le_bytes().repeat(CHUNK_BYTES as usize / 4);
            let id = store.put_raw(&raw).expect("stored");
            if seed > 0 {
                assert_eq!(cache.get(id).expect("readable"), raw);
            }
        }
        assert!(cache.stats().used_bytes <= 1 << 20);
        assert!(cache.stats().chunks >= 2);
    }
}
