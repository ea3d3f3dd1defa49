//! ext2, ext3 and ext4: free blocks by the block groups' bitmaps.
//!
//! The layout is that of the kernel's "ext4 Data Structures and Algorithms";
//! what an uninitialised group uses follows `ext4_init_block_bitmap`. Every
//! checksum that the file system has is checked, every group's count of free
//! blocks is compared with its bitmap, and no block of metadata may be free.

use rootstock_core::{ByteRange, Extents};

use super::{Found, Refusal, bitmap::zero_runs, checksum::crc32c, free::FreeSet, kept};
use crate::read_at::{ReadAt, Window};

mod files;
mod groups;
mod superblock;

pub(crate) use files::{FileExtent, ext_files};

use groups::{Descriptor, Descriptors};
use superblock::Superblock;

/// The most block groups of a file system: 128 TiB of 4 KiB blocks.
const GROUPS_MAX: u64 = 1 << 20;

pub(super) fn read(window: &Window<'_>, found: &mut Found) -> Result<(), Refusal> {
    let mut bytes = [0; superblock::BYTES];
    window.read_exact_at(superblock::OFFSET_BYTES, &mut bytes)?;
    let sb = Superblock::parse(&bytes);
    found.report.kind = sb.kind().into();
    found.report.uuid = super::uuid_text(&sb.uuid);
    found.report.label = super::label_text(&sb.label);
    sb.check_geometry(window.len_bytes())?;
    found.readable_ext = true;
    sb.check_state(&bytes)?;
    let free = free_blocks(window, &sb)?;
    let total_bytes = sb.blocks * sb.block_bytes;
    found.report.free_bytes = Some(free.bytes);
    found.report.used_bytes = Some(total_bytes - free.bytes);
    found.free = free.set;
    Ok(())
}

/// Free blocks: where, and how much.
struct Free {
    set: FreeSet,
    bytes: u64,
}

fn free_blocks(window: &Window<'_>, sb: &Superblock) -> Result<Free, Refusal> {
    let mut descriptors = Descriptors::new(window, sb);
    let metadata = metadata(sb, &mut descriptors)?;
    let mut free = Free {
        set: FreeSet::new(),
        bytes: 0,
    };
    let mut bitmap = vec![0; sb.block_bytes as usize];
    for group in 0..sb.groups {
        let descriptor = descriptors.get(group)?;
        let blocks = sb.group_blocks(group);
        let mut clusters = 0;
        let mut add = |range: ByteRange| {
            clusters += range.len.div_ceil(sb.cluster_blocks);
            let len = range.len * sb.block_bytes;
            free.bytes += len;
            free.set
                .insert(ByteRange::new(range.start * sb.block_bytes, len));
        };
        if sb.has_descriptor_checksums() && descriptor.block_uninit {
            for range in metadata.outside(blocks).iter() {
                add(range);
            }
        } else {
            window.read_exact_at(descriptor.block_bitmap * sb.block_bytes, &mut bitmap)?;
            check_bitmap(sb, group, &descriptor, &bitmap)?;
            let mut in_metadata = false;
            zero_runs(
                &bitmap,
                blocks.len.div_ceil(sb.cluster_blocks),
                |start, end| {
                    let first = blocks.start + start * sb.cluster_blocks;
                    let last = (blocks.start + end * sb.cluster_blocks).min(blocks.end());
                    let run = ByteRange::new(first, last - first);
                    in_metadata |= metadata.within(run).next().is_some();
                    add(run);
                },
            );
            if in_metadata {
                return kept(format!(
                    "group {group} has metadata in free blocks: run e2fsck on it"
                ));
            }
        }
        if clusters != descriptor.free_clusters {
            return kept(format!(
                "group {group} counts {} free, and its bitmap {clusters}: run e2fsck on it",
                descriptor.free_clusters
            ));
        }
    }
    Ok(free)
}

/// All blocks that hold the file system itself, whatever bitmaps say.
fn metadata(sb: &Superblock, descriptors: &mut Descriptors<'_>) -> Result<Extents, Refusal> {
    let mut blocks = Extents::new();
    // A cluster is used whole.
    let mut add = |start: u64, len: u64| {
        let from = start - start % sb.cluster_blocks;
        let to = (start + len).next_multiple_of(sb.cluster_blocks);
        blocks.insert(ByteRange::new(from, to - from));
    };
    add(0, sb.first_data_block);
    for group in 0..sb.groups {
        let descriptor = descriptors.get(group)?;
        let base = sb.base_metadata(group);
        add(base.start, base.len);
        let parts = [
            (descriptor.block_bitmap, 1),
            (descriptor.inode_bitmap, 1),
            (descriptor.inode_table, sb.inode_table_blocks()),
        ];
        for (start, len) in parts {
            if start == 0 || start >= sb.blocks || len > sb.blocks - start {
                return kept(format!(
                    "group {group} has its metadata outside the file system: run e2fsck on it"
                ));
            }
            add(start, len);
        }
    }
    Ok(blocks)
}

fn check_bitmap(
    sb: &Superblock,
    group: u64,
    descriptor: &Descriptor,
    bitmap: &[u8],
) -> Result<(), Refusal> {
    let Some(seed) = sb.checksum_seed else {
        return Ok(());
    };
    let used = (sb.clusters_per_group / 8) as usize;
    let sum = crc32c(seed, &bitmap[..used]);
    if sum & descriptor.bitmap_checksum_mask != descriptor.bitmap_checksum {
        return kept(format!(
            "the block bitmap of group {group} has a wrong checksum: run e2fsck on it"
        ));
    }
    Ok(())
}
