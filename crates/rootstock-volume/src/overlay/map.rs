//! Where each block of a volume is: a copy-on-write tree that is cheap to clone.
//!
//! Three levels: a table of nodes (2 GiB of disk each), nodes of leaves (2 MiB
//! each), leaves of 512 entries. A whole node or leaf that is untouched, or that
//! was discarded as a whole, is a marker and takes no memory; a clone shares
//! everything below the table until one of the two changes it.

use std::{
    ops::{ControlFlow, Range},
    sync::Arc,
};

use rootstock_core::BLOCK_BYTES;

const LEAF_BLOCKS: u64 = 512;
const NODE_LEAVES: u64 = 1024;
const NODE_BLOCKS: u64 = LEAF_BLOCKS * NODE_LEAVES;

const SLOT_BASE: u32 = u32::MAX;
const SLOT_ZERO: u32 = u32::MAX - 1;

/// One past the highest slot number a block can have: 16 TiB of own writes.
pub(crate) const SLOTS_MAX: u32 = SLOT_ZERO;

/// What a block reads as: the base, zeros, or a slot with the checksum of what
/// was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    slot: u32,
    crc: u32,
}

impl Entry {
    pub(crate) const BASE: Self = Self {
        slot: SLOT_BASE,
        crc: 0,
    };
    pub(crate) const ZERO: Self = Self {
        slot: SLOT_ZERO,
        crc: 0,
    };

    pub(crate) fn data(slot: u32, crc: u32) -> Self {
        debug_assert!(slot < SLOTS_MAX);
        Self { slot, crc }
    }

    /// The slot and checksum, for a block with data of its own.
    pub(crate) fn placed(self) -> Option<(u32, u32)> {
        (self.slot < SLOTS_MAX).then_some((self.slot, self.crc))
    }

    /// Whether `next` continues a run that this entry is the last of.
    fn is_followed_by(self, next: Self) -> bool {
        if self.slot < SLOTS_MAX {
            next.slot == self.slot + 1 && next.slot < SLOTS_MAX
        } else {
            next.slot == self.slot
        }
    }
}

/// A stretch of blocks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run<'a> {
    /// As in the base.
    Base,
    /// Zeros.
    Zero,
    /// Own data, in consecutive slots.
    Data(&'a [Entry]),
}

#[derive(Clone)]
enum Branch<T> {
    Base,
    Zero,
    Own(Arc<T>),
}

impl<T> Branch<T> {
    /// The marker as an entry, for a branch without a table.
    fn marker(&self) -> Entry {
        match self {
            Self::Zero => Entry::ZERO,
            _ => Entry::BASE,
        }
    }
}

#[derive(Clone)]
struct Leaf([Entry; LEAF_BLOCKS as usize]);

#[derive(Clone)]
struct Node(Vec<Branch<Leaf>>);

/// The map of a volume's blocks.
#[derive(Clone, Default)]
pub(crate) struct BlockMap {
    nodes: Vec<Branch<Node>>,
}

impl BlockMap {
    /// A map in which every block is the base's.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// What a block reads as.
    pub(crate) fn get(&self, block: u64) -> Entry {
        let node = match self.nodes.get((block / NODE_BLOCKS) as usize) {
            None => return Entry::BASE,
            Some(Branch::Own(node)) => node,
            Some(marker) => return marker.marker(),
        };
        match &node.0[(block % NODE_BLOCKS / LEAF_BLOCKS) as usize] {
            Branch::Own(leaf) => leaf.0[(block % LEAF_BLOCKS) as usize],
            marker => marker.marker(),
        }
    }

    /// Places a block in a slot; returns what it was.
    pub(crate) fn set(&mut self, block: u64, entry: Entry) -> Entry {
        let leaf = self.leaf_mut(block);
        std::mem::replace(&mut leaf.0[(block % LEAF_BLOCKS) as usize], entry)
    }

