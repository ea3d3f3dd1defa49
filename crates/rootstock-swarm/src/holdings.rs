//! The chunks of a version as numbers, and how many members hold each.

use std::sync::Arc;

use rootstock_core::{ChunkId, Digest};

/// A version's chunks and pages, each once, in the order of docs/formats/peer.md: the
/// same on every member, so that a number means the same chunk.
#[derive(Debug)]
pub struct Table {
    version: Digest,
    chunks: Vec<ChunkId>,
    /// Numbers, in the order of their ids.
    by_id: Vec<u32>,
}

/// The most chunks and pages of a version: a disk of 64 TiB.
pub(crate) const TABLE_CHUNKS_MAX: usize = 1 << 28;

impl Table {
    /// A table; chunks that come again are left out.
    #[must_use]
    pub fn new(version: Digest, chunks: impl IntoIterator<Item = ChunkId>) -> Arc<Self> {
        let all: Vec<ChunkId> = chunks.into_iter().take(TABLE_CHUNKS_MAX).collect();
        let mut by_id: Vec<u32> = (0..all.len() as u32).collect();
        by_id.sort_by_key(|at| (all[*at as usize], *at));
        by_id.dedup_by_key(|at| all[*at as usize]);
        let mut firsts = by_id;
        firsts.sort_unstable();
        let chunks: Vec<ChunkId> = firsts.iter().map(|at| all[*at as usize]).collect();
        let mut by_id: Vec<u32> = (0..chunks.len() as u32).collect();
        by_id.sort_by_key(|at| chunks[*at as usize]);
        Arc::new(Self {
            version,
            chunks,
            by_id,
        })
    }

    /// The manifest's id.
    #[must_use]
    pub fn version(&self) -> Digest {
        self.version
    }

    /// How many chunks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The chunk with this number.
    #[must_use]
    pub fn chunk(&self, at: usize) -> Option<ChunkId> {
        self.chunks.get(at).copied()
    }

    /// All of them, in order.
    #[must_use]
    pub fn chunks(&self) -> &[ChunkId] {
        &self.chunks
    }

    /// A chunk's number.
    #[must_use]
    pub fn find(&self, chunk: ChunkId) -> Option<usize> {
        let of = |at: &u32| self.chunks[*at as usize];
        let found = self.by_id.binary_search_by_key(&chunk, of).ok()?;
        Some(self.by_id[found] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_first_appearances() {
        let chunk = |n: u8| ChunkId::of(&[n]);
        let table = Table::new(Digest::of(b"v"), [3, 1, 3, 2, 1].map(chunk));
        assert_eq!(table.chunks(), [3, 1, 2].map(chunk));
        for (at, n) in [3, 1, 2].into_iter().enumerate() {
            assert_eq!(table.find(chunk(n)), Some(at));
            assert_eq!(table.chunk(at), Some(chunk(n)));
        }
        assert_eq!(table.find(chunk(9)), None);
        assert_eq!(table.chunk(3), None);
    }
}
