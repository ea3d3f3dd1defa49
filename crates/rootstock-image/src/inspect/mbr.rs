//! The master boot record, with the chain of logical partitions.

use std::io;

use rootstock_core::ByteRange;

use super::{
    TableKind, signature,
    table::{DYNAMIC, Entry, PARTITIONS_MAX, Table, bytes_at},
};
use crate::{
    fields::Fields,
    read_at::{ReadAt, Window},
};

const SECTOR: usize = 512;

/// One boot record: the first of a disk, or one of the chain of logical
/// partitions.
#[derive(Debug)]
pub(super) struct Sector {
    slots: [Slot; 4],
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    flag: u8,
    kind: u8,
    start: u64,
    len: u64,
}

impl Slot {
    fn is_used(self) -> bool {
        self.kind != 0 && self.len > 0
    }

    fn is_extended(self) -> bool {
        self.is_used() && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

impl Sector {
    /// The record at a place, if there is one.
    pub(super) fn read(disk: &dyn ReadAt, offset_bytes: u64) -> io::Result<Option<Self>> {
        let Some(bytes) = bytes_at(disk, offset_bytes, SECTOR)? else {
            return Ok(None);
        };
        if bytes[510..] != [0x55, 0xaa] {
            return Ok(None);
        }
        let slots = std::array::from_fn(|slot| {
            let mut fields = Fields::new(&bytes[446 + slot * 16..]);
            let [flag, _, _, _, kind, _, _, _] = fields.array::<8>();
            let (start, len) = (fields.u32().into(), fields.u32().into());
            Slot {
                flag,
                kind,
                start,
                len,
            }
        });
        Ok(Some(Self { slots }))
    }

    /// Whether it can be a disk's partition table: FAT's and other boot sectors
    /// have the same signature and code in the place of the flags.
    pub(super) fn is_table(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.flag, 0 | 0x80))
            && self.slots.iter().any(|slot| slot.is_used())
    }

    /// Whether it stands before a GPT, alone or beside entries of its own.
    pub(super) fn is_protective(&self) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.is_used() && slot.kind == 0xee)
    }
}

/// The partitions of a disk with this first record.
///
/// A record does not say how long the disk's sectors are. They have 512 bytes
/// unless only 4,096 puts file systems where its partitions begin.
pub(super) fn read(disk: &dyn ReadAt, primary: &Sector) -> io::Result<Table> {
    let table = with_sectors(disk, primary, 512)?;
    if file_systems(disk, &table)? == 0 {
        let long = with_sectors(disk, primary, 4096)?;
        if file_systems(disk, &long)? > 0 {
            return Ok(long);
        }
    }
    Ok(table)
}

/// How many partitions begin with a signature that is known.
fn file_systems(disk: &dyn ReadAt, table: &Table) -> io::Result<usize> {
    let mut found = 0;
    for entry in &table.entries {
        let window = Window::new(disk, entry.range.start, entry.range.len);
        found += usize::from(!signature::find(&window)?.is_empty());
    }
    Ok(found)
}

fn with_sectors(disk: &dyn ReadAt, primary: &Sector, sector_bytes: u64) -> io::Result<Table> {
    let mut table = Table::new(TableKind::Mbr);
    table.reserved.push(ByteRange::new(0, SECTOR as u64));
    for (number, slot) in (1..).zip(&primary.slots) {
        if slot.is_used() && !slot.is_extended() {
            table.entries.push(entry(number, *slot, 0, sector_bytes));
        }
    }
    for slot in primary.slots.iter().filter(|slot| slot.is_extended()) {
        logical(disk, &mut table, *slot, sector_bytes)?;
    }
    Ok(table)
}

/// Follows the chain of records in an extended partition.
fn logical(
    disk: &dyn ReadAt,
    table: &mut Table,
    extended: Slot,
    sector_bytes: u64,
) -> io::Result<()> {
    let mut next = extended.start;
    loop {
        let place = ByteRange::new(next * sector_bytes, SECTOR as u64);
        if table.reserved.contains(&place) {
            table.note("the chain of logical partitions runs in a circle and is cut there");
            return Ok(());
        }
        let outside = next < extended.start || next >= extended.start + extended.len;
        let record = Sector::read(disk, place.start)?.filter(|_| !outside);
        let Some(record) = record else {
            table.note("the chain of logical partitions is broken and ends there");
            return Ok(());
        };
        table.reserved.push(place);
        if table.entries.len() > PARTITIONS_MAX || table.reserved.len() > PARTITIONS_MAX {
            // The check of the whole table refuses so many.
            table.give_up("the chain of logical partitions does not end");
            return Ok(());
        }
        let number = 5 + table.entries.iter().filter(|e| e.number >= 5).count() as u32;
        let [data, link, ..] = record.slots;
        if data.is_used() && !data.is_extended() {
            table.entries.push(entry(number, data, next, sector_bytes));
        }
        if !link.is_extended() {
            return Ok(());
        }
        next = extended.start + link.start;
    }
}

fn entry(number: u32, slot: Slot, base: u64, sector_bytes: u64) -> Entry {
    Entry {
        number,
        range: ByteRange::new((base + slot.start) * sector_bytes, slot.len * sector_bytes),
        type_name: type_name(slot.kind),
        name: None,
    }
}

fn type_name(kind: u8) -> String {
    let name = match kind {
        0x01 => "FAT12",
        0x04 | 0x06 | 0x0e => "FAT16",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x27 => "Windows recovery",
        0x42 => DYNAMIC,
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xa8 | 0xaf => "macOS",
        0xef => "EFI system",
        0xfd => "Linux RAID",
        _ => return format!("type {kind:02x}"),
    };
    name.into()
}
