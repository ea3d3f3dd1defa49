//! Finds where blocks of new chunks are in the chunks that a node has.
//!
//! The table holds blocks of new chunks only, and the other version streams past
//! it once: memory is bounded by what is new, and what is too much of that takes
//! another pass. The rejected alternative, a table of the other version's blocks,
//! grows with the disk.

use std::collections::HashMap;

use rootstock_core::{
    ChunkId,
    units::{BLOCK_BYTES, is_zero},
};

use super::{
    BLOCKS_MAX, SOURCES_MAX, block_count,
    delta::{Op, encode},
};
use crate::frame::Encoder;

/// The most blocks that are looked for in one pass: 1.75 GiB of new chunks, in a
/// table of 32 MB (and the half of it besides while it grows).
pub const WANTED_BLOCKS_MAX: usize = 448 << 10;

/// Places that are remembered of one block: enough to follow a run through blocks
/// that are in many files.
pub const PLACES_MAX: usize = 4;

const BLOCK: usize = BLOCK_BYTES as usize;

/// The beginning of a block's BLAKE3: enough to find it, since every delta is
/// tried when it is made and checked when it is applied.
type BlockHash = [u8; 16];

/// Less of it, to recognize a neighbour; zeros for a block of zeros and for none.
type BlockHash8 = [u8; 8];

fn block_hash(block: &[u8]) -> BlockHash {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
    short
}

fn neighbour(hash: BlockHash) -> BlockHash8 {
    let [a, b, c, d, e, f, g, h, ..] = hash;
    [a, b, c, d, e, f, g, h]
}

/// Where a block was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Which of the sources that were kept.
    source: u32,
    block: u8,
}

/// A wanted block, and the first places where it was seen.
#[derive(Debug, Clone, Copy)]
struct Places {
    /// The block before it in the new chunk where it was first wanted.
    before: BlockHash8,
    len: u8,
    places: [(u32, u8); PLACES_MAX],
}

impl Places {
    const fn new(before: BlockHash8) -> Self {
        Self {
            before,
            len: 0,
            places: [(0, 0); PLACES_MAX],
        }
    }

    /// Remembers a place. When there is no room, one that comes after the same
    /// block as in the new chunk takes the last one's, for it goes on with a run.
    fn add(&mut self, place: Place, before: BlockHash8) {
        let at = usize::from(self.len);
        if at < PLACES_MAX {
            self.places[at] = (place.source, place.block);
            self.len += 1;
        } else if before == self.before {
            self.places[PLACES_MAX - 1] = (place.source, place.block);
        }
    }

    fn iter(&self) -> impl Iterator<Item = Place> {
        let places = self.places[..usize::from(self.len)].iter();
        places.map(|(source, block)| Place {
            source: *source,
            block: *block,
        })
    }
}

/// Finds blocks: first all that are wanted, then the chunks that may have them,
/// then the deltas.
#[derive(Debug, Default)]
pub struct Finder {
    wanted: HashMap<BlockHash, Places>,
    /// Chunks in which something was found.
    sources: Vec<ChunkId>,
}

impl Finder {
    /// A finder that looks for nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether another chunk might go over [`WANTED_BLOCKS_MAX`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.wanted.len() + BLOCKS_MAX > WANTED_BLOCKS_MAX
    }

    /// Looks for the blocks of a new chunk from now on.
    pub fn want(&mut self, raw: &[u8]) {
        let mut before = BlockHash8::default();
        for block in raw.chunks(BLOCK) {
            if is_zero(block) {
                before = BlockHash8::default();
                continue;
            }
            let hash = block_hash(block);
            self.wanted.entry(hash).or_insert(Places::new(before));
            before = neighbour(hash);
        }
    }

    /// Looks through a chunk of the version that nodes have.
    pub fn search(&mut self, id: ChunkId, raw: &[u8]) {
        let source = self.sources.len() as u32;
        let mut before = BlockHash8::default();
        let mut is_found = false;
        for (block, bytes) in (0..).zip(raw.chunks(BLOCK).take(BLOCKS_MAX)) {
            if is_zero(bytes) {
                before = BlockHash8::default();
                continue;
            }
            let hash = block_hash(bytes);
            if let Some(places) = self.wanted.get_mut(&hash) {
                places.add(Place { source, block }, before);
                is_found = true;
            }
            before = neighbour(hash);
        }
        if is_found {
            self.sources.push(id);
        }
    }

    /// The delta of a new chunk, out of what was found; `None` when nothing of it
    /// was. Whether it is worth more than a frame is the caller's question, and
    /// that it makes the chunk is to be tried.
    ///
    /// # Panics
    /// When `raw` is longer than a chunk.
    #[must_use]
    pub fn delta(&self, raw: &[u8], encoder: &mut Encoder) -> Option<Vec<u8>> {
        let blocks: Vec<Block<'_>> = raw.chunks(BLOCK).map(|bytes| self.look_up(bytes)).collect();
        assert!(blocks.len() <= BLOCKS_MAX, "a chunk has at most 64 blocks");
        debug_assert_eq!(blocks.len(), block_count(raw.len()));
        let chosen = choose(&blocks);
        if chosen.sources.is_empty() {
            return None;
        }
        let literal = |(index, _): &(usize, _)| {
            !matches!(blocks[*index], Block::Zeros) && chosen.places[*index].is_none()
        };
        let literals = raw.chunks(BLOCK).enumerate().filter(literal);
        let literals: Vec<u8> = literals.flat_map(|(_, bytes)| bytes).copied().collect();
        let id = |source: &u32| self.sources[*source as usize];
        let sources: Vec<ChunkId> = chosen.sources.iter().map(id).collect();
        let ops = operations(&blocks, &chosen);
        Some(encode(&sources, &ops, &literals, encoder))
    }

    fn look_up(&self, bytes: &[u8]) -> Block<'_> {
        if is_zero(bytes) {
            return Block::Zeros;
        }
        match self.wanted.get(&block_hash(bytes)) {
            Some(places) if places.len > 0 => Block::Found(places),
            _ => Block::New,
        }
    }
}

