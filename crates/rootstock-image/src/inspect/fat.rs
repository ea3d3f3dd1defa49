//! FAT12, FAT16 and FAT32: free clusters by the allocation tables.
//!
//! Sections are those of Microsoft's "FAT32 File System Specification" 1.03.

use rootstock_core::ByteRange;

use super::{Found, Refusal, free::FreeSet, kept};
use crate::{
    fields::Fields,
    read_at::{ReadAt, Window},
};

/// How much of a table is read at a time, in bytes. FAT12's whole table fits, so
/// no 12-bit entry is cut; it is a multiple of the other widths.
const TABLE_READ_BYTES: u64 = 64 << 10;

/// Whether the first sector is one that FAT begins with: a jump, sane sizes.
pub(super) fn is_boot_sector(head: &[u8]) -> bool {
    Volume::parse(head).is_some()
}

/// The fields of the boot sector that the layout follows from (section 3).
#[derive(Debug, Clone, Copy)]
struct Volume {
    sector_bytes: u64,
    cluster_sectors: u64,
    reserved_sectors: u64,
    tables: u64,
    table_sectors: u64,
    root_sectors: u64,
    sectors: u64,
    is_32: bool,
    /// Section 3.3, BPB_ExtFlags: bit 7 says that only one table is live.
    ext_flags: u16,
    /// Bit 0: Linux and Windows set it while the volume is mounted.
    state: u8,
    serial: [u8; 4],
    label: [u8; 11],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

impl Volume {
    fn parse(head: &[u8]) -> Option<Self> {
        let head: &[u8; 512] = head.first_chunk()?;
        let jumps = (head[0] == 0xeb && head[2] == 0x90) || head[0] == 0xe9;
        if !jumps || head[510..] != [0x55, 0xaa] {
            return None;
        }
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let u32_at = |at: usize| u64::from(Fields::new(&head[at..]).u32());
        let either = |short: u64, long: u64| if short == 0 { long } else { short };
        let is_32 = u16_at(22) == 0;
        // The extended boot record follows the longer BPB of FAT32.
        let extended = if is_32 { 64 } else { 36 };
        let sector_bytes = u16_at(11);
        let volume = Self {
            sector_bytes,
            cluster_sectors: head[13].into(),
            reserved_sectors: u16_at(14),
            tables: head[16].into(),
            table_sectors: either(u16_at(22), u32_at(36)),
            root_sectors: (u16_at(17) * 32).div_ceil(sector_bytes.max(1)),
            sectors: either(u16_at(19), u32_at(32)),
            is_32,
            ext_flags: if is_32 { u16_at(40) as u16 } else { 0 },
            state: head[extended + 1],
            serial: Fields::new(&head[extended + 3..]).array(),
            label: Fields::new(&head[extended + 7..]).array(),
        };
        let sane = [512, 1024, 2048, 4096].contains(&volume.sector_bytes)
            && volume.cluster_sectors.is_power_of_two()
            && volume.reserved_sectors > 0
            && (1..=2).contains(&volume.tables)
            && volume.table_sectors > 0
            && volume.sectors > volume.data_sector()
            && (head[21] == 0xf0 || head[21] >= 0xf8)
            && (!is_32 || volume.root_sectors == 0);
        sane.then_some(volume)
    }

    fn data_sector(&self) -> u64 {
        self.reserved_sectors + self.tables * self.table_sectors + self.root_sectors
    }

    fn clusters(&self) -> u64 {
        (self.sectors - self.data_sector()) / self.cluster_sectors
    }

    /// Section 3.5: the number of clusters alone decides it.
    fn width(&self) -> Width {
        match self.clusters() {
            0..4085 => Width::Fat12,
            4085..65525 => Width::Fat16,
            _ => Width::Fat32,
        }
    }

    fn cluster_bytes(&self) -> u64 {
        self.cluster_sectors * self.sector_bytes
    }
}

impl Width {
    /// How long a table of this many entries is, in bytes.
    fn table_bytes(self, entries: u64) -> u64 {
        match self {
            Self::Fat12 => (entries * 3).div_ceil(2),
            Self::Fat16 => entries * 2,
            Self::Fat32 => entries * 4,
        }
    }

    /// How many entries a full read of a table holds.
    fn entries_per_read(self) -> u64 {
        match self {
            // All of them: FAT12 has fewer than 4,085 + 2.
            Self::Fat12 => 4096,
            Self::Fat16 => TABLE_READ_BYTES / 2,
            Self::Fat32 => TABLE_READ_BYTES / 4,
        }
    }

