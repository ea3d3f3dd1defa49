//! What is on a disk: its partitions, file systems, free space and kernels.
//!
//! Nothing that a disk says is trusted. A table or a file system that is damaged,
//! in use or unknown is kept whole and the report says why; only an error of the
//! source itself is an error here. What is reported as free was found free by the
//! file system's own checked bitmaps.

use std::io;

use rootstock_core::{ByteRange, Extents};
use serde::{Deserialize, Serialize};

use crate::{
    grid::{Grid, Region, RegionKind},
    read_at::{ReadAt, Window},
};

mod bitmap;
mod btrfs;
mod checksum;
mod ext;
mod facts;
mod fat;
mod free;
mod gpt;
mod lvm;
mod mbr;
mod md;
mod ntfs;
mod signature;
mod swap;
mod table;
#[cfg(test)]
mod tests;
mod volumes;
mod xfs;

pub(crate) use checksum::crc32;
pub(crate) use ext::{FileExtent, ext_files};
pub use facts::KERNELS_MAX;
pub(crate) use gpt::named as read_gpt;
pub use gpt::{GrowError, GrownGpt, grown_gpt};
pub use volumes::VolumeReport;

use free::FreeSet;

/// What is to become of space that a file system does not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FreeSpace {
    /// It reads as zeros.
    Drop,
    /// It reads as zeros where the file system has a mark on the disk while it is
    /// in use; else it is kept. For a disk that may be written to while it is read, or
    /// whose file systems somebody may have mounted.
    DropIfMarked,
    /// It is kept as it is.
    Keep,
}

/// The kind of a disk's partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// None, or none that can be trusted.
    None,
    /// A master boot record, with or without logical partitions.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// What was found out about a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// How it is cut into chunks.
    pub grid: Grid,
    /// Its partition table.
    pub table: TableKind,
    /// Its partitions in the order of the disk; a disk without a table has one,
    /// of number 0, when a file system was found on it.
    pub partitions: Vec<PartitionReport>,
    /// What reads as zero in the version, in bytes of the disk.
    pub free: Extents,
    /// The versions of the Linux kernels in its file systems.
    pub kernels: Vec<String>,
    /// The name that its operating system gives itself.
    pub os: Option<String>,
    /// What was odd and how it was taken, for people.
    pub notes: Vec<String>,
    /// How large the disk is by its partition table, where that is more than
    /// there is of it: then its end is missing.
    pub table_says_bytes: Option<u64>,
}

/// A partition, or a disk without any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionReport {
    /// Its number, as Linux counts: logical partitions begin at 5; 0 is the disk.
    pub number: u32,
    /// Where it starts on the disk.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// What its table says it is for.
    pub type_name: String,
    /// Its name in a GPT.
    pub name: Option<String>,
    /// The file system found in it.
    pub fs: Option<FsReport>,
}

/// A file system, or what stands in the place of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsReport {
    /// `ext2`, `ext3`, `ext4`, `fat12`, `fat16`, `fat32`, `swap`, `xfs`,
    /// `btrfs`, `ntfs`, …
    pub kind: String,
    /// Its label.
    pub label: Option<String>,
    /// Its UUID or serial number, as `blkid` prints it.
    pub uuid: Option<String>,
    /// What it uses, where that is known.
    pub used_bytes: Option<u64>,
    /// What it has free, where that is known.
    pub free_bytes: Option<u64>,
    /// Why its free space was not looked for, or not believed.
    pub kept_whole_because: Option<String>,
    /// The volumes in it: of LVM, or the contents of an array.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeReport>,
}

