//! Whether all files lie in clusters that are in use by the volume's `$Bitmap`. What mounts
//! NTFS without a mark on the disk, as ntfs-3g does, writes files before that bitmap: after a
//! crash only this tells.

use super::{
    super::{Refusal, free::FreeSet, kept},
    le16_at,
    record::{Record, damaged},
    table::Table,
};

/// How much of the file table is read at a time, in bytes: many of the longest records.
const READ_BYTES: usize = 256 << 10;

pub(super) fn check(table: &Table<'_>, free: &FreeSet) -> Result<(), Refusal> {
    let volume_bytes = table.volume.clusters() * table.volume.cluster_bytes;
    if table.data.bytes() > volume_bytes {
        return kept("its $MFT is longer than the volume: run chkdsk on it");
    }
    let record_bytes = table.volume.record_bytes;
    let records = table.data.written_bytes() / record_bytes;
    let at_once = READ_BYTES as u64 / record_bytes;
    let mut piece = vec![0; READ_BYTES];
    for first in (0..records).step_by(at_once as usize) {
        let count = at_once.min(records - first);
        let len = (count * record_bytes) as usize;
        table
            .data
            .read(table, first * record_bytes, &mut piece[..len])?;
        let read = piece[..len].chunks_exact(record_bytes as usize);
        for (number, bytes) in (first..).zip(read) {
            check_record(table, free, number, bytes)?;
        }
    }
    Ok(())
}

/// A record that is in use, of whatever file, and its runs.
fn check_record(
    table: &Table<'_>,
    free: &FreeSet,
    number: u64,
    bytes: &[u8],
) -> Result<(), Refusal> {
    if !bytes.starts_with(b"FILE") {
        // One that was never used.
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        return damaged(number);
    }
    if le16_at(bytes, 22) & 1 == 0 {
        return Ok(());
    }
    let record = Record::parse(number, bytes.to_vec())?;
    for attribute in record.attributes()? {
        if attribute.resident().is_some() {
            continue;
        }
        for run in attribute.runs() {
            let Some((start, len)) = run else {
                return damaged(number);
            };
            let Some(start) = start else {
                continue;
            };
            if !table.volume.has(start, len) {
                return damaged(number);
            }
            let place = table.bytes_of(rootstock_core::ByteRange::new(start, len));
            if free.touches(place) {
                return kept(
                    "a file of it lies in clusters that its $Bitmap has as free: \
                     run chkdsk on it",
                );
            }
        }
    }
    Ok(())
}
