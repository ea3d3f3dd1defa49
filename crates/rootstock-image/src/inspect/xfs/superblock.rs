//! XFS's superblock, and what it has to be for the rest to be read.

use super::super::{Refusal, checksum::crc32c, kept};
use crate::{
    fields::{be16_at, be32_at, be64_at, bytes_at, le32_at},
    read_at::{ReadAt, Window},
};

/// How much of the first sector has fields, in bytes, and the least sector.
pub(super) const HEAD_BYTES: usize = 512;

/// The most allocation groups: 64 TiB of the smallest, which have 16 MiB.
const GROUPS_MAX: u64 = 1 << 22;

/// `sb_versionnum`: what version 4 can have without being odd (section
/// "Superblocks"): all that the kernel knows but shared read-only file systems.
const VERSION_BITS: u16 = 0xfdf0;

/// `sb_features2`: lazy counters, attributes 2, parent pointers, 32-bit project
/// ids, checksums, file types in directories.
const FEATURES_2: u32 = 0x2 | 0x8 | 0x10 | 0x80 | 0x100 | 0x200;

const LAZY_COUNTERS: u32 = 0x2;

/// Free inodes, reverse mappings, shared blocks, counts of inode blocks.
const RO_COMPAT: u32 = 0xf;

/// File types, sparse inodes, a UUID of its own for metadata, long times, many
/// extents, exchanged ranges, parent pointers. Not among them are a repair that
/// is needed (0x10), metadata directories and zones.
const INCOMPAT: u32 = 0x1 | 0x2 | META_UUID | 0x8 | NEEDS_REPAIR | 0x20 | 0x40 | 0x80;
const META_UUID: u32 = 0x4;
const NEEDS_REPAIR: u32 = 0x10;

/// The superblock's fields that free space follows from.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 12],
    pub(super) is_v5: bool,
    pub(super) block_bytes: u64,
    pub(super) sector_bytes: u64,
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) log_blocks: u64,
    /// What it counts as free, if that is kept in the same way everywhere.
    pub(super) free_blocks: Option<u64>,
    /// In blocks, of all groups but the last.
    group_blocks: u64,
    /// How many bits of a block's number are its place in the group.
    group_bits: u32,
    log_start: u64,
    meta_uuid: [u8; 16],
    realtime_blocks: u64,
    block_bits: u32,
    version: u16,
    features_2: u32,
    ro_compat: u32,
    incompat: u32,
    log_incompat: u32,
    in_progress: u8,
}

/// Where the log begins.
pub(super) struct LogPlace {
    pub(super) group: u64,
    pub(super) first: u64,
}

impl Superblock {
    /// Section "Superblocks": `xfs_dsb`.
    pub(super) fn parse(head: &[u8; HEAD_BYTES]) -> Self {
        let version = be16_at(head, 100);
        let is_v5 = version & 0xf == 5;
        let features_2 = be32_at(head, 200);
        let feature = |at: usize| if is_v5 { be32_at(head, at) } else { 0 };
        let incompat = feature(216);
        let lazy = is_v5 || features_2 & LAZY_COUNTERS != 0;
        let uuid = bytes_at(head, 32);
        Self {
            uuid,
            label: bytes_at(head, 108),
            is_v5,
            block_bytes: be32_at(head, 4).into(),
            sector_bytes: be16_at(head, 102).into(),
            blocks: be64_at(head, 8),
            groups: be32_at(head, 88).into(),
            log_blocks: be32_at(head, 96).into(),
            free_blocks: lazy.then(|| be64_at(head, 144)),
            group_blocks: be32_at(head, 84).into(),
            group_bits: head[124].into(),
            log_start: be64_at(head, 48),
            meta_uuid: if incompat & META_UUID == 0 {
                uuid
            } else {
                bytes_at(head, 248)
            },
            realtime_blocks: be64_at(head, 16),
            block_bits: head[120].into(),
            version,
            features_2,
            ro_compat: feature(212),
            incompat,
            log_incompat: feature(220),
            in_progress: head[126],
        }
    }

