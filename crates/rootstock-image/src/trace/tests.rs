//! What a trace is, and what it is not.

use proptest::prelude::*;

use super::*;
use crate::grid::tests::grid_of;

const DISK_BLOCKS: u64 = 5000;
const DISK_BYTES: u64 = DISK_BLOCKS * BLOCK_BYTES;

/// First block and count.
type Reads<'a> = &'a [(u64, u64)];

fn blocks(first: u64, count: u64) -> ByteRange {
    ByteRange::new(first * BLOCK_BYTES, count * BLOCK_BYTES)
}

/// The trace of these reads, in blocks.
fn trace(reads: &[(u64, u64)]) -> Trace {
    let mut builder = TraceBuilder::new(DISK_BYTES);
    for (first, count) in reads {
        builder.read(blocks(*first, *count));
    }
    builder.finish()
}

fn runs(trace: &Trace) -> Vec<(u64, u64)> {
    let pair = |run: &Run| (run.first, run.count);
    trace.runs().iter().map(pair).collect()
}

#[test]
fn a_block_is_noted_once_and_runs_are_joined() {
    let cases: &[(Reads<'_>, Reads<'_>)] = &[
        (&[(5, 3), (5, 3)], &[(5, 3)]),
        (&[(5, 3), (8, 2)], &[(5, 5)]),
        (&[(5, 3), (4, 6)], &[(5, 3), (4, 1), (8, 2)]),
        (&[(60, 200)], &[(60, 200)]),
        (
            &[(100, 1), (102, 1), (99, 5)],
            &[(100, 1), (102, 1), (99, 1), (101, 1), (103, 1)],
        ),
        (&[(4999, 50), (6000, 1)], &[(4999, 1)]),
        (&[], &[]),
    ];
    for (reads, expected) in cases {
        assert_eq!(runs(&trace(reads)), *expected, "{reads:?}");
    }
    // A part of a block is the block.
    let mut builder = TraceBuilder::new(DISK_BYTES - 1);
    builder.read(ByteRange::new(4095, 2));
    builder.read(ByteRange::new(DISK_BYTES - 2, u64::MAX));
    assert_eq!(runs(&builder.finish()), [(0, 2), (4999, 1)]);
}

#[test]
fn a_trace_has_bounds() {
    let mut builder = TraceBuilder::new(DISK_BYTES_MAX);
    builder.read(blocks(7, BLOCKS_MAX + 9));
    assert!(builder.is_full());
    builder.read(blocks(0, 1));
    let whole = builder.finish();
    assert_eq!(runs(&whole), [(7, BLOCKS_MAX)]);
    let mut builder = TraceBuilder::new(DISK_BYTES_MAX);
    let step = (DISK_BYTES_MAX / BLOCK_BYTES / 2) - 1;
    for number in 0..RUNS_MAX as u64 + 5 {
        builder.read(blocks(number % 2 * step + 2 * number, 1));
    }
    assert!(builder.is_full());
    let last = *builder.runs.last().expect("has runs");
    builder.read(blocks(last.end(), 100));
    let scattered = builder.finish();
    assert_eq!(scattered.runs().len(), RUNS_MAX);
    assert_eq!(scattered.runs()[RUNS_MAX - 1].count, 101);
    assert_eq!(
        merge(DISK_BYTES_MAX, std::slice::from_ref(&scattered)),
        scattered
    );
    for trace in [whole, scattered] {
        let bytes = trace.encode();
        assert!(bytes.len() <= TRACE_BYTES_MAX);
        assert_eq!(Trace::decode(&bytes), Ok(trace));
    }
}

#[test]
fn what_is_no_trace() {
    let good = trace(&[(5, 3), (200, 1), (9, 1)]).encode();
    assert_eq!(good.len(), 24 + 2 + 3 + 3);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed.splice(at..at + bytes.len(), bytes.iter().copied());
        Trace::decode(&changed).expect_err("is none")
    };
    assert_eq!(with(0, b"X"), TraceError::Magic);
    assert_eq!(with(8, &[2]), TraceError::Version { version: 2 });
    assert!(matches!(with(12, &[0; 8]), TraceError::Field { .. }));
    assert!(matches!(with(12, &[0xff; 8]), TraceError::Field { .. }));
    assert!(matches!(with(20, &[0xff; 4]), TraceError::Field { .. }));
    // Past the disk, empty, a repeated block, and a number that is not shortest.
    assert_eq!(with(12, &[1, 0x10, 0, 0]), TraceError::Runs);
    assert_eq!(with(25, &[0]), TraceError::Runs);
    assert_eq!(with(25, &[196]), TraceError::Runs);
    assert_eq!(with(24, &[0x80, 0]), TraceError::Length { len_bytes: 32 });
    assert_eq!(with(20, &[2]), TraceError::Trailing { len_bytes: 3 });
    for cut in 0..good.len() {
        assert!(
            matches!(Trace::decode(&good[..cut]), Err(TraceError::Length { .. })),
            "{cut}"
        );
    }
}

