//! The superblock: geometry, features and state.

use rootstock_core::ByteRange;

use super::{
    super::{Refusal, checksum::crc32c, kept},
    GROUPS_MAX,
};

/// Where the superblock is in its partition, in bytes.
pub(super) const OFFSET_BYTES: u64 = 1024;

/// How long it is.
pub(super) const BYTES: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;

/// FILETYPE, RECOVER, META_BG, EXTENTS, 64BIT, MMP, FLEX_BG, EA_INODE,
/// CSUM_SEED, LARGEDIR, INLINE_DATA, ENCRYPT and CASEFOLD: none of them changes
/// what a block bitmap says. A journal device, compression and what is not yet
/// known are left out.
const INCOMPAT_KNOWN: u32 = 0x3_e7d6;

/// What ext2 and ext3 have: FILETYPE, RECOVER and META_BG.
const INCOMPAT_EXT3: u32 = 0x16;

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// SPARSE_SUPER, LARGE_FILE, BTREE_DIR, HUGE_FILE, GDT_CSUM, DIR_NLINK,
/// EXTRA_ISIZE, QUOTA, BIGALLOC, METADATA_CSUM, READONLY, PROJECT, VERITY and
/// ORPHAN_PRESENT. Snapshots, replicas and shared blocks are left out.
const RO_COMPAT_KNOWN: u32 = 0x1_b77f;

/// What ext2 and ext3 have: SPARSE_SUPER, LARGE_FILE and BTREE_DIR.
const RO_COMPAT_EXT3: u32 = 0x7;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

/// The fields that are needed here.
pub(super) struct Superblock {
    pub(super) block_bytes: u64,
    pub(super) cluster_blocks: u64,
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) clusters_per_group: u64,
    pub(super) groups: u64,
    pub(super) descriptor_bytes: u64,
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 16],
    /// The seed of all checksums but the superblock's, with `metadata_csum`.
    pub(super) checksum_seed: Option<u32>,
    block_log: u32,
    cluster_log: u32,
    inodes_per_group: u64,
    inode_bytes: u64,
    reserved_gdt_blocks: u64,
    first_meta_bg: u64,
    backup_groups: [u64; 2],
    checksum_type: u8,
    state: u16,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
}

impl Superblock {
    /// Reads the fields; nothing is checked yet, and sizes that cannot be come
    /// out as zero.
    pub(super) fn parse(bytes: &[u8; BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at =
            |low: usize, high: usize| u64::from(u32_at(low)) | u64::from(u32_at(high)) << 32;
        let array_at = |at: usize| std::array::from_fn(|byte| bytes[at + byte]);
        let is_original = u32_at(76) == 0;
        let features = |at| if is_original { 0 } else { u32_at(at) };
        let incompat = features(96);
        let ro_compat = features(100);
        let block_log = u32_at(24);
        let bigalloc = ro_compat & RO_COMPAT_BIGALLOC != 0;
        let cluster_log = if bigalloc { u32_at(28) } else { block_log };
        let wide = incompat & INCOMPAT_64BIT != 0;
        let blocks = if wide {
            u64_at(4, 336)
        } else {
            u32_at(4).into()
        };
        let first_data_block = u64::from(u32_at(20));
        let blocks_per_group = u64::from(u32_at(32));
        let uuid: [u8; 16] = array_at(104);
        let seed = if incompat & INCOMPAT_CSUM_SEED != 0 {
            u32_at(0x270)
        } else {
            crc32c(!0, &uuid)
        };
        Self {
            block_bytes: 1024_u64.checked_shl(block_log).unwrap_or(0),
            cluster_blocks: cluster_log
                .checked_sub(block_log)
                .and_then(|log| 1_u64.checked_shl(log))
                .unwrap_or(0),
            blocks,
            first_data_block,
            blocks_per_group,
            clusters_per_group: if bigalloc {
                u32_at(36).into()
            } else {
                blocks_per_group
            },
            groups: blocks
                .saturating_sub(first_data_block)
                .div_ceil(blocks_per_group.max(1)),
            descriptor_bytes: if wide { u16_at(254).into() } else { 32 },
            uuid,
            label: array_at(120),
            checksum_seed: (ro_compat & RO_COMPAT_METADATA_CSUM != 0).then_some(seed),
            block_log,
            cluster_log,
            inodes_per_group: u32_at(40).into(),
            inode_bytes: if is_original { 128 } else { u16_at(88).into() },
            reserved_gdt_blocks: u16_at(206).into(),
            first_meta_bg: u32_at(260).into(),
            backup_groups: [u32_at(0x24c).into(), u32_at(0x250).into()],
            checksum_type: bytes[0x175],
            state: u16_at(58),
            compat: features(92),
            incompat,
            ro_compat,
        }
    }

    /// `ext2`, `ext3` or `ext4`, as blkid tells them apart.
    pub(super) fn kind(&self) -> &'static str {
        if self.incompat & !INCOMPAT_EXT3 != 0 || self.ro_compat & !RO_COMPAT_EXT3 != 0 {
            "ext4"
        } else if self.compat & COMPAT_HAS_JOURNAL != 0 {
            "ext3"
        } else {
            "ext2"
        }
    }

