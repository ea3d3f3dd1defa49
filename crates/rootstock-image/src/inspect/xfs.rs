//! XFS: free blocks by each allocation group's B+tree of free extents.
//!
//! The layout is that of "XFS Algorithms & Data Structures", 3rd edition; the
//! sections are named beside the code. Every checksum and owner that a block of
//! version 5 has is checked, the extents of a group have to add up to what its
//! header counts, and no block of metadata may be free.

use rootstock_core::{ByteRange, Extents};

use super::{Found, Refusal, free::FreeSet, kept};
use crate::{
    fields::{be16_at, be32_at, be64_at},
    read_at::{ReadAt, Window},
};

mod log;
mod superblock;

use superblock::Superblock;

/// No block, in place of a number in a group.
const NULL_BLOCK: u64 = u32::MAX as u64;

/// The deepest tree that the kernel accepts (`XFS_BTREE_MAXLEVELS`).
const LEVELS_MAX: u32 = 9;

pub(super) fn read(window: &Window<'_>, found: &mut Found) -> Result<(), Refusal> {
    let mut head = [0; superblock::HEAD_BYTES];
    window.read_exact_at(0, &mut head)?;
    let sb = Superblock::parse(&head);
    found.report.uuid = super::uuid_text(&sb.uuid);
    found.report.label = super::label_text(&sb.label);
    sb.check(window)?;
    let log = sb.log_in_group()?;
    log::check_clean(window, sb.block_place(log.group, log.first), sb.log_bytes())?;
    let mut free = Free::default();
    for number in 0..sb.groups {
        let mut group = Group::read(window, &sb, number)?;
        if number == log.group {
            group.used.insert(ByteRange::new(log.first, sb.log_blocks));
        }
        group.free_extents(&mut free)?;
    }
    if sb
        .free_blocks
        .is_some_and(|said| said != free.counted_blocks)
    {
        return kept(
            "its superblock and its groups count different free space: run xfs_repair on it",
        );
    }
    found.report.free_bytes = Some(free.bytes);
    found.report.used_bytes = Some(sb.blocks * sb.block_bytes - free.bytes);
    found.free = free.set;
    Ok(())
}

/// Free blocks: where, and how much.
#[derive(Default)]
struct Free {
    set: FreeSet,
    bytes: u64,
    /// What the groups' headers count: free extents, free lists, and the trees
    /// that keep them.
    counted_blocks: u64,
}

/// An allocation group, as its header of free space has it (section "AG Free
/// Space Block").
struct Group<'a> {
    window: &'a Window<'a>,
    sb: &'a Superblock,
    number: u64,
    blocks: u64,
    root: u64,
    levels: u32,
    free_blocks: u64,
    longest: u64,
    list_blocks: u64,
    tree_blocks: u64,
    /// What holds the group itself, in its blocks.
    used: Extents,
}

impl<'a> Group<'a> {
    fn read(window: &'a Window<'a>, sb: &'a Superblock, number: u64) -> Result<Self, Refusal> {
        let mut agf = vec![0; sb.sector_bytes as usize];
        window.read_exact_at(sb.block_place(number, 0) + sb.sector_bytes, &mut agf)?;
        let group = Self {
            window,
            sb,
            number,
            blocks: sb.group_blocks(number),
            root: be32_at(&agf, 16).into(),
            levels: be32_at(&agf, 28),
            free_blocks: be32_at(&agf, 52).into(),
            longest: be32_at(&agf, 56).into(),
            list_blocks: be32_at(&agf, 48).into(),
            tree_blocks: be32_at(&agf, 60).into(),
            used: Extents::new(),
        };
        let sound = agf.starts_with(b"XAGF")
            && be32_at(&agf, 4) == 1
            && u64::from(be32_at(&agf, 8)) == number
            && u64::from(be32_at(&agf, 12)) == group.blocks
            && (1..=LEVELS_MAX).contains(&group.levels)
            && sb.is_sealed(&agf, 64, 216);
        if !sound {
            return group.damaged("a wrong header");
        }
        group.with_metadata(&agf)
    }

    /// Notes what cannot be free: the headers, the roots of the trees of free
    /// space, and the list of blocks that those trees grow with.
    fn with_metadata(mut self, agf: &[u8]) -> Result<Self, Refusal> {
        let headers = (4 * self.sb.sector_bytes).div_ceil(self.sb.block_bytes);
        self.used.insert(ByteRange::new(0, headers));
        let by_size = u64::from(be32_at(agf, 20));
        let first = be32_at(agf, 40) as usize;
        let last = be32_at(agf, 44) as usize;
        for block in self.free_list(first, last)? {
            self.note_used(block)?;
        }
        self.note_used(by_size)?;
        Ok(self)
    }

