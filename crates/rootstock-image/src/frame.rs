//! A frame: a chunk as it is stored and sent, compressed or raw.
//!
//! zstd at level 3, or the raw bytes when that gains less than 3 %. The codec is
//! named beside the frame, never guessed from its bytes.

use rootstock_core::{ChunkId, FrameId, units::CHUNK_BYTES};

/// The zstd level of new frames: on 256 KiB chunks level 9 gains 6 % for a
/// quarter of the speed.
pub const ZSTD_LEVEL: i32 = 3;

/// The largest frame, in bytes: a raw chunk.
pub const FRAME_BYTES_MAX: usize = CHUNK_BYTES as usize;

/// How a frame holds its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The raw bytes themselves.
    Raw,
    /// One zstd frame (RFC 8878).
    Zstd,
}

impl Codec {
    /// The codec's byte in formats and messages.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The codec with this byte, if this release knows it.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A chunk ready to be stored or sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// BLAKE3 of the raw bytes.
    pub chunk: ChunkId,
    /// Length of the raw bytes: 1 to [`CHUNK_BYTES`].
    pub raw_bytes: u32,
    /// How `bytes` hold them.
    pub codec: Codec,
    /// The frame itself.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// BLAKE3 of the frame's own bytes.
    #[must_use]
    pub fn id(&self) -> FrameId {
        FrameId::of(&self.bytes)
    }

    /// Checks what can be checked without decompressing.
    ///
    /// # Errors
    /// [`FrameError::Bounds`] for lengths that no frame has, and
    /// [`FrameError::WrongChunk`] for the marker of zeros, which is never stored.
    pub fn check_bounds(&self) -> Result<(), FrameError> {
        self.borrowed().check_bounds()
    }

    /// The same without owning its bytes.
    #[must_use]
    pub fn borrowed(&self) -> FrameRef<'_> {
        FrameRef {
            chunk: self.chunk,
            raw_bytes: self.raw_bytes,
            codec: self.codec,
            bytes: &self.bytes,
        }
    }
}

/// A [`Frame`] whose bytes lie elsewhere, such as in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// BLAKE3 of the raw bytes.
    pub chunk: ChunkId,
    /// Length of the raw bytes: 1 to [`CHUNK_BYTES`].
    pub raw_bytes: u32,
    /// How `bytes` hold them.
    pub codec: Codec,
    /// The frame itself.
    pub bytes: &'a [u8],
}

impl FrameRef<'_> {
    /// Checks what can be checked without decompressing.
    ///
    /// # Errors
    /// [`FrameError::Bounds`] for lengths that no frame has, and
    /// [`FrameError::WrongChunk`] for the marker of zeros, which is never stored.
    pub fn check_bounds(&self) -> Result<(), FrameError> {
        check_lengths(self.raw_bytes, self.codec, self.bytes.len())?;
        if self.chunk.is_zero() {
            let expected = self.chunk;
            return Err(FrameError::WrongChunk { expected });
        }
        Ok(())
    }
}

impl<'a> From<&'a Frame> for FrameRef<'a> {
    fn from(frame: &'a Frame) -> Self {
        frame.borrowed()
    }
}

fn check_lengths(raw_bytes: u32, codec: Codec, frame_bytes: usize) -> Result<(), FrameError> {
    let fits = match codec {
        Codec::Raw => frame_bytes == raw_bytes as usize,
        Codec::Zstd => (1..=FRAME_BYTES_MAX).contains(&frame_bytes),
    };
    if fits && (1..=CHUNK_BYTES).contains(&u64::from(raw_bytes)) {
        return Ok(());
    }
    Err(FrameError::Bounds {
        frame_bytes,
        raw_bytes,
    })
}

