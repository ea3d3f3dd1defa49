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
