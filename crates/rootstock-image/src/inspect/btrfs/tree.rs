//! Walks a B-tree of Btrfs in the order of its keys.

use super::{
    super::{Refusal, kept},
    Root, Superblock,
    chunks::{Chunk, place_of},
    le32_at, le64_at,
    superblock::has_checksum,
};
use crate::{
    fields::bytes_at,
    read_at::{ReadAt, Window},
};

/// The highest level of a root.
const LEVEL_MAX: u8 = 7;

const HEADER_BYTES: usize = 101;
const KEY_BYTES: usize = 17;
const ITEM_BYTES: usize = KEY_BYTES + 8;
const POINTER_BYTES: usize = KEY_BYTES + 16;

/// What an item is sorted by (section "Keys").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let [kind] = bytes_at(bytes, 8);
        Self {
            object: le64_at(bytes, 0),
            kind,
            offset: le64_at(bytes, 9),
        }
    }
}

/// The trees of a file system.
pub(super) struct Trees<'a> {
    window: &'a Window<'a>,
    pub(super) sb: &'a Superblock,
    chunks: &'a [Chunk],
}

/// What is done with an item: its key and its data.
pub(super) type Visit<'v> = dyn FnMut(Key, &[u8]) -> Result<(), Refusal> + 'v;

/// A walk: keys rise, so no block comes twice, and its time has a bound.
struct Walk<'a, 'v> {
    trees: &'a Trees<'a>,
    tree: u64,
    last: Option<Key>,
    visit: &'a mut Visit<'v>,
}

impl<'a> Trees<'a> {
    pub(super) fn new(window: &'a Window<'a>, sb: &'a Superblock, chunks: &'a [Chunk]) -> Self {
        Self { window, sb, chunks }
    }

    /// Visits all items of a tree.
    pub(super) fn walk(&self, root: &Root, visit: &mut Visit<'_>) -> Result<(), Refusal> {
        if root.level > LEVEL_MAX {
            return damaged();
        }
        let mut walk = Walk {
            trees: self,
            tree: root.tree,
            last: None,
            visit,
        };
        let block = self.block(root)?;
        walk.block(&block, None)
    }

    fn block(&self, root: &Root) -> Result<Block, Refusal> {
        let Some(place) = place_of(self.chunks, root.place, self.sb.node_bytes) else {
            return damaged();
        };
        let mut bytes = vec![0; self.sb.node_bytes as usize];
        self.window.read_exact_at(place, &mut bytes)?;
        let block = Block { bytes };
        let sound = has_checksum(&block.bytes)
            && bytes_at(&block.bytes, 32) == self.sb.block_uuid
            && le64_at(&block.bytes, 48) == root.place
            && le64_at(&block.bytes, 80) == root.generation
            && le64_at(&block.bytes, 88) == root.tree
            && block.level() == root.level
            && block.count() <= (block.bytes.len() - HEADER_BYTES) / block.entry_bytes();
        if !sound {
            return damaged();
        }
        Ok(block)
    }
}

impl Walk<'_, '_> {
    /// Visits a block, whose first key is the one that its parent has for it.
    fn block(&mut self, block: &Block, first: Option<Key>) -> Result<(), Refusal> {
        // Only a root may be empty.
        if first.is_some_and(|first| block.count() == 0 || block.key(0) != first) {
            return damaged();
        }
        for entry in 0..block.count() {
            let key = block.key(entry);
            if block.level() == 0 {
                self.item(block, entry, key)?;
            } else {
                let child = self.trees.block(&block.child(entry, self.tree))?;
                self.block(&child, Some(key))?;
            }
        }
        Ok(())
    }

    fn item(&mut self, block: &Block, entry: usize, key: Key) -> Result<(), Refusal> {
        let data = block
            .data(entry)
            .filter(|_| self.last.is_none_or(|last| last < key));
        let Some(data) = data else {
            return damaged();
        };
        self.last = Some(key);
        (self.visit)(key, data)
    }
}

/// A node or a leaf (section "Tree block").
struct Block {
    bytes: Vec<u8>,
}

impl Block {
    fn count(&self) -> usize {
        le32_at(&self.bytes, 96) as usize
    }

    fn level(&self) -> u8 {
        let [level] = bytes_at(&self.bytes, 100);
        level
    }

    fn entry_bytes(&self) -> usize {
        if self.level() == 0 {
            ITEM_BYTES
        } else {
            POINTER_BYTES
        }
    }

    fn entry(&self, number: usize) -> &[u8] {
        let at = HEADER_BYTES + number * self.entry_bytes();
        self.bytes.get(at..).unwrap_or_default()
    }

    fn key(&self, number: usize) -> Key {
        Key::parse(self.entry(number))
    }

    fn child(&self, number: usize, tree: u64) -> Root {
        let entry = self.entry(number);
        Root {
            place: le64_at(entry, KEY_BYTES),
            level: self.level().saturating_sub(1),
            generation: le64_at(entry, KEY_BYTES + 8),
            tree,
        }
    }

    /// An item's data lie after the header at an offset that it says.
    fn data(&self, number: usize) -> Option<&[u8]> {
        let entry = self.entry(number);
        let (at, len) = (le32_at(entry, KEY_BYTES), le32_at(entry, KEY_BYTES + 4));
        let rest = self.bytes.get(HEADER_BYTES..)?.get(at as usize..)?;
        rest.get(..len as usize)
    }
}

fn damaged<T>() -> Result<T, Refusal> {
    kept("its trees are damaged: run btrfs check on it")
}