/// Finds out what is on a disk.
///
/// Memory is bounded whatever the disk's size: bitmaps are read group by group,
/// and free extents are limited in number (the shortest are kept as data then).
///
/// # Errors
/// The source's own errors, and `InvalidInput` for a disk of no bytes or more
/// than the limit.
pub fn inspect(disk: &dyn ReadAt, keep: FreeSpace) -> io::Result<DiskReport> {
    let disk_bytes = disk.len_bytes();
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let whole = Grid::whole(disk_bytes).map_err(invalid)?;
    let mut table = table::read(disk)?;
    let mut report = DiskReport {
        grid: whole,
        table: table.kind,
        partitions: table.entries.iter().map(PartitionReport::new).collect(),
        free: Extents::new(),
        kernels: Vec::new(),
        os: None,
        notes: std::mem::take(&mut table.notes),
        table_says_bytes: Some(table.disk_bytes).filter(|said| *said > disk_bytes),
    };
    if table.kind == TableKind::None {
        report.partitions = vec![PartitionReport::whole_disk(disk_bytes)];
    } else if table.usable {
        match Grid::new(disk_bytes, regions(disk_bytes, &table)) {
            Ok(grid) => report.grid = grid,
            Err(error) => {
                let note = format!("the disk is kept whole: {error}");
                report.notes.push(note);
                return Ok(report);
            }
        }
    } else {
        return Ok(report);
    }
    let mut free = FreeSet::new();
    let mut walk = Walk::new(keep);
    for partition in &mut report.partitions {
        let window = Window::new(disk, partition.start_bytes, partition.len_bytes);
        let Some(found) = content(partition, &window, &mut walk)? else {
            continue;
        };
        partition.fs = Some(found.report);
        if keep != FreeSpace::Keep {
            free.absorb(&found.free, partition.start_bytes);
        }
    }
    if report.table == TableKind::None {
        report.partitions.retain(|disk| disk.fs.is_some());
    }
    report.notes.extend(free.note());
    report.free = free.into_extents();
    (report.kernels, report.os) = walk.facts.finish();
    Ok(report)
}

/// The partitions of a disk, what their signatures say is in them, and the UUIDs of
/// ext2 to ext4, XFS and Btrfs: much less work than [`inspect`], which reads all bitmaps.
///
/// # Errors
/// The source's own errors.
pub fn partitions(disk: &dyn ReadAt) -> io::Result<Vec<PartitionReport>> {
    let table = table::read(disk)?;
    let mut partitions: Vec<_> = if table.kind == TableKind::None {
        vec![PartitionReport::whole_disk(disk.len_bytes())]
    } else {
        table.entries.iter().map(PartitionReport::new).collect()
    };
    for partition in &mut partitions {
        let window = Window::new(disk, partition.start_bytes, partition.len_bytes);
        let signatures = signature::find(&window)?;
        let names: Vec<_> = signatures.iter().map(|one| one.name()).collect();
        let uuid = match signatures.as_slice() {
            [one] => one.uuid(&window)?,
            _ => None,
        };
        partition.fs = (!names.is_empty()).then(|| FsReport {
            kind: names.join(" and "),
            uuid: uuid.and_then(|uuid| uuid_text(&uuid)),
            ..FsReport::default()
        });
    }
    Ok(partitions)
}

impl PartitionReport {
    fn new(entry: &table::Entry) -> Self {
        Self {
            number: entry.number,
            start_bytes: entry.range.start,
            len_bytes: entry.range.len,
            type_name: entry.type_name.clone(),
            name: entry.name.clone(),
            fs: None,
        }
    }

    fn whole_disk(disk_bytes: u64) -> Self {
        Self {
            number: 0,
            start_bytes: 0,
            len_bytes: disk_bytes,
            type_name: "whole disk".into(),
            name: None,
            fs: None,
        }
    }
}

/// The way through what is on a disk.
struct Walk {
    keep: FreeSpace,
    facts: facts::Facts,
    /// In how many layers of volumes this is.
    layers: usize,
    /// How many volumes were found.
    volumes: usize,
}

impl Walk {
    fn new(keep: FreeSpace) -> Self {
        Self {
            keep,
            facts: facts::Facts::default(),
            layers: 0,
            volumes: 0,
        }
    }
}

/// What was found in a partition.
struct Found {
    report: FsReport,
    /// In bytes of the partition.
    free: FreeSet,
    /// Whether its geometry was found sound enough to look for files.
    readable_ext: bool,
}

/// Why a file system is kept whole.
enum Refusal {
    /// For what it is.
    Kept(String),
    /// The source failed.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Kept("it goes on past the end of its partition".into());
        }
        Self::Io(error)
    }
}

/// A reason to keep a file system whole.
fn kept<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Kept(why.into()))
}

