//! Reading stored packs: their index, or their records when the index is damaged.

use std::io;

use bytes::Bytes;

use super::{
    Entry, FOOTER_BYTES, FORMAT, Footer, HEADER_BYTES, PACK_BYTES_MAX, PackId, RECORD_MAGIC,
    decode_index, header_format,
};
use crate::{objects::Objects, store::OpenError};

/// Bytes read from a pack's end at first: footer and index of most packs.
const TAIL_BYTES: u64 = 32 << 10;

/// Bytes looked through, at most, when an index is rebuilt. A pack may pass
/// its target size by one record, its index and its footer.
const REBUILD_BYTES_MAX: u64 = 2 * PACK_BYTES_MAX as u64;

/// What a stored pack holds.
pub(crate) struct Contents {
    pub(crate) entries: Vec<Entry>,
    /// Whether the trailer was damaged, so that the records had to be read.
    pub(crate) rebuilt: bool,
}

/// What the pack with this key and length holds, by its trailer or else by its
/// records.
pub(crate) fn contents(
    objects: &dyn Objects,
    id: PackId,
    len_bytes: u64,
) -> Result<Contents, OpenError> {
    let key = id.key();
    let failed = |source| OpenError::Read {
        key: key.clone(),
        source,
    };
    match by_trailer(objects, id, len_bytes).map_err(failed)? {
        Trailed::Entries(entries) => {
            return Ok(Contents {
                entries,
                rebuilt: false,
            });
        }
        Trailed::Newer(version) => return Err(newer(key, version)),
        Trailed::Damaged => {}
    }
    let len = len_bytes.min(REBUILD_BYTES_MAX) as usize;
    let bytes = objects.get_range(&key, 0, len).map_err(failed)?;
    match header_format(&bytes) {
        Some(FORMAT) => Ok(Contents {
            entries: by_records(&bytes),
            rebuilt: true,
        }),
        Some(version) if version > FORMAT => Err(newer(key, version)),
        _ => Err(OpenError::NotAPack { key }),
    }
}

/// The entries of an intact trailer; `None` when it is damaged.
pub(crate) fn intact_entries(
    objects: &dyn Objects,
    id: PackId,
    len_bytes: u64,
) -> io::Result<Option<Vec<Entry>>> {
    Ok(match by_trailer(objects, id, len_bytes)? {
        Trailed::Entries(entries) => Some(entries),
        Trailed::Newer(_) | Trailed::Damaged => None,
    })
}

fn newer(key: String, version: u16) -> OpenError {
    OpenError::Newer {
        key,
        version,
        known: FORMAT,
    }
}

enum Trailed {
    Entries(Vec<Entry>),
    Newer(u16),
    Damaged,
}

fn by_trailer(objects: &dyn Objects, id: PackId, len_bytes: u64) -> io::Result<Trailed> {
    let key = id.key();
    let tail_bytes = len_bytes.min(TAIL_BYTES);
    let tail_start = len_bytes - tail_bytes;
    let tail = objects.get_range(&key, tail_start, tail_bytes as usize)?;
    let Some(footer) = Footer::decode(&tail) else {
        return Ok(Trailed::Damaged);
    };
    if footer.format > FORMAT {
        return Ok(Trailed::Newer(footer.format));
    }
    let start = footer.index_offset_bytes;
    let end = start.saturating_add(footer.index_bytes());
    if footer.id != id
        || footer.index_bytes() > REBUILD_BYTES_MAX
        || end.saturating_add(FOOTER_BYTES as u64) != len_bytes
    {
        return Ok(Trailed::Damaged);
    }
    let index: Bytes = match start.checked_sub(tail_start) {
        Some(at) => tail.slice(at as usize..(end - tail_start) as usize),
        None => objects.get_range(&key, start, (end - start) as usize)?,
    };
    Ok(match decode_index(&footer, &index) {
        Some(entries) => Trailed::Entries(entries),
        None => Trailed::Damaged,
    })
}

/// All records with an intact header. After a damaged one, the next is found
/// by its magic; what looks like a record inside a frame is harmless, since
/// whatever it holds is checked against its ids when it is read.
fn by_records(bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut at = HEADER_BYTES;
    while let Some(rest) = bytes.get(at..) {
        let entry = Entry::decode_record(rest, at as u32);
        match entry.filter(|entry| entry.record_bytes() as usize <= rest.len()) {
            Some(entry) => {
                entries.push(entry);
                at += entry.record_bytes() as usize;
            }
            None => match next_magic(&rest[1.min(rest.len())..]) {
                Some(skip) => at += 1 + skip,
                None => break,
            },
        }
    }
    entries
}

fn next_magic(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(RECORD_MAGIC.len())
        .position(|window| window == RECORD_MAGIC)
}
