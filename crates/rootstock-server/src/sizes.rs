//! What a version weighs, and what lies between two of them.

use std::collections::{HashMap, HashSet};

use rootstock_api::{DiffReport, RecipeDiff, VersionSize, record::RECORD_HEADER_BYTES};
use rootstock_catalog::VersionRow;
use rootstock_core::{ChunkId, Digest};
use rootstock_image::manifest::{Change, Descend, Manifest, Visit, diff};
use rootstock_store::ChunkStore;

use crate::{
    http::ApiError,
    pages::{StorePages, manifest},
    recipes::Index,
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

/// What a holder of one version must fetch for another, plainly and by the recipe
/// that there is.
pub(crate) fn compare(
    store: &ChunkStore,
    from: &VersionRow,
    to: &VersionRow,
    recipe: Option<&Index>,
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
        wire_bytes: 0,
        recipe: None,
        from_disk_bytes: from.disk_bytes,
        to_disk_bytes: to.disk_bytes,
    };
    let frame_bytes = |id| frame_bytes(store, id);
    if from.manifest != to.manifest {
        let root = ChunkId(to.manifest);
        report.fetch_page_bytes += frame_bytes(root);
        report.wire_bytes += u64::from(store.raw_bytes(root).unwrap_or(0));
    }
    let mut pages = HashSet::new();
    let wanted = lacking(store, &older, &newer, |change| match change {
        Change::Page { id } if !pages.insert(id) => {}
        Change::Page { id } => {
            report.fetch_page_bytes += frame_bytes(id);
            report.wire_bytes += RECORD_HEADER_BYTES as u64 + frame_bytes(id);
        }
        Change::Chunk { index, .. } => {
            report.changed_chunk_count += 1;
            report.changed_bytes += u64::from(newer.grid().span(index).len_bytes);
        }
    })?;
    report.wire_bytes += RECORD_HEADER_BYTES as u64 * wanted.len() as u64;
    let (mut delta_count, mut delta_bytes, mut saved_bytes) = (0, 0, 0);
    for id in wanted {
        report.fetch_chunk_count += 1;
        report.fetch_raw_bytes += u64::from(store.raw_bytes(id).unwrap_or(0));
        report.fetch_bytes += frame_bytes(id);
        if let Some(place) = recipe.and_then(|recipe| recipe.place(id)) {
            let len_bytes = u64::from(place.len_bytes);
            delta_count += 1;
            delta_bytes += len_bytes;
            saved_bytes += frame_bytes(id).saturating_sub(len_bytes);
        }
    }
    report.wire_bytes += report.fetch_bytes;
    report.recipe = recipe.map(|_| RecipeDiff {
        delta_count,
        delta_bytes,
        fetch_bytes: report.fetch_bytes - saved_bytes,
        wire_bytes: report.wire_bytes - saved_bytes,
    });
    Ok(report)
}

/// The chunks that a version has and an older one has nowhere, in the order of its
/// disk, each once. `report` is told of all that differs, moved chunks included.
pub(crate) fn lacking(
    store: &ChunkStore,
    older: &Manifest,
    newer: &Manifest,
    mut report: impl FnMut(Change),
) -> Result<Vec<ChunkId>, ApiError> {
    let mut wanted = Vec::new();
    let mut open = HashSet::new();
    diff(older, newer, &StorePages(store), |change| {
        report(change);
        if let Change::Chunk { new, .. } = change
            && !new.is_zero()
            && open.insert(new)
        {
            wanted.push(new);
        }
    })?;
    // A chunk that only moved is there already.
    if !open.is_empty() {
        let mut pages_seen = HashSet::new();
        older.walk(&StorePages(store), |visit| match visit {
            Visit::Page { id, .. } if !pages_seen.insert(id) => Descend::Past,
            Visit::Page { .. } => Descend::Into,
            Visit::Chunk { id, .. } => {
                open.remove(&id);
                Descend::Into
            }
        })?;
    }
    wanted.retain(|id| open.contains(id));
    Ok(wanted)
}

/// The length of a chunk's frame; 0 when the store does not have it.
fn frame_bytes(store: &ChunkStore, id: ChunkId) -> u64 {
    u64::from(store.frame_bytes(id).unwrap_or(0))
}
