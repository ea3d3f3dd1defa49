//! A version as a read-only disk: its manifest, and chunks from the cache.

use std::sync::Arc;

use bytes::Bytes;
use rootstock_core::{ByteRange, ChunkId, Digest};
use rootstock_image::{
    grid::ChunkSpan,
    manifest::{Leaf, LookupError, Manifest, PAGE_ENTRIES},
};
use rootstock_store::{ChunkStore, ReadError};

use crate::{
    cache::{ChunkCache, ChunkSource, LeafKey},
    device::{BlockDevice, BlockError, Segments, StatusExtent, StatusList, check_range},
    volume::Base,
};

/// The most bytes that one [`BlockDevice::prefetch`] brings in.
pub const PREFETCH_BYTES_MAX: u64 = 32 << 20;

/// A version of an image, read-only. Making one reads nothing: pages of the
/// manifest are read when a request needs them.
pub struct VersionDisk<S = ChunkStore> {
    manifest: Manifest,
    id: Digest,
    cache: Arc<ChunkCache<S>>,
}

impl<S: ChunkSource> VersionDisk<S> {
    /// The disk that `manifest` describes.
    #[must_use]
    pub fn new(manifest: Manifest, cache: Arc<ChunkCache<S>>) -> Self {
        Self {
            id: manifest.id(),
            manifest,
            cache,
        }
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's id.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Where its chunks come from.
    #[must_use]
    pub fn cache(&self) -> &Arc<ChunkCache<S>> {
        &self.cache
    }

    /// This disk as the base of volumes.
    #[must_use]
    pub fn into_base(self: Arc<Self>) -> Base
    where
        S: 'static,
    {
        Base {
            id: self.id,
            device: self,
        }
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<ByteRange, BlockError> {
        check_range(offset_bytes, len_bytes, self.size_bytes())
    }

    fn leaf_key(&self, index: u64) -> LeafKey {
        let grid = self.manifest.grid();
        let region_first = grid.region_first_chunk(grid.region_of_chunk(index));
        LeafKey {
            manifest: self.id,
            first: index - (index - region_first) % PAGE_ENTRIES,
        }
    }

    fn leaf(&self, span: ChunkSpan) -> Result<Arc<Leaf>, BlockError> {
        let leaf = self.cache.leaf(&self.manifest, self.leaf_key(span.index));
        leaf.map_err(|error| match error {
            LookupError::Source { source, .. } => unreadable(span.start_bytes, source),
            other => BlockError::Damaged {
                offset_bytes: span.start_bytes,
                what: other.to_string(),
            },
        })
    }

    /// The id of the chunk in this place of the grid.
    ///
    /// # Errors
    /// When the page that has it is not to be had, or damaged.
    pub fn chunk(&self, span: ChunkSpan) -> Result<ChunkId, BlockError> {
        let leaf = self.leaf(span)?;
        Ok(leaf.chunk(span.index).unwrap_or(ChunkId::ZERO))
    }

    /// The bytes of a chunk, which must have the length of its place.
    fn bytes(&self, span: ChunkSpan, id: ChunkId) -> Result<Bytes, BlockError> {
        let bytes = self
            .cache
            .get(id)
            .map_err(|error| unreadable(span.start_bytes, error))?;
        check_len(span, &bytes)?;
        Ok(bytes)
    }

    /// Calls `each` with every chunk that a range touches and the part of the
    /// range in it, until it gives `false`.
    fn each_span(
        &self,
        range: ByteRange,
        mut each: impl FnMut(ChunkSpan, ByteRange) -> Result<bool, BlockError>,
    ) -> Result<bool, BlockError> {
        let mut next = range.start;
        while next < range.end() {
            let span = self.manifest.grid().at(next);
            let end = span.end_bytes().min(range.end());
            if !each(span, ByteRange::new(next, end - next))? {
                return Ok(false);
            }
            next = end;
        }
        Ok(true)
    }
}

impl<S: ChunkSource> BlockDevice for VersionDisk<S> {
    fn size_bytes(&self) -> u64 {
        self.manifest.grid().disk_bytes()
    }

    fn read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<(), BlockError> {
        let range = self.check(offset_bytes, u64::from(len_bytes))?;
        let mark = out.mark();
        let read = self.each_span(range, |span, part| {
            let id = self.chunk(span)?;
            if id.is_zero() {
                out.push_zero(part.len as u32);
            } else {
                push(out, &self.bytes(span, id)?, span, part);
            }
            Ok(true)
        });
        if read.is_err() {
            out.rewind(mark);
        }
        read.map(|_| ())
    }

    fn try_read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let range = self.check(offset_bytes, u64::from(len_bytes))?;
        let mark = out.mark();
        let read = self.each_span(range, |span, part| {
            let leaf = self.cache.peek_leaf(self.leaf_key(span.index));
            let Some(id) = leaf.and_then(|leaf| leaf.chunk(span.index)) else {
                return Ok(false);
            };
            if id.is_zero() {
                out.push_zero(part.len as u32);
            } else if let Some(bytes) = self.cache.peek(id) {
                check_len(span, &bytes)?;
                push(out, &bytes, span, part);
            } else {
                return Ok(false);
            }
            Ok(true)
        });
        if !matches!(read, Ok(true)) {
            out.rewind(mark);
        }
        read
    }

    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        let range = self.check(offset_bytes, len_bytes)?;
        let grid = self.manifest.grid();
        let mut list = StatusList::new(extents_max);
        let mut next = range.start;
        'leaves: while next < range.end() {
            let leaf = self.leaf(grid.at(next))?;
            let leaf_end = grid.span(leaf.chunks().end - 1).end_bytes();
            if leaf.is_zero() {
                let end = leaf_end.min(range.end());
                if !list.push(extent(end - next, true)) {
                    break;
                }
                next = end;
                continue;
            }
            while next < leaf_end.min(range.end()) {
                let span = grid.at(next);
                let end = span.end_bytes().min(range.end());
                let zero = leaf.chunk(span.index).is_none_or(|id| id.is_zero());
                if !list.push(extent(end - next, zero)) {
                    break 'leaves;
                }
                next = end;
            }
        }
        Ok(list.finish())
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let Ok(range) = self.check(offset_bytes, len_bytes) else {
            return;
        };
        let range = ByteRange::new(range.start, range.len.min(PREFETCH_BYTES_MAX));
        // Whoever reads it will be told what is wrong.
        let _ = self.each_span(range, |span, _| {
            let id = self.chunk(span)?;
            Ok(id.is_zero() || self.cache.get(id).is_ok())
        });
    }
}

/// A chunk of zeros is not stored: to a guest it is a hole.
fn extent(len_bytes: u64, zero: bool) -> StatusExtent {
    StatusExtent {
        len_bytes,
        hole: zero,
        zero,
    }
}

fn push(out: &mut Segments, chunk: &Bytes, span: ChunkSpan, part: ByteRange) {
    let first = (part.start - span.start_bytes) as usize;
    out.push(chunk.slice(first..first + part.len as usize));
}

fn check_len(span: ChunkSpan, bytes: &Bytes) -> Result<(), BlockError> {
    if bytes.len() == span.len_bytes as usize {
        return Ok(());
    }
    Err(BlockError::Damaged {
        offset_bytes: span.start_bytes,
        what: format!(
            "the manifest names a chunk of {} B where {} B belong",
            bytes.len(),
            span.len_bytes
        ),
    })
}

fn unreadable(offset_bytes: u64, error: ReadError) -> BlockError {
    match error {
        ReadError::Io { source, .. } => BlockError::Io {
            doing: "read a chunk",
            offset_bytes,
            source,
        },
        other => BlockError::Damaged {
            offset_bytes,
            what: other.to_string(),
        },
    }
}
