//! Recipes against plain models.

use std::{collections::HashMap, convert::Infallible};

use proptest::prelude::*;
use rootstock_core::{
    ChunkId, Digest,
    units::{BLOCK_BYTES, CHUNK_BYTES, is_zero},
};

use super::*;
use crate::frame::Encoder;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A block of noise for each number; zeros for 0.
fn block(number: u16) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (u64::from(number) << 20);
    let mut step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    match number {
        0 => vec![0; BLOCK],
        _ => (0..BLOCK).map(&mut step).collect(),
    }
}

fn disk(numbers: &[u16], tail_bytes: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| block(*number)).collect();
    bytes.extend(&block(9999)[..tail_bytes]);
    bytes
}

fn chunks(disk: &[u8]) -> Vec<(ChunkId, Vec<u8>)> {
    let chunks = disk.chunks(CHUNK_BYTES as usize);
    let chunks = chunks.filter(|raw| !is_zero(raw));
    chunks.map(|raw| (ChunkId::of(raw), raw.to_vec())).collect()
}

/// Every delta that can be made of the child's chunks, tried; answers how many
/// bytes they have, and how many the frames have of the chunks without one.
fn rebuilds(parent: &[u8], child: &[u8]) -> (usize, usize) {
    let mut encoder = Encoder::new();
    let mut rebuilder = Rebuilder::new();
    let parents: HashMap<_, _> = chunks(parent).into_iter().collect();
    let new = chunks(child);
    let new = new.iter().filter(|(id, _)| !parents.contains_key(id));
    let mut finder = Finder::new();
    new.clone().for_each(|(_, raw)| finder.want(raw));
    for (id, raw) in chunks(parent) {
        finder.search(id, &raw);
    }
    let (mut delta_bytes, mut frame_bytes) = (0, 0);
    for (id, raw) in new {
        let Some(bytes) = finder.delta(raw, &mut encoder) else {
            frame_bytes += encoder.encode(*id, raw).bytes.len();
            continue;
        };
        let delta = Delta::decode(&bytes, raw.len() as u32).expect("is a delta");
        assert!(delta.sources().len() <= SOURCES_MAX);
        let lookup = |id| Ok::<_, Infallible>(&parents[&id]);
        let rebuilt = rebuilder.rebuild(*id, &delta, lookup).expect("is rebuilt");
        assert_eq!(&rebuilt, raw);
        delta_bytes += bytes.len();
    }
    (delta_bytes, frame_bytes)
}

#[test]
fn what_moved_costs_next_to_nothing() {
    let numbers: Vec<u16> = (1..=256).collect();
    let moved: Vec<u16> = (0..3).chain(1..=253).collect();
    let (delta_bytes, frame_bytes) = rebuilds(&disk(&numbers, 700), &disk(&moved, 700));
    assert_eq!(frame_bytes, 0);
    // Two literal-free sources for each chunk, and what neither has.
    assert!(delta_bytes < 5 * 100, "{delta_bytes}");
}

#[test]
fn a_delta_follows_runs_in_one_source() {
    // Block 7 is everywhere; the run that goes on is the one to take.
    let mut parent = vec![7; 200];
    parent[130..140].copy_from_slice(&[20, 21, 7, 23, 24, 25, 26, 27, 28, 29]);
    let mut child: Vec<u16> = (500..564).collect();
    child[10..16].copy_from_slice(&[20, 21, 7, 23, 24, 25]);
    let mut finder = Finder::new();
    let raw = disk(&child, 0);
    finder.want(&raw);
    for (id, raw) in chunks(&disk(&parent, 0)) {
        finder.search(id, &raw);
    }
    let bytes = finder.delta(&raw, &mut Encoder::new()).expect("a delta");
    let delta = Delta::decode(&bytes, raw.len() as u32).expect("is one");
    let ops = [
        Op::Literal { count: 10 },
        Op::Copy {
            source: 0,
            first: 2,
            count: 6,
        },
        Op::Literal { count: 48 },
    ];
    assert_eq!(delta.ops(), ops);
    assert_eq!(delta.sources(), [chunks(&disk(&parent, 0))[2].0]);
}

#[test]
fn a_delta_is_laid_out_as_documented() {
    let source = ChunkId::of(b"source");
    let ops = [
        Op::Zeros { count: 1 },
        Op::Copy {
            source: 0,
            first: 5,
            count: 2,
        },
        Op::Literal { count: 1 },
    ];
    let literal = block(1)[..100].to_vec();
    let bytes = delta::encode(&[source], &ops, &literal, &mut Encoder::new());
    assert_eq!(bytes[..4], [1, 0, 1, 3]);
    assert_eq!(bytes[4..36], *source.as_bytes());
    assert_eq!(bytes[36..45], [254, 0, 1, 0, 5, 2, 255, 0, 1]);
    assert_eq!(bytes[45..], literal);
    let delta = Delta::decode(&bytes, 3 * 4096 + 100).expect("is one");
    assert_eq!(delta.ops(), ops);
}