/// What is known of a new chunk's block.
#[derive(Clone, Copy)]
enum Block<'a> {
    Zeros,
    Found(&'a Places),
    New,
}

/// Where each block is taken from.
struct Chosen {
    /// Sources in the order in which they were chosen.
    sources: Vec<u32>,
    /// By block; `None` for one that is not copied.
    places: [Option<Place>; BLOCKS_MAX],
}

/// Chooses few sources: again and again the one that has most of the blocks that
/// no earlier one has.
fn choose(blocks: &[Block<'_>]) -> Chosen {
    let mut chosen = Chosen {
        sources: Vec::new(),
        places: [None; BLOCKS_MAX],
    };
    while chosen.sources.len() < SOURCES_MAX {
        let Some(best) = best_source(blocks, &chosen) else {
            break;
        };
        chosen.sources.push(best);
        take_from(best, blocks, &mut chosen);
    }
    chosen
}

/// The source that has most of the open blocks; of equal ones the first.
fn best_source(blocks: &[Block<'_>], chosen: &Chosen) -> Option<u32> {
    let mut tally: Vec<(u32, u32)> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let Block::Found(places) = block else {
            continue;
        };
        if chosen.places[index].is_some() {
            continue;
        }
        let mut counted = None;
        for place in places.iter() {
            // Places of one source lie side by side.
            if counted == Some(place.source) {
                continue;
            }
            counted = Some(place.source);
            match tally.iter_mut().find(|entry| entry.0 == place.source) {
                Some(entry) => entry.1 += 1,
                None => tally.push((place.source, 1)),
            }
        }
    }
    let best = tally
        .into_iter()
        .min_by_key(|(source, count)| (u32::MAX - count, *source));
    best.map(|(source, _)| source)
}

/// Takes every open block that a source has from it, going on with a run where
/// there is a choice.
fn take_from(source: u32, blocks: &[Block<'_>], chosen: &mut Chosen) {
    for (index, block) in blocks.iter().enumerate() {
        let Block::Found(places) = block else {
            continue;
        };
        if chosen.places[index].is_some() {
            continue;
        }
        let before = index.checked_sub(1).and_then(|at| chosen.places[at]);
        let next = before.filter(|place| place.source == source);
        let next = next.map(|place| place.block + 1);
        let mut here = places.iter().filter(|place| place.source == source);
        let first = here.next();
        let run = first.into_iter().chain(here);
        let run = run.into_iter().find(|place| Some(place.block) == next);
        chosen.places[index] = run.or(first);
    }
}

/// The operations that make the blocks, runs joined.
fn operations(blocks: &[Block<'_>], chosen: &Chosen) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let one = match (chosen.places[index], block) {
            (Some(place), _) => Op::Copy {
                source: number_of(place.source, &chosen.sources),
                first: place.block,
                count: 1,
            },
            (None, Block::Zeros) => Op::Zeros { count: 1 },
            (None, _) => Op::Literal { count: 1 },
        };
        match ops
            .last_mut()
            .and_then(|last| join(*last, one).map(|joined| (last, joined)))
        {
            Some((last, joined)) => *last = joined,
            None => ops.push(one),
        }
    }
    ops
}

fn number_of(source: u32, sources: &[u32]) -> u8 {
    let number = sources.iter().position(|chosen| *chosen == source);
    number.unwrap_or_default() as u8
}

/// One operation for two that follow each other, if there is one.
fn join(a: Op, b: Op) -> Option<Op> {
    match (a, b) {
        (Op::Zeros { count }, Op::Zeros { .. }) => Some(Op::Zeros { count: count + 1 }),
        (Op::Literal { count }, Op::Literal { .. }) => Some(Op::Literal { count: count + 1 }),
        (
            Op::Copy {
                source,
                first,
                count,
            },
            Op::Copy {
                source: other,
                first: next,
                ..
            },
        ) if source == other && first + count == next => Some(Op::Copy {
            source,
            first,
            count: count + 1,
        }),
        _ => None,
    }
}
