//! Several boots as one trace.

use std::collections::BTreeMap;

use rootstock_core::{BLOCK_BYTES, ByteRange};

use super::{Trace, TraceBuilder};

/// The most traces that are merged at once.
pub const MERGED_MAX: usize = 32;

/// A block is kept when at least one boot in this many read it: what a single
/// user opened once is not of the boot.
const SHARE: usize = 3;

/// One trace out of several of disks of this size: what at least a third of them
/// read, by the median of the places that it had in them. Traces after the first
/// [`MERGED_MAX`] are not looked at, nor are those of disks of another size.
#[must_use]
pub fn merge(disk_bytes: u64, traces: &[Trace]) -> Trace {
    let fits = |trace: &&Trace| trace.disk_bytes == disk_bytes;
    let traces: Vec<&Trace> = traces.iter().filter(fits).take(MERGED_MAX).collect();
    let wanted = traces.len().div_ceil(SHARE);
    let mut order: Vec<(u64, u64)> = places(&traces)
        .into_iter()
        .filter(|(_, places)| places.len() >= wanted)
        .map(|(block, places)| (median(places), block))
        .collect();
    order.sort_unstable();
    let mut merged = TraceBuilder::new(disk_bytes);
    for (_, block) in order {
        merged.read(ByteRange::new(block * BLOCK_BYTES, BLOCK_BYTES));
    }
    merged.finish()
}

/// Where each block was in each trace that has it. All blocks of a run have its
/// beginning's place, so that runs that change places stay whole.
fn places(traces: &[&Trace]) -> BTreeMap<u64, Vec<u64>> {
    let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for trace in traces {
        let mut place = 0;
        for run in &trace.runs {
            for block in run.first..run.end() {
                places.entry(block).or_default().push(place);
            }
            place += run.count;
        }
    }
    places
}

fn median(mut places: Vec<u64>) -> u64 {
    let middle = (places.len() - 1) / 2;
    *places.select_nth_unstable(middle).1
}