    /// Whether it can be believed, and nothing about it is unknown.
    pub(super) fn check(&self, window: &Window<'_>) -> Result<(), Refusal> {
        self.check_sizes()?;
        let mut sector = vec![0; self.sector_bytes as usize];
        window.read_exact_at(0, &mut sector)?;
        if self.is_v5 && !has_checksum(&sector, 224) {
            return kept("its superblock has a wrong checksum: run xfs_repair on it");
        }
        self.check_features()?;
        let fits = self.blocks.checked_mul(self.block_bytes);
        if fits.is_none_or(|bytes| bytes > window.len_bytes()) {
            return kept("it is longer than its partition");
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Refusal> {
        let block_fits =
            (9..=16).contains(&self.block_bits) && self.block_bytes == 1 << self.block_bits;
        let sector_fits = self.sector_bytes.is_power_of_two()
            && (512..=32 << 10).contains(&self.sector_bytes)
            && self.sector_bytes <= self.block_bytes;
        if !block_fits || !sector_fits {
            return kept("its superblock has impossible sizes");
        }
        let groups_fit = (1..=GROUPS_MAX).contains(&self.groups)
            && (64..1 << 31).contains(&self.group_blocks)
            && self.group_bits == u64::BITS - (self.group_blocks - 1).leading_zeros()
            && self.blocks > (self.groups - 1) * self.group_blocks
            && self.blocks <= self.groups * self.group_blocks;
        if !groups_fit {
            return kept("its superblock has impossible allocation groups");
        }
        Ok(())
    }

    fn check_features(&self) -> Result<(), Refusal> {
        let unknown = [
            ("version", u32::from(self.version & 0xfff0 & !VERSION_BITS)),
            ("features2", self.features_2 & !FEATURES_2),
            ("ro_compat", self.ro_compat & !RO_COMPAT),
            ("incompat", self.incompat & !INCOMPAT),
            ("log_incompat", self.log_incompat),
        ];
        if !matches!(self.version & 0xf, 4 | 5) {
            return kept(format!(
                "its version {} is unknown here",
                self.version & 0xf
            ));
        }
        if let Some((set, bits)) = unknown.iter().find(|(_, bits)| *bits != 0) {
            return kept(format!("it has features unknown here ({set} {bits:#x})"));
        }
        if self.incompat & NEEDS_REPAIR != 0 {
            return kept("it asks for a repair: run xfs_repair on it");
        }
        if self.in_progress != 0 {
            return kept("it was not made to the end");
        }
        if self.realtime_blocks != 0 {
            return kept("it has a realtime device");
        }
        if self.log_start == 0 {
            return kept("its log is on another device");
        }
        Ok(())
    }

    /// Where the log is: in one group.
    pub(super) fn log_in_group(&self) -> Result<LogPlace, Refusal> {
        let place = LogPlace {
            group: self.log_start >> self.group_bits,
            first: self.log_start & ((1 << self.group_bits) - 1),
        };
        let fits = place.group < self.groups
            && place.first + self.log_blocks <= self.group_blocks(place.group);
        if !fits {
            return kept("its log lies outside of it: run xfs_repair on it");
        }
        Ok(place)
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.log_blocks * self.block_bytes
    }

    /// How many blocks a group has: the last may have fewer.
    pub(super) fn group_blocks(&self, group: u64) -> u64 {
        let before = group * self.group_blocks;
        self.group_blocks.min(self.blocks - before)
    }

    /// The byte where a block of a group begins.
    pub(super) fn block_place(&self, group: u64, block: u64) -> u64 {
        (group * self.group_blocks + block) * self.block_bytes
    }

    /// Whether a block of metadata is this file system's and has the checksum
    /// that it says; version 4 has neither.
    pub(super) fn is_sealed(&self, bytes: &[u8], uuid_at: usize, sum_at: usize) -> bool {
        !self.is_v5 || (bytes_at(bytes, uuid_at) == self.meta_uuid && has_checksum(bytes, sum_at))
    }
}

/// Section "Metadata Integrity": CRC-32C of all but itself, little-endian.
fn has_checksum(bytes: &[u8], at: usize) -> bool {
    let Some((head, rest)) = bytes.split_at_checked(at) else {
        return false;
    };
    let tail = rest.get(4..).unwrap_or_default();
    let sum = crc32c(crc32c(crc32c(!0, head), &[0; 4]), tail);
    !sum == le32_at(bytes, at)
}
