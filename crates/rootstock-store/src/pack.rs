//! The pack format: a header, records of one frame each, an index, a footer.
//!
//! `docs/formats/pack.md` has the byte tables and the reasons. All numbers are
//! little-endian. Everything that is not a frame has a checksum; frames have
//! their ids.

use std::{fmt, str::FromStr};

use rootstock_core::{ChunkId, Digest, FrameId, digest::DigestError, units::CHUNK_BYTES};
use rootstock_image::frame::{Codec, FRAME_BYTES_MAX};

pub(crate) mod buffer;
pub(crate) mod read;

/// The format that this release writes, and the newest that it reads.
pub const FORMAT: u16 = 1;

/// The smallest size at which packs may be closed, in bytes.
pub const PACK_BYTES_MIN: u32 = 4 << 10;

/// The largest size at which packs may be closed, in bytes.
pub const PACK_BYTES_MAX: u32 = 64 << 20;

/// A pack's first bytes.
pub const HEADER_MAGIC: [u8; 8] = *b"RSTKPACK";

/// A pack's last bytes.
pub const FOOTER_MAGIC: [u8; 8] = *b"RSTKPEND";

/// A record's first bytes.
pub const RECORD_MAGIC: [u8; 4] = *b"RSTK";

/// Bytes of a pack's header.
pub const HEADER_BYTES: usize = 16;

/// Bytes of a record before its frame.
pub const RECORD_BYTES: usize = 88;

/// Bytes of an entry in a pack's index.
pub const ENTRY_BYTES: usize = 80;

/// Bytes of a pack's footer.
pub const FOOTER_BYTES: usize = 64;

/// Bytes of a checksum: the first ones of a BLAKE3 digest.
const CHECKSUM_BYTES: usize = 8;

/// The identity of a pack: BLAKE3 of its index, and so of all it holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub Digest);

impl PackId {
    /// Where the pack is among the objects.
    #[must_use]
    pub fn key(&self) -> String {
        let hex = self.0.to_string();
        format!("{PREFIX}{}/{hex}", &hex[..2])
    }

    /// The pack with this key, if it is the key of a pack.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        let id: Self = key.rsplit('/').next()?.parse().ok()?;
        (id.key() == key).then_some(id)
    }
}

/// What the keys of all packs begin with.
pub const PREFIX: &str = "packs/";

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({:?})", self.0)
    }
}

impl FromStr for PackId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Ok(Self(text.parse()?))
    }
}

/// What a pack says of one of its chunks, in the record and in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) chunk: ChunkId,
    pub(crate) frame: FrameId,
    /// Where the record begins in the pack.
    pub(crate) offset_bytes: u32,
    pub(crate) frame_bytes: u32,
    pub(crate) raw_bytes: u32,
    pub(crate) codec: Codec,
}

impl Entry {
    /// Bytes of the whole record.
    pub(crate) fn record_bytes(&self) -> u32 {
        RECORD_BYTES as u32 + self.frame_bytes
    }

    pub(crate) fn encode_record(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4..36].copy_from_slice(self.chunk.as_bytes());
        out[36..68].copy_from_slice(self.frame.as_bytes());
        out[68..72].copy_from_slice(&self.raw_bytes.to_le_bytes());
        out[72..76].copy_from_slice(&self.frame_bytes.to_le_bytes());
        out[76] = self.codec.to_byte();
        let checksum = checksum(&out[..80]);
        out[80..].copy_from_slice(&checksum);
        out
    }

    /// The entry of the record whose header is at the start of `bytes`, if it
    /// is one, unchanged and within bounds.
    pub(crate) fn decode_record(bytes: &[u8], offset_bytes: u32) -> Option<Self> {
        let bytes = bytes.get(..RECORD_BYTES)?;
        if bytes[..4] != RECORD_MAGIC || bytes[80..] != checksum(&bytes[..80]) {
            return None;
        }
        Self {
            chunk: ChunkId::from_bytes(array(bytes, 4)),
            frame: FrameId::from_bytes(array(bytes, 36)),
            offset_bytes,
            raw_bytes: u32::from_le_bytes(array(bytes, 68)),
            frame_bytes: u32::from_le_bytes(array(bytes, 72)),
            codec: Codec::from_byte(bytes[76])?,
        }
        .within_bounds()
    }

    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[..32].copy_from_slice(self.chunk.as_bytes());
        out[32..64].copy_from_slice(self.frame.as_bytes());
        out[64..68].copy_from_slice(&self.offset_bytes.to_le_bytes());
        out[68..72].copy_from_slice(&self.raw_bytes.to_le_bytes());
        out[72..76].copy_from_slice(&self.frame_bytes.to_le_bytes());
        out[76] = self.codec.to_byte();
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Self {
            chunk: ChunkId::from_bytes(array(bytes, 0)),
            frame: FrameId::from_bytes(array(bytes, 32)),
            offset_bytes: u32::from_le_bytes(array(bytes, 64)),
            raw_bytes: u32::from_le_bytes(array(bytes, 68)),
            frame_bytes: u32::from_le_bytes(array(bytes, 72)),
            codec: Codec::from_byte(bytes[76])?,
        }
        .within_bounds()
    }

    fn within_bounds(self) -> Option<Self> {
        let raw = (1..=CHUNK_BYTES as u32).contains(&self.raw_bytes);
        let frame = (1..=FRAME_BYTES_MAX as u32).contains(&self.frame_bytes);
        (raw && frame).then_some(self)
    }
}