    /// An entry of a piece of a table.
    fn entry(self, piece: &[u8], index: usize) -> u32 {
        let u16_at = |at: usize| u32::from(u16::from_le_bytes([piece[at], piece[at + 1]]));
        match self {
            Self::Fat12 => {
                let pair = u16_at(index * 3 / 2);
                if index.is_multiple_of(2) {
                    pair & 0xfff
                } else {
                    pair >> 4
                }
            }
            Self::Fat16 => u16_at(index * 2),
            // The upper four bits are not part of the entry.
            Self::Fat32 => (u16_at(index * 4) | u16_at(index * 4 + 2) << 16) & 0x0fff_ffff,
        }
    }
}

pub(super) fn read(window: &Window<'_>, found: &mut Found) -> Result<(), Refusal> {
    let mut head = [0; 512];
    window.read_exact_at(0, &mut head)?;
    let Some(volume) = Volume::parse(&head) else {
        return kept("its boot sector is damaged");
    };
    let width = volume.width();
    found.report.kind = match width {
        Width::Fat12 => "fat12",
        Width::Fat16 => "fat16",
        Width::Fat32 => "fat32",
    }
    .into();
    found.report.label =
        super::label_text(&volume.label).filter(|label| label.as_str() != "NO NAME");
    let [a, b, c, d] = volume.serial;
    found.report.uuid = Some(format!("{d:02X}{c:02X}-{b:02X}{a:02X}"));
    check(window, &volume, width)?;
    let free = free_clusters(window, &volume, width)?;
    let free_bytes = free.count * volume.cluster_bytes();
    found.report.free_bytes = Some(free_bytes);
    found.report.used_bytes = Some(volume.sectors * volume.sector_bytes - free_bytes);
    found.free = free.set;
    Ok(())
}

fn check(window: &Window<'_>, volume: &Volume, width: Width) -> Result<(), Refusal> {
    if volume.is_32 != (width == Width::Fat32) {
        return kept("its boot sector and its number of clusters disagree on its width");
    }
    if volume.sectors * volume.sector_bytes > window.len_bytes() {
        return kept("it is longer than its partition");
    }
    let entries = volume.clusters() + 2;
    if width.table_bytes(entries) > volume.table_sectors * volume.sector_bytes {
        return kept("its allocation table is shorter than its clusters need");
    }
    if volume.ext_flags & 0x80 != 0 {
        return kept("only one of its allocation tables is in use");
    }
    if volume.state & 1 != 0 {
        return kept("it is in use, or was not unmounted: run fsck.fat on it, or unmount it");
    }
    Ok(())
}

/// Free clusters: where, and how many.
struct Free {
    set: FreeSet,
    count: u64,
}

fn free_clusters(window: &Window<'_>, volume: &Volume, width: Width) -> Result<Free, Refusal> {
    let table_bytes = volume.table_sectors * volume.sector_bytes;
    let tables_start = volume.reserved_sectors * volume.sector_bytes;
    let data_start = volume.data_sector() * volume.sector_bytes;
    let cluster_bytes = volume.cluster_bytes();
    let entries = volume.clusters() + 2;
    let mut set = FreeSet::new();
    let mut count = 0;
    let mut first = 0;
    while first < entries {
        let last = entries.min(first + width.entries_per_read());
        let place = tables_start + width.table_bytes(first);
        let len = width.table_bytes(last - first) as usize;
        let mut piece = vec![0; len];
        window.read_exact_at(place, &mut piece)?;
        if volume.tables == 2 {
            let mut copy = vec![0; len];
            window.read_exact_at(place + table_bytes, &mut copy)?;
            if piece != copy {
                return kept("its two allocation tables differ: run fsck.fat on it");
            }
        }
        if first == 0 {
            check_flags(width, width.entry(&piece, 1))?;
        }
        let mut run = None;
        for entry in first.max(2)..last {
            let free = width.entry(&piece, (entry - first) as usize) == 0;
            count += u64::from(free);
            run = match run {
                None if free => Some(entry),
                Some(start) if !free => {
                    set.insert(clusters(data_start, cluster_bytes, start, entry));
                    None
                }
                run => run,
            };
        }
        if let Some(start) = run {
            set.insert(clusters(data_start, cluster_bytes, start, last));
        }
        first = last;
    }
    Ok(Free { set, count })
}

/// Where the clusters `start..end` are; the first one has number 2.
fn clusters(data_start: u64, cluster_bytes: u64, start: u64, end: u64) -> ByteRange {
    let offset_bytes = data_start + (start - 2) * cluster_bytes;
    ByteRange::new(offset_bytes, (end - start) * cluster_bytes)
}

/// Section 4.2: entry 1 has a bit for "clean" and one for "no errors".
fn check_flags(width: Width, entry: u32) -> Result<(), Refusal> {
    let (clean, no_errors) = match width {
        Width::Fat12 => return Ok(()),
        Width::Fat16 => (1 << 15, 1 << 14),
        Width::Fat32 => (1 << 27, 1 << 26),
    };
    if entry & clean == 0 {
        return kept("it was not unmounted: run fsck.fat on it");
    }
    if entry & no_errors == 0 {
        return kept("it noted disk errors: run fsck.fat on it");
    }
    Ok(())
}
