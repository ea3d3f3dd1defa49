//! A cache that is written without end, and what must be on its disk after any moment.

use std::io;
use std::path::Path;

use anyhow::{Result, ensure};
use rootstock_cache::{Cache, Label, Put};
use rootstock_core::{CHUNK_BYTES, ChunkId};

use crate::block::BlockFile;

/// The newest chunks that are needed: older ones make room.
const NEEDED: u64 = 96;
/// Chunks that are forgotten at once, and put between two checkpoints at most.
const AT_ONCE: u64 = 12;

/// The bytes of chunk `number`, which are like no other's.
#[must_use]
pub fn chunk(number: u64) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(CHUNK_BYTES as usize);
    while bytes.len() < CHUNK_BYTES as usize {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// Prepares a disk.
///
/// # Errors
/// The disk's.
pub fn format(path: &Path) -> Result<()> {
    format_part(path, 0).map(|_| ())
}

/// Prepares a disk whose last bytes are left to the machine's own writes; gives where
/// the cache ends.
///
/// # Errors
/// The disk's.
pub fn format_part(path: &Path, writes_bytes: u64) -> Result<u64> {
    let disk = BlockFile::open(path)?;
    let len = rootstock_store::disk::DiskFile::len(&disk)?;
    let label = Label::for_disk([9; 16], len - writes_bytes)?;
    Cache::format(&disk, &label)?;
    Ok(label.end_bytes())
}

/// Opens a disk and looks at everything that its table names: each chunk must be
/// there, whole. Of those from `first` on, the newest up to `kept` must be there.
/// Gives how many there are.
///
/// # Errors
/// With what is wrong.
pub fn verify(path: &Path, first: u64, kept: u64) -> Result<usize> {
    let cache = Cache::open(Box::new(BlockFile::open(path)?))?;
    let chunks = cache.chunks();
    for id in &chunks {
        let read = cache.read(*id)?;
        ensure!(read.is_some(), "chunk {id} is named and not there");
    }
    // What was put after the last word of it has taken some of the oldest's room.
    let oldest = (kept + 2 * AT_ONCE).saturating_sub(NEEDED).max(first);
    for number in oldest..=kept {
        let is_there = cache.has(ChunkId::of(&chunk(number)));
        ensure!(
            is_there,
            "chunk {number}, of {kept} that were kept, is gone"
        );
    }
    Ok(chunks.len())
}

/// Writes chunks from `from` on until it fails, and tells `kept` after each
/// checkpoint which was the last before it.
///
/// # Errors
/// The disk's.
pub fn run(path: &Path, from: u64, mut kept: impl FnMut(u64) -> io::Result<()>) -> Result<()> {
    let cache = Cache::open(Box::new(BlockFile::open(path)?))?;
    let mut number = from;
    loop {
        let until = number + 1 + number % AT_ONCE;
        while number < until {
            let raw = chunk(number);
            let want = (number * 7 % cache.label().slot_count) as u32;
            if cache.put(ChunkId::of(&raw), &raw, want)? == Put::Full {
                let newest = number.saturating_sub(NEEDED)..number;
                cache.set_needed(newest.map(|number| ChunkId::of(&chunk(number))));
                cache.make_room(AT_ONCE)?;
                continue;
            }
            number += 1;
        }
        cache.checkpoint()?;
        kept(number - 1)?;
    }
}
