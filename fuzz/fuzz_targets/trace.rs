//! Arbitrary bytes as boot traces, merged with one another, and carried over between disks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_fuzz::sparse::SparseDisk;
use rootstock_image::{
    ReadAt,
    grid::Grid,
    trace::{FileMap, Trace, carry, merge},
};

/// The most chunks of a disk that a trace is looked up in.
const CHUNKS_MAX: u64 = 1 << 20;

// The first two bytes say where a trace ends and a disk begins.
fuzz_target!(|data: &[u8]| {
    let Some((split, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let at = usize::from(u16::from_le_bytes(*split)).min(rest.len());
    let (document, disk) = rest.split_at(at);
    let trace = Trace::decode(document).ok();
    if let Some(trace) = &trace {
        assert_eq!(trace.encode(), document, "a trace has one encoding");
        look_up(trace);
        let twice = [trace.clone(), trace.clone()];
        assert_eq!(merge(trace.disk_bytes(), &twice), *trace);
    }
    let Some(disk) = SparseDisk::from_input(disk) else {
        return;
    };
    let map = FileMap::read(&disk).expect("the source never fails");
    if let Some(trace) = trace {
        let carried = carry(&trace, &map, &FileMap::default(), disk.len_bytes());
        assert!(carried.block_count() <= trace.block_count());
        look_up(&carry(&trace, &map, &map, disk.len_bytes()));
    }
});

fn look_up(trace: &Trace) {
    let Ok(grid) = Grid::whole(trace.disk_bytes()) else {
        return;
    };
    let chunks = trace.chunks(&grid);
    assert!(chunks.iter().all(|index| *index < grid.chunk_count()));
    if grid.chunk_count() < CHUNKS_MAX {
        assert_eq!(trace.coverage_permille(trace, &grid), 1000);
    }
}
