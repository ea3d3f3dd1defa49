//! The chunk store: frames by the id of their chunk, in packs.
//!
//! Puts fill a pack in memory, readable at once; a full pack is stored as one
//! immutable object, by the thread whose chunk no longer fit, while others fill
//! the next. The index is in memory and made from the packs' trailers at open,
//! so that the packs are all there is to keep consistent, and a crash can only
//! take a pack's whole or leave it whole. The rejected alternative, an index in
//! a database, would be a second truth to keep in step with the first.

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use rootstock_core::ChunkId;

use crate::{
    objects::Objects,
    pack::{PACK_BYTES_MAX, PACK_BYTES_MIN, PackId, buffer::Spare},
    recycle::Recycler,
};

mod collect;
mod error;
mod hold;
mod index;
mod open;
mod read;
mod scrub;
mod write;

pub use collect::{CollectProgress, CollectReport, Collection, LiveSet};
pub use error::{CollectError, Damage, DamageKind, OpenError, PutError, ReadError};
pub use hold::Hold;
pub use read::StoredFrame;
pub use scrub::ScrubReport;
pub use write::{Origin, PACKS_IN_FLIGHT_MAX, PutOutcome};

/// How a store works.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The size at which a pack is closed, in bytes; a pack may pass it by its
    /// index. [`PACK_BYTES_MIN`] to [`PACK_BYTES_MAX`].
    pub pack_bytes: u32,
    /// A collection writes packs anew of which less than this is still needed,
    /// in percent. 70 keeps at most 1.43 times what is needed, and writes at
    /// most 2.3 bytes for each that it frees.
    pub rewrite_below_percent: u32,
    /// A collection merges packs smaller than this part of `pack_bytes`, in
    /// percent.
    pub merge_below_percent: u32,
    /// Threads that read packs' trailers at open: what a rotating disk's queue
    /// needs to sort its seeks.
    pub open_threads: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            pack_bytes: 16 << 20,
            rewrite_below_percent: 70,
            merge_below_percent: 25,
            open_threads: 8,
        }
    }
}

impl StoreOptions {
    fn check(&self) -> Result<(), OpenError> {
        if (PACK_BYTES_MIN..=PACK_BYTES_MAX).contains(&self.pack_bytes) {
            return Ok(());
        }
        Err(OpenError::PackBytes {
            pack_bytes: self.pack_bytes,
            min: PACK_BYTES_MIN,
            max: PACK_BYTES_MAX,
        })
    }
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Chunks.
    pub chunks: u64,
    /// Their raw bytes.
    pub raw_bytes: u64,
    /// Their frames' bytes.
    pub frame_bytes: u64,
    /// Packs stored.
    pub packs: u64,
    /// Bytes of the stored packs.
    pub pack_bytes: u64,
    /// Bytes of frames and records that are in memory only, until a flush.
    pub unstored_bytes: u64,
    /// Chunks known to be damaged.
    pub damaged: u64,
}

/// The chunk store; clones are the same store.
///
/// All methods may be called from any thread; those that touch the disk say so
/// by their errors and block.
#[derive(Clone)]
pub struct ChunkStore {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<dyn Objects>,
    options: StoreOptions,
    index: RwLock<index::Index>,
    writer: Mutex<write::Writer>,
    spare: Arc<Spare>,
    /// Memory of raw chunks.
    recycler: Recycler,
    /// A sealed pack was stored, or could not be.
    writer_changed: Condvar,
    /// Packs that are being put or deleted: one at a time for each id, since
    /// the same chunks in the same order make the same id again.
    busy_packs: Mutex<HashSet<PackId>>,
    busy_changed: Condvar,
    gate: hold::Gate,
    collecting: AtomicBool,
    /// Chunks said to be present since the collection began. Locked after the
    /// index, never before. At most the chunks asked about while it runs.
    touched: Mutex<HashSet<ChunkId>>,
}

impl ChunkStore {
    /// Whether the store has the chunk undamaged, as far as it knows; true for
    /// the marker of zeros, which needs no storing. While a collection runs, a
    /// chunk that was said to be present stays at least until it ends.
    #[must_use]
    pub fn contains(&self, chunk: ChunkId) -> bool {
        chunk.is_zero() || self.present(&self.index(), chunk)
    }

    /// The length of a chunk's raw bytes, if the store has it.
    #[must_use]
    pub fn raw_bytes(&self, chunk: ChunkId) -> Option<u32> {
        Some(self.index().chunks.get(chunk)?.raw_bytes)
    }

    /// The length of a chunk's frame, if the store has it.
    #[must_use]
    pub fn frame_bytes(&self, chunk: ChunkId) -> Option<u32> {
        Some(self.index().chunks.get(chunk)?.frame_bytes)
    }

    /// The stored pack that holds the chunk; `None` too while the chunk is in
    /// memory only.
    #[must_use]
    pub fn pack_of(&self, chunk: ChunkId) -> Option<PackId> {
        let index = self.index();
        let at = index.chunks.get(chunk)?;
        index.packs.get(&at.pack)?.id()
    }

    /// All stored packs, sorted: the order of a scrub.
    #[must_use]
    pub fn packs(&self) -> Vec<PackId> {
        let mut ids: Vec<PackId> = {
            let index = self.index();
            index.packs.values().filter_map(index::Pack::id).collect()
        };
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Chunks found damaged and not healed since, sorted. Putting the same
    /// chunk again heals it.
    #[must_use]
    pub fn damage(&self) -> Vec<Damage> {
        let mut damage: Vec<Damage> = self.index().damaged.values().copied().collect();
        damage.sort_unstable_by_key(|damage| damage.chunk);
        damage
    }

    /// How much is stored.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        self.index().stats()
    }

    /// Whether the index has the chunk undamaged; keeps it from a collection
    /// that runs. The caller's lock on the index makes both one step.
    fn present(&self, index: &index::Index, chunk: ChunkId) -> bool {
        let present = index.chunks.get(chunk).is_some() && !index.damaged.contains_key(&chunk);
        if present && self.inner.collecting.load(Ordering::Acquire) {
            self.touched().insert(chunk);
        }
        present
    }

    fn index(&self) -> RwLockReadGuard<'_, index::Index> {
        let index = self.inner.index.read();
        index.unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, index::Index> {
        let index = self.inner.index.write();
        index.unwrap_or_else(PoisonError::into_inner)
    }

    fn touched(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        let touched = self.inner.touched.lock();
        touched.unwrap_or_else(PoisonError::into_inner)
    }

    fn objects(&self) -> &dyn Objects {
        &*self.inner.objects
    }
}

impl fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkStore")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