    /// The blocks of the free list, a ring of numbers (section "AG Free List").
    fn free_list(&self, first: usize, last: usize) -> Result<Vec<u64>, Refusal> {
        let mut agfl = vec![0; self.sb.sector_bytes as usize];
        let place = self.sb.block_place(self.number, 0) + 3 * self.sb.sector_bytes;
        self.window.read_exact_at(place, &mut agfl)?;
        let head = if self.sb.is_v5 { 36 } else { 0 };
        let sealed = !self.sb.is_v5
            || (agfl.starts_with(b"XAFL")
                && u64::from(be32_at(&agfl, 4)) == self.number
                && self.sb.is_sealed(&agfl, 8, 32));
        let slots = (agfl.len() - head) / 4;
        let count = self.list_blocks as usize;
        let fits = first < slots
            && last < slots
            && (count == 0 || (count <= slots && (first + count - 1) % slots == last));
        if !sealed || !fits {
            return self.damaged("a wrong free list");
        }
        let slot = |at: usize| be32_at(&agfl, head + (first + at) % slots * 4).into();
        Ok((0..count).map(slot).collect())
    }

    fn note_used(&mut self, block: u64) -> Result<(), Refusal> {
        if block >= self.blocks {
            return self.damaged("metadata outside of it");
        }
        self.used.insert(ByteRange::new(block, 1));
        Ok(())
    }

    /// Walks the leaves of the tree that is sorted by place (section "AG Free
    /// Space B+trees"). Their records rise, so no leaf comes twice.
    fn free_extents(&mut self, free: &mut Free) -> Result<(), Refusal> {
        let mut block = self.root;
        for level in (1..self.levels).rev() {
            let node = self.tree_block(block, level, free)?;
            block = be32_at(&node.bytes, node.first_child()).into();
        }
        let (mut end, mut total, mut longest) = (0, 0, 0);
        let mut left = NULL_BLOCK;
        while block != NULL_BLOCK {
            let leaf = self.tree_block(block, 0, free)?;
            if leaf.left != left || (leaf.records == 0 && self.levels > 1) {
                return self.damaged("a wrong tree of free space");
            }
            for record in 0..leaf.records {
                let extent = leaf.extent(record);
                if extent.len == 0 || extent.start < end || extent.end() > self.blocks {
                    return self.damaged("impossible free extents");
                }
                if self.used.within(extent).next().is_some() {
                    return self.damaged("metadata in free blocks");
                }
                end = extent.end();
                total += extent.len;
                longest = longest.max(extent.len);
                free.set.insert(self.place(extent));
            }
            left = block;
            block = leaf.right;
        }
        if (total, longest) != (self.free_blocks, self.longest) {
            return self.damaged("another count of free blocks than its tree");
        }
        free.bytes += total * self.sb.block_bytes;
        free.counted_blocks += total + self.list_blocks + self.tree_blocks;
        Ok(())
    }

    /// Reads a block of the tree (section "Short Format B+tree").
    fn tree_block(&mut self, block: u64, level: u32, free: &Free) -> Result<TreeBlock, Refusal> {
        self.note_used(block)?;
        let place = self.place(ByteRange::new(block, 1));
        if free.set.touches(place) {
            return self.damaged("metadata in free blocks");
        }
        let mut bytes = vec![0; self.sb.block_bytes as usize];
        self.window.read_exact_at(place.start, &mut bytes)?;
        let (magic, head) = if self.sb.is_v5 {
            (b"AB3B", 56)
        } else {
            (b"ABTB", 16)
        };
        let block = TreeBlock {
            head,
            records: be16_at(&bytes, 6).into(),
            left: be32_at(&bytes, 8).into(),
            right: be32_at(&bytes, 12).into(),
            bytes,
        };
        let owned = !self.sb.is_v5
            || (be64_at(&block.bytes, 16) == place.start / 512
                && u64::from(be32_at(&block.bytes, 48)) == self.number
                && self.sb.is_sealed(&block.bytes, 32, 52));
        let sound = block.bytes.starts_with(magic)
            && u32::from(be16_at(&block.bytes, 4)) == level
            && block.records <= block.records_max(level)
            && (level == 0 || block.records > 0);
        if !sound || !owned {
            return self.damaged("a wrong tree of free space");
        }
        Ok(block)
    }

    fn place(&self, blocks: ByteRange) -> ByteRange {
        let start = self.sb.block_place(self.number, blocks.start);
        ByteRange::new(start, blocks.len * self.sb.block_bytes)
    }

    fn damaged<T>(&self, has: &str) -> Result<T, Refusal> {
        kept(format!(
            "allocation group {} has {has}: run xfs_repair on it",
            self.number
        ))
    }
}

/// A node or a leaf of a tree of free space.
struct TreeBlock {
    bytes: Vec<u8>,
    /// How long its header is.
    head: usize,
    records: usize,
    left: u64,
    right: u64,
}

impl TreeBlock {
    /// A record has 8 bytes, a node's key 8 and its pointer 4.
    fn records_max(&self, level: u32) -> usize {
        let each = if level == 0 { 8 } else { 12 };
        (self.bytes.len() - self.head) / each
    }

    /// Pointers come after the room for all keys.
    fn first_child(&self) -> usize {
        self.head + self.records_max(1) * 8
    }

    fn extent(&self, record: usize) -> ByteRange {
        let at = self.head + record * 8;
        let (start, len) = (be32_at(&self.bytes, at), be32_at(&self.bytes, at + 4));
        ByteRange::new(start.into(), len.into())
    }
}
