//! Btrfs: what no extent covers, and what no chunk covers.
//!
//! The layout is that of "Btrfs design" and "On-disk Format" of the Btrfs
//! documentation, whose sections are named beside the code, and of the kernel's
//! `btrfs_tree.h`. File systems on one device are read, with chunks that are there
//! once or twice on it. Every tree block has to have its checksum, its place and
//! its generation, and each block group has to use what its extents add up to.

use super::{Found, Refusal, free::FreeSet, kept};
use crate::{
    fields::{le16_at, le32_at, le64_at},
    read_at::{ReadAt, Window},
};
use rootstock_core::{ByteRange, Extents};

mod chunks;
mod superblock;
mod tree;

use chunks::Chunk;
use superblock::Superblock;
use tree::{Key, Trees};

/// Section "Superblock": the beginning of the device is for boot loaders and the
/// first superblock, and there are copies of that further on. Each is kept with
/// the stretch around it in which the kernel does not allocate.
const KEPT: [(u64, u64); 4] = [
    (0, 1 << 20),
    (64 << 20, 64 << 10),
    (256 << 30, 64 << 10),
    (1 << 50, 64 << 10),
];

/// Numbers of trees (section "Trees").
const EXTENT_TREE: u64 = 2;
const BLOCK_GROUP_TREE: u64 = 11;

/// Types of items.
const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;
/// References to extents, where they are items of their own.
const REFERENCES: [u8; 6] = [172, 176, 178, 180, 182, 184];

pub(super) fn read(window: &Window<'_>, found: &mut Found) -> Result<(), Refusal> {
    let mut bytes = [0; superblock::BYTES];
    window.read_exact_at(superblock::OFFSET_BYTES, &mut bytes)?;
    let sb = Superblock::parse(&bytes);
    found.report.uuid = super::uuid_text(&sb.uuid);
    found.report.label = super::label_text(&sb.label);
    sb.check(&bytes, window.len_bytes())?;
    let chunks = chunks::read(window, &sb, &bytes)?;
    let free = free_space(window, &sb, &chunks)?;
    found.report.free_bytes = Some(free.bytes);
    found.report.used_bytes = Some(sb.device_bytes - free.bytes);
    found.free = free.set;
    Ok(())
}

fn free_space(window: &Window<'_>, sb: &Superblock, chunks: &[Chunk]) -> Result<Free, Refusal> {
    let mut free = Free::outside(chunks, sb.device_bytes);
    let trees = Trees::new(window, sb, chunks);
    let roots = roots(&trees)?;
    let mut gaps = Gaps::new(chunks);
    let mut groups = Groups::default();
    trees.walk(&roots.extents, &mut |key, data| match key.kind {
        EXTENT_ITEM => gaps.extent(key.object, key.offset, &mut free),
        METADATA_ITEM => gaps.extent(key.object, sb.node_bytes, &mut free),
        BLOCK_GROUP_ITEM => groups.add(key, data),
        kind if REFERENCES.contains(&kind) => Ok(()),
        kind => kept(format!(
            "its extent tree has items of the unknown type {kind}"
        )),
    })?;
    if let Some(root) = roots.block_groups {
        trees.walk(&root, &mut |key, data| match key.kind {
            BLOCK_GROUP_ITEM => groups.add(key, data),
            kind => kept(format!(
                "its block group tree has items of the unknown type {kind}"
            )),
        })?;
    }
    let used = gaps.finish(&mut free);
    if used.iter().sum::<u64>() != sb.used_bytes || !groups.agree(chunks, &used) {
        return kept("its block groups count other extents than there are: run btrfs check on it");
    }
    Ok(free)
}

/// Where a tree begins.
struct Root {
    place: u64,
    level: u8,
    generation: u64,
    tree: u64,
}

/// The trees that free space is read from.
struct Roots {
    extents: Root,
    block_groups: Option<Root>,
}

/// Section "Root tree".
fn roots(trees: &Trees<'_>) -> Result<Roots, Refusal> {
    let (mut extents, mut block_groups) = (None, None);
    trees.walk(&trees.sb.root, &mut |key, data| {
        let root = || Root {
            place: le64_at(data, 176),
            level: data.get(238).copied().unwrap_or(u8::MAX),
            generation: le64_at(data, 160),
            tree: key.object,
        };
        match (key.object, key.kind) {
            (EXTENT_TREE, ROOT_ITEM) => extents = Some(root()),
            (BLOCK_GROUP_TREE, ROOT_ITEM) => block_groups = Some(root()),
            _ => {}
        }
        Ok(())
    })?;
    let Some(extents) = extents.filter(|_| block_groups.is_some() == trees.sb.has_group_tree)
    else {
        return kept("it lacks a tree: run btrfs check on it");
    };
    Ok(Roots {
        extents,
        block_groups,
    })
}