/// What is in a partition.
fn content(
    partition: &PartitionReport,
    window: &Window<'_>,
    walk: &mut Walk,
) -> io::Result<Option<Found>> {
    if partition.type_name != table::DYNAMIC {
        return file_system(window, walk);
    }
    // A file system that begins in it may go on elsewhere, and others begin within it.
    let why = "it is a part of a Windows dynamic disk, whose volumes lie in pieces";
    Ok(Some(Found {
        report: FsReport {
            kind: "dynamic disk".into(),
            kept_whole_because: Some(why.into()),
            ..FsReport::default()
        },
        free: FreeSet::new(),
        readable_ext: false,
    }))
}

fn file_system(window: &Window<'_>, walk: &mut Walk) -> io::Result<Option<Found>> {
    let signatures = signature::find(window)?;
    let signatures = if md::is_at_end(window)? {
        // The rest is the array's own, which is looked for in it.
        vec![signature::Signature::Md]
    } else {
        signatures
    };
    let Some((first, others)) = signatures.split_first() else {
        return Ok(None);
    };
    let mut found = Found {
        report: FsReport {
            kind: first.name().into(),
            ..FsReport::default()
        },
        free: FreeSet::new(),
        readable_ext: false,
    };
    let outcome = if walk.keep == FreeSpace::DropIfMarked && first.may_be_in_use_unmarked() {
        kept("it does not say whether it is in use, and may change while it is read")
    } else if others.is_empty() {
        match first {
            signature::Signature::Ext => ext::read(window, &mut found),
            signature::Signature::Fat => fat::read(window, &mut found),
            signature::Signature::Swap => swap::read(window, &mut found),
            signature::Signature::Xfs => xfs::read(window, &mut found),
            signature::Signature::Ntfs => ntfs::read(window, &mut found),
            signature::Signature::Btrfs => btrfs::read(window, &mut found),
            signature::Signature::Lvm => lvm::read(window, walk, &mut found),
            signature::Signature::Md => md::read(window, walk, &mut found),
            signature::Signature::Other(_) => kept(format!(
                "the free space of {} is not looked for",
                first.name()
            )),
        }
    } else {
        let names: Vec<_> = signatures.iter().map(|one| one.name()).collect();
        kept(format!(
            "it has the signatures of {}: which one is in use is not certain",
            names.join(" and ")
        ))
    };
    match outcome {
        Ok(()) => {}
        Err(Refusal::Io(error)) => return Err(error),
        Err(Refusal::Kept(why)) => {
            found.free = FreeSet::new();
            found.report.volumes = Vec::new();
            found.report.kept_whole_because = Some(why);
        }
    }
    if found.readable_ext {
        walk.facts.gather(window)?;
    }
    Ok(Some(found))
}

/// The regions of a disk whose partitions are in order and do not overlap.
fn regions(disk_bytes: u64, table: &table::Table) -> Vec<Region> {
    let mut marked: Vec<(ByteRange, RegionKind)> = table
        .entries
        .iter()
        .map(|entry| (entry.range, RegionKind::Partition))
        .collect();
    let partitions_end = marked.last().map_or(0, |(range, _)| range.end());
    if let Some(backup) = table.backup
        && backup.start >= partitions_end
        && backup.end() <= disk_bytes
    {
        marked.push((backup, RegionKind::PartitionTable));
    }
    let mut regions = Vec::new();
    let mut end_bytes = 0;
    let mut push = |range: ByteRange, kind| {
        if range.len > 0 {
            regions.push(Region {
                start_bytes: range.start,
                len_bytes: range.len,
                kind,
            });
        }
    };
    for (range, kind) in marked {
        let before = if end_bytes == 0 {
            RegionKind::PartitionTable
        } else {
            RegionKind::Gap
        };
        push(ByteRange::new(end_bytes, range.start - end_bytes), before);
        push(range, kind);
        end_bytes = range.end();
    }
    let rest = ByteRange::new(end_bytes, disk_bytes - end_bytes);
    push(rest, RegionKind::Gap);
    regions
}

/// A UUID as text, if it is not all zero.
fn uuid_text(uuid: &[u8; 16]) -> Option<String> {
    if *uuid == [0; 16] {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

/// A label of a fixed field as text: up to the first NUL, without control
/// characters and without the blanks it is filled with.
fn label_text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0);
    let text: String = String::from_utf8_lossy(&field[..end.unwrap_or(field.len())])
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