fn refused(at: usize, byte: u8) -> DeltaError {
    let ops = [
        Op::Copy {
            source: 0,
            first: 5,
            count: 2,
        },
        Op::Literal { count: 1 },
    ];
    let source = ChunkId::of(b"source");
    let mut bytes = delta::encode(&[source], &ops, &block(1), &mut Encoder::new());
    assert!(Delta::decode(&bytes, 3 * 4096).is_ok());
    bytes[at] = byte;
    Delta::decode(&bytes, 3 * 4096).expect_err("is refused")
}

#[test]
fn what_cannot_be_a_delta_is_refused() {
    assert_eq!(refused(0, 2), DeltaError::Format { format: 2 });
    assert!(matches!(
        refused(1, 2),
        DeltaError::Field { field: "codec", .. }
    ));
    assert!(matches!(
        refused(2, 33),
        DeltaError::Field {
            field: "number of sources",
            ..
        }
    ));
    assert!(matches!(refused(3, 0), DeltaError::Field { .. }));
    assert!(matches!(refused(3, 65), DeltaError::Field { .. }));
    for (at, byte) in [(36, 1), (37, 63), (38, 0), (40, 1)] {
        assert!(
            matches!(refused(at, byte), DeltaError::Operation { .. }),
            "{at}"
        );
    }
    assert_eq!(refused(38, 1), DeltaError::Blocks { made: 2, wanted: 3 });
    assert!(matches!(
        refused(36, 254 + 1),
        DeltaError::Operation { index: 0 }
    ));
    assert!(matches!(
        Delta::decode(&[], 1),
        Err(DeltaError::Bounds { .. })
    ));
    let many = vec![0; CHUNK_BYTES as usize + 1];
    assert!(matches!(
        Delta::decode(&many, 1),
        Err(DeltaError::Bounds { .. })
    ));
    let unused = delta::encode(
        &[ChunkId::of(b"a")],
        &[Op::Zeros { count: 1 }],
        &[],
        &mut Encoder::new(),
    );
    assert!(matches!(
        Delta::decode(&unused, 1),
        Err(DeltaError::Unused { .. })
    ));
}

#[test]
fn a_source_that_is_too_short_or_another_is_an_error() {
    let mut encoder = Encoder::new();
    let ops = [Op::Copy {
        source: 0,
        first: 1,
        count: 1,
    }];
    let source = disk(&[1, 2], 0);
    let chunk = ChunkId::of(&block(2));
    let bytes = delta::encode(&[ChunkId::of(&source)], &ops, &[], &mut encoder);
    let delta = Delta::decode(&bytes, 4096).expect("is one");
    let mut rebuilder = Rebuilder::new();
    let mut with = |bytes: &[u8]| {
        let lookup = |_| Ok::<_, Infallible>(bytes);
        rebuilder.rebuild(chunk, &delta, lookup)
    };
    assert_eq!(with(&source).expect("is rebuilt"), block(2));
    assert!(matches!(
        with(&source[..8000]),
        Err(RebuildError::Short {
            end_bytes: 8192,
            ..
        })
    ));
    assert!(matches!(
        with(&disk(&[1, 3], 0)),
        Err(RebuildError::WrongChunk { .. })
    ));
}

#[test]
fn a_bomb_of_literals_is_bounded() {
    let mut bytes = vec![1, 1, 0, 1, 255, 0, 1];
    bytes.extend(zstd::bulk::compress(&vec![7; 64 << 20], 3).expect("compresses"));
    let delta = Delta::decode(&bytes, 4096).expect("may be one");
    let lookup = |_| Ok::<_, Infallible>([]);
    let rebuilt = Rebuilder::new().rebuild(ChunkId::of(b""), &delta, lookup);
    assert!(matches!(
        rebuilt,
        Err(RebuildError::Literals { raw_bytes: 4096 })
    ));
}

/// A recipe written into a map, with the map.
fn written(deltas: &[(ChunkId, Vec<u8>)]) -> (ChunkId, HashMap<ChunkId, Vec<u8>>) {
    let mut stored = HashMap::new();
    let mut sink = |bytes: &[u8]| {
        assert!(bytes.len() as u64 <= CHUNK_BYTES);
        let id = ChunkId::of(bytes);
        stored.insert(id, bytes.to_vec());
        Ok::<_, Infallible>(id)
    };
    let mut writer = RecipeWriter::new(Digest::of(b"from"), Digest::of(b"to"));
    for (chunk, delta) in deltas {
        writer.push(*chunk, delta, &mut sink).expect("is stored");
    }
    let (id, _) = writer.finish(&mut sink).expect("is stored");
    (id, stored)
}

/// All deltas of a recipe, found by its pages.
fn read(root: ChunkId, stored: &HashMap<ChunkId, Vec<u8>>) -> Vec<(ChunkId, Vec<u8>)> {
    let recipe = Recipe::decode(&stored[&root]).expect("is a root");
    assert_eq!(recipe.encode(), stored[&root]);
    let mut deltas = Vec::new();
    for id in &recipe.pages {
        let page = RecipePage::decode(&stored[id]).expect("is a page");
        assert_eq!(page.encode(), stored[id]);
        for delta in &page.deltas {
            let piece = &stored[&page.pieces[delta.piece as usize]];
            let at = delta.offset_bytes as usize;
            let bytes = piece[at..at + delta.len_bytes as usize].to_vec();
            deltas.push((delta.chunk, bytes));
        }
    }
    assert_eq!(recipe.delta_count, deltas.len() as u64);
    let bytes: usize = deltas.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(recipe.delta_bytes, bytes as u64);
    deltas
}

