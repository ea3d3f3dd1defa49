//! Makes manifests: from nothing, or from a parent and what changed.

use std::{collections::BTreeMap, convert::Infallible};

use rootstock_core::ChunkId;

use super::{
    LookupError, Manifest, PAGE_ENTRIES, Page, PageSource, chunks_under, depth_of, entries_at,
    walk::load,
};
use crate::grid::Grid;

/// The pages of a builder without a parent: there are none to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPages;

impl PageSource for NoPages {
    type Error = NoSuchPage;
    type Bytes = Vec<u8>;

    fn page(&self, _: ChunkId) -> Result<Vec<u8>, NoSuchPage> {
        Err(NoSuchPage)
    }
}

/// [`NoPages`] was asked for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a manifest that is made from nothing has no pages yet")]
pub struct NoSuchPage;

/// Why a manifest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E: std::error::Error + 'static, S = Infallible> {
    /// A page of the parent could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError<E>),
    /// The sink refused a page.
    #[error("a new manifest page could not be stored")]
    Sink(#[source] S),
}

/// Collects the ids of a version's chunks and makes its pages.
///
/// It is sparse: it holds 34 bytes for each chunk that was set and nothing for
/// the others, and its order of setting is free (in the disk's order is fastest).
#[derive(Debug)]
pub struct ManifestBuilder<P = NoPages> {
    base: Manifest,
    pages: P,
    /// By region and leaf: what was set, by its slot in the leaf, in order.
    leaves: BTreeMap<(usize, u64), Vec<(u16, ChunkId)>>,
}

impl ManifestBuilder {
    /// A builder of a disk of zeros.
    #[must_use]
    pub fn new(grid: Grid) -> Self {
        Self::from_parent(Manifest::zero(grid), NoPages)
    }
}

impl<P: PageSource> ManifestBuilder<P> {
    /// A builder of what `parent` is until something is set. Only pages that
    /// change are read, at [`ManifestBuilder::finish`], and written.
    #[must_use]
    pub fn from_parent(parent: Manifest, pages: P) -> Self {
        Self {
            base: parent,
            pages,
            leaves: BTreeMap::new(),
        }
    }

    /// As [`ManifestBuilder::from_parent`], on a disk cut into other regions:
    /// those that start and end where one of the parent's does keep its tree,
    /// and the others begin as zeros.
    #[must_use]
    pub fn from_parent_regions(parent: &Manifest, grid: Grid, pages: P) -> Self {
        let place = |manifest: &Manifest, region: usize| {
            let region = manifest.grid().regions()[region];
            (region.start_bytes, region.len_bytes)
        };
        let old: BTreeMap<_, _> = (0..parent.roots.len())
            .map(|region| (place(parent, region), parent.roots[region]))
            .collect();
        let mut base = Manifest::zero(grid);
        for region in 0..base.roots.len() {
            if let Some(root) = old.get(&place(&base, region)) {
                base.roots[region] = *root;
            }
        }
        Self::from_parent(base, pages)
    }

    /// How the disk is cut into chunks.
    #[must_use]
    pub fn grid(&self) -> &Grid {
        self.base.grid()
    }

    /// Says what a chunk is: [`ChunkId::ZERO`] for zeros.
    ///
    /// # Panics
    /// When the disk has no such chunk.
    pub fn set(&mut self, index: u64, id: ChunkId) {
        let region = self.base.grid.region_of_chunk(index);
        let local = index - self.base.grid.region_first_chunk(region);
        let slot = (local % PAGE_ENTRIES) as u16;
        let key = (region, local / PAGE_ENTRIES);
        if id.is_zero() && self.base.roots[region].is_zero() {
            // Nothing below it can be anything else than zero, unless it was set.
            let Some(leaf) = self.leaves.get_mut(&key) else {
                return;
            };
            if let Ok(place) = leaf.binary_search_by_key(&slot, |entry| entry.0) {
                leaf.remove(place);
            }
            return;
        }
        let leaf = self.leaves.entry(key).or_default();
        if leaf.last().is_none_or(|last| last.0 < slot) {
            leaf.push((slot, id));
            return;
        }
        match leaf.binary_search_by_key(&slot, |entry| entry.0) {
            Ok(place) => leaf[place].1 = id,
            Err(place) => leaf.insert(place, (slot, id)),
        }
    }

