//! How a machine's own disk is divided, so that the machine can start from it.
//!
//! A GUID partition table (UEFI 2.10, section 5.3) with three partitions: a place
//! for the boot loader of a BIOS, the EFI system partition with what is started,
//! and the cache. It is known by the names of its partitions.

use std::io;

use rootstock_core::ByteRange;

use crate::{
    inspect::{crc32, read_gpt},
    read_at::ReadAt,
};

/// The only sectors that such a disk may have: boot loaders count in them.
pub const SECTOR_BYTES: u64 = 512;

/// The longest boot code in the first sector, in bytes: the disk's own number and
/// its four records follow (section 5.2.1).
pub const BOOT_CODE_BYTES: usize = 440;

/// The partitions begin and end at multiples of this.
const ALIGN_BYTES: u64 = 1 << 20;

/// Where a BIOS's boot loader lies: GRUB's takes some 100 KiB, and there are two
/// places for it.
const LOADER_BYTES: u64 = 1 << 20;

/// What the EFI system partition takes of a disk, and its limits. FAT32 has 65,525
/// clusters at least (section 13.3), and a start takes 15 to 50 MB, three times.
const START_PART: u64 = 32;
const START_BYTES_MIN: u64 = 64 << 20;
const START_BYTES_MAX: u64 = 512 << 20;

/// Less than this is no use as a cache.
const CACHE_BYTES_MIN: u64 = 16 << 20;

/// 128 entries of 128 bytes, which every reader expects.
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
const ENTRIES_SECTORS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / SECTOR_BYTES;
const HEADER_BYTES: u32 = 92;

/// Section 5.3.3: who has no use for a partition leaves it alone.
const NO_AUTOMATIC_MOUNT: u64 = 1 << 63;

/// What a BIOS does that comes here before there is a boot loader: `int 0x18` has it
/// try the next device.
const NO_LOADER: [u8; 6] = [0xcd, 0x18, 0xf4, 0xeb, 0xfd, 0x90];

/// A partition's type, as its GUID lies on the disk, and its name.
struct Kind {
    guid: [u8; 16],
    name: &'static str,
}

/// In the order of the disk. The types are a BIOS boot partition
/// (21686148-6449-6e6f-744e-656564454649), an EFI system partition
/// (c12a7328-f81f-11d2-ba4b-00a0c93ec93b), and one that is reserved
/// (8da63339-0007-60c0-c436-083ac8230908).
const KINDS: [Kind; 3] = [
    Kind {
        guid: *b"Hah!IdontNeedEFI",
        name: "rootstock-loader",
    },
    Kind {
        guid: [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
            0xc9, 0x3b,
        ],
        name: "rootstock-start",
    },
    Kind {
        guid: [
            0x39, 0x33, 0xa6, 0x8d, 0x07, 0x00, 0xc0, 0x60, 0xc4, 0x36, 0x08, 0x3a, 0xc8, 0x23,
            0x09, 0x08,
        ],
        name: "rootstock-cache",
    },
];

/// The number of the cache's partition.
pub const CACHE_NUMBER: u32 = 3;

/// Why a disk cannot be divided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a disk to start from has {min_bytes} B at least, and this one has {disk_bytes} B")]
pub struct TooSmall {
    /// What it has.
    disk_bytes: u64,
    /// What it needs.
    min_bytes: u64,
}

/// Where everything is on such a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where a BIOS's boot loader lies.
    pub loader: ByteRange,
    /// The EFI system partition: what is started, and with what.
    pub start: ByteRange,
    /// The cache, and what lies behind it for writes.
    pub cache: ByteRange,
}

/// A disk's and its partitions' own ids, drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The disk's.
    pub disk: [u8; 16],
    /// The partitions', in their order.
    pub partitions: [[u8; 16]; 3],
}