/// Free space: where, and how much.
struct Free {
    set: FreeSet,
    bytes: u64,
}

impl Free {
    /// What no chunk is in.
    fn outside(chunks: &[Chunk], device_bytes: u64) -> Self {
        let mut free = Self {
            set: FreeSet::new(),
            bytes: 0,
        };
        let mut taken = Extents::new();
        for place in chunks.iter().flat_map(|chunk| chunk.places(chunk.range)) {
            taken.insert(place);
        }
        for rest in taken.outside(ByteRange::new(0, device_bytes)).iter() {
            free.insert(rest);
        }
        free
    }

    /// Adds a range of the device, but for what is always kept.
    fn insert(&mut self, range: ByteRange) {
        let mut at = range.start;
        for (start, len) in KEPT {
            let end = start.min(range.end());
            if end > at {
                self.insert_plain(ByteRange::new(at, end - at));
            }
            at = at.max(start + len);
        }
        if range.end() > at {
            self.insert_plain(ByteRange::new(at, range.end() - at));
        }
    }

    fn insert_plain(&mut self, range: ByteRange) {
        self.bytes += range.len;
        self.set.insert(range);
    }
}

/// Finds what lies between extents, which come in the order of their addresses.
struct Gaps<'a> {
    chunks: &'a [Chunk],
    /// The chunk that is being filled, and where the last extent in it ended.
    chunk: usize,
    end: u64,
    /// What the extents of each chunk add up to.
    used: Vec<u64>,
}

impl<'a> Gaps<'a> {
    fn new(chunks: &'a [Chunk]) -> Self {
        Self {
            chunks,
            chunk: 0,
            end: chunks.first().map_or(0, |chunk| chunk.range.start),
            used: vec![0; chunks.len()],
        }
    }

    fn extent(&mut self, start: u64, len: u64, free: &mut Free) -> Result<(), Refusal> {
        while let Some(chunk) = self
            .chunks
            .get(self.chunk)
            .filter(|c| c.range.end() <= start)
        {
            self.close(chunk, free);
        }
        let chunk = self.chunks.get(self.chunk);
        let end = start
            .checked_add(len)
            .filter(|_| len > 0 && start >= self.end);
        let (Some(chunk), Some(end)) = (chunk, end) else {
            return kept("it has impossible extents: run btrfs check on it");
        };
        if end > chunk.range.end() {
            return kept("it has extents outside of its chunks: run btrfs check on it");
        }
        self.gap(chunk, start, free);
        self.end = end;
        self.used[self.chunk] += len;
        Ok(())
    }

    fn gap(&self, chunk: &Chunk, to: u64, free: &mut Free) {
        let gap = ByteRange::new(self.end, to - self.end);
        for place in chunk.places(gap) {
            free.insert(place);
        }
    }

    fn close(&mut self, chunk: &Chunk, free: &mut Free) {
        self.gap(chunk, chunk.range.end(), free);
        self.chunk += 1;
        self.end = self
            .chunks
            .get(self.chunk)
            .map_or(0, |next| next.range.start);
    }

    fn finish(mut self, free: &mut Free) -> Vec<u64> {
        while let Some(chunk) = self.chunks.get(self.chunk) {
            self.close(chunk, free);
        }
        self.used
    }
}

/// Block groups: what they say they use. There is one for each chunk.
#[derive(Default)]
struct Groups {
    groups: Vec<(ByteRange, u64)>,
}

impl Groups {
    fn add(&mut self, key: Key, data: &[u8]) -> Result<(), Refusal> {
        if self.groups.len() >= chunks::CHUNKS_MAX {
            return kept("it has too many block groups");
        }
        let range = ByteRange::new(key.object, key.offset);
        self.groups.push((range, le64_at(data, 0)));
        Ok(())
    }

    fn agree(&self, chunks: &[Chunk], used: &[u64]) -> bool {
        let found = chunks
            .iter()
            .map(|chunk| chunk.range)
            .zip(used.iter().copied());
        self.groups.iter().copied().eq(found)
    }
}