    /// Makes blocks read as zeros; `replaced` is told of each slot they had.
    pub(crate) fn set_zero(&mut self, blocks: Range<u64>, mut replaced: impl FnMut(u64, u32)) {
        let mut next = blocks.start;
        while next < blocks.end {
            let node_end = (next / NODE_BLOCKS + 1) * NODE_BLOCKS;
            let leaf_end = (next / LEAF_BLOCKS + 1) * LEAF_BLOCKS;
            if next.is_multiple_of(NODE_BLOCKS) && node_end <= blocks.end {
                self.report(next..node_end, &mut replaced);
                *self.node_slot(next) = Branch::Zero;
                next = node_end;
            } else if next.is_multiple_of(LEAF_BLOCKS) && leaf_end <= blocks.end {
                self.report(next..leaf_end, &mut replaced);
                let node = self.node_mut(next);
                node.0[(next % NODE_BLOCKS / LEAF_BLOCKS) as usize] = Branch::Zero;
                next = leaf_end;
            } else {
                let end = leaf_end.min(blocks.end);
                self.report(next..end, &mut replaced);
                let leaf = self.leaf_mut(next);
                let first = (next % LEAF_BLOCKS) as usize;
                leaf.0[first..first + (end - next) as usize].fill(Entry::ZERO);
                next = end;
            }
        }
    }