fn check_id(chunk: ChunkId, raw: &[u8]) -> Result<(), FrameError> {
    if ChunkId::of(raw) != chunk {
        return Err(FrameError::WrongChunk { expected: chunk });
    }
    Ok(())
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The lengths cannot be a frame's.
    #[error("a frame of {frame_bytes} bytes for {raw_bytes} raw bytes is out of bounds")]
    Bounds {
        /// Bytes of the frame.
        frame_bytes: usize,
        /// Raw bytes it claims to hold.
        raw_bytes: u32,
    },
    /// The decompressor refused it, or it holds another number of bytes.
    #[error("the frame does not decompress to the {raw_bytes} bytes it claims")]
    Corrupt {
        /// Raw bytes it claims to hold.
        raw_bytes: u32,
    },
    /// It decompresses to bytes with another digest.
    #[error("the frame holds other bytes than chunk {expected}")]
    WrongChunk {
        /// The chunk that was asked for.
        expected: ChunkId,
    },
}

/// Makes frames; keeps the compressor's tables between chunks.
pub struct Encoder {
    context: zstd::bulk::Compressor<'static>,
    /// Where frames are made before their length is known.
    scratch: Vec<u8>,
}

impl Encoder {
    /// An encoder at [`ZSTD_LEVEL`].
    ///
    /// # Panics
    /// When zstd cannot allocate its tables.
    #[must_use]
    pub fn new() -> Self {
        #[expect(clippy::expect_used, reason = "level 3 exists; only memory can lack")]
        let context = zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("memory for a zstd context");
        let scratch = vec![0; FRAME_BYTES_MAX];
        Self { context, scratch }
    }

    /// The frame of `raw`, whose digest the caller has computed.
    ///
    /// # Panics
    /// When `raw` is empty or longer than a chunk.
    #[must_use]
    pub fn encode(&mut self, chunk: ChunkId, raw: &[u8]) -> Frame {
        let mut scratch = std::mem::take(&mut self.scratch);
        let (codec, len) = self.encode_to(raw, &mut scratch);
        let bytes = scratch[..len].to_vec();
        self.scratch = scratch;
        Frame {
            chunk,
            raw_bytes: raw.len() as u32,
            codec,
            bytes,
        }
    }

    /// Makes a frame of `raw` at the start of `out`, without another copy;
    /// answers how it holds the chunk, and its length in bytes.
    ///
    /// # Panics
    /// When `raw` is empty or longer than a chunk, or `out` is shorter than `raw`.
    pub fn encode_to(&mut self, raw: &[u8], out: &mut [u8]) -> (Codec, usize) {
        assert!(
            !raw.is_empty() && raw.len() as u64 <= CHUNK_BYTES,
            "a chunk has 1 B to 256 KiB"
        );
        // A frame must gain 3 %: a buffer of that size makes zstd stop early.
        let limit = raw.len() - raw.len() * 3 / 100;
        match self.context.compress_to_buffer(raw, &mut out[..limit]) {
            Ok(len) if len < limit => (Codec::Zstd, len),
            _ => {
                out[..raw.len()].copy_from_slice(raw);
                (Codec::Raw, raw.len())
            }
        }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads frames; keeps the decompressor's tables between chunks.
pub struct Decoder {
    context: zstd::bulk::Decompressor<'static>,
    /// For raw bytes that nobody keeps.
    spare: Vec<u8>,
}

impl Decoder {
    /// A decoder.
    ///
    /// # Panics
    /// When zstd cannot allocate its tables.
    #[must_use]
    pub fn new() -> Self {
        #[expect(clippy::expect_used, reason = "only memory can lack")]
        let context = zstd::bulk::Decompressor::new().expect("memory for a zstd context");
        Self {
            context,
            spare: Vec::new(),
        }
    }

    /// The raw bytes of a frame, checked against the chunk's id.
    ///
    /// # Errors
    /// [`FrameError`] when the frame is out of bounds, does not decompress to
    /// exactly `raw_bytes`, or holds another chunk.
    pub fn decode(
        &mut self,
        chunk: ChunkId,
        raw_bytes: u32,
        codec: Codec,
        frame: &[u8],
    ) -> Result<Vec<u8>, FrameError> {
        // Before there is memory for what the frame claims.
        check_lengths(raw_bytes, codec, frame.len())?;
        let mut raw = vec![0; raw_bytes as usize];
        self.decode_to(chunk, codec, frame, &mut raw)?;
        Ok(raw)
    }

    /// Whether a frame holds the chunk; its raw bytes are not kept.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn check(
        &mut self,
        chunk: ChunkId,
        raw_bytes: u32,
        codec: Codec,
        frame: &[u8],
    ) -> Result<(), FrameError> {
        check_lengths(raw_bytes, codec, frame.len())?;
        if codec == Codec::Raw {
            return check_id(chunk, frame);
        }
        let mut raw = std::mem::take(&mut self.spare);
        raw.resize(raw_bytes as usize, 0);
        let checked = self.decode_to(chunk, codec, frame, &mut raw);
        self.spare = raw;
        checked
    }

    /// The same, into memory of exactly the chunk's length. After an error there is
    /// anything in it.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn decode_to(
        &mut self,
        chunk: ChunkId,
        codec: Codec,
        frame: &[u8],
        raw: &mut [u8],
    ) -> Result<(), FrameError> {
        self.unpack(codec, frame, raw)?;
        check_id(chunk, raw)
    }

