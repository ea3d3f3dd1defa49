//! Binary bodies: lists of ids, the bitmap that answers them, and chunk records.
//!
//! A record is 44 bytes and a frame: chunk id (32), raw bytes (u32, little
//! endian), frame bytes (u32), codec (u8), three zero bytes, the frame. Nothing
//! here checks a digest; the store does before it believes one.

use rootstock_core::{ChunkId, Digest, units::CHUNK_BYTES};

/// Bytes of a record before its frame.
pub const RECORD_HEADER_BYTES: usize = 44;

/// The codec byte of a record that carries a delta instead of a frame: only the
/// node service sends such, and only to who asks for them.
pub const CODEC_DELTA: u8 = 2;

/// The most ids in one question.
pub const IDS_MAX: usize = 4096;

/// The most chunks in one fetch.
pub const FETCH_MAX: usize = 64;

/// The most bytes of records that answer one fetch. That is more than a body of
/// records may have: chunks that do not compress come as they are, and each has its
/// header besides.
pub const FETCH_BYTES_MAX: usize = FETCH_MAX * (RECORD_HEADER_BYTES + CHUNK_BYTES as usize);

/// The largest body of records that the API takes, in bytes.
pub const RECORDS_BYTES_MAX: usize = 16 << 20;

/// Why a binary body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The body ends within a record.
    #[error("the body ends within a record, at byte {at_bytes}")]
    Truncated {
        /// Where the record begins.
        at_bytes: usize,
    },
    /// A length is zero or more than a chunk has.
    #[error(
        "the record at byte {at_bytes} claims {raw_bytes} raw and {frame_bytes} frame bytes; a chunk has 1 to {CHUNK_BYTES}"
    )]
    Length {
        /// Where the record begins.
        at_bytes: usize,
        /// Raw bytes it claims.
        raw_bytes: u32,
        /// Frame bytes it claims.
        frame_bytes: u32,
    },
    /// The three reserved bytes are not zero.
    #[error("the record at byte {at_bytes} has non-zero reserved bytes: is the sender newer?")]
    Reserved {
        /// Where the record begins.
        at_bytes: usize,
    },
    /// Not a whole number of ids.
    #[error("a list of ids has a multiple of 32 bytes, and this one has {len_bytes}")]
    Ids {
        /// Bytes of the list.
        len_bytes: usize,
    },
    /// More ids than one request may have.
    #[error("the request has {count} ids, and the limit is {max}")]
    TooMany {
        /// Ids in the request.
        count: usize,
        /// The limit.
        max: usize,
    },
}

/// A chunk as it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// BLAKE3 of the raw bytes.
    pub chunk: ChunkId,
    /// Length of the raw bytes.
    pub raw_bytes: u32,
    /// The codec's byte; 0 is raw, 1 is zstd, 2 is [`CODEC_DELTA`].
    pub codec: u8,
    /// The frame.
    pub frame: &'a [u8],
}

impl Record<'_> {
    /// Bytes of the record as sent.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.frame.len()
    }

    /// The record's bytes before the frame.
    #[must_use]
    pub fn header(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0; RECORD_HEADER_BYTES];
        header[..32].copy_from_slice(self.chunk.as_bytes());
        header[32..36].copy_from_slice(&self.raw_bytes.to_le_bytes());
        // A frame is never longer than a chunk, so the length fits.
        header[36..40].copy_from_slice(&(self.frame.len() as u32).to_le_bytes());
        header[40] = self.codec;
        header
    }

    /// Appends the record to a body.
    pub fn write(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.header());
        body.extend_from_slice(self.frame);
    }
}

/// Reads the records of a body, in order, and ends at the first error.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// The records of this body.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    fn read(&self) -> Result<Record<'a>, RecordError> {
        let at_bytes = self.at;
        let truncated = RecordError::Truncated { at_bytes };
        let rest = &self.body[at_bytes..];
        let Some((header, rest)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            return Err(truncated);
        };
        let raw_bytes = u32_at(header, 32);
        let frame_bytes = u32_at(header, 36);
        let fits = |len: u32| len > 0 && u64::from(len) <= CHUNK_BYTES;
        if !fits(raw_bytes) || !fits(frame_bytes) {
            return Err(RecordError::Length {
                at_bytes,
                raw_bytes,
                frame_bytes,
            });
        }
        if header[41..] != [0; 3] {
            return Err(RecordError::Reserved { at_bytes });
        }
        let frame = rest.get(..frame_bytes as usize).ok_or(truncated)?;
        Ok(Record {
            chunk: id_at(header),
            raw_bytes,
            codec: header[40],
            frame,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.body.len() {
            return None;
        }
        let record = self.read();
        self.at = match &record {
            Ok(record) => self.at + record.len_bytes(),
            Err(_) => self.body.len(),
        };
        Some(record)
    }
}

/// A list of ids as a body.
#[must_use]
pub fn encode_ids(ids: &[ChunkId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.as_bytes()).collect()
}

