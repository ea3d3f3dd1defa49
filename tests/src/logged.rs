//! The writes of a guest's disk as QEMU's `blklogwrites` logged them, and the disks
//! that a power cut may leave.
//!
//! The log is that of the kernel's dm-log-writes
//! (`Documentation/admin-guide/device-mapper/log-writes.rst`).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: usize = 512;
const FLAG_FLUSH: u64 = 1;
const FLAG_DISCARD: u64 = 4;

/// What happened to the disk.
pub enum Entry {
    /// Bytes were written from this byte on.
    Write(u64, Vec<u8>),
    /// Everything before is on the disk.
    Flush,
}

/// Reads a log.
///
/// # Errors
/// When it is none.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let bytes = fs::read(path)?;
    let word = |at: usize| -> Result<u64> {
        let field = bytes.get(at..at + 8).context("the log ends early")?;
        Ok(u64::from_le_bytes(field.try_into()?))
    };
    ensure!(word(0)? == MAGIC, "this is no log of writes");
    let mut entries = Vec::new();
    let mut at = SECTOR;
    // The number of entries in the superblock may be behind when QEMU was killed.
    while at + SECTOR <= bytes.len() {
        let (sector, sectors) = (word(at)?, word(at + 8)? as usize);
        let flags = word(at + 16)?;
        at += SECTOR;
        if sectors == 0 && flags & FLAG_FLUSH == 0 {
            break;
        }
        ensure!(flags & FLAG_DISCARD == 0, "nothing is discarded here");
        let end = at + sectors * SECTOR;
        let Some(data) = bytes.get(at..end) else {
            break;
        };
        at = end;
        if flags & FLAG_FLUSH != 0 {
            entries.push(Entry::Flush);
        }
        if sectors > 0 {
            entries.push(Entry::Write(sector * SECTOR as u64, data.to_vec()));
        }
    }
    Ok(entries)
}

/// How a power cut treats a write that was not flushed.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is.
    None,
    /// Some are, whole.
    Whole,
    /// Some of each one's sectors are.
    Torn,
}

/// The disk after the first `count` entries and a power cut, on what it held before.
#[must_use]
pub fn after_cut(before: &[u8], entries: &[Entry], count: usize, loss: Loss, seed: u64) -> Vec<u8> {
    let flushed = entries[..count]
        .iter()
        .rposition(|entry| matches!(entry, Entry::Flush))
        .unwrap_or(0);
    let mut disk = before.to_vec();
    let mut state = seed;
    for (number, entry) in entries[..count].iter().enumerate() {
        let Entry::Write(offset, data) = entry else {
            continue;
        };
        let start = *offset as usize;
        let mut is_kept = || next(&mut state).is_multiple_of(2);
        let whole = match loss {
            _ if number < flushed => true,
            Loss::All => false,
            Loss::None => true,
            Loss::Whole => is_kept(),
            Loss::Torn => {
                for (sector, part) in data.chunks(SECTOR).enumerate() {
                    if is_kept() {
                        let at = start + sector * SECTOR;
                        disk[at..at + part.len()].copy_from_slice(part);
                    }
                }
                false
            }
        };
        if whole {
            disk[start..start + data.len()].copy_from_slice(data);
        }
    }
    disk
}

/// splitmix64.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
