//! Which chunks and pages a version has.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use rootstock_core::{ChunkId, Digest};
use rootstock_image::manifest::{Descend, Visit};
use rootstock_store::ChunkStore;

use crate::{
    http::ApiError,
    pages::{StorePages, manifest},
};

/// Versions that are fetched ahead at once by many machines: their ids are in memory
/// once for all of them, at 9 to 18 bytes for each.
const VERSIONS_MAX: usize = 4;

/// The ids of the versions that machines fetched ahead last.
#[derive(Debug, Default)]
pub(crate) struct VersionIds(Mutex<VecDeque<(Digest, Arc<HashSet<u64>>)>>);

impl VersionIds {
    /// The ids of a version, each by [`short`].
    pub(crate) fn of(&self, store: &ChunkStore, id: Digest) -> Result<Arc<HashSet<u64>>, ApiError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ids)) = known.iter().find(|known| known.0 == id) {
            return Ok(Arc::clone(ids));
        }
        // Under the lock, so that a room full of machines reads them once.
        let ids = Arc::new(read(store, id)?);
        known.truncate(VERSIONS_MAX - 1);
        known.push_front((id, Arc::clone(&ids)));
        Ok(ids)
    }
}

/// The ids of a version, each by [`short`].
pub(super) fn read(store: &ChunkStore, id: Digest) -> Result<HashSet<u64>, ApiError> {
    let mut ids = HashSet::new();
    manifest(store, id)?.walk(&StorePages(store), |visit| {
        let (Visit::Page { id, .. } | Visit::Chunk { id, .. }) = visit;
        ids.insert(short(id));
        Descend::Into
    })?;
    Ok(ids)
}

/// Eight bytes of an id.
pub(super) fn short(chunk: ChunkId) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&chunk.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}
