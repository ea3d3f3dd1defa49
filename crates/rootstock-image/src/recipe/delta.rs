//! One chunk made of blocks of others: its bytes, and how it is rebuilt.

use rootstock_core::{
    ChunkId, Digest,
    units::{BLOCK_BYTES, CHUNK_BYTES},
};

use super::{BLOCKS_MAX, SOURCES_MAX, block_count};
use crate::frame::{Codec, Encoder};

/// The format of deltas that this release writes and reads.
const FORMAT: u8 = 1;

/// Bytes before the ids of the sources.
const HEAD_BYTES: usize = 4;

/// Bytes of an operation.
const OP_BYTES: usize = 3;

/// The source byte of blocks of zeros.
const ZEROS: u8 = 254;

/// The source byte of literal blocks.
const LITERAL: u8 = 255;

const BLOCK: usize = BLOCK_BYTES as usize;

/// One step of rebuilding a chunk: its next blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Blocks of another chunk.
    Copy {
        /// Which, in the delta's list of sources.
        source: u8,
        /// Its first block.
        first: u8,
        /// How many blocks: 1 to [`BLOCKS_MAX`].
        count: u8,
    },
    /// Blocks that read as zeros.
    Zeros {
        /// How many: 1 to [`BLOCKS_MAX`].
        count: u8,
    },
    /// The next of the blocks that the delta carries.
    Literal {
        /// How many: 1 to [`BLOCKS_MAX`].
        count: u8,
    },
}

impl Op {
    /// How many blocks it makes.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Self::Copy { count, .. } | Self::Zeros { count } | Self::Literal { count } => {
                count as usize
            }
        }
    }

    const fn encode(self) -> [u8; OP_BYTES] {
        match self {
            Self::Copy {
                source,
                first,
                count,
            } => [source, first, count],
            Self::Zeros { count } => [ZEROS, 0, count],
            Self::Literal { count } => [LITERAL, 0, count],
        }
    }

    fn decode([source, first, count]: [u8; OP_BYTES], source_count: usize) -> Option<Self> {
        let end = usize::from(first) + usize::from(count);
        if count == 0 || end > BLOCKS_MAX {
            return None;
        }
        match source {
            ZEROS | LITERAL if first != 0 => None,
            ZEROS => Some(Self::Zeros { count }),
            LITERAL => Some(Self::Literal { count }),
            source if usize::from(source) < source_count => Some(Self::Copy {
                source,
                first,
                count,
            }),
            _ => None,
        }
    }
}

/// Why bytes are not the delta of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It ends too early, or is of a chunk that cannot be.
    #[error("a delta of {len_bytes} bytes for {raw_bytes} raw bytes is out of bounds")]
    Bounds {
        /// Bytes of the delta.
        len_bytes: usize,
        /// Raw bytes of the chunk.
        raw_bytes: u32,
    },
    /// A format that this release does not know.
    #[error("delta format {format} is not known here: a newer release wrote it")]
    Format {
        /// The format it claims.
        format: u8,
    },
    /// A field has a value that it cannot have.
    #[error("the delta's {field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// An operation that cannot be.
    #[error("operation {index} of the delta cannot be")]
    Operation {
        /// Which.
        index: usize,
    },
    /// Its operations make another number of blocks than the chunk has.
    #[error("the delta makes {made} blocks of a chunk of {wanted}")]
    Blocks {
        /// What they make.
        made: usize,
        /// What the chunk has.
        wanted: usize,
    },
    /// A source that no operation copies from.
    #[error("no operation of the delta copies from its source {source_id}")]
    Unused {
        /// The source.
        source_id: ChunkId,
    },
}

/// A delta that was read and can be: what it needs is there is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<'a> {
    raw_bytes: u32,
    sources: Vec<ChunkId>,
    ops: Vec<Op>,
    pub(super) codec: Codec,
    pub(super) literals: &'a [u8],
}

