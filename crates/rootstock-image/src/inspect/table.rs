//! Partition tables: which one a disk has, and whether its entries hold.

use std::io;

use rootstock_core::ByteRange;

use super::{TableKind, gpt, mbr};
use crate::read_at::ReadAt;

/// The most partitions that are taken from a table: each may have a gap before
/// it, and the grid's regions are limited.
pub(super) const PARTITIONS_MAX: usize = 500;

/// The most that is said about one table.
const NOTES_MAX: usize = 16;

/// What stands for a partition of a Windows dynamic disk: volumes lie in it as the disk's
/// own database says, in pieces, several in one partition.
pub(super) const DYNAMIC: &str = "Windows dynamic disk";

/// A partition table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) kind: TableKind,
    /// In the order of the disk once the table is checked.
    pub(super) entries: Vec<Entry>,
    /// Where the second copy of a GPT is.
    pub(super) backup: Option<ByteRange>,
    /// Where the table itself is: no partition may be there.
    pub(super) reserved: Vec<ByteRange>,
    /// Whether the disk may be cut by it: its entries are in bounds and do not
    /// overlap.
    pub(super) usable: bool,
    /// The size that the disk has to have, by what the table itself says and by
    /// where its partitions end.
    pub(super) disk_bytes: u64,
    pub(super) notes: Vec<String>,
}

/// A partition, as its table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u32,
    pub(super) range: ByteRange,
    pub(super) type_name: String,
    pub(super) name: Option<String>,
}

impl Table {
    pub(super) fn new(kind: TableKind) -> Self {
        Self {
            kind,
            entries: Vec::new(),
            backup: None,
            reserved: Vec::new(),
            usable: true,
            disk_bytes: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note.into());
        }
    }

    /// The disk is one region, for this reason.
    pub(super) fn give_up(&mut self, why: &str) {
        self.usable = false;
        self.note(format!("{why}: the disk is kept whole"));
    }

    /// Leaves out what is not on the disk and looks for overlaps.
    fn check(&mut self, disk_bytes: u64) {
        let entries = std::mem::take(&mut self.entries);
        let found = entries.len();
        for entry in entries {
            self.disk_bytes = self.disk_bytes.max(entry.range.end());
            if entry.range.start >= disk_bytes || entry.range.len > disk_bytes - entry.range.start {
                let number = entry.number;
                self.note(format!(
                    "partition {number} goes past the disk's end and is left out"
                ));
            } else {
                self.entries.push(entry);
            }
        }
        self.entries.sort_by_key(|entry| entry.range);
        let in_table = |entry: &Entry| {
            let covers = |range: &ByteRange| range.intersection(entry.range).is_some();
            self.reserved.iter().any(covers)
        };
        let overlap = |pair: &[Entry]| pair[1].range.start < pair[0].range.end();
        if self.kind == TableKind::Mbr
            && found == 1
            && self.entries.first().is_some_and(|e| e.range.start == 0)
        {
            // An unpartitioned medium with an entry that stands for all of it,
            // as mkfs.fat writes for Windows' sake.
            self.entries.clear();
            self.disk_bytes = 0;
            self.kind = TableKind::None;
        } else if self.entries.is_empty() {
            self.give_up("the partition table names no partition on the disk");
        } else if self.entries.iter().any(in_table) {
            self.give_up("a partition lies over the partition table");
        } else if self.entries.windows(2).any(overlap) {
            self.give_up("partitions overlap");
        } else if self.entries.len() > PARTITIONS_MAX {
            self.give_up("there are more partitions than Rootstock cuts a disk into");
        }
        self.entries.truncate(PARTITIONS_MAX);
    }
}

/// Reads a disk's partition table.
pub(super) fn read(disk: &dyn ReadAt) -> io::Result<Table> {
    let Some(primary) = mbr::Sector::read(disk, 0)?.filter(mbr::Sector::is_table) else {
        return Ok(Table::new(TableKind::None));
    };
    let mut table = if primary.is_protective() {
        gpt::read(disk)?
    } else {
        mbr::read(disk, &primary)?
    };
    if table.usable {
        table.check(disk.len_bytes());
    }
    Ok(table)
}

/// Bytes of a disk, if it has them.
pub(super) fn bytes_at(
    disk: &dyn ReadAt,
    offset_bytes: u64,
    len: usize,
) -> io::Result<Option<Vec<u8>>> {
    let end = offset_bytes.checked_add(len as u64);
    if end.is_none_or(|end| end > disk.len_bytes()) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read_exact_at(offset_bytes, &mut bytes)?;
    Ok(Some(bytes))
}
