//! Makes small disks, byte by byte.

use super::super::checksum::crc32;

/// A disk under construction.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
}

/// One of the two copies of a GPT.
#[derive(Clone, Copy)]
pub(super) enum GptCopy {
    Primary,
    Backup,
}

const ENTRIES_BYTES: u64 = 128 * 128;

impl Disk {
    pub(super) fn new(len_bytes: u64) -> Self {
        Self {
            bytes: vec![0; len_bytes as usize],
        }
    }

    pub(super) fn put(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let at = offset_bytes as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes one slot of the boot record in a sector of 512 bytes.
    pub(super) fn mbr(&mut self, sector: u64, slot: usize, kind: u8, start: u32, len: u32) {
        let record = sector * 512;
        let at = record + 446 + slot as u64 * 16;
        self.put(at + 4, &[kind]);
        self.put(at + 8, &start.to_le_bytes());
        self.put(at + 12, &len.to_le_bytes());
        self.put(record + 510, &[0x55, 0xaa]);
    }

    /// Writes a GPT with these partitions: first and last sector, name.
    pub(super) fn gpt(&mut self, sector_bytes: u64, partitions: &[(u64, u64, &str)]) {
        self.mbr(0, 0, 0xee, 1, u32::MAX);
        let mut entries = vec![0; ENTRIES_BYTES as usize];
        for (entry, (first, last, name)) in entries.chunks_exact_mut(128).zip(partitions) {
            entry[..32].fill(7);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for (unit, place) in name.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        let last = self.bytes.len() as u64 / sector_bytes - 1;
        let copies = [(1, last, 2), (last, 1, last - ENTRIES_BYTES / sector_bytes)];
        for (own, other, entries_sector) in copies {
            let mut header = [0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[24..32].copy_from_slice(&own.to_le_bytes());
            header[32..40].copy_from_slice(&other.to_le_bytes());
            header[72..80].copy_from_slice(&entries_sector.to_le_bytes());
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            let sum = crc32(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            self.put(own * sector_bytes, &header);
            self.put(entries_sector * sector_bytes, &entries);
        }
    }

    /// The same disk with a bit of a GPT's copy changed.
    pub(super) fn with_damage(&self, sector_bytes: u64, copy: GptCopy, part: &str) -> Self {
        let last = self.bytes.len() as u64 / sector_bytes - 1;
        let at = match (copy, part) {
            (GptCopy::Primary, "header") => sector_bytes + 40,
            (GptCopy::Primary, _) => 2 * sector_bytes + 40,
            (GptCopy::Backup, "header") => last * sector_bytes + 40,
            (GptCopy::Backup, _) => last * sector_bytes - ENTRIES_BYTES + 40,
        };
        let mut damaged = self.clone();
        damaged.bytes[at as usize] ^= 1;
        damaged
    }

    /// Writes one byte of both allocation tables.
    pub(super) fn both_fats(&mut self, at: usize, byte: u8) {
        let sectors = usize::from(u16::from_le_bytes([self.bytes[22], self.bytes[23]]));
        for table in [512, 512 + sectors * 512] {
            self.bytes[table + at] = byte;
        }
    }
}

/// Swap space of so many pages.
pub(super) fn swap(pages: u32) -> Vec<u8> {
    let mut bytes = vec![0x5a; pages as usize * 4096];
    bytes[..4096].fill(0);
    bytes[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    bytes[1028..1032].copy_from_slice(&(pages - 1).to_le_bytes());
    bytes[1052..1058].copy_from_slice(b"sleepy");
    bytes[4086..4096].copy_from_slice(b"SWAPSPACE2");
    bytes
}

fn fat(cluster_sectors: u8, clusters: u16, table_sectors: u16) -> Disk {
    let sectors = 1 + 2 * table_sectors + 1 + clusters * u16::from(cluster_sectors);
    let mut disk = Disk::new(u64::from(sectors) * 512);
    disk.put(0, &[0xeb, 0x3c, 0x90]);
    disk.put(11, &[0, 2, cluster_sectors, 1, 0, 2, 16, 0]);
    disk.put(19, &sectors.to_le_bytes());
    disk.put(21, &[0xf8]);
    disk.put(22, &table_sectors.to_le_bytes());
    disk.put(38, &[0x29, 0xcd, 0xab, 0x34, 0x12]);
    disk.put(43, b"TEST       ");
    disk.put(510, &[0x55, 0xaa]);
    disk
}

/// 2,000 clusters; 2, 3 and 10 are in use.
pub(super) fn fat12() -> Disk {
    let mut disk = fat(1, 2000, 6);
    let table = [0xf8, 0xff, 0xff, 0x03, 0xf0, 0xff];
    for (at, byte) in table.iter().enumerate() {
        disk.both_fats(at, *byte);
    }
    disk.both_fats(15, 0xff);
    disk.both_fats(16, 0x0f);
    disk
}

/// 5,000 clusters; 2, 3 and 10 are in use.
pub(super) fn fat16() -> Disk {
    let mut disk = fat(4, 5000, 20);
    let table = [0xf8, 0xff, 0xff, 0xff, 3, 0, 0xff, 0xff];
    for (at, byte) in table.iter().enumerate() {
        disk.both_fats(at, *byte);
    }
    disk.both_fats(20, 0xff);
    disk.both_fats(21, 0xff);
    disk
}

const EXT_BLOCKS: u32 = 1000;

/// Boot block, superblock, descriptors, two bitmaps and 4 blocks of inodes are
/// in use, and 3 more blocks.
pub(super) const EXT_FREE_BLOCKS: u64 = 1000 - 9 - 3;

/// An ext2 of one group and 1 KiB blocks.
pub(super) fn ext2() -> Vec<u8> {
    let mut disk = Disk::new(u64::from(EXT_BLOCKS) * 1024);
    let word = |disk: &mut Disk, at: u64, value: u32| disk.put(at, &value.to_le_bytes());
    let sb = 1024;
    word(&mut disk, sb, 32);
    word(&mut disk, sb + 4, EXT_BLOCKS);
    word(&mut disk, sb + 20, 1);
    word(&mut disk, sb + 32, 8192);
    word(&mut disk, sb + 36, 8192);
    word(&mut disk, sb + 40, 32);
    word(&mut disk, sb + 56, 0x1_ef53);
    word(&mut disk, sb + 76, 1);
    word(&mut disk, sb + 84, 11);
    disk.put(sb + 88, &[128, 0]);
    word(&mut disk, sb + 96, 2);
    word(&mut disk, sb + 100, 1);
    disk.put(sb + 104, &[9; 16]);
    disk.put(sb + 120, b"tiny");
    let group = 2048;
    word(&mut disk, group, 3);
    word(&mut disk, group + 4, 4);
    word(&mut disk, group + 8, 5);
    word(&mut disk, group + 12, EXT_FREE_BLOCKS as u32);
    // Bit 0 is block 1: 8 blocks of metadata, then 3 in use; past the end all.
    let mut bitmap = [0; 1024];
    bitmap[..2].copy_from_slice(&[0xff, 0x70]);
    bitmap[124] = 0x80;
    bitmap[125..].fill(0xff);
    disk.put(3 * 1024, &bitmap);
    disk.put(4 * 1024, &[0xff; 1024]);
    disk.bytes
}
