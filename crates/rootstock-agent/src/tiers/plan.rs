//! The chunks of a version, in the order of its disk.

use hashbrown::HashTable;
use rootstock_core::ChunkId;
use rootstock_image::manifest::{Descend, LookupError, Manifest, PageSource, Visit};

/// Every chunk that is not zeros, once.
pub(crate) struct Plan {
    chunks: Vec<Planned>,
    by_chunk: HashTable<u32>,
    pages: Vec<ChunkId>,
    bytes: u64,
}

/// A chunk of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    /// The chunk.
    pub(crate) chunk: ChunkId,
    /// The first of its places, as the number of a chunk of the disk.
    pub(crate) index: u32,
    /// Its length.
    pub(crate) len_bytes: u32,
}

impl Plan {
    /// Reads all pages of a manifest.
    ///
    /// # Errors
    /// When a page is not to be had, or makes no sense.
    pub(crate) fn walk<P: PageSource>(
        manifest: &Manifest,
        pages: &P,
    ) -> Result<Self, LookupError<P::Error>> {
        let mut plan = Self {
            chunks: Vec::new(),
            by_chunk: HashTable::new(),
            pages: Vec::new(),
            bytes: 0,
        };
        manifest.walk(pages, |visit| {
            match visit {
                Visit::Page { id, .. } => plan.pages.push(id),
                Visit::Chunk { index, id } => {
                    let len_bytes = manifest.grid().span(index).len_bytes;
                    plan.add(Planned {
                        chunk: id,
                        // A disk of 64 TiB has 2^28 chunks.
                        index: index as u32,
                        len_bytes,
                    });
                }
            }
            Descend::Into
        })?;
        Ok(plan)
    }

    fn add(&mut self, planned: Planned) {
        if self.find(planned.chunk).is_some() {
            return;
        }
        self.bytes += u64::from(planned.len_bytes);
        self.chunks.push(planned);
        let chunks = &self.chunks;
        let at = chunks.len() as u32 - 1;
        let of = |at: &u32| hash(chunks[*at as usize].chunk);
        self.by_chunk.insert_unique(of(&at), at, of);
    }

    /// A chunk of it.
    pub(crate) fn find(&self, chunk: ChunkId) -> Option<Planned> {
        let same = |at: &u32| self.chunks[*at as usize].chunk == chunk;
        let at = self.by_chunk.find(hash(chunk), same)?;
        Some(self.chunks[*at as usize])
    }

    /// All of them, in order.
    pub(crate) fn chunks(&self) -> &[Planned] {
        &self.chunks
    }

    /// Its pages.
    pub(crate) fn pages(&self) -> &[ChunkId] {
        &self.pages
    }

    /// The bytes of all chunks.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Everything that the version needs.
    pub(crate) fn needed(&self) -> impl Iterator<Item = ChunkId> {
        let chunks = self.chunks.iter().map(|planned| planned.chunk);
        chunks.chain(self.pages.iter().copied())
    }
}

/// Ids are digests already.
fn hash(chunk: ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&chunk.as_bytes()[..8]);
    u64::from_le_bytes(first)
}
