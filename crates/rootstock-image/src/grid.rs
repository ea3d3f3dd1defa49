//! The chunk grid: how a disk is cut into regions, and regions into chunks.
//!
//! Each region has its own grid of [`CHUNK_BYTES`], from its first byte, so that
//! a partition's content is cut in the same places wherever it lies on a disk. A
//! region's last chunk is short when its length asks for it. Chunks are counted
//! over all regions, in the order of the disk.

use rootstock_core::units::{CHUNK_BYTES, DISK_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// The most regions a disk is cut into. A GPT of 128 partitions with a gap
/// before each needs 258; a table that asks for more is kept as one region.
pub const REGIONS_MAX: usize = 1024;

/// What a region of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionKind {
    /// A partition table and what lies beside it: boot code, alignment.
    PartitionTable,
    /// Space that no partition covers.
    Gap,
    /// A partition.
    Partition,
    /// A disk without partitions, or one whose table cannot be trusted.
    Whole,
}

/// A part of a disk with a chunk grid of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Where it starts on the disk, in bytes.
    pub start_bytes: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// One past the region's last byte.
    #[must_use]
    pub const fn end_bytes(&self) -> u64 {
        self.start_bytes.saturating_add(self.len_bytes)
    }

    /// How many chunks it is cut into.
    #[must_use]
    pub const fn chunk_count(&self) -> u64 {
        self.len_bytes.div_ceil(CHUNK_BYTES)
    }
}

/// A chunk's place on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Its number among all chunks of the disk.
    pub index: u64,
    /// Where it starts on the disk, in bytes.
    pub start_bytes: u64,
    /// How long it is: 1 to [`CHUNK_BYTES`].
    pub len_bytes: u32,
}

impl ChunkSpan {
    /// One past the chunk's last byte.
    #[must_use]
    pub const fn end_bytes(&self) -> u64 {
        self.start_bytes + self.len_bytes as u64
    }
}

/// Why regions are not a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GridError {
    /// No byte, or more than [`DISK_BYTES_MAX`].
    #[error("a disk of {disk_bytes} bytes is out of bounds: 1 to {DISK_BYTES_MAX}")]
    DiskBytes {
        /// The size asked for.
        disk_bytes: u64,
    },
    /// No region, or more than [`REGIONS_MAX`].
    #[error("{count} regions are out of bounds: 1 to {REGIONS_MAX}")]
    RegionCount {
        /// How many there are.
        count: usize,
    },
    /// A region is empty, or does not start where the one before it ends.
    #[error("region {region} is not where it must be: at byte {expected_bytes}, not empty")]
    NotContiguous {
        /// Its number.
        region: usize,
        /// Where it has to start.
        expected_bytes: u64,
    },
    /// The regions end somewhere else than the disk.
    #[error("the regions end at byte {end_bytes} of a disk of {disk_bytes}")]
    WrongEnd {
        /// The regions' end.
        end_bytes: u64,
        /// The disk's size.
        disk_bytes: u64,
    },
}

/// A disk cut into chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    disk_bytes: u64,
    regions: Vec<Region>,
    /// The number of each region's first chunk.
    first_chunks: Vec<u64>,
    chunk_count: u64,
}

impl Grid {
    /// The grid of these regions, which have to cover the disk in order.
    ///
    /// # Errors
    /// [`GridError`] when they do not, or a bound is passed.
    pub fn new(disk_bytes: u64, regions: Vec<Region>) -> Result<Self, GridError> {
        if disk_bytes == 0 || disk_bytes > DISK_BYTES_MAX {
            return Err(GridError::DiskBytes { disk_bytes });
        }
        if regions.is_empty() || regions.len() > REGIONS_MAX {
            let count = regions.len();
            return Err(GridError::RegionCount { count });
        }
        let mut end_bytes = 0;
        let mut chunk_count = 0;
        let mut first_chunks = Vec::with_capacity(regions.len());
        for (number, region) in regions.iter().enumerate() {
            let fits = region.len_bytes > 0 && region.len_bytes <= disk_bytes - end_bytes;
            if region.start_bytes != end_bytes || !fits {
                return Err(GridError::NotContiguous {
                    region: number,
                    expected_bytes: end_bytes,
                });
            }
            first_chunks.push(chunk_count);
            end_bytes += region.len_bytes;
            chunk_count += region.chunk_count();
        }
        if end_bytes != disk_bytes {
            return Err(GridError::WrongEnd {
                end_bytes,
                disk_bytes,
            });
        }
        Ok(Self {
            disk_bytes,
            regions,
            first_chunks,
            chunk_count,
        })
    }

    /// The grid of a disk that is one region.
    ///
    /// # Errors
    /// [`GridError::DiskBytes`] when the size is out of bounds.
    pub fn whole(disk_bytes: u64) -> Result<Self, GridError> {
        let region = Region {
            start_bytes: 0,
            len_bytes: disk_bytes,
            kind: RegionKind::Whole,
        };
        Self::new(disk_bytes, vec![region])
    }

    /// The same grid on a larger disk: what is new becomes a gap at the end, so
    /// that no chunk of the smaller disk changes its place or its number.
    ///
    /// # Errors
    /// [`GridError`] when the disk would shrink or pass a bound.
    pub fn grown(&self, disk_bytes: u64) -> Result<Self, GridError> {
        let mut regions = self.regions.clone();
        if disk_bytes != self.disk_bytes {
            regions.push(Region {
                start_bytes: self.disk_bytes,
                len_bytes: disk_bytes.saturating_sub(self.disk_bytes),
                kind: RegionKind::Gap,
            });
        }
        Self::new(disk_bytes, regions)
    }