    /// Makes the manifest and hands every page that the parent does not have to
    /// `sink`: a page always comes after the pages it holds.
    ///
    /// # Errors
    /// [`BuildError`] when a page of the parent is missing or wrong, or the sink
    /// refuses one.
    pub fn finish<S>(
        self,
        mut sink: impl FnMut(ChunkId, &[u8]) -> Result<(), S>,
    ) -> Result<Manifest, BuildError<P::Error, S>> {
        let mut roots = Vec::with_capacity(self.base.roots.len());
        for (region, root) in self.base.roots.iter().enumerate() {
            let chunk_count = self.base.grid.regions()[region].chunk_count();
            let mut tree = Tree {
                pages: &self.pages,
                leaves: &self.leaves,
                region,
                chunk_count,
                sink: &mut sink,
            };
            roots.push(tree.subtree(depth_of(chunk_count), 0, *root)?);
        }
        let grid = self.base.grid;
        Ok(Manifest { grid, roots })
    }
}

/// The making of one region's tree.
struct Tree<'a, P, F> {
    pages: &'a P,
    leaves: &'a BTreeMap<(usize, u64), Vec<(u16, ChunkId)>>,
    region: usize,
    chunk_count: u64,
    sink: &'a mut F,
}

impl<P: PageSource, S, F: FnMut(ChunkId, &[u8]) -> Result<(), S>> Tree<'_, P, F> {
    /// The id of the subtree that begins with chunk `first`, which was `old`.
    fn subtree(
        &mut self,
        level: u8,
        first: u64,
        old: ChunkId,
    ) -> Result<ChunkId, BuildError<P::Error, S>> {
        if level == 0 {
            // A region of one chunk: it has a leaf here, and no page.
            let leaf = self.leaves.get(&(self.region, 0));
            return Ok(leaf.and_then(|l| l.last()).map_or(old, |entry| entry.1));
        }
        let touched = self.touched(level, first);
        if touched.is_empty() {
            return Ok(old);
        }
        let count = entries_at(level, first, self.chunk_count);
        let mut ids = if old.is_zero() {
            vec![ChunkId::ZERO; count]
        } else {
            load(self.pages, old, level, count)?.into_ids()
        };
        if level == 1 {
            for (slot, id) in &self.leaves[&(self.region, first / PAGE_ENTRIES)] {
                ids[usize::from(*slot)] = *id;
            }
        } else {
            for slot in touched {
                let below = first + slot * chunks_under(level - 1);
                let id = &mut ids[slot as usize];
                *id = self.subtree(level - 1, below, *id)?;
            }
        }
        if ids.iter().all(ChunkId::is_zero) {
            return Ok(ChunkId::ZERO);
        }
        let bytes = Page::new(level, ids).encode();
        let id = ChunkId::of(&bytes);
        if id != old {
            (self.sink)(id, &bytes).map_err(BuildError::Sink)?;
        }
        Ok(id)
    }

    /// The slots of the page at `level` and `first` below which something was
    /// set.
    fn touched(&self, level: u8, first: u64) -> Vec<u64> {
        let leaf = |chunk: u64| (self.region, chunk / PAGE_ENTRIES);
        let range = leaf(first)..leaf(first + chunks_under(level));
        let slot = |leaf: u64| (leaf * PAGE_ENTRIES - first) / chunks_under(level - 1);
        let mut slots: Vec<u64> = self
            .leaves
            .range(range)
            .map(|((_, leaf), _)| slot(*leaf))
            .collect();
        slots.dedup();
        slots
    }
}
