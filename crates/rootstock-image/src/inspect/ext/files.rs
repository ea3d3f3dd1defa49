//! Where the files of an ext4 file system lie: its directories and extent trees.
//!
//! Nothing is believed that is not bounded here: a file whose tree makes no sense
//! is left out, and a directory that was seen is not gone into again. Files of
//! ext2 and ext3, which have no extents, are left out too.

use std::collections::BTreeSet;
use std::io;

use super::{Descriptors, Superblock, superblock};
use crate::{
    inspect::Refusal,
    read_at::{ReadAt, Window},
};

/// A part of a file that lies in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileExtent {
    /// Where it is in the file.
    pub(crate) file_offset_bytes: u64,
    /// Where it is in the partition.
    pub(crate) offset_bytes: u64,
    /// Its length.
    pub(crate) len_bytes: u64,
}

/// The most inodes that are read, names of one file counted apart.
const INODES_MAX: u32 = 2_000_000;

/// The most blocks of directories and of extent trees that are read.
const BLOCKS_MAX: u32 = 1_000_000;

/// The most extents of one file that are looked at.
const EXTENTS_MAX: usize = 65_536;

/// The longest path, in bytes.
const PATH_BYTES_MAX: usize = 4096;

const ROOT_INODE: u32 = 2;

/// The fields that are needed end before this.
const INODE_BYTES: usize = 128;

const KIND_MASK: u16 = 0xf000;
const KIND_DIR: u16 = 0x4000;
const KIND_FILE: u16 = 0x8000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// `eh_magic` of an extent tree's node, and the bytes of its header and entries.
const NODE_MAGIC: u16 = 0xf30a;
const NODE_ENTRY_BYTES: usize = 12;
const NODE_DEPTH_MAX: u16 = 5;

/// Longer extents are allocated and not written: they read as zeros.
const WRITTEN_BLOCKS_MAX: u16 = 32_768;

/// Calls `each` with every extent of every regular file and directory, and the
/// path of it.
///
/// # Errors
/// The source's own errors; what is damaged is left out.
pub(crate) fn ext_files(
    window: &Window<'_>,
    each: &mut dyn FnMut(&[u8], FileExtent),
) -> io::Result<()> {
    let mut bytes = [0; superblock::BYTES];
    let read = window.read_exact_at(superblock::OFFSET_BYTES, &mut bytes);
    if let Err(error) = read {
        return ours(error.into());
    }
    let sb = Superblock::parse(&bytes);
    if let Err(refusal) = sb.check_geometry(window.len_bytes()) {
        return ours(refusal);
    }
    let walk = Walk {
        window,
        sb: &sb,
        descriptors: Descriptors::new(window, &sb),
        inodes_left: INODES_MAX,
        blocks_left: BLOCKS_MAX,
        each,
    };
    walk.run()
}

/// Only the source's errors are errors here.
fn ours(refusal: Refusal) -> io::Result<()> {
    match refusal {
        Refusal::Io(error) => Err(error),
        Refusal::Kept(_) => Ok(()),
    }
}

struct Walk<'a> {
    window: &'a Window<'a>,
    sb: &'a Superblock,
    descriptors: Descriptors<'a>,
    inodes_left: u32,
    blocks_left: u32,
    each: &'a mut dyn FnMut(&[u8], FileExtent),
}

struct Inode {
    kind: u16,
    flags: u32,
    root: [u8; 60],
}

/// An extent in blocks.
#[derive(Clone, Copy)]
struct Blocks {
    file_block: u64,
    block: u64,
    count: u64,
}

