//! Lookups and walks in a manifest's trees.

use std::ops::Range;

use rootstock_core::ChunkId;

use super::{
    LookupError, Manifest, PAGE_ENTRIES, Page, PageSource, chunks_under, depth_of, entries_at,
};

/// A run of up to 4,096 chunk ids of one region: what a reader caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    first: u64,
    count: u64,
    /// Empty when all are zero.
    ids: Vec<ChunkId>,
}

impl Leaf {
    /// The numbers of the chunks it holds.
    #[must_use]
    pub fn chunks(&self) -> Range<u64> {
        self.first..self.first + self.count
    }

    /// The id of a chunk, if the leaf holds it.
    #[must_use]
    pub fn chunk(&self, index: u64) -> Option<ChunkId> {
        let slot = index.checked_sub(self.first)?;
        let id = self.ids.get(slot as usize).copied();
        (slot < self.count).then(|| id.unwrap_or(ChunkId::ZERO))
    }

    /// Whether every chunk in it is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.ids.is_empty()
    }
}

/// What a walk has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// A page, before it is read.
    Page {
        /// Its id.
        id: ChunkId,
        /// 1 for a page of chunks, one more for each level above.
        level: u8,
        /// The number on the disk of the first chunk below it.
        index: u64,
        /// How many chunks are below it, zero ones included.
        chunk_count: u64,
    },
    /// A chunk that is not zero.
    Chunk {
        /// Its number on the disk.
        index: u64,
        /// Its id.
        id: ChunkId,
    },
}

/// Whether a walk goes into a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descend {
    /// Read it and visit what it holds.
    Into,
    /// Go past it: all it reaches is known already.
    Past,
}

impl Manifest {
    /// The id of a chunk.
    ///
    /// # Errors
    /// [`LookupError`] when a page on the way is missing or wrong, or there is no
    /// such chunk.
    pub fn chunk<P: PageSource>(
        &self,
        pages: &P,
        index: u64,
    ) -> Result<ChunkId, LookupError<P::Error>> {
        let leaf = self.leaf(pages, index)?;
        Ok(leaf.chunk(index).unwrap_or(ChunkId::ZERO))
    }

    /// The leaf that holds a chunk, with its neighbours: for readers that keep
    /// what they have decoded.
    ///
    /// # Errors
    /// [`LookupError`] when a page on the way is missing or wrong, or there is no
    /// such chunk.
    pub fn leaf<P: PageSource>(
        &self,
        pages: &P,
        index: u64,
    ) -> Result<Leaf, LookupError<P::Error>> {
        let chunk_count = self.grid.chunk_count();
        if index >= chunk_count {
            return Err(LookupError::NoChunk { index, chunk_count });
        }
        let region = self.grid.region_of_chunk(index);
        let region_first = self.grid.region_first_chunk(region);
        let region_chunks = self.grid.regions()[region].chunk_count();
        let local = index - region_first;
        let leaf_first = local - local % PAGE_ENTRIES;
        let mut id = self.roots[region];
        let mut ids = Vec::new();
        for level in (1..=depth_of(region_chunks)).rev() {
            if id.is_zero() {
                break;
            }
            let first = local - local % chunks_under(level);
            let page = load(pages, id, level, entries_at(level, first, region_chunks))?;
            if level == 1 {
                ids = page.into_ids();
            } else {
                id = page.ids()[((local - first) / chunks_under(level - 1)) as usize];
            }
        }
        if region_chunks == 1 && !id.is_zero() {
            ids.push(id);
        }
        Ok(Leaf {
            first: region_first + leaf_first,
            count: (region_chunks - leaf_first).min(PAGE_ENTRIES),
            ids,
        })
    }

    /// Visits every page and every chunk that is not zero, in the order of the
    /// disk, without reading subtrees of zeros. Its memory is one page a level.
    ///
    /// # Errors
    /// [`LookupError`] when a page is missing or wrong.
    pub fn walk<P: PageSource>(
        &self,
        pages: &P,
        mut visit: impl FnMut(Visit) -> Descend,
    ) -> Result<(), LookupError<P::Error>> {
        for (region, root) in self.roots.iter().enumerate() {
            let chunk_count = self.grid.regions()[region].chunk_count();
            let mut walk = Walk {
                pages,
                region_first: self.grid.region_first_chunk(region),
                chunk_count,
                visit: &mut visit,
            };
            walk.subtree(depth_of(chunk_count), 0, *root)?;
        }
        Ok(())
    }
}

/// A walk through one region's tree.
pub(super) struct Walk<'a, P, F> {
    pub(super) pages: &'a P,
    pub(super) region_first: u64,
    pub(super) chunk_count: u64,
    pub(super) visit: &'a mut F,
}

impl<P: PageSource, F: FnMut(Visit) -> Descend> Walk<'_, P, F> {
    pub(super) fn subtree(
        &mut self,
        level: u8,
        first: u64,
        id: ChunkId,
    ) -> Result<(), LookupError<P::Error>> {
        if id.is_zero() {
            return Ok(());
        }
        if level == 0 {
            let index = self.region_first + first;
            (self.visit)(Visit::Chunk { index, id });
            return Ok(());
        }
        let page = Visit::Page {
            id,
            level,
            index: self.region_first + first,
            chunk_count: (self.chunk_count - first).min(chunks_under(level)),
        };
        if (self.visit)(page) == Descend::Past {
            return Ok(());
        }
        let count = entries_at(level, first, self.chunk_count);
        let page = load(self.pages, id, level, count)?;
        for (slot, child) in (0..).zip(page.ids()) {
            self.subtree(level - 1, first + slot * chunks_under(level - 1), *child)?;
        }
        Ok(())
    }
}

/// The page with this id, which has to fit this place in a tree.
pub(super) fn load<P: PageSource>(
    pages: &P,
    id: ChunkId,
    level: u8,
    count: usize,
) -> Result<Page, LookupError<P::Error>> {
    let bytes = pages
        .page(id)
        .map_err(|source| LookupError::Source { id, source })?;
    Page::decode(bytes.as_ref())
        .and_then(|page| page.at_place(level, count))
        .map_err(|source| LookupError::Page { id, source })
}