    /// Fills `raw` with what a frame holds, whatever that is.
    pub(crate) fn unpack(
        &mut self,
        codec: Codec,
        frame: &[u8],
        raw: &mut [u8],
    ) -> Result<(), FrameError> {
        let raw_bytes = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        check_lengths(raw_bytes, codec, frame.len())?;
        match codec {
            Codec::Raw => raw.copy_from_slice(frame),
            Codec::Zstd => match self.context.decompress_to_buffer(frame, raw) {
                Ok(len) if len == raw.len() => {}
                _ => return Err(FrameError::Corrupt { raw_bytes }),
            },
        }
        Ok(())
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(step).collect()
    }

    fn round_trip(raw: &[u8]) -> Frame {
        let chunk = ChunkId::of(raw);
        let frame = Encoder::new().encode(chunk, raw);
        let back = Decoder::new().decode(chunk, frame.raw_bytes, frame.codec, &frame.bytes);
        assert_eq!(back.as_deref(), Ok(raw));
        let mut decoder = Decoder::new();
        for _ in 0..2 {
            let checked = decoder.check(chunk, frame.raw_bytes, frame.codec, &frame.bytes);
            assert_eq!(checked, Ok(()));
        }
        frame
    }

    #[test]
    fn what_does_not_shrink_stays_raw() {
        assert_eq!(round_trip(&noise(CHUNK_BYTES as usize)).codec, Codec::Raw);
        assert_eq!(round_trip(&[7]).codec, Codec::Raw);
        let text = b"the same again ".repeat(10_000);
        let frame = round_trip(&text);
        assert_eq!(frame.codec, Codec::Zstd);
        assert!(frame.bytes.len() * 20 < text.len());
    }

    #[test]
    fn a_bomb_is_bounded() {
        // A frame of many more zeros than it claims is refused, not expanded.
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).expect("compresses");
        let error = Decoder::new().decode(ChunkId::ZERO, 4096, Codec::Zstd, &bomb);
        assert_eq!(error, Err(FrameError::Corrupt { raw_bytes: 4096 }));
    }

    proptest! {
        #[test]
        fn damage_never_passes(raw in prop::collection::vec(any::<u8>(), 1..5000), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let chunk = ChunkId::of(&raw);
            let mut frame = Encoder::new().encode(chunk, &raw.repeat(3));
            let chunk = ChunkId::of(&raw.repeat(3));
            let at = at.index(frame.bytes.len());
            frame.bytes[at] ^= flip;
            let back = Decoder::new().decode(chunk, frame.raw_bytes, frame.codec, &frame.bytes);
            let checked = Decoder::new().check(chunk, frame.raw_bytes, frame.codec, &frame.bytes);
            prop_assert_eq!(checked, back.as_ref().map(|_| ()).map_err(|error| *error));
            if let Ok(back) = back {
                prop_assert_eq!(back, raw.repeat(3));
            }
        }
    }
}