impl Walk<'_> {
    fn run(mut self) -> io::Result<()> {
        let mut seen = BTreeSet::from([ROOT_INODE]);
        let mut dirs = vec![(ROOT_INODE, Vec::new())];
        while let Some((number, path)) = dirs.pop() {
            let Some(extents) = self.file(number, &path, KIND_DIR)? else {
                continue;
            };
            for (child, name) in self.names(&extents)? {
                let mut child_path = path.clone();
                child_path.push(b'/');
                child_path.extend_from_slice(&name);
                if child_path.len() > PATH_BYTES_MAX {
                    continue;
                }
                match self.kind_of(child)? {
                    Some(KIND_DIR) if seen.insert(child) => dirs.push((child, child_path)),
                    Some(KIND_FILE) => drop(self.file(child, &child_path, KIND_FILE)?),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The extents of a file of this kind, told to `each`.
    fn file(&mut self, number: u32, path: &[u8], kind: u16) -> io::Result<Option<Vec<Blocks>>> {
        let Some(inode) = self.inode(number)? else {
            return Ok(None);
        };
        let has_extents = inode.flags & FLAG_EXTENTS != 0 && inode.flags & FLAG_INLINE == 0;
        if inode.kind != kind || !has_extents {
            return Ok(None);
        }
        let mut extents = Vec::new();
        if !self.node(&inode.root, NODE_DEPTH_MAX + 1, &mut extents)? {
            return Ok(None);
        }
        for extent in &extents {
            let extent = FileExtent {
                file_offset_bytes: extent.file_block * self.sb.block_bytes,
                offset_bytes: extent.block * self.sb.block_bytes,
                len_bytes: extent.count * self.sb.block_bytes,
            };
            (self.each)(path, extent);
        }
        Ok(Some(extents))
    }

    fn kind_of(&mut self, number: u32) -> io::Result<Option<u16>> {
        Ok(self.inode(number)?.map(|inode| inode.kind))
    }

    fn inode(&mut self, number: u32) -> io::Result<Option<Inode>> {
        let Some((group, offset)) = self.sb.inode_place(number) else {
            return Ok(None);
        };
        let Some(left) = self.inodes_left.checked_sub(1) else {
            return Ok(None);
        };
        self.inodes_left = left;
        let table = match self.descriptors.get(group) {
            Ok(descriptor) => descriptor.inode_table,
            Err(refusal) => return ours(refusal).map(|()| None),
        };
        let mut bytes = [0; INODE_BYTES];
        if table >= self.sb.blocks
            || !self.fill(table * self.sb.block_bytes + offset, &mut bytes)?
        {
            return Ok(None);
        }
        let mut root = [0; 60];
        root.copy_from_slice(&bytes[40..100]);
        Ok(Some(Inode {
            kind: u16_at(&bytes, 0) & KIND_MASK,
            flags: u32_at(&bytes, 32),
            root,
        }))
    }

    /// Appends the extents below a node that is less than `above` levels high;
    /// false when the tree is damaged.
    fn node(&mut self, node: &[u8], above: u16, out: &mut Vec<Blocks>) -> io::Result<bool> {
        let entries = usize::from(u16_at(node, 2));
        let depth = u16_at(node, 6);
        let fits = (entries + 1) * NODE_ENTRY_BYTES <= node.len();
        if u16_at(node, 0) != NODE_MAGIC || !fits || depth >= above {
            return Ok(false);
        }
        let entries = node[NODE_ENTRY_BYTES..]
            .chunks_exact(NODE_ENTRY_BYTES)
            .take(entries);
        for entry in entries {
            if depth == 0 {
                let Some(extent) = self.extent(entry) else {
                    return Ok(false);
                };
                if out.len() == EXTENTS_MAX {
                    return Ok(false);
                }
                out.extend(extent);
            } else {
                let block = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                let Some(below) = self.block(block)? else {
                    return Ok(false);
                };
                if !self.node(&below, depth, out)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// A leaf's entry: nothing inside when it reads as zeros, nothing at all when
    /// it cannot be.
    fn extent(&self, entry: &[u8]) -> Option<Option<Blocks>> {
        let count = u16_at(entry, 4);
        let block = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
        if count > WRITTEN_BLOCKS_MAX {
            return Some(None);
        }
        let count = u64::from(count);
        let inside = count > 0 && block < self.sb.blocks && count <= self.sb.blocks - block;
        inside.then_some(Some(Blocks {
            file_block: u32_at(entry, 0).into(),
            block,
            count,
        }))
    }

    /// The names in a directory with their inodes.
    fn names(&mut self, extents: &[Blocks]) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let mut names = Vec::new();
        for extent in extents {
            for block in extent.block..extent.block + extent.count {
                let Some(bytes) = self.block(block)? else {
                    return Ok(names);
                };
                names_in(&bytes, &mut names);
            }
        }
        Ok(names)
    }

    fn block(&mut self, block: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(left) = self.blocks_left.checked_sub(1) else {
            return Ok(None);
        };
        self.blocks_left = left;
        let mut bytes = vec![0; self.sb.block_bytes as usize];
        let inside = block < self.sb.blocks;
        let read = inside && self.fill(block * self.sb.block_bytes, &mut bytes)?;
        Ok(read.then_some(bytes))
    }

    /// Reads bytes of the partition; false when it does not have them.
    fn fill(&self, offset_bytes: u64, bytes: &mut [u8]) -> io::Result<bool> {
        match self.window.read_exact_at(offset_bytes, bytes) {
            Ok(()) => Ok(true),
            Err(error) => ours(error.into()).map(|()| false),
        }
    }
}

/// The entries of one block of a directory. Blocks of a hash tree look like
/// blocks of unused entries.
fn names_in(block: &[u8], names: &mut Vec<(u32, Vec<u8>)>) {
    let mut rest = block;
    while rest.len() >= 8 {
        let len = match u16_at(rest, 4) {
            0 | u16::MAX => rest.len(),
            len => usize::from(len),
        };
        let name_len = usize::from(rest[6]);
        if len < 8 || len > rest.len() || 8 + name_len > len {
            return;
        }
        let name = &rest[8..8 + name_len];
        let inode = u32_at(rest, 0);
        if inode != 0 && !name.is_empty() && name != b"." && name != b".." {
            names.push((inode, name.to_vec()));
        }
        rest = &rest[len..];
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: usize = 1024;

    fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A node of an extent tree with these entries of 12 bytes.
    fn node(depth: u16, entries: &[[u8; 12]]) -> Vec<u8> {
        let count = entries.len() as u16;
        let mut bytes = Vec::new();
        for field in [NODE_MAGIC, count, count, depth, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(entries.concat());
        bytes
    }

    fn leaf(file_block: u8, count: u16, block: u8) -> [u8; 12] {
        let [low, high] = count.to_le_bytes();
        [file_block, 0, 0, 0, low, high, 0, 0, block, 0, 0, 0]
    }

    fn inode(disk: &mut [u8], number: usize, kind: u16, root: &[u8]) {
        let at = 5 * KIB + (number - 1) * 128;
        put(disk, at, &(kind | 0o755).to_le_bytes());
        put(disk, at + 32, &FLAG_EXTENTS.to_le_bytes());
        put(disk, at + 40, root);
    }

    fn names(disk: &mut [u8], block: usize, entries: &[(u32, &str)]) {
        let mut at = block * KIB;
        for (number, (inode, name)) in entries.iter().enumerate() {
            let is_last = number + 1 == entries.len();
            let len = if is_last { (block + 1) * KIB - at } else { 24 };
            put(disk, at, &inode.to_le_bytes());
            put(disk, at + 4, &(len as u16).to_le_bytes());
            put(disk, at + 6, &[name.len() as u8, 0]);
            put(disk, at + 8, name.as_bytes());
            at += len;
        }
    }

    /// `/a`, whose tree has a node below its root, and `/d/b`, with `/d` in itself.
    fn sample() -> Vec<u8> {
        let mut disk = vec![0; 64 * KIB];
        let numbers: [(usize, u32); 8] = [
            (4, 64),
            (20, 1),
            (32, 8192),
            (36, 8192),
            (40, 16),
            (76, 1),
            (88, 128),
            (96, 0x42),
        ];
        for (at, number) in numbers {
            put(&mut disk, KIB + at, &number.to_le_bytes());
        }
        put(&mut disk, 2 * KIB + 8, &[5]);
        inode(&mut disk, 2, KIND_DIR, &node(0, &[leaf(0, 1, 10)]));
        names(
            &mut disk,
            10,
            &[
                (2, "."),
                (2, ".."),
                (11, "a"),
                (0, "x"),
                (12, "d"),
                (99, "y"),
            ],
        );
        let mut index = [0; 12];
        index[4] = 12;
        inode(&mut disk, 11, KIND_FILE, &node(1, &[index]));
        let leaves = [leaf(0, 2, 20), leaf(5, 1, 30), leaf(8, 32_769, 40)];
        put(&mut disk, 12 * KIB, &node(0, &leaves));
        inode(&mut disk, 12, KIND_DIR, &node(0, &[leaf(0, 1, 11)]));
        names(&mut disk, 11, &[(13, "b"), (12, "d")]);
        inode(&mut disk, 13, KIND_FILE, &node(0, &[leaf(0, 3, 50)]));
        disk
    }

    fn files(disk: &[u8]) -> Vec<(String, u64, u64, u64)> {
        let disk = disk.to_vec();
        let window = Window::new(&disk, 0, disk.len_bytes());
        let mut files = Vec::new();
        let read = ext_files(&window, &mut |path, extent| {
            let path = String::from_utf8_lossy(path).into_owned();
            let parts = [
                extent.file_offset_bytes,
                extent.offset_bytes,
                extent.len_bytes,
            ];
            let [first, block, count] = parts.map(|bytes| bytes / KIB as u64);
            files.push((path, first, block, count));
        });
        read.expect("a slice never fails");
        files
    }

    #[test]
    fn files_and_directories_are_found_with_their_extents() {
        let found = files(&sample());
        let found: Vec<_> = found
            .iter()
            .map(|(path, first, block, count)| (path.as_str(), *first, *block, *count))
            .collect();
        assert_eq!(
            found,
            [
                ("", 0, 10, 1),
                ("/a", 0, 20, 2),
                ("/a", 5, 30, 1),
                ("/d", 0, 11, 1),
                ("/d/b", 0, 50, 3),
            ]
        );
    }

    #[test]
    fn what_is_damaged_is_left_out() {
        // The magic of a node, an extent past the end, a tree that is its own leaf.
        for (at, bytes, left) in [
            (12 * KIB, &[0][..], 3),
            (5 * KIB + 12 * 128 + 40 + 12 + 8, &[62], 4),
            (12 * KIB + 6, &[1], 3),
            (5 * KIB + 128 + 40, &[0], 0),
            (KIB + 40, &[0, 0, 0, 0], 0),
        ] {
            let mut disk = sample();
            put(&mut disk, at, bytes);
            assert_eq!(files(&disk).len(), left, "{at}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_no_harm(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), cut in any::<prop::sample::Index>()) {
            let mut disk = sample();
            for (at, byte) in flips {
                let at = KIB + at.index(12 * KIB);
                disk[at] = byte;
            }
            files(&disk);
            disk.truncate(cut.index(disk.len()));
            files(&disk);
        }
    }
}