impl Layout {
    /// How a disk of so many bytes is divided.
    ///
    /// # Errors
    /// When there is no room for everything.
    pub fn plan(disk_bytes: u64) -> Result<Self, TooSmall> {
        let start_bytes = (disk_bytes / START_PART).clamp(START_BYTES_MIN, START_BYTES_MAX);
        let start_bytes = start_bytes / ALIGN_BYTES * ALIGN_BYTES;
        let loader = ByteRange::new(ALIGN_BYTES, LOADER_BYTES);
        let start = ByteRange::new(loader.end(), start_bytes);
        // The second copy of the table is in the last sectors.
        let end = disk_bytes.saturating_sub((ENTRIES_SECTORS + 1) * SECTOR_BYTES);
        let end = end / ALIGN_BYTES * ALIGN_BYTES;
        match end.checked_sub(start.end()) {
            Some(len) if len >= CACHE_BYTES_MIN => Ok(Self {
                loader,
                start,
                cache: ByteRange::new(start.end(), len),
            }),
            _ => Err(TooSmall {
                disk_bytes,
                min_bytes: start.end() + CACHE_BYTES_MIN + ALIGN_BYTES,
            }),
        }
    }

    /// The layout of a disk that has one.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(disk: &dyn ReadAt) -> io::Result<Option<Self>> {
        let table = read_gpt(disk)?;
        let place = |kind: &Kind| {
            let mut named = table.iter().filter(|(name, _)| name == kind.name);
            let (_, range) = named.next()?;
            (range.end() <= disk.len_bytes() && named.next().is_none()).then_some(*range)
        };
        let [loader, start, cache] = KINDS.each_ref().map(place);
        let (Some(loader), Some(start), Some(cache)) = (loader, start, cache) else {
            return Ok(None);
        };
        let is_apart = loader.end() <= start.start && start.end() <= cache.start;
        Ok(is_apart.then_some(Self {
            loader,
            start,
            cache,
        }))
    }

    /// The bytes of the table, each with its place, in the order of writing: a disk
    /// whose first copy is not written yet is none of ours.
    #[must_use]
    pub fn table(&self, disk_bytes: u64, ids: &Ids) -> [(u64, Vec<u8>); 2] {
        let last = disk_bytes / SECTOR_BYTES - 1;
        let entries = self.entries(ids);
        let first_usable = 2 + ENTRIES_SECTORS;
        let last_usable = last - ENTRIES_SECTORS - 1;
        let header = |own: u64, other: u64, entries_sector: u64| {
            let mut header = Vec::with_capacity(SECTOR_BYTES as usize);
            header.extend(b"EFI PART");
            header.extend(0x0001_0000_u32.to_le_bytes());
            header.extend(HEADER_BYTES.to_le_bytes());
            header.extend([0; 8]);
            for sector in [own, other, first_usable, last_usable] {
                header.extend(sector.to_le_bytes());
            }
            header.extend(ids.disk);
            header.extend(entries_sector.to_le_bytes());
            header.extend((ENTRIES as u32).to_le_bytes());
            header.extend((ENTRY_BYTES as u32).to_le_bytes());
            header.extend(crc32(&entries).to_le_bytes());
            let crc = crc32(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            header.resize(SECTOR_BYTES as usize, 0);
            header
        };
        let backup_sector = last - ENTRIES_SECTORS;
        let mut backup = entries.clone();
        backup.extend(header(last, 1, backup_sector));
        let mut primary = protective_record(last);
        primary.extend(header(1, last, 2));
        primary.extend(&entries);
        [(backup_sector * SECTOR_BYTES, backup), (0, primary)]
    }

    fn entries(&self, ids: &Ids) -> Vec<u8> {
        let mut bytes = vec![0; ENTRIES * ENTRY_BYTES];
        let ranges = [self.loader, self.start, self.cache];
        let parts = KINDS.iter().zip(ranges).zip(ids.partitions);
        for (entry, ((kind, range), id)) in bytes.chunks_exact_mut(ENTRY_BYTES).zip(parts) {
            entry[..16].copy_from_slice(&kind.guid);
            entry[16..32].copy_from_slice(&id);
            let (first, end) = (range.start / SECTOR_BYTES, range.end() / SECTOR_BYTES);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&(end - 1).to_le_bytes());
            entry[48..56].copy_from_slice(&NO_AUTOMATIC_MOUNT.to_le_bytes());
            for (unit, place) in kind
                .name
                .encode_utf16()
                .zip(entry[56..].chunks_exact_mut(2))
            {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        bytes
    }
}

/// The first sector: one record over the whole disk (section 5.2.3).
fn protective_record(last_sector: u64) -> Vec<u8> {
    let mut sector = vec![0; SECTOR_BYTES as usize];
    sector[..NO_LOADER.len()].copy_from_slice(&NO_LOADER);
    let record = &mut sector[446..462];
    record[1..4].copy_from_slice(&[0, 2, 0]);
    record[4] = 0xee;
    record[5..8].fill(0xff);
    record[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let sectors = u32::try_from(last_sector).unwrap_or(u32::MAX);
    record[12..16].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect;

    const MIB: u64 = 1 << 20;

    const IDS: Ids = Ids {
        disk: [1; 16],
        partitions: [[2; 16], [3; 16], [4; 16]],
    };

    #[test]
    fn disks_of_all_sizes_are_divided() {
        for (disk, start_mib, cache_mib) in [
            (64 * MIB, 0, 0),
            (82 * MIB, 0, 0),
            (83 * MIB, 64, 16),
            (3 << 30, 96, 2973),
            ((3 << 30) + 512, 96, 2973),
            (16 << 30, 512, 15869),
            (2 << 40, 512, 2_096_637),
        ] {
            let planned = Layout::plan(disk).map(|layout| {
                assert_eq!(layout.loader, ByteRange::new(MIB, MIB));
                assert_eq!(layout.start.start, 2 * MIB);
                assert_eq!(layout.cache.start, layout.start.end());
                (layout.start.len / MIB, layout.cache.len / MIB)
            });
            match planned {
                Ok(found) => assert_eq!(found, (start_mib, cache_mib), "{disk}"),
                Err(error) => {
                    assert_eq!(cache_mib, 0, "{disk}: {error}");
                    assert!(error.to_string().contains("this one has"), "{error}");
                }
            }
        }
    }

    fn disk(bytes: u64) -> (Layout, Vec<u8>) {
        let layout = Layout::plan(bytes).expect("room");
        let mut disk = vec![0; bytes as usize];
        for (at, bytes) in layout.table(bytes, &IDS) {
            let at = at as usize;
            disk[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        (layout, disk)
    }

    #[test]
    fn a_table_that_is_written_is_read() {
        let (layout, mut disk) = disk(128 * MIB);
        assert_eq!(Layout::read(&disk).expect("read"), Some(layout));
        let report = inspect::partitions(&disk).expect("read");
        let names: Vec<_> = report.iter().filter_map(|p| p.name.as_deref()).collect();
        assert_eq!(
            names,
            ["rootstock-loader", "rootstock-start", "rootstock-cache"]
        );
        // Either copy is enough.
        disk[512] ^= 1;
        assert_eq!(Layout::read(&disk).expect("read"), Some(layout));
        let end = disk.len() - 512;
        disk[end] ^= 1;
        assert_eq!(Layout::read(&disk).expect("read"), None);
    }

    #[test]
    fn other_disks_are_none_of_ours() {
        let (_, mut other) = disk(128 * MIB);
        // The name of one of them, in both copies.
        let at = 2 * 512 + 2 * 128 + 56;
        other[at] = b'x';
        assert!(Layout::read(&other).expect("read").is_some());
        let last = other.len() - 33 * 512 + 2 * 128 + 56;
        other[last] = b'x';
        assert_eq!(Layout::read(&other).expect("read"), None);
        assert_eq!(Layout::read(&vec![0; 1 << 20]).expect("read"), None);
    }
}
