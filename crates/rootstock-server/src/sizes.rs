//! What a version weighs, and what lies between two of them.

use std::collections::{HashMap, HashSet};

use rootstock_api::{DiffReport, VersionSize};
use rootstock_catalog::VersionRow;
use rootstock_core::{ChunkId, Digest};
use rootstock_image::manifest::{Change, Descend, Visit, diff};
use rootstock_store::ChunkStore;

use crate::{
    http::ApiError,
    pages::{StorePages, manifest},
};

/// Weighs a version against all others. Pages that versions share are read once,
/// so this costs what is different, not what there is.
pub(crate) fn weigh(
    store: &ChunkStore,
    version: Digest,
    others: &HashSet<Digest>,
) -> Result<VersionSize, ApiError> {
    let own = own_ids(store, version)?;
    let mut unique: HashSet<ChunkId> = own.keys().copied().collect();
    let mut pages_seen = HashSet::new();
    for other in others {
        unique.remove(&ChunkId(*other));
        manifest(store, *other)?.walk(&StorePages(store), |visit| match visit {
            Visit::Page { id, .. } => {
                unique.remove(&id);
                if pages_seen.insert(id) {
                    Descend::Into
                } else {
                    Descend::Past
                }
            }
            Visit::Chunk { id, .. } => {
                unique.remove(&id);
                Descend::Into
            }
        })?;
    }
    let mut size = VersionSize::default();
    for (id, own) in &own {
        let is_unique = unique.contains(id);
        size.stored_bytes += own.frame_bytes;
        if is_unique {
            size.stored_unique_bytes += own.frame_bytes;
        }
        if own.is_chunk {
            size.chunk_count += 1;
            let bytes = if is_unique {
                &mut size.unique_bytes
            } else {
                &mut size.shared_bytes
            };
            *bytes += own.raw_bytes;
        }
    }
    Ok(size)
}

/// One id of a version.
struct Own {
    /// A chunk of the disk, and not only a page.
    is_chunk: bool,
    raw_bytes: u64,
    frame_bytes: u64,
}

fn own_ids(store: &ChunkStore, version: Digest) -> Result<HashMap<ChunkId, Own>, ApiError> {
    let mut own: HashMap<ChunkId, Own> = HashMap::new();
    let mut add = |id: ChunkId, is_chunk: bool| {
        let new = || Own {
            is_chunk,
            raw_bytes: u64::from(store.raw_bytes(id).unwrap_or(0)),
            frame_bytes: frame_bytes(store, id),
        };
        own.entry(id).or_insert_with(new).is_chunk |= is_chunk;
    };
    add(ChunkId(version), false);
    manifest(store, version)?.walk(&StorePages(store), |visit| {
        match visit {
            Visit::Page { id, .. } => add(id, false),
            Visit::Chunk { id, .. } => add(id, true),
        }
        Descend::Into
    })?;
    Ok(own)
}

/// What a holder of one version must fetch for another.
pub(crate) fn compare(
    store: &ChunkStore,
    from: &VersionRow,
    to: &VersionRow,
) -> Result<DiffReport, ApiError> {
    let older = manifest(store, from.manifest)?;
    let newer = manifest(store, to.manifest)?;
    let mut report = DiffReport {
        from: from.spec(),
        to: to.spec(),
        changed_chunk_count: 0,
        changed_bytes: 0,
        fetch_chunk_count: 0,
        fetch_raw_bytes: 0,
        fetch_bytes: 0,
        fetch_page_bytes: 0,
        from_disk_bytes: from.disk_bytes,
        to_disk_bytes: to.disk_bytes,
    };
    let frame_bytes = |id| frame_bytes(store, id);
    if from.manifest != to.manifest {
        report.fetch_page_bytes += frame_bytes(ChunkId(to.manifest));
    }
    let mut wanted = HashSet::new();
    diff(&older, &newer, &StorePages(store), |change| match change {
        Change::Page { id } => report.fetch_page_bytes += frame_bytes(id),
        Change::Chunk { index, new, .. } => {
            report.changed_chunk_count += 1;
            report.changed_bytes += u64::from(newer.grid().span(index).len_bytes);
            if !new.is_zero() {
                wanted.insert(new);
            }
        }
    })?;
    // A chunk that only moved is there already.
    if !wanted.is_empty() {
        let mut pages_seen = HashSet::new();
        older.walk(&StorePages(store), |visit| match visit {
            Visit::Page { id, .. } if !pages_seen.insert(id) => Descend::Past,
            Visit::Page { .. } => Descend::Into,
            Visit::Chunk { id, .. } => {
                wanted.remove(&id);
                Descend::Into
            }
        })?;
    }
    for id in wanted {
        report.fetch_chunk_count += 1;
        report.fetch_raw_bytes += u64::from(store.raw_bytes(id).unwrap_or(0));
        report.fetch_bytes += frame_bytes(id);
    }
    Ok(report)
}

/// The length of a chunk's frame; 0 when the store does not have it.
fn frame_bytes(store: &ChunkStore, id: ChunkId) -> u64 {
    u64::from(store.frame_bytes(id).unwrap_or(0))
}