    /// Walks the runs of a range in order until `each` breaks. Neighbouring runs
    /// may be of one kind: a run ends where its leaf does.
    pub(crate) fn visit<B>(
        &self,
        blocks: Range<u64>,
        mut each: impl FnMut(Range<u64>, Run<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut next = blocks.start;
        while next < blocks.end {
            let node_end = ((next / NODE_BLOCKS + 1) * NODE_BLOCKS).min(blocks.end);
            let leaf_end = ((next / LEAF_BLOCKS + 1) * LEAF_BLOCKS).min(blocks.end);
            let (end, entries): (u64, &[Entry]) =
                match self.nodes.get((next / NODE_BLOCKS) as usize) {
                    None => (blocks.end, &[Entry::BASE]),
                    Some(Branch::Base) => (node_end, &[Entry::BASE]),
                    Some(Branch::Zero) => (node_end, &[Entry::ZERO]),
                    Some(Branch::Own(node)) => {
                        match &node.0[(next % NODE_BLOCKS / LEAF_BLOCKS) as usize] {
                            Branch::Base => (leaf_end, &[Entry::BASE]),
                            Branch::Zero => (leaf_end, &[Entry::ZERO]),
                            Branch::Own(leaf) => {
                                let first = (next % LEAF_BLOCKS) as usize;
                                let rest = &leaf.0[first..first + (leaf_end - next) as usize];
                                let len = run_len(rest);
                                (next + len as u64, &rest[..len])
                            }
                        }
                    }
                };
            let run = match entries[0] {
                Entry::BASE => Run::Base,
                Entry::ZERO => Run::Zero,
                _ => Run::Data(entries),
            };
            each(next..end, run)?;
            next = end;
        }
        ControlFlow::Continue(())
    }

    /// One past the last block that could differ from the base.
    pub(crate) fn blocks_end(&self) -> u64 {
        self.nodes.len() as u64 * NODE_BLOCKS
    }

    fn report(&self, blocks: Range<u64>, replaced: &mut impl FnMut(u64, u32)) {
        let _: ControlFlow<()> = self.visit(blocks, |range, run| {
            if let Run::Data(entries) = run {
                for (block, entry) in range.zip(entries) {
                    replaced(block, entry.slot);
                }
            }
            ControlFlow::Continue(())
        });
    }

    fn node_slot(&mut self, block: u64) -> &mut Branch<Node> {
        let index = (block / NODE_BLOCKS) as usize;
        if index >= self.nodes.len() {
            self.nodes.resize_with(index + 1, || Branch::Base);
        }
        &mut self.nodes[index]
    }

    fn node_mut(&mut self, block: u64) -> &mut Node {
        let slot = self.node_slot(block);
        let filler = match slot {
            Branch::Own(_) => None,
            Branch::Zero => Some(Branch::Zero),
            Branch::Base => Some(Branch::Base),
        };
        if let Some(filler) = filler {
            *slot = Branch::Own(Arc::new(Node(vec![filler; NODE_LEAVES as usize])));
        }
        match slot {
            Branch::Own(node) => Arc::make_mut(node),
            _ => unreachable!("a marker was replaced just above"),
        }
    }

    fn leaf_mut(&mut self, block: u64) -> &mut Leaf {
        let node = self.node_mut(block);
        let slot = &mut node.0[(block % NODE_BLOCKS / LEAF_BLOCKS) as usize];
        if !matches!(slot, Branch::Own(_)) {
            let filler = slot.marker();
            *slot = Branch::Own(Arc::new(Leaf([filler; LEAF_BLOCKS as usize])));
        }
        match slot {
            Branch::Own(leaf) => Arc::make_mut(leaf),
            _ => unreachable!("a marker was replaced just above"),
        }
    }
}

/// How many entries from the first make one run.
fn run_len(entries: &[Entry]) -> usize {
    entries
        .windows(2)
        .position(|pair| !pair[0].is_followed_by(pair[1]))
        .map_or(entries.len(), |last| last + 1)
}

/// The blocks of a disk of this size.
pub(crate) fn blocks_of(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn collect(map: &BlockMap, blocks: Range<u64>) -> BTreeMap<u64, Entry> {
        let mut all = BTreeMap::new();
        let mut next = blocks.start;
        let _: ControlFlow<()> = map.visit(blocks.clone(), |range, run| {
            assert_eq!(range.start, next, "runs follow each other");
            next = range.end;
            match run {
                Run::Base => {}
                Run::Zero => all.extend(range.map(|block| (block, Entry::ZERO))),
                Run::Data(entries) => all.extend(range.zip(entries.iter().copied())),
            }
            ControlFlow::Continue(())
        });
        assert_eq!(next, blocks.end);
        all
    }

    /// Near the edges of leaves and nodes, where mistakes would be.
    fn block() -> impl Strategy<Value = u64> {
        (
            prop::sample::select(vec![0, LEAF_BLOCKS, NODE_BLOCKS, 2 * NODE_BLOCKS]),
            0_u64..6,
        )
            .prop_map(|(edge, near)| (edge + near).saturating_sub(3))
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in prop::collection::vec((block(), block(), any::<bool>(), 0_u32..100), 0..30)) {
            let mut map = BlockMap::new();
            let mut model: BTreeMap<u64, Entry> = BTreeMap::new();
            for (a, b, zero, slot) in steps {
                let before = map.clone();
                let model_before = collect(&before, 0..10);
                if zero {
                    let range = a.min(b)..a.max(b);
                    let mut told = Vec::new();
                    map.set_zero(range.clone(), |block, slot| told.push((block, slot)));
                    let expected: Vec<_> = model.range(range.clone())
                        .filter_map(|(block, entry)| Some((*block, entry.placed()?.0))).collect();
                    prop_assert_eq!(told, expected);
                    if range.end - range.start < 2000 {
                        for block in range { model.insert(block, Entry::ZERO); }
                    } else {
                        // A wide range is remembered by its ends only.
                        let inner: Vec<u64> = model.range(range.clone()).map(|(b, _)| *b).collect();
                        for block in inner.into_iter().chain([range.start, range.end - 1]) { model.insert(block, Entry::ZERO); }
                    }
                } else {
                    let entry = Entry::data(slot, slot + 7);
                    let old = map.set(a, entry);
                    if let Some(expected) = model.insert(a, entry) { prop_assert_eq!(old, expected); }
                }
                prop_assert_eq!(collect(&before, 0..10), model_before, "a clone never changes");
            }
            for (block, entry) in &model { prop_assert_eq!(map.get(*block), *entry); }
            for edge in [0, LEAF_BLOCKS, NODE_BLOCKS, 2 * NODE_BLOCKS] {
                let window = edge.saturating_sub(3)..edge + 7;
                let all = collect(&map, window.clone());
                for (block, entry) in model.range(window) { prop_assert_eq!(all.get(block), Some(entry)); }
            }
        }
    }

    #[test]
    fn discarding_a_huge_disk_takes_no_memory() {
        let mut map = BlockMap::new();
        map.set(5, Entry::data(1, 1));
        let mut told = 0;
        map.set_zero(0..blocks_of(1 << 44), |_, _| told += 1);
        assert_eq!(told, 1);
        assert!(map.nodes.iter().all(|node| matches!(node, Branch::Zero)));
        assert_eq!(map.get(77), Entry::ZERO);
    }
}
