//! What one version has that another has not.

use std::collections::HashSet;

use rootstock_core::ChunkId;

use super::{
    Descend, LookupError, Manifest, PageSource, Visit, chunks_under, depth_of, entries_at,
    walk::{Walk, load},
};

/// A difference of a version from an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A page that stands where the older version has another one or none.
    Page {
        /// Its id.
        id: ChunkId,
    },
    /// A chunk that differs from what the older version has in its place.
    Chunk {
        /// Its number on the newer version's disk.
        index: u64,
        /// What the older version has there; `None` when its disk is cut
        /// differently there, and then `new` is nowhere in the older version.
        old: Option<ChunkId>,
        /// What the newer version has there, zero included.
        new: ChunkId,
    },
}

/// Reports how `newer` differs from `older`, in the order of the newer disk.
///
/// Regions that start at the same byte are compared tree by tree, and equal
/// subtrees are not read. In a region that starts where the older disk has no
/// start, a chunk is reported when its id is nowhere in the older version; only
/// then are all ids of the older version held in memory.
///
/// # Errors
/// [`LookupError`] when a page of either version is missing or wrong.
pub fn diff<P: PageSource>(
    older: &Manifest,
    newer: &Manifest,
    pages: &P,
    mut report: impl FnMut(Change),
) -> Result<(), LookupError<P::Error>> {
    let mut older_ids = None;
    for (region, root) in newer.roots.iter().enumerate() {
        let place = newer.grid.regions()[region];
        let region_first = newer.grid.region_first_chunk(region);
        let partner = older
            .grid
            .regions()
            .binary_search_by_key(&place.start_bytes, |region| region.start_bytes);
        let new = Side::new(place.chunk_count(), *root);
        if let Ok(partner) = partner {
            let chunk_count = older.grid.regions()[partner].chunk_count();
            let mut lockstep = Lockstep {
                pages,
                region_first,
                old_chunks: chunk_count,
                new_chunks: place.chunk_count(),
                report: &mut report,
            };
            lockstep.subtree(0, Side::new(chunk_count, older.roots[partner]), new)?;
            continue;
        }
        let known = match &mut older_ids {
            Some(known) => known,
            None => older_ids.insert(all_ids(older, pages)?),
        };
        let mut visit = |visit| {
            match visit {
                Visit::Page { id, .. } if known.contains(&id) => return Descend::Past,
                Visit::Page { id, .. } => report(Change::Page { id }),
                Visit::Chunk { id, .. } if known.contains(&id) => {}
                Visit::Chunk { index, id } => report(Change::Chunk {
                    index,
                    old: None,
                    new: id,
                }),
            }
            Descend::Into
        };
        let mut walk = Walk {
            pages,
            region_first,
            chunk_count: place.chunk_count(),
            visit: &mut visit,
        };
        walk.subtree(new.level, 0, new.id)?;
    }
    Ok(())
}

fn all_ids<P: PageSource>(
    manifest: &Manifest,
    pages: &P,
) -> Result<HashSet<ChunkId>, LookupError<P::Error>> {
    let mut ids = HashSet::new();
    manifest.walk(pages, |visit| {
        let (Visit::Page { id, .. } | Visit::Chunk { id, .. }) = visit;
        let page = matches!(visit, Visit::Page { .. });
        if !ids.insert(id) && page {
            return Descend::Past;
        }
        Descend::Into
    })?;
    Ok(ids)
}

/// A subtree of one of the two versions.
#[derive(Clone, Copy)]
struct Side {
    level: u8,
    id: ChunkId,
}

impl Side {
    fn new(chunk_count: u64, id: ChunkId) -> Self {
        let level = depth_of(chunk_count);
        Self { level, id }
    }
}

/// A walk through the trees of two regions that start at the same byte.
struct Lockstep<'a, P, F> {
    pages: &'a P,
    /// The number of the newer region's first chunk.
    region_first: u64,
    old_chunks: u64,
    new_chunks: u64,
    report: &'a mut F,
}

impl<P: PageSource, F: FnMut(Change)> Lockstep<'_, P, F> {
    /// Compares the subtrees that begin with chunk `first` of both regions.
    fn subtree(&mut self, first: u64, old: Side, new: Side) -> Result<(), LookupError<P::Error>> {
        // A zero subtree is zero at every level.
        if old.id == new.id && (old.level == new.level || old.id.is_zero()) {
            return Ok(());
        }
        if first >= self.new_chunks {
            return Ok(());
        }
        let level = old.level.max(new.level);
        if level == 0 {
            (self.report)(Change::Chunk {
                index: self.region_first + first,
                old: Some(old.id),
                new: new.id,
            });
            return Ok(());
        }
        if new.level > 0 && !new.id.is_zero() && new.level == level {
            (self.report)(Change::Page { id: new.id });
        }
        let old_ids = self.children(old, level, first, self.old_chunks)?;
        let new_ids = self.children(new, level, first, self.new_chunks)?;
        let child = |ids: &Children, slot: usize| match ids {
            Children::Ids(ids) => Side {
                level: level - 1,
                id: ids.get(slot).copied().unwrap_or(ChunkId::ZERO),
            },
            Children::Itself(side) if slot == 0 => *side,
            _ => Side {
                level: level - 1,
                id: ChunkId::ZERO,
            },
        };
        // What the newer region does not reach is not a change of it.
        let reach = self.new_chunks - first;
        let slots = reach
            .div_ceil(chunks_under(level - 1))
            .min(super::PAGE_ENTRIES);
        for slot in 0..slots as usize {
            let below = first + slot as u64 * chunks_under(level - 1);
            self.subtree(below, child(&old_ids, slot), child(&new_ids, slot))?;
        }
        Ok(())
    }

    /// What the subtree has below it at `level`.
    fn children(
        &self,
        side: Side,
        level: u8,
        first: u64,
        chunk_count: u64,
    ) -> Result<Children, LookupError<P::Error>> {
        if side.id.is_zero() {
            return Ok(Children::Zero);
        }
        if side.level < level {
            return Ok(Children::Itself(side));
        }
        let count = entries_at(level, first, chunk_count);
        let page = load(self.pages, side.id, level, count)?;
        Ok(Children::Ids(page.into_ids()))
    }
}

/// What a subtree has below it.
enum Children {
    /// Zeros.
    Zero,
    /// The subtree is lower than the level: it is the first child itself.
    Itself(Side),
    /// The entries of its page.
    Ids(Vec<ChunkId>),
}
