//! Btrfs's superblock, and what it has to be for the rest to be read.

use super::{
    super::{Refusal, checksum::crc32c, kept},
    Root, le16_at, le32_at, le64_at,
};
use crate::fields::bytes_at;

/// Where the first one is, in bytes.
pub(super) const OFFSET_BYTES: u64 = 64 << 10;

pub(super) const BYTES: usize = 4096;

/// Numbers of trees.
const ROOT_TREE: u64 = 1;
const CHUNK_TREE: u64 = 3;

/// `flags`: it was written. Seeds, dumps of metadata and changes of UUID or
/// checksum that did not end have others.
const FLAGS: u64 = 1;

const METADATA_UUID: u64 = 0x400;

/// Back references, a default subvolume, mixed groups, lzo, zstd, large metadata,
/// extended references, skinny metadata, no holes, a UUID of its own for metadata,
/// simple quotas. Not among them are RAID 5 and 6, three and four copies, zones,
/// the second extent tree and stripe trees.
const INCOMPAT: u64 =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | METADATA_UUID | 0x1_0000;

/// The free space tree, that it is valid, verity, the block group tree.
const RO_COMPAT: u64 = 0x1 | 0x2 | 0x4 | GROUP_TREE;
const GROUP_TREE: u64 = 0x8;

/// The superblock's fields that free space follows from.
pub(super) struct Superblock {
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 256],
    pub(super) node_bytes: u64,
    pub(super) sector_bytes: u64,
    pub(super) device_bytes: u64,
    pub(super) device: u64,
    pub(super) used_bytes: u64,
    pub(super) has_group_tree: bool,
    pub(super) root: Root,
    pub(super) chunk_root: Root,
    /// How much of the array of the first chunks is used.
    pub(super) array_bytes: usize,
    /// What tree blocks have in the place of the UUID.
    pub(super) block_uuid: [u8; 16],
    place: u64,
    flags: u64,
    log_root: u64,
    devices: u64,
    incompat: u64,
    ro_compat: u64,
    checksum_kind: u16,
}

impl Superblock {
    /// Section "Superblock": `struct btrfs_super_block`.
    pub(super) fn parse(bytes: &[u8; BYTES]) -> Self {
        let root = |tree, place, level: usize, generation| Root {
            place: le64_at(bytes, place),
            level: bytes[level],
            generation: le64_at(bytes, generation),
            tree,
        };
        let incompat = le64_at(bytes, 188);
        let ro_compat = le64_at(bytes, 180);
        let uuid_place = if incompat & METADATA_UUID == 0 {
            32
        } else {
            571
        };
        Self {
            uuid: bytes_at(bytes, 32),
            label: bytes_at(bytes, 299),
            node_bytes: le32_at(bytes, 148).into(),
            sector_bytes: le32_at(bytes, 144).into(),
            device_bytes: le64_at(bytes, 209),
            device: le64_at(bytes, 201),
            used_bytes: le64_at(bytes, 120),
            has_group_tree: ro_compat & GROUP_TREE != 0,
            root: root(ROOT_TREE, 80, 198, 72),
            chunk_root: root(CHUNK_TREE, 88, 199, 164),
            array_bytes: le32_at(bytes, 160) as usize,
            block_uuid: bytes_at(bytes, uuid_place),
            place: le64_at(bytes, 48),
            flags: le64_at(bytes, 56),
            log_root: le64_at(bytes, 96),
            devices: le64_at(bytes, 136),
            incompat,
            ro_compat,
            checksum_kind: le16_at(bytes, 196),
        }
    }

    /// Whether it can be believed, and nothing about it is unknown.
    pub(super) fn check(&self, bytes: &[u8; BYTES], window_bytes: u64) -> Result<(), Refusal> {
        if self.checksum_kind != 0 {
            return kept(format!(
                "its checksums are of the kind {}, and only CRC-32C is read here",
                self.checksum_kind
            ));
        }
        if !has_checksum(bytes) || self.place != OFFSET_BYTES {
            return kept("its superblock has a wrong checksum or place: run btrfs check on it");
        }
        self.check_features()?;
        self.check_sizes(window_bytes)?;
        if self.log_root != 0 {
            return kept("it has a log to be replayed: mount and unmount it");
        }
        Ok(())
    }

    fn check_features(&self) -> Result<(), Refusal> {
        let unknown = [
            ("flags", self.flags & !FLAGS),
            ("incompat", self.incompat & !INCOMPAT),
            ("compat_ro", self.ro_compat & !RO_COMPAT),
        ];
        if let Some((set, bits)) = unknown.iter().find(|(_, bits)| *bits != 0) {
            return kept(format!("it has features unknown here ({set} {bits:#x})"));
        }
        if self.devices != 1 {
            return kept(format!("it is on {} devices", self.devices));
        }
        Ok(())
    }

    fn check_sizes(&self, window_bytes: u64) -> Result<(), Refusal> {
        let fits = |bytes: u64| bytes.is_power_of_two() && (512..=64 << 10).contains(&bytes);
        let sane = fits(self.sector_bytes)
            && fits(self.node_bytes)
            && self.node_bytes >= self.sector_bytes
            && self.array_bytes <= super::chunks::ARRAY_BYTES_MAX;
        if !sane {
            return kept("its superblock has impossible sizes");
        }
        if self.device_bytes > window_bytes {
            return kept("it is longer than its partition");
        }
        Ok(())
    }
}

/// Section "Checksums": CRC-32C of all after the room for a checksum.
pub(super) fn has_checksum(bytes: &[u8]) -> bool {
    let content = bytes.get(32..).unwrap_or_default();
    !crc32c(!0, content) == le32_at(bytes, 0)
}
