//! Looks for a name in NTFS's root directory.

use super::{
    super::{Refusal, kept},
    files, le16_at, le32_at, le64_at,
    record::{INDEX_ALLOCATION, INDEX_BITMAP, INDEX_ROOT, undo_fixups},
    table::{Contents, Data, Table},
};
use crate::fields::bytes_at;

/// The name of the attributes of a directory.
const NAME: [u8; 8] = *b"$\0I\x003\x000\0";

/// The most bytes of a root directory that is looked through.
const ROOT_BYTES_MAX: u64 = 16 << 20;

/// Where an index record's own header is, in it and in `$INDEX_ROOT`.
const RECORD_HEADER: usize = 24;
const ROOT_HEADER: usize = 16;

/// The number of the file in the root directory that has this name, which is of
/// ASCII and in small letters. All of the directory is looked through, so that
/// the order of its names does not have to be known.
pub(super) fn find_in_root(table: &Table<'_>, name: &str) -> Result<Option<u64>, Refusal> {
    let part = |kind| table.contents(files::ROOT, kind, &NAME);
    let Some(Contents::Resident(root)) = part(INDEX_ROOT)? else {
        return damaged();
    };
    let found = find(&root, ROOT_HEADER, name)?;
    if found.is_some() {
        return Ok(found);
    }
    let records = match part(INDEX_ALLOCATION)? {
        None => return Ok(None),
        Some(Contents::Runs(records)) => records,
        Some(Contents::Resident(_)) => return damaged(),
    };
    let bitmap = match part(INDEX_BITMAP)? {
        Some(Contents::Resident(bitmap)) => bitmap,
        Some(Contents::Runs(data)) if data.written_bytes() <= ROOT_BYTES_MAX / 512 => {
            let mut bitmap = vec![0; data.written_bytes() as usize];
            data.read(table, 0, &mut bitmap)?;
            bitmap
        }
        _ => return damaged(),
    };
    find_in_records(table, &records, &bitmap, le32_at(&root, 8) as usize, name)
}

/// The directory's records that its bitmap says are in use.
fn find_in_records(
    table: &Table<'_>,
    records: &Data,
    bitmap: &[u8],
    record_bytes: usize,
    name: &str,
) -> Result<Option<u64>, Refusal> {
    if !record_bytes.is_power_of_two() || !(512..=64 << 10).contains(&record_bytes) {
        return damaged();
    }
    if records.written_bytes() > ROOT_BYTES_MAX {
        return kept("its root directory is too large to look for a hibernated system");
    }
    let count = records.written_bytes() as usize / record_bytes;
    for number in 0..count {
        let [bits] = bytes_at(bitmap, number / 8);
        if bits >> (number % 8) & 1 == 0 {
            continue;
        }
        let mut record = vec![0; record_bytes];
        records.read(table, (number * record_bytes) as u64, &mut record)?;
        if !record.starts_with(b"INDX") || !undo_fixups(&mut record) {
            return damaged();
        }
        let found = find(&record, RECORD_HEADER, name)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Looks through the entries after an index header (section "Index Header").
fn find(bytes: &[u8], header: usize, name: &str) -> Result<Option<u64>, Refusal> {
    let field = |at: usize| header.saturating_add(le32_at(bytes, at) as usize);
    let (first, end) = (field(header), field(header + 4));
    let Some(mut rest) = bytes.get(first..end) else {
        return damaged();
    };
    loop {
        let len = usize::from(le16_at(rest, 8));
        let Some((entry, after)) = rest.split_at_checked(len).filter(|_| len >= 16) else {
            return damaged();
        };
        if le16_at(entry, 12) & LAST != 0 {
            return Ok(None);
        }
        if is_named(entry, name) {
            return Ok(Some(le64_at(entry, 0) & ((1 << 48) - 1)));
        }
        rest = after;
    }
}

/// The flag of an index's last entry, which has no name.
const LAST: u16 = 2;

/// Section "$FILE_NAME": the entry's key, which follows 16 bytes of its own.
fn is_named(entry: &[u8], name: &str) -> bool {
    let key = entry.get(16..).unwrap_or_default();
    let [units] = bytes_at(key, 64);
    let own = key.get(66..66 + usize::from(units) * 2).unwrap_or_default();
    let (pairs, _) = own.as_chunks::<2>();
    let small = |pair: &[u8; 2]| match *pair {
        [low, 0] => u16::from(low.to_ascii_lowercase()),
        other => u16::from_le_bytes(other),
    };
    pairs.iter().map(small).eq(name.encode_utf16())
}

fn damaged<T>() -> Result<T, Refusal> {
    kept("its root directory is damaged: run chkdsk on it")
}
