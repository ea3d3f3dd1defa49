//! The root document's bytes.

use rootstock_core::{ChunkId, Digest, units::CHUNK_BYTES};

use super::{Manifest, ManifestError, PAGE_ENTRIES, depth_of};
use crate::{
    fields::Fields,
    grid::{Grid, REGIONS_MAX, Region, RegionKind},
};

const MAGIC: [u8; 8] = *b"RSTKMANI";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const REGION_BYTES: usize = 56;

/// The largest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = HEADER_BYTES + REGIONS_MAX * REGION_BYTES;

impl Manifest {
    /// The manifest's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let regions = self.grid.regions();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + regions.len() * REGION_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((CHUNK_BYTES as u32).to_le_bytes());
        bytes.extend((PAGE_ENTRIES as u32).to_le_bytes());
        bytes.extend((regions.len() as u32).to_le_bytes());
        bytes.extend(self.grid.disk_bytes().to_le_bytes());
        for (region, root) in regions.iter().zip(&self.roots) {
            bytes.extend(region.start_bytes.to_le_bytes());
            bytes.extend(region.len_bytes.to_le_bytes());
            bytes.extend([kind_byte(region.kind), depth_of(region.chunk_count())]);
            bytes.extend([0; 6]);
            bytes.extend(root.as_bytes());
        }
        bytes
    }

    /// The manifest in these bytes.
    ///
    /// # Errors
    /// [`ManifestError`] for anything that [`Manifest::encode`] would not have
    /// written.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let length = |expected_bytes| ManifestError::Length {
            len_bytes: bytes.len(),
            expected_bytes,
        };
        if bytes.len() < HEADER_BYTES {
            return Err(length(HEADER_BYTES));
        }
        let mut fields = Fields::new(bytes);
        if fields.array() != MAGIC {
            return Err(ManifestError::Magic);
        }
        let version = fields.u32();
        if version != VERSION {
            return Err(ManifestError::Version { version });
        }
        require("chunk size", fields.u32().into(), CHUNK_BYTES)?;
        require("page size", fields.u32().into(), PAGE_ENTRIES)?;
        let count = fields.u32() as usize;
        if count == 0 || count > REGIONS_MAX {
            return Err(field("number of regions", count as u64));
        }
        let disk_bytes = fields.u64();
        if bytes.len() != HEADER_BYTES + count * REGION_BYTES {
            return Err(length(HEADER_BYTES + count * REGION_BYTES));
        }
        let mut regions = Vec::with_capacity(count);
        let mut depths = Vec::with_capacity(count);
        let mut roots = Vec::with_capacity(count);
        for _ in 0..count {
            let (start_bytes, len_bytes) = (fields.u64(), fields.u64());
            let [kind, depth, reserved @ ..] = fields.array::<8>();
            let reserved = reserved.iter().fold(0, |any, byte| any | byte);
            require("reserved bytes", reserved.into(), 0)?;
            regions.push(Region {
                start_bytes,
                len_bytes,
                kind: kind_of(kind).ok_or_else(|| field("region kind", kind.into()))?,
            });
            depths.push(depth);
            roots.push(ChunkId::from_bytes(fields.array::<{ Digest::LEN }>()));
        }
        let grid = Grid::new(disk_bytes, regions).map_err(ManifestError::Grid)?;
        for (region, depth) in grid.regions().iter().zip(depths) {
            let expected = depth_of(region.chunk_count());
            require("tree depth", depth.into(), expected.into())?;
        }
        Ok(Self { grid, roots })
    }
}

fn field(field: &'static str, value: u64) -> ManifestError {
    ManifestError::Field { field, value }
}

fn require(name: &'static str, value: u64, expected: u64) -> Result<(), ManifestError> {
    if value == expected {
        Ok(())
    } else {
        Err(field(name, value))
    }
}

fn kind_byte(kind: RegionKind) -> u8 {
    match kind {
        RegionKind::PartitionTable => 0,
        RegionKind::Gap => 1,
        RegionKind::Partition => 2,
        RegionKind::Whole => 3,
    }
}

fn kind_of(byte: u8) -> Option<RegionKind> {
    [
        RegionKind::PartitionTable,
        RegionKind::Gap,
        RegionKind::Partition,
        RegionKind::Whole,
    ]
    .get(usize::from(byte))
    .copied()
}
