//! Which chunks have to be read: holes and free space are gone past.

use std::io;

use rootstock_core::{ByteRange, Extents};
use rootstock_image::grid::{ChunkSpan, Grid};

use super::{BATCH_BYTES_MAX, Source};

/// The way through a disk.
pub(super) struct Plan<'a> {
    grid: &'a Grid,
    free: &'a Extents,
    /// Everything before it is handed out or gone past.
    at_bytes: u64,
    /// What the source last said is data.
    data: ByteRange,
}

/// The next part of the way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Chunks to read; none at the end of the disk.
    pub(super) spans: Vec<ChunkSpan>,
    /// Bytes gone past before and between them.
    pub(super) skipped_bytes: u64,
}

impl<'a> Plan<'a> {
    pub(super) fn new(grid: &'a Grid, free: &'a Extents) -> Self {
        Self {
            grid,
            free,
            at_bytes: 0,
            data: ByteRange::new(0, 0),
        }
    }

    /// The next batch. An error says where the source was asked.
    pub(super) fn next(&mut self, source: &dyn Source) -> Result<Step, (u64, io::Error)> {
        let mut step = Step::default();
        let mut batch_bytes = 0;
        let disk_bytes = self.grid.disk_bytes();
        while self.at_bytes < disk_bytes && batch_bytes < BATCH_BYTES_MAX {
            let data_at = self.next_wanted(source)?;
            if data_at >= disk_bytes {
                step.skipped_bytes += disk_bytes - self.at_bytes;
                self.at_bytes = disk_bytes;
                break;
            }
            // A chunk is read whole when any byte of it may matter.
            let span = self.grid.at(data_at);
            step.skipped_bytes += span.start_bytes.saturating_sub(self.at_bytes);
            self.at_bytes = span.end_bytes();
            batch_bytes += u64::from(span.len_bytes);
            step.spans.push(span);
        }
        Ok(step)
    }

    /// The first byte from here that is neither in a hole nor free.
    fn next_wanted(&mut self, source: &dyn Source) -> Result<u64, (u64, io::Error)> {
        let disk_bytes = self.grid.disk_bytes();
        let mut at = self.at_bytes;
        loop {
            if at >= self.data.end() {
                let data = source.next_data(at).map_err(|cause| (at, cause))?;
                let Some(data) = data.filter(|data| data.end() > at) else {
                    return Ok(disk_bytes);
                };
                self.data = data;
            }
            at = at.max(self.data.start);
            let rest = ByteRange::new(at, disk_bytes.saturating_sub(at));
            match self.free.within(rest).next() {
                Some(free) if free.start == at => at = free.end(),
                _ => return Ok(at),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::Changed;
    use proptest::prelude::*;
    use rootstock_core::CHUNK_BYTES;
    use rootstock_image::ReadAt;

    struct Holey {
        data: Extents,
        len_bytes: u64,
    }

    impl ReadAt for Holey {
        fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn len_bytes(&self) -> u64 {
            self.len_bytes
        }
    }

    impl Source for Holey {
        fn next_data(&self, from: u64) -> io::Result<Option<ByteRange>> {
            let rest = ByteRange::new(from, self.len_bytes - from);
            Ok(self.data.within(rest).next())
        }
        fn check_unchanged(&self) -> Result<(), Changed> {
            Ok(())
        }
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..90 * CHUNK_BYTES, 1..9 * CHUNK_BYTES), 0..8)
    }

    proptest! {
        #[test]
        fn every_wanted_byte_is_read_once(data in ranges(), free in ranges(), tail in 1..CHUNK_BYTES) {
            let disk = ByteRange::new(0, 100 * CHUNK_BYTES + tail);
            let cut = |list: &[(u64, u64)]| -> Extents {
                list.iter().filter_map(|(s, l)| ByteRange::new(*s, *l).intersection(disk)).collect()
            };
            let (data, free) = (cut(&data), cut(&free));
            let grid = Grid::whole(disk.len).expect("a grid");
            let source = Holey { data: data.clone(), len_bytes: disk.len };
            let mut plan = Plan::new(&grid, &free);
            let (mut indexes, mut skipped, mut read) = (Vec::new(), 0, 0);
            loop {
                let step = plan.next(&source).expect("plans");
                skipped += step.skipped_bytes;
                read += step.spans.iter().map(|span| u64::from(span.len_bytes)).sum::<u64>();
                if step.spans.is_empty() { break }
                indexes.extend(step.spans.iter().map(|span| span.index));
            }
            prop_assert_eq!(skipped + read, disk.len);
            let expected: Vec<u64> = grid.spans().filter(|span| {
                let span = ByteRange::new(span.start_bytes, u64::from(span.len_bytes));
                data.within(span).any(|part| !free.contains(part))
            }).map(|span| span.index).collect();
            prop_assert_eq!(indexes, expected);
        }
    }

    #[test]
    fn a_huge_hole_costs_nothing() {
        let len_bytes = 64 << 40;
        let grid = Grid::whole(len_bytes).expect("a grid");
        let last = ByteRange::new(len_bytes - 1, 1);
        let source = Holey {
            data: [last].into_iter().collect(),
            len_bytes,
        };
        let free = Extents::new();
        let step = Plan::new(&grid, &free).next(&source).expect("plans");
        assert_eq!(step.spans, [grid.at(len_bytes - 1)]);
        assert_eq!(step.skipped_bytes, len_bytes - CHUNK_BYTES);
    }
}