#[test]
fn a_recipe_gives_back_its_deltas() {
    let of = |count: usize, len: &dyn Fn(usize) -> usize| -> Vec<_> {
        let one = |i: usize| (ChunkId::of(&i.to_le_bytes()), vec![i as u8 | 1; len(i)]);
        (0..count).map(one).collect()
    };
    let most = CHUNK_BYTES as usize;
    for deltas in [
        of(0, &|_| 1),
        of(1, &|_| most),
        of(3, &|_| most),
        of(DELTAS_PER_PAGE_MAX, &|_| 1),
        of(DELTAS_PER_PAGE_MAX + 1, &|_| 200),
        of(5000, &|i| 1 + i * 7 % 900),
        of(40, &|i| if i % 2 == 0 { most - 5 } else { 6 }),
    ] {
        let (root, stored) = written(&deltas);
        assert_eq!(read(root, &stored), deltas);
    }
}

#[test]
fn parts_of_a_recipe_that_cannot_be_are_refused() {
    let (root, stored) = written(&[(ChunkId::of(b"a"), vec![1; 9])]);
    let page_id = Recipe::decode(&stored[&root]).expect("is one").pages[0];
    let with = |id: ChunkId, at: usize, byte: u8| {
        let mut bytes = stored[&id].clone();
        bytes[at] = byte;
        bytes
    };
    let root_with = |at, byte| Recipe::decode(&with(root, at, byte)).expect_err("is refused");
    assert_eq!(root_with(0, 0), RecipeError::Magic);
    assert_eq!(root_with(8, 2), RecipeError::Version { version: 2 });
    assert!(matches!(root_with(12, 2), RecipeError::Length { .. }));
    assert!(matches!(root_with(15, 9), RecipeError::Field { .. }));
    assert!(matches!(root_with(80, 0), RecipeError::Field { .. }));
    assert!(matches!(root_with(92, 9), RecipeError::Field { .. }));
    let page_with =
        |at, byte| RecipePage::decode(&with(page_id, at, byte)).expect_err("is refused");
    assert_eq!(page_with(7, 0), RecipeError::Magic);
    for (at, byte) in [(12, 2), (16, 0), (20, 1), (88, 1), (94, 4), (96, 0)] {
        assert!(
            matches!(page_with(at, byte), RecipeError::Field { .. }),
            "{at}"
        );
    }
    for (id, bytes) in &stored {
        for cut in 0..bytes.len() {
            assert!(*id != root || Recipe::decode(&bytes[..cut]).is_err());
            assert!(*id != page_id || RecipePage::decode(&bytes[..cut]).is_err());
        }
    }
}

proptest! {
    #[test]
    fn a_child_is_rebuilt(
        parent in prop::collection::vec(0_u16..60, 1..200),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..20, any::<prop::sample::Index>(), 0_u16..120, 0..3), 0..8),
        tails in (0_usize..4096, 0_usize..4096),
    ) {
        let mut child = parent.clone();
        for (at, count, from, number, kind) in edits {
            let at = at.index(child.len());
            let end = child.len().min(at + count);
            let from = from.index(parent.len());
            let moved = &parent[from..parent.len().min(from + count)];
            match kind {
                0 => child[at..end].fill(number),
                1 => drop(child.splice(at..at, moved.iter().copied())),
                _ => drop(child.splice(at..end, moved.iter().rev().copied())),
            }
            if child.is_empty() { child.push(number) }
        }
        rebuilds(&disk(&parent, tails.0), &disk(&child, tails.1));
    }

    #[test]
    fn hostile_deltas_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        ops in prop::collection::vec((0_u8..4, 0_u8..64, 1_u8..8), 1..9),
        raw_bytes in 0_u32..300_000,
    ) {
        let mut shaped = vec![1, bytes.len() as u8 & 1, 4, ops.len() as u8];
        shaped.extend((0..4 * 32).map(|i| i as u8 + 1));
        shaped.extend(ops.iter().flat_map(|(source, first, count)| [*source, *first, *count]));
        shaped.extend(&bytes);
        let blocks: u32 = ops.iter().map(|op| u32::from(op.2)).sum();
        for (bytes, raw_bytes) in [(&bytes, raw_bytes), (&shaped, raw_bytes), (&shaped, blocks * 4096)] {
            if let Ok(delta) = Delta::decode(bytes, raw_bytes) {
                let lookup = |_| Ok::<_, Infallible>([7; 9000]);
                let rebuilt = Rebuilder::new().rebuild(ChunkId::of(b""), &delta, lookup);
                prop_assert!(rebuilt.is_err());
            }
        }
    }

    #[test]
    fn hostile_recipes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Recipe::decode(&bytes);
        let _ = RecipePage::decode(&bytes);
    }
}