    /// Checks that all later arithmetic stays in bounds: the file system fits
    /// its partition and its groups are of a possible shape.
    pub(super) fn check_geometry(&self, len_bytes: u64) -> Result<(), Refusal> {
        let unknown = self.incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return kept(format!(
                "it has features unknown here (incompat {unknown:#x})"
            ));
        }
        let unknown = self.ro_compat & !RO_COMPAT_KNOWN;
        if unknown != 0 {
            return kept(format!(
                "it has features unknown here (ro_compat {unknown:#x})"
            ));
        }
        let sizes = self.block_log <= 6
            && self.cluster_log >= self.block_log
            && self.cluster_log <= 19
            && self.inode_bytes.is_power_of_two()
            && (128..=self.block_bytes).contains(&self.inode_bytes)
            && self.descriptor_bytes.is_power_of_two()
            && (32..=self.block_bytes).contains(&self.descriptor_bytes);
        if !sizes {
            return kept("its superblock has impossible sizes");
        }
        let bits = self.block_bytes * 8;
        let first = u64::from(self.block_log == 0 && self.cluster_blocks == 1);
        let groups = self.first_data_block == first
            && (8..=bits).contains(&self.clusters_per_group)
            && self.clusters_per_group.is_multiple_of(8)
            && self.blocks_per_group == self.clusters_per_group * self.cluster_blocks
            && (1..=bits).contains(&self.inodes_per_group)
            && (1..=GROUPS_MAX).contains(&self.groups)
            && self.first_meta_bg <= self.gdt_blocks()
            && self.reserved_gdt_blocks <= self.block_bytes / 4;
        if !groups {
            return kept("its superblock has impossible block groups");
        }
        let bytes = self.blocks.checked_mul(self.block_bytes);
        if bytes.is_none_or(|bytes| bytes > len_bytes) {
            return kept("it is longer than its partition");
        }
        Ok(())
    }

    /// Checks that the bitmaps on the disk can be believed.
    pub(super) fn check_state(&self, bytes: &[u8; BYTES]) -> Result<(), Refusal> {
        if self.checksum_seed.is_some() {
            if self.checksum_type != 1 {
                return kept("its checksums are of an unknown type");
            }
            let (fields, sum) = bytes.split_at(BYTES - 4);
            if crc32c(!0, fields).to_le_bytes() != sum {
                return kept("its superblock has a wrong checksum: run e2fsck on it");
            }
        }
        if self.incompat & INCOMPAT_RECOVER != 0 {
            return kept(
                "its journal has to be replayed: it is in use, or was not unmounted; \
                 mount it once or run e2fsck on it",
            );
        }
        if self.state & STATE_ERRORS != 0 {
            return kept("errors were found in it: run e2fsck on it");
        }
        if self.state & STATE_CLEAN == 0 {
            return kept("it is in use, or was not unmounted: run e2fsck on it");
        }
        Ok(())
    }

    /// Whether group descriptors have checksums, and uninitialised groups exist.
    pub(super) fn has_descriptor_checksums(&self) -> bool {
        self.ro_compat & (RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM) != 0
    }

    /// The blocks of a group.
    pub(super) fn group_blocks(&self, group: u64) -> ByteRange {
        let start = self.first_data_block + group * self.blocks_per_group;
        ByteRange::new(start, self.blocks_per_group.min(self.blocks - start))
    }

    pub(super) fn inode_table_blocks(&self) -> u64 {
        (self.inodes_per_group * self.inode_bytes).div_ceil(self.block_bytes)
    }

    /// The group that an inode is of, and where it is in that group's table, in
    /// bytes.
    pub(super) fn inode_place(&self, inode: u32) -> Option<(u64, u64)> {
        let index = u64::from(inode).checked_sub(1)?;
        let group = index / self.inodes_per_group;
        let within = index % self.inodes_per_group;
        (group < self.groups).then_some((group, within * self.inode_bytes))
    }

    pub(super) fn descriptors_per_block(&self) -> u64 {
        self.block_bytes / self.descriptor_bytes
    }

    /// The block that holds descriptors from number `index` blocks of them on,
    /// as the kernel's `descriptor_loc` finds it.
    pub(super) fn descriptor_block(&self, index: u64) -> u64 {
        if !self.in_meta_bg(index) {
            return self.own_block() + 1 + index;
        }
        let group = index * self.descriptors_per_block();
        let start = self.first_data_block + group * self.blocks_per_group;
        let quirk = group == 0 && self.own_block() != self.first_data_block;
        start + u64::from(self.has_super(group)) + u64::from(quirk)
    }

    /// The superblock, descriptors and their reserve at a group's beginning, as
    /// the kernel's `ext4_num_base_meta_blocks` counts them.
    pub(super) fn base_metadata(&self, group: u64) -> ByteRange {
        let blocks = self.group_blocks(group);
        let has_super = self.has_super(group);
        let per_block = self.descriptors_per_block();
        let within = group % per_block;
        let descriptors = if self.in_meta_bg(group / per_block) {
            u64::from(within <= 1 || within == per_block - 1)
        } else if !has_super {
            0
        } else if self.incompat & INCOMPAT_META_BG != 0 {
            self.first_meta_bg + self.reserved_gdt_blocks
        } else {
            self.gdt_blocks() + self.reserved_gdt_blocks
        };
        let before = if group == 0 {
            self.own_block() - self.first_data_block
        } else {
            0
        };
        let len = before + u64::from(has_super) + descriptors;
        ByteRange::new(blocks.start, len.min(blocks.len))
    }

    /// The block that the superblock is in.
    fn own_block(&self) -> u64 {
        OFFSET_BYTES / self.block_bytes
    }

    fn gdt_blocks(&self) -> u64 {
        self.groups.div_ceil(self.descriptors_per_block())
    }

    fn in_meta_bg(&self, descriptor_block: u64) -> bool {
        self.incompat & INCOMPAT_META_BG != 0 && descriptor_block >= self.first_meta_bg
    }

    /// Whether a group has a copy of the superblock.
    fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 {
            return true;
        }
        [3, 5, 7].iter().any(|base| {
            let mut power = *base;
            while power < group {
                power *= base;
            }
            power == group
        })
    }
}