/// A pack's index and footer, as written behind its records.
pub(crate) struct Trailer {
    pub(crate) id: PackId,
    pub(crate) bytes: Vec<u8>,
}

impl Trailer {
    /// The trailer of a pack with these records.
    pub(crate) fn new<'a>(entries: impl Iterator<Item = &'a Entry>) -> Self {
        let mut bytes = Vec::new();
        let mut index_offset = HEADER_BYTES as u64;
        let mut count = 0_u32;
        for entry in entries {
            bytes.extend_from_slice(&entry.encode());
            index_offset += u64::from(entry.record_bytes());
            count += 1;
        }
        let id = Digest::of(&bytes);
        let mut footer = [0; FOOTER_BYTES];
        footer[..32].copy_from_slice(id.as_bytes());
        footer[32..40].copy_from_slice(&index_offset.to_le_bytes());
        footer[40..44].copy_from_slice(&count.to_le_bytes());
        footer[44..46].copy_from_slice(&FORMAT.to_le_bytes());
        let checksum = checksum(&footer[..48]);
        footer[48..56].copy_from_slice(&checksum);
        footer[56..].copy_from_slice(&FOOTER_MAGIC);
        bytes.extend_from_slice(&footer);
        Self {
            id: PackId(id),
            bytes,
        }
    }
}

/// What a pack's last bytes say.
pub(crate) struct Footer {
    pub(crate) id: PackId,
    pub(crate) index_offset_bytes: u64,
    pub(crate) count: u32,
    pub(crate) format: u16,
}

impl Footer {
    /// The footer at the end of `bytes`, if it is one and unchanged.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.last_chunk::<FOOTER_BYTES>()?;
        if bytes[56..] != FOOTER_MAGIC || bytes[48..56] != checksum(&bytes[..48]) {
            return None;
        }
        Some(Self {
            id: PackId(Digest::from_bytes(array(bytes, 0))),
            index_offset_bytes: u64::from_le_bytes(array(bytes, 32)),
            count: u32::from_le_bytes(array(bytes, 40)),
            format: u16::from_le_bytes(array(bytes, 44)),
        })
    }

    pub(crate) fn index_bytes(&self) -> u64 {
        u64::from(self.count) * ENTRY_BYTES as u64
    }
}

/// The entries of an index, if it is the one that the footer names.
pub(crate) fn decode_index(footer: &Footer, bytes: &[u8]) -> Option<Vec<Entry>> {
    if Digest::of(bytes) != footer.id.0 || bytes.len() as u64 != footer.index_bytes() {
        return None;
    }
    let inside = |entry: &Entry| {
        let end = u64::from(entry.offset_bytes) + u64::from(entry.record_bytes());
        entry.offset_bytes >= HEADER_BYTES as u32 && end <= footer.index_offset_bytes
    };
    bytes
        .chunks_exact(ENTRY_BYTES)
        .map(|bytes| Entry::decode(bytes).filter(inside))
        .collect()
}

/// A pack's first bytes.
pub(crate) fn header() -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&HEADER_MAGIC);
    out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    out
}

/// The format that a pack's first bytes name, if they are a pack's.
pub(crate) fn header_format(bytes: &[u8]) -> Option<u16> {
    let bytes = bytes.get(..HEADER_BYTES)?;
    (bytes[..8] == HEADER_MAGIC).then(|| u16::from_le_bytes(array(bytes, 8)))
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    array(Digest::of(bytes).as_bytes(), 0)
}

/// `N` bytes from `at`; the callers have checked the length.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
