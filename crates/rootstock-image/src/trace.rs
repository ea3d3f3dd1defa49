//! What the boots of a version read first, in order: as one list, merged, carried to the next version.
//!
//! A trace only says what to fetch early. A wrong one costs time and no byte of
//! a disk, so whatever comes from a machine is bounded here and not believed
//! further. `docs/formats/trace.md` has the bytes.

use std::collections::{BTreeMap, BTreeSet};

use rootstock_core::{
    BLOCK_BYTES, ByteRange,
    units::{CHUNK_BYTES, DISK_BYTES_MAX},
};

use crate::grid::{ChunkSpan, Grid};

mod encoding;
mod files;
mod merge;
#[cfg(test)]
mod tests;

pub use encoding::{TRACE_BYTES_MAX, TraceError};
pub use files::{FILE_EXTENTS_MAX, FileMap, carry};
pub use merge::{MERGED_MAX, merge};

/// The most runs of a trace. A desktop's boot has some thousands.
pub const RUNS_MAX: usize = 16_384;

/// The most blocks of a trace: 1 GiB of the disk.
pub const BLOCKS_MAX: u64 = 262_144;

/// All of what was read was in the other trace too.
pub const COVERAGE_ALL_PERMILLE: u16 = 1000;

/// Blocks that are noted in one word: those of a chunk's length.
const WORD_BLOCKS: u64 = CHUNK_BYTES / BLOCK_BYTES;

/// Blocks of 4 KiB that follow each other on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first block.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Run {
    /// One past the last block.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// What a boot read, in the order of the first touch; no block is in it twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    disk_bytes: u64,
    runs: Vec<Run>,
}

impl Trace {
    /// The size of the disk that was read.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The runs, first touched first.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many blocks it has.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// The numbers of the chunks that the trace touches, in its order, each once.
    #[must_use]
    pub fn chunks(&self, grid: &Grid) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        let mut chunks = Vec::new();
        self.each_span(grid, |span, _| {
            if seen.insert(span.index) {
                chunks.push(span.index);
            }
        });
        chunks
    }

    /// How much of this trace lies in chunks that `other` touches, in thousandths:
    /// what a machine that fetched those did not wait for.
    #[must_use]
    pub fn coverage_permille(&self, other: &Self, grid: &Grid) -> u16 {
        let chunks: BTreeSet<u64> = other.chunks(grid).into_iter().collect();
        let (mut all_bytes, mut covered_bytes) = (0, 0);
        self.each_span(grid, |span, len_bytes| {
            all_bytes += len_bytes;
            if chunks.contains(&span.index) {
                covered_bytes += len_bytes;
            }
        });
        let all = u64::from(COVERAGE_ALL_PERMILLE);
        let permille = (covered_bytes * all).checked_div(all_bytes);
        permille.unwrap_or(all) as u16
    }

    /// Calls `each` with every chunk that a run touches, and with how many bytes
    /// of it the run has.
    fn each_span(&self, grid: &Grid, mut each: impl FnMut(ChunkSpan, u64)) {
        for run in &self.runs {
            let end = (run.end() * BLOCK_BYTES).min(grid.disk_bytes());
            let mut at = run.first * BLOCK_BYTES;
            while at < end {
                let span = grid.at(at);
                let part = span.end_bytes().min(end) - at;
                each(span, part);
                at += part;
            }
        }
    }
}

/// Makes a trace out of reads.
#[derive(Debug, Clone)]
pub struct TraceBuilder {
    disk_bytes: u64,
    runs: Vec<Run>,
    block_count: u64,
    /// One bit for each block that is in the trace, by words of blocks.
    seen: BTreeMap<u64, u64>,
}

impl TraceBuilder {
    /// An empty trace of a disk of this size.
    #[must_use]
    pub fn new(disk_bytes: u64) -> Self {
        Self {
            disk_bytes: disk_bytes.clamp(1, DISK_BYTES_MAX),
            runs: Vec::new(),
            block_count: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Whether there is no room for another run.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.runs.len() == RUNS_MAX || self.block_count == BLOCKS_MAX
    }

    /// Notes a read of these bytes: the blocks of it that are not in the trace yet.
    pub fn read(&mut self, range: ByteRange) {
        let end = range.end().min(self.disk_bytes);
        if range.start >= end {
            return;
        }
        let end = end.div_ceil(BLOCK_BYTES);
        let mut at = range.start / BLOCK_BYTES;
        // The last run may still grow when there is no room for another.
        while at < end && self.block_count < BLOCKS_MAX {
            let word = at / WORD_BLOCKS;
            let word_end = ((word + 1) * WORD_BLOCKS).min(end);
            self.read_word(word, at, word_end);
            at = word_end;
        }
    }

    /// The trace.
    #[must_use]
    pub fn finish(self) -> Trace {
        Trace {
            disk_bytes: self.disk_bytes,
            runs: self.runs,
        }
    }

    /// Notes the blocks from `first` to `end`, all in one word.
    fn read_word(&mut self, word: u64, first: u64, end: u64) {
        let base = word * WORD_BLOCKS;
        let asked = ones(end - base) & !ones(first - base);
        let before = self.seen.get(&word).copied().unwrap_or(0);
        let mut seen = before;
        let mut new = asked & !before;
        while new != 0 {
            let from = u64::from(new.trailing_zeros());
            let count = u64::from((new >> from).trailing_ones());
            if self.push(base + from, count) {
                seen |= ones(from + count) & !ones(from);
            }
            new &= !ones(from + count);
        }
        if seen != before {
            self.seen.insert(word, seen);
        }
    }

    /// Adds blocks; false when there is no room for them.
    fn push(&mut self, first: u64, count: u64) -> bool {
        let count = count.min(BLOCKS_MAX - self.block_count);
        let is_room = self.runs.len() < RUNS_MAX;
        match self.runs.last_mut() {
            _ if count == 0 => return false,
            Some(last) if last.end() == first => last.count += count,
            _ if is_room => self.runs.push(Run { first, count }),
            _ => return false,
        }
        self.block_count += count;
        true
    }
}

/// A word whose lowest `count` bits are set.
fn ones(count: u64) -> u64 {
    if count >= u64::from(u64::BITS) {
        return !0;
    }
    (1 << count) - 1
}

const _: () = assert!(WORD_BLOCKS == u64::BITS as u64);