impl<'a> Delta<'a> {
    /// Reads the delta of a chunk of `raw_bytes`.
    ///
    /// # Errors
    /// [`DeltaError`] for whatever is not the delta of such a chunk.
    pub fn decode(bytes: &'a [u8], raw_bytes: u32) -> Result<Self, DeltaError> {
        let bounds = DeltaError::Bounds {
            len_bytes: bytes.len(),
            raw_bytes,
        };
        let is_chunk = (1..=CHUNK_BYTES).contains(&u64::from(raw_bytes));
        let is_bounded = bytes.len() as u64 <= CHUNK_BYTES;
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Err(bounds);
        };
        if !is_chunk || !is_bounded {
            return Err(bounds);
        }
        let [format, codec, source_count, op_count] = *head;
        let (codec, source_count, op_count) = check_head(format, codec, source_count, op_count)?;
        let sources_bytes = source_count * Digest::LEN;
        let ops_bytes = op_count * OP_BYTES;
        if rest.len() < sources_bytes + ops_bytes {
            return Err(bounds);
        }
        let (sources, rest) = rest.split_at(sources_bytes);
        let (ops, literals) = rest.split_at(ops_bytes);
        let delta = Self {
            raw_bytes,
            sources: decode_sources(sources)?,
            ops: decode_ops(ops, source_count)?,
            codec,
            literals,
        };
        delta.check()?;
        Ok(delta)
    }

    /// The chunks it copies from, each once: at most [`SOURCES_MAX`].
    #[must_use]
    pub fn sources(&self) -> &[ChunkId] {
        &self.sources
    }

    /// Its operations, in the chunk's order.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Length of the chunk's raw bytes.
    #[must_use]
    pub const fn raw_bytes(&self) -> u32 {
        self.raw_bytes
    }

    /// What its parts must be for each other.
    fn check(&self) -> Result<(), DeltaError> {
        let made = self.ops.iter().map(|op| op.count()).sum();
        let wanted = block_count(self.raw_bytes as usize);
        if made != wanted {
            return Err(DeltaError::Blocks { made, wanted });
        }
        let mut used = [false; SOURCES_MAX];
        for op in &self.ops {
            if let Op::Copy { source, .. } = op {
                used[usize::from(*source)] = true;
            }
        }
        if let Some(unused) = (0..self.sources.len()).find(|index| !used[*index]) {
            let source_id = self.sources[unused];
            return Err(DeltaError::Unused { source_id });
        }
        let literal_bytes = self.literal_bytes();
        let fits = match self.codec {
            Codec::Raw => self.literals.len() == literal_bytes,
            Codec::Zstd => literal_bytes > 0 && !self.literals.is_empty(),
        };
        if !fits {
            return Err(DeltaError::Field {
                field: "length of literals",
                value: self.literals.len() as u64,
            });
        }
        Ok(())
    }

    /// Each operation with the bytes of the chunk that it makes.
    pub(super) fn spans(&self) -> impl Iterator<Item = (Op, usize, usize)> {
        let mut start = 0;
        self.ops.iter().map(move |op| {
            let end = (start + op.count() * BLOCK).min(self.raw_bytes as usize);
            let span = (*op, start, end);
            start = end;
            span
        })
    }

    /// Raw bytes of its literal blocks.
    pub(super) fn literal_bytes(&self) -> usize {
        let literal = self
            .spans()
            .filter(|(op, _, _)| matches!(op, Op::Literal { .. }));
        literal.map(|(_, start, end)| end - start).sum()
    }
}

fn check_head(
    format: u8,
    codec: u8,
    source_count: u8,
    op_count: u8,
) -> Result<(Codec, usize, usize), DeltaError> {
    let field = |field, value: u8| DeltaError::Field {
        field,
        value: u64::from(value),
    };
    if format != FORMAT {
        return Err(DeltaError::Format { format });
    }
    let known = Codec::from_byte(codec).ok_or(field("codec", codec))?;
    if usize::from(source_count) > SOURCES_MAX {
        return Err(field("number of sources", source_count));
    }
    if !(1..=BLOCKS_MAX).contains(&usize::from(op_count)) {
        return Err(field("number of operations", op_count));
    }
    Ok((known, source_count.into(), op_count.into()))
}

fn decode_sources(bytes: &[u8]) -> Result<Vec<ChunkId>, DeltaError> {
    let (ids, _) = bytes.as_chunks::<{ Digest::LEN }>();
    let sources: Vec<_> = ids.iter().map(|id| ChunkId::from_bytes(*id)).collect();
    for (index, source) in sources.iter().enumerate() {
        if source.is_zero() || sources[..index].contains(source) {
            return Err(DeltaError::Field {
                field: "source",
                value: index as u64,
            });
        }
    }
    Ok(sources)
}

fn decode_ops(bytes: &[u8], source_count: usize) -> Result<Vec<Op>, DeltaError> {
    let (ops, _) = bytes.as_chunks::<OP_BYTES>();
    let ops = ops
        .iter()
        .enumerate()
        .map(|(index, op)| Op::decode(*op, source_count).ok_or(DeltaError::Operation { index }));
    ops.collect()
}

/// The bytes of a delta whose parts fit together; `literals` are at most a chunk.
pub(super) fn encode(
    sources: &[ChunkId],
    ops: &[Op],
    literals: &[u8],
    encoder: &mut Encoder,
) -> Vec<u8> {
    let mut packed = vec![0; literals.len()];
    let (codec, len) = match literals {
        [] => (Codec::Raw, 0),
        literals => encoder.encode_to(literals, &mut packed),
    };
    let mut bytes =
        Vec::with_capacity(HEAD_BYTES + sources.len() * Digest::LEN + ops.len() * OP_BYTES + len);
    bytes.extend_from_slice(&[
        FORMAT,
        codec.to_byte(),
        sources.len() as u8,
        ops.len() as u8,
    ]);
    for source in sources {
        bytes.extend_from_slice(source.as_bytes());
    }
    for op in ops {
        bytes.extend_from_slice(&op.encode());
    }
    bytes.extend_from_slice(&packed[..len]);
    bytes
}
