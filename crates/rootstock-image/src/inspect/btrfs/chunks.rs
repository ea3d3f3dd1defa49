//! Where Btrfs's addresses lie on its device.

use rootstock_core::{ByteRange, Extents};

use super::{
    super::{Refusal, kept},
    Superblock, le16_at, le64_at, superblock,
    tree::{Key, Trees},
};
use crate::read_at::Window;

/// The most chunks: 256 TiB of them, which have 1 GiB.
pub(super) const CHUNKS_MAX: usize = 1 << 18;

/// The array of the first chunks in the superblock.
pub(super) const ARRAY_BYTES_MAX: usize = 2048;
const ARRAY_PLACE: usize = 811;

const CHUNK_ITEM: u8 = 228;
const KEY_BYTES: usize = 17;
const CHUNK_BYTES: usize = 48;
const STRIPE_BYTES: usize = 32;

/// Data, system, metadata; and that it is there twice on the device.
const KINDS: u64 = 0x7;
const TWICE: u64 = 0x20;

/// A stretch of addresses, and where it lies: once or twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) range: ByteRange,
    place: u64,
    copy: Option<u64>,
}

/// In the order of their addresses.
pub(super) type Chunks = Vec<Chunk>;

impl Chunk {
    /// Section "Chunk item": `struct btrfs_chunk`.
    fn parse(sb: &Superblock, key: Key, data: &[u8]) -> Result<Self, Refusal> {
        let (len, kind) = (le64_at(data, 0), le64_at(data, 24));
        let profile = kind & !KINDS;
        if profile != 0 && profile != TWICE {
            return kept(format!(
                "it has chunks of the profile {profile:#x}, which is not read here"
            ));
        }
        let copies = if profile == TWICE { 2 } else { 1 };
        let place = |number: usize| {
            let at = CHUNK_BYTES + number * STRIPE_BYTES;
            let start = le64_at(data, at + 8);
            let end = start.checked_add(len)?;
            (le64_at(data, at) == sb.device && end <= sb.device_bytes).then_some(start)
        };
        let sane = key.kind == CHUNK_ITEM
            && len > 0
            && len.is_multiple_of(sb.sector_bytes)
            && key.offset.checked_add(len).is_some()
            && usize::from(le16_at(data, 44)) == copies
            && data.len() == CHUNK_BYTES + copies * STRIPE_BYTES;
        let places = (place(0), (copies == 2).then(|| place(1)));
        match places {
            (Some(first), None) if sane => Ok(Self::new(key, len, first, None)),
            (Some(first), Some(Some(copy))) if sane => Ok(Self::new(key, len, first, Some(copy))),
            _ => kept("it has impossible chunks: run btrfs check on it"),
        }
    }

    fn new(key: Key, len: u64, place: u64, copy: Option<u64>) -> Self {
        Self {
            range: ByteRange::new(key.offset, len),
            place,
            copy,
        }
    }

    /// Where a part of it lies on the device.
    pub(super) fn places(&self, part: ByteRange) -> impl Iterator<Item = ByteRange> {
        let into = part.start - self.range.start;
        let starts = [Some(self.place), self.copy];
        let at = move |start| ByteRange::new(start + into, part.len);
        starts.into_iter().flatten().map(at)
    }
}

/// Where an address lies on the device, if a chunk holds all of the block there.
pub(super) fn place_of(chunks: &[Chunk], address: u64, len: u64) -> Option<u64> {
    let after = chunks.partition_point(|chunk| chunk.range.start <= address);
    let chunk = chunks.get(after.checked_sub(1)?)?;
    let into = address - chunk.range.start;
    (into.checked_add(len)? <= chunk.range.len).then_some(chunk.place + into)
}

/// Section "Chunk tree": all chunks. The superblock has those that the tree itself
/// lies in.
pub(super) fn read(
    window: &Window<'_>,
    sb: &Superblock,
    bytes: &[u8; superblock::BYTES],
) -> Result<Chunks, Refusal> {
    let array = &bytes[ARRAY_PLACE..ARRAY_PLACE + sb.array_bytes];
    let mut first = array_chunks(sb, array)?;
    first.sort_by_key(|chunk| chunk.range);
    let mut chunks = Chunks::new();
    Trees::new(window, sb, &first).walk(&sb.chunk_root, &mut |key, data| {
        if key.kind != CHUNK_ITEM {
            return Ok(());
        }
        if chunks.len() >= CHUNKS_MAX {
            return kept("it has too many chunks");
        }
        chunks.push(Chunk::parse(sb, key, data)?);
        Ok(())
    })?;
    check(&chunks)?;
    Ok(chunks)
}

fn array_chunks(sb: &Superblock, array: &[u8]) -> Result<Chunks, Refusal> {
    let mut chunks = Chunks::new();
    let mut rest = array;
    while let Some((key, after)) = rest.split_at_checked(KEY_BYTES) {
        let stripes = usize::from(le16_at(after, 44));
        let len = CHUNK_BYTES + stripes * STRIPE_BYTES;
        let Some((chunk, next)) = after.split_at_checked(len) else {
            break;
        };
        chunks.push(Chunk::parse(sb, Key::parse(key), chunk)?);
        rest = next;
    }
    Ok(chunks)
}

/// No two share an address or a place on the device.
fn check(chunks: &[Chunk]) -> Result<(), Refusal> {
    let mut taken = Extents::new();
    let mut end = 0;
    for chunk in chunks {
        if chunk.range.start < end {
            return kept("its chunks overlap: run btrfs check on it");
        }
        end = chunk.range.end();
        for place in chunk.places(chunk.range) {
            if taken.within(place).next().is_some() {
                return kept("its chunks overlap: run btrfs check on it");
            }
            taken.insert(place);
        }
    }
    Ok(())
}