#[test]
fn chunks_are_in_the_order_of_the_first_touch() {
    // A table of one block and a half, then a partition.
    let grid = grid_of(&[6144, 4 * CHUNK_BYTES]);
    let mut builder = TraceBuilder::new(grid.disk_bytes());
    builder.read(blocks(130, 1));
    builder.read(blocks(1, 1));
    builder.read(blocks(131, 1));
    builder.read(blocks(64, 2));
    let trace = builder.finish();
    assert_eq!(trace.chunks(&grid), [3, 0, 1, 2]);
    // On a smaller disk than it was made on, what is there.
    assert_eq!(trace.chunks(&grid_of(&[6144])), [0]);
}

#[test]
fn coverage_counts_what_was_read_in_chunks_that_were_fetched() {
    let grid = grid_of(&[DISK_BYTES]);
    let cases: &[(Reads<'_>, Reads<'_>, u16)] = &[
        (&[(0, 64), (64, 64)], &[(63, 1)], 500),
        (&[(0, 64)], &[(63, 1)], 1000),
        (&[(0, 1), (640, 999)], &[(0, 1)], 1),
        (&[(0, 1)], &[], 0),
        (&[], &[], 1000),
    ];
    for (read, fetched, expected) in cases {
        let permille = trace(read).coverage_permille(&trace(fetched), &grid);
        assert_eq!(permille, *expected, "{read:?} {fetched:?}");
    }
}

#[test]
fn boots_are_merged_by_the_median_of_their_places() {
    let merged = |boots: &[&[(u64, u64)]]| {
        let boots: Vec<_> = boots.iter().map(|reads| trace(reads)).collect();
        runs(&merge(DISK_BYTES, &boots))
    };
    assert_eq!(merged(&[]), []);
    assert_eq!(merged(&[&[(50, 5), (10, 5)]]), [(50, 5), (10, 5)]);
    // The order of most.
    let boots: [&[(u64, u64)]; 3] = [
        &[(50, 5), (10, 5)],
        &[(10, 5), (50, 5)],
        &[(50, 5), (10, 5)],
    ];
    assert_eq!(merged(&boots), [(50, 5), (10, 5)]);
    // Runs that change places stay whole.
    assert_eq!(merged(&boots[..2]), [(10, 5), (50, 5)]);
    // One in four is not of the boot, one in three is.
    let odd: &[(u64, u64)] = &[(50, 5), (10, 5), (900, 4)];
    let three = [boots[0], boots[2], odd];
    assert_eq!(merged(&three), [(50, 5), (10, 5), (900, 4)]);
    let four = [boots[0], boots[2], boots[0], odd];
    assert_eq!(merged(&four), [(50, 5), (10, 5)]);
    // Boots of another disk are none of these.
    let other = TraceBuilder::new(4096).finish();
    assert_eq!(merge(DISK_BYTES, &[other, trace(odd)]), trace(odd));
}

fn reads() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0..DISK_BLOCKS + 9, 0..300_u64), 0..40)
}

proptest! {
    #[test]
    fn a_trace_is_its_blocks_in_order(reads in reads()) {
        let trace = trace(&reads);
        let mut model = Vec::new();
        for (first, count) in reads {
            for block in first..(first + count).min(DISK_BLOCKS) {
                if !model.contains(&block) { model.push(block) }
            }
        }
        let blocks: Vec<u64> = trace.runs().iter().flat_map(|run| run.first..run.end()).collect();
        prop_assert_eq!(trace.block_count(), blocks.len() as u64);
        prop_assert_eq!(blocks, model);
        prop_assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
    }

    #[test]
    fn a_merge_of_equals_has_the_same_blocks(reads in reads(), count in 1..9_usize) {
        let trace = trace(&reads);
        let merged = merge(DISK_BYTES, &vec![trace.clone(); count]);
        prop_assert_eq!(merged, trace);
    }

    #[test]
    fn nothing_is_merged_that_nobody_read(boots in prop::collection::vec(reads(), 0..5)) {
        let boots: Vec<_> = boots.iter().map(|reads| trace(reads)).collect();
        let merged = merge(DISK_BYTES, &boots);
        let all: BTreeSet<u64> = boots.iter().flat_map(Trace::runs).flat_map(|run| run.first..run.end()).collect();
        let blocks: Vec<u64> = merged.runs().iter().flat_map(|run| run.first..run.end()).collect();
        prop_assert!(blocks.iter().all(|block| all.contains(block)));
        prop_assert!(blocks.len() == all.len() || boots.len() > 3);
    }

    #[test]
    fn garbage_is_refused_or_has_one_encoding(head in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut input = if head { trace(&[(1, 2)]).encode()[..23].to_vec() } else { Vec::new() };
        input.extend(bytes);
        if let Ok(trace) = Trace::decode(&input) {
            prop_assert_eq!(trace.encode(), input);
        }
    }
}