/// Reads a list of at most `max` ids.
///
/// # Errors
/// [`RecordError::Ids`] and [`RecordError::TooMany`].
pub fn decode_ids(body: &[u8], max: usize) -> Result<Vec<ChunkId>, RecordError> {
    let (ids, rest) = body.as_chunks::<{ Digest::LEN }>();
    if !rest.is_empty() {
        return Err(RecordError::Ids {
            len_bytes: body.len(),
        });
    }
    if ids.len() > max {
        return Err(RecordError::TooMany {
            count: ids.len(),
            max,
        });
    }
    Ok(ids.iter().map(|id| ChunkId::from_bytes(*id)).collect())
}

/// One bit for each id of a question: bit `i % 8` of byte `i / 8`, set when the
/// chunk is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    bytes: Vec<u8>,
}

impl Bitmap {
    /// A bitmap of `count` clear bits.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            bytes: vec![0; count.div_ceil(8)],
        }
    }

    /// Reads the answer to a question of `count` ids; `None` when it has another
    /// length.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>, count: usize) -> Option<Self> {
        (bytes.len() == count.div_ceil(8)).then_some(Self { bytes })
    }

    /// Sets a bit.
    ///
    /// # Panics
    /// When `index` is past the end.
    pub fn set(&mut self, index: usize) {
        self.bytes[index / 8] |= 1 << (index % 8);
    }

    /// Whether a bit is set; bits past the end are not.
    #[must_use]
    pub fn get(&self, index: usize) -> bool {
        let byte = self.bytes.get(index / 8).copied().unwrap_or(0);
        byte & (1 << (index % 8)) != 0
    }

    /// How many bits are set.
    #[must_use]
    pub fn count_set(&self) -> usize {
        self.bytes
            .iter()
            .map(|byte| byte.count_ones() as usize)
            .sum()
    }

    /// The bitmap's bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn u32_at(header: &[u8; RECORD_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn id_at(header: &[u8; RECORD_HEADER_BYTES]) -> ChunkId {
    let mut id = [0; Digest::LEN];
    id.copy_from_slice(&header[..Digest::LEN]);
    ChunkId::from_bytes(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(frame: &[u8]) -> Record<'_> {
        Record {
            chunk: ChunkId::of(frame),
            raw_bytes: 7,
            codec: 1,
            frame,
        }
    }

    #[test]
    fn a_record_is_laid_out_as_documented() {
        let mut body = Vec::new();
        record(b"ab").write(&mut body);
        assert_eq!(body.len(), 46);
        assert_eq!(body[..32], *ChunkId::of(b"ab").as_bytes());
        assert_eq!(body[32..], [7, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, b'a', b'b']);
    }

    #[test]
    fn bad_bodies_are_refused() {
        let mut body = Vec::new();
        record(b"ab").write(&mut body);
        let with = |at: usize, byte: u8| {
            let mut body = body.clone();
            body[at] = byte;
            Records::new(&body)
                .map(|r| r.map(|_| ()))
                .collect::<Vec<_>>()
        };
        assert_eq!(with(43, 1), [Err(RecordError::Reserved { at_bytes: 0 })]);
        assert_eq!(with(36, 9), [Err(RecordError::Truncated { at_bytes: 0 })]);
        assert!(matches!(with(39, 9)[..], [Err(RecordError::Length { .. })]));
        assert!(matches!(with(32, 0)[..], [Err(RecordError::Length { .. })]));
        for cut in 1..body.len() {
            let read: Vec<_> = Records::new(&body[..cut]).collect();
            assert_eq!(read, [Err(RecordError::Truncated { at_bytes: 0 })]);
        }
        assert!(decode_ids(&[0; 33], 8).is_err());
        assert!(decode_ids(&[0; 96], 2).is_err());
    }

    proptest! {
        #[test]
        fn records_go_and_come_back(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8)) {
            let mut body = Vec::new();
            for frame in &frames {
                record(frame).write(&mut body);
            }
            let read: Result<Vec<_>, _> = Records::new(&body).collect();
            prop_assert_eq!(read, Ok(frames.iter().map(|frame| record(frame)).collect()));
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Records::new(&body).count() <= 10);
        }

        #[test]
        fn a_bitmap_is_a_set(bits in prop::collection::vec(any::<bool>(), 0..100)) {
            let mut bitmap = Bitmap::new(bits.len());
            for (index, bit) in bits.iter().enumerate() {
                if *bit { bitmap.set(index) }
            }
            let read = Bitmap::from_bytes(bitmap.clone().into_bytes(), bits.len()).expect("same length");
            prop_assert_eq!(&read, &bitmap);
            prop_assert_eq!(read.count_set(), bits.iter().filter(|bit| **bit).count());
            for (index, bit) in bits.iter().enumerate() {
                prop_assert_eq!(read.get(index), *bit);
            }
        }
    }
}