    /// The disk's size.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The regions, in the order of the disk.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// How many chunks the disk has.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.chunk_count
    }

    /// The number of a region's first chunk.
    ///
    /// # Panics
    /// When there is no such region.
    #[must_use]
    pub fn region_first_chunk(&self, region_index: usize) -> u64 {
        self.first_chunks[region_index]
    }

    /// The number of the region that a chunk is in.
    ///
    /// # Panics
    /// When there is no such chunk.
    #[must_use]
    pub fn region_of_chunk(&self, index: u64) -> usize {
        assert!(index < self.chunk_count, "the disk has no chunk {index}");
        self.first_chunks.partition_point(|first| *first <= index) - 1
    }

    /// The chunk that a byte of the disk is in.
    ///
    /// # Panics
    /// When the disk has no such byte.
    #[must_use]
    pub fn at(&self, offset_bytes: u64) -> ChunkSpan {
        assert!(
            offset_bytes < self.disk_bytes,
            "the disk has no byte {offset_bytes}"
        );
        let region = self
            .regions
            .partition_point(|region| region.start_bytes <= offset_bytes)
            - 1;
        let within_bytes = offset_bytes - self.regions[region].start_bytes;
        self.span_in(region, within_bytes / CHUNK_BYTES)
    }

    /// A chunk's place on the disk.
    ///
    /// # Panics
    /// When there is no such chunk.
    #[must_use]
    pub fn span(&self, index: u64) -> ChunkSpan {
        let region = self.region_of_chunk(index);
        self.span_in(region, index - self.first_chunks[region])
    }

    /// All chunks, in the order of the disk.
    pub fn spans(&self) -> impl Iterator<Item = ChunkSpan> + '_ {
        let chunks = |region: usize| 0..self.regions[region].chunk_count();
        (0..self.regions.len())
            .flat_map(move |region| chunks(region).map(move |local| self.span_in(region, local)))
    }

    fn span_in(&self, region_index: usize, local: u64) -> ChunkSpan {
        let region = &self.regions[region_index];
        let within_bytes = local * CHUNK_BYTES;
        ChunkSpan {
            index: self.first_chunks[region_index] + local,
            start_bytes: region.start_bytes + within_bytes,
            len_bytes: (region.len_bytes - within_bytes).min(CHUNK_BYTES) as u32,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A grid of regions with these lengths.
    pub(crate) fn grid_of(lens_bytes: &[u64]) -> Grid {
        let mut start_bytes = 0;
        let mut regions = Vec::new();
        for len_bytes in lens_bytes {
            regions.push(Region {
                start_bytes,
                len_bytes: *len_bytes,
                kind: RegionKind::Partition,
            });
            start_bytes += len_bytes;
        }
        Grid::new(start_bytes, regions).expect("the lengths make a grid")
    }

    #[test]
    fn what_is_not_a_grid() {
        let region = |start_bytes, len_bytes| Region {
            start_bytes,
            len_bytes,
            kind: RegionKind::Gap,
        };
        let cases = [
            (0, vec![region(0, 0)]),
            (DISK_BYTES_MAX + 1, vec![region(0, DISK_BYTES_MAX + 1)]),
            (10, vec![]),
            (10, vec![region(0, 1); REGIONS_MAX + 1]),
            (10, vec![region(1, 9)]),
            (10, vec![region(0, 4), region(5, 5)]),
            (10, vec![region(0, 5), region(4, 6)]),
            (10, vec![region(0, 10), region(10, 0)]),
            (10, vec![region(0, 9)]),
            (10, vec![region(0, u64::MAX)]),
            (10, vec![region(0, 9), region(9, u64::MAX)]),
        ];
        for (disk_bytes, regions) in cases {
            let error = Grid::new(disk_bytes, regions.clone());
            assert!(error.is_err(), "{disk_bytes} {regions:?}");
        }
        assert!(Grid::whole(DISK_BYTES_MAX).is_ok());
    }

    #[test]
    fn a_grown_grid_keeps_every_chunk() {
        let grid = grid_of(&[1000, CHUNK_BYTES * 3 + 1]);
        let grown = grid.grown(grid.disk_bytes() + 4096).expect("grows");
        for index in 0..grid.chunk_count() {
            assert_eq!(grid.span(index), grown.span(index));
        }
        assert_eq!(grid.grown(grid.disk_bytes()), Ok(grid.clone()));
        assert!(grid.grown(grid.disk_bytes() - 1).is_err());
    }

    proptest! {
        #[test]
        fn spans_cover_the_disk(lens in prop::collection::vec(1..5 * CHUNK_BYTES, 1..8), probe in any::<prop::sample::Index>()) {
            let grid = grid_of(&lens);
            let mut end_bytes = 0;
            for (number, span) in grid.spans().enumerate() {
                prop_assert_eq!(span.index, number as u64);
                prop_assert_eq!(span.start_bytes, end_bytes);
                prop_assert!(span.len_bytes > 0 && u64::from(span.len_bytes) <= CHUNK_BYTES);
                prop_assert_eq!(grid.span(span.index), span);
                for offset_bytes in [span.start_bytes, span.end_bytes() - 1] {
                    prop_assert_eq!(grid.at(offset_bytes), span);
                }
                end_bytes = span.end_bytes();
            }
            prop_assert_eq!(end_bytes, grid.disk_bytes());
            prop_assert_eq!(grid.spans().count() as u64, grid.chunk_count());
            let offset_bytes = probe.index(grid.disk_bytes() as usize) as u64;
            let span = grid.at(offset_bytes);
            prop_assert!(span.start_bytes <= offset_bytes && offset_bytes < span.end_bytes());
            // Every region starts a chunk of its own.
            for (number, region) in grid.regions().iter().enumerate() {
                let first = grid.span(grid.region_first_chunk(number));
                prop_assert_eq!(first.start_bytes, region.start_bytes);
            }
        }
    }
}
