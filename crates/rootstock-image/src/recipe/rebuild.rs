//! Rebuilds chunks of the blocks that a node has.

use rootstock_core::{ChunkId, units::BLOCK_BYTES};

use super::delta::{Delta, Op};
use crate::frame::Decoder;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Why a chunk could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError<E: std::error::Error + 'static> {
    /// A source is not to be had.
    #[error("chunk {id}, which the delta copies from, cannot be read")]
    Source {
        /// The source.
        id: ChunkId,
        /// Why.
        #[source]
        source: E,
    },
    /// A source ends before the blocks that are to be copied.
    #[error("chunk {id} has {len_bytes} bytes, and the delta copies up to byte {end_bytes}")]
    Short {
        /// The source.
        id: ChunkId,
        /// Its length.
        len_bytes: usize,
        /// Where the copy ends.
        end_bytes: usize,
    },
    /// The literals do not decompress to the blocks that they are to be.
    #[error("the delta's literals do not decompress to {raw_bytes} bytes")]
    Literals {
        /// What they are to be.
        raw_bytes: usize,
    },
    /// It makes bytes with another digest.
    #[error("the delta makes other bytes than chunk {expected}")]
    WrongChunk {
        /// The chunk that was asked for.
        expected: ChunkId,
    },
}

/// Rebuilds chunks; keeps the decompressor's tables between them.
#[derive(Default)]
pub struct Rebuilder {
    decoder: Decoder,
}

impl Rebuilder {
    /// A rebuilder.
    ///
    /// # Panics
    /// When zstd cannot allocate its tables.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The raw bytes of a chunk, checked against its id. `lookup` gives the raw
    /// bytes of a source, and is asked once for each, in their order; one source
    /// is held at a time.
    ///
    /// # Errors
    /// [`RebuildError`]; the chunk's frame is to be fetched then.
    pub fn rebuild<B: AsRef<[u8]>, E: std::error::Error + 'static>(
        &mut self,
        chunk: ChunkId,
        delta: &Delta<'_>,
        mut lookup: impl FnMut(ChunkId) -> Result<B, E>,
    ) -> Result<Vec<u8>, RebuildError<E>> {
        let mut raw = vec![0; delta.raw_bytes() as usize];
        self.literals(delta, &mut raw)?;
        for (index, id) in (0..).zip(delta.sources()) {
            let bytes = lookup(*id).map_err(|source| RebuildError::Source { id: *id, source })?;
            copy(delta, index, *id, bytes.as_ref(), &mut raw)?;
        }
        if ChunkId::of(&raw) != chunk {
            return Err(RebuildError::WrongChunk { expected: chunk });
        }
        Ok(raw)
    }

    fn literals<E: std::error::Error + 'static>(
        &mut self,
        delta: &Delta<'_>,
        raw: &mut [u8],
    ) -> Result<(), RebuildError<E>> {
        let raw_bytes = delta.literal_bytes();
        if raw_bytes == 0 {
            return Ok(());
        }
        let mut literals = vec![0; raw_bytes];
        self.decoder
            .unpack(delta.codec, delta.literals, &mut literals)
            .map_err(|_| RebuildError::Literals { raw_bytes })?;
        let mut rest = literals.as_slice();
        for (op, start, end) in delta.spans() {
            if matches!(op, Op::Literal { .. }) {
                let (now, later) = rest.split_at(end - start);
                raw[start..end].copy_from_slice(now);
                rest = later;
            }
        }
        Ok(())
    }
}

/// Copies all blocks that come from one source.
fn copy<E: std::error::Error + 'static>(
    delta: &Delta<'_>,
    index: u8,
    id: ChunkId,
    bytes: &[u8],
    raw: &mut [u8],
) -> Result<(), RebuildError<E>> {
    for (op, start, end) in delta.spans() {
        let Op::Copy { source, first, .. } = op else {
            continue;
        };
        if source != index {
            continue;
        }
        let from = usize::from(first) * BLOCK;
        let end_bytes = from + (end - start);
        let blocks = bytes.get(from..end_bytes).ok_or(RebuildError::Short {
            id,
            len_bytes: bytes.len(),
            end_bytes,
        })?;
        raw[start..end].copy_from_slice(blocks);
    }
    Ok(())
}
