//! What a version is: a tree of pages of chunk ids for each region of its disk.
//!
//! The root document says how large the disk is, how it is cut into regions, and
//! what each region's tree begins with. A region of one chunk has no page: its
//! root is the chunk. Equal content has equal pages whatever version it is in,
//! so a new version costs its changed pages only, and a subtree of zeros costs
//! nothing at all. `docs/formats/manifest.md` has the bytes.

use rootstock_core::{ChunkId, Digest, units::CHUNK_BYTES};

use crate::grid::{Grid, GridError};

mod build;
mod diff;
mod document;
mod page;
#[cfg(test)]
mod tests;
mod walk;

pub use build::{BuildError, ManifestBuilder, NoPages, NoSuchPage};
pub use diff::{Change, diff};
pub use document::MANIFEST_BYTES_MAX;
pub use page::{Page, PageError};
pub use walk::{Descend, Leaf, Visit};

/// Entries of a full page. At 32 bytes an entry a page is half a chunk, and a
/// leaf covers 1 GiB of disk.
pub const PAGE_ENTRIES: u64 = 4096;

/// The deepest tree: three levels of pages cover 16 PiB.
pub const DEPTH_MAX: u8 = 3;

/// Where a manifest's pages are read from.
pub trait PageSource {
    /// Why a page could not be read.
    type Error: std::error::Error + 'static;
    /// A page's bytes: a `Vec<u8>`, an `Arc<[u8]>`, a cache's buffer.
    type Bytes: AsRef<[u8]>;

    /// The bytes of a page, whose id the source has checked.
    ///
    /// # Errors
    /// Whatever keeps the source from giving exactly the bytes of that id.
    fn page(&self, id: ChunkId) -> Result<Self::Bytes, Self::Error>;
}

impl<P: PageSource + ?Sized> PageSource for &P {
    type Error = P::Error;
    type Bytes = P::Bytes;

    fn page(&self, id: ChunkId) -> Result<Self::Bytes, Self::Error> {
        (**self).page(id)
    }
}

/// Why a lookup in a manifest failed.
#[derive(Debug, thiserror::Error)]
pub enum LookupError<E: std::error::Error + 'static> {
    /// The page is not to be had.
    #[error("manifest page {id} cannot be read")]
    Source {
        /// The page.
        id: ChunkId,
        /// Why.
        #[source]
        source: E,
    },
    /// Its bytes are not the page that the manifest needs there.
    #[error("manifest page {id} is not what its place in the tree needs")]
    Page {
        /// The page.
        id: ChunkId,
        /// Why.
        #[source]
        source: PageError,
    },
    /// The manifest has no such chunk.
    #[error("the disk has {chunk_count} chunks, and chunk {index} was asked for")]
    NoChunk {
        /// What was asked for.
        index: u64,
        /// How many there are.
        chunk_count: u64,
    },
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It ends too early, or goes on after its end.
    #[error("a manifest of {len_bytes} bytes was expected to have {expected_bytes}")]
    Length {
        /// How many bytes there are.
        len_bytes: usize,
        /// How many its own fields ask for.
        expected_bytes: usize,
    },
    /// It begins with something else.
    #[error("these bytes are not a manifest: they do not begin with its magic")]
    Magic,
    /// A version of the format that this release does not know.
    #[error("manifest format {version} is not known here: a newer release wrote it")]
    Version {
        /// The version it claims.
        version: u32,
    },
    /// A field has a value that it cannot have.
    #[error("the manifest's {field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The regions are not a grid.
    #[error("the manifest's regions do not cover its disk")]
    Grid(#[source] GridError),
}

/// The root document of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    grid: Grid,
    /// The root of each region's tree.
    roots: Vec<ChunkId>,
}

impl Manifest {
    /// A manifest of zeros.
    #[must_use]
    pub fn zero(grid: Grid) -> Self {
        let roots = vec![ChunkId::ZERO; grid.regions().len()];
        Self { grid, roots }
    }

    /// The manifest's identity: the digest of its encoding.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// How its disk is cut into chunks.
    #[must_use]
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The root of a region's tree: a page, or the chunk of a region of one.
    ///
    /// # Panics
    /// When there is no such region.
    #[must_use]
    pub fn root(&self, region_index: usize) -> ChunkId {
        self.roots[region_index]
    }

    /// How many levels of pages a region's tree has.
    ///
    /// # Panics
    /// When there is no such region.
    #[must_use]
    pub fn depth(&self, region_index: usize) -> u8 {
        depth_of(self.grid.regions()[region_index].chunk_count())
    }
}

/// The levels of pages that this many chunks need.
fn depth_of(chunk_count: u64) -> u8 {
    let mut depth = 0;
    while chunks_under(depth) < chunk_count {
        depth += 1;
    }
    depth
}

/// How many chunks a full subtree of this height covers.
fn chunks_under(level: u8) -> u64 {
    PAGE_ENTRIES.pow(u32::from(level))
}

/// How many entries the page at `level` has that begins with a region's chunk
/// `first`, in a region of `chunk_count`.
fn entries_at(level: u8, first: u64, chunk_count: u64) -> usize {
    let chunks = (chunk_count - first).min(chunks_under(level));
    chunks.div_ceil(chunks_under(level - 1)) as usize
}

const _: () = assert!(CHUNK_BYTES * PAGE_ENTRIES == 1 << 30);
