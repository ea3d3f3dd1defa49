//! Disks as fuzz inputs: only the sectors that are not zero, so that a few
//! kilobytes of input are a file system of many megabytes.

use std::{collections::BTreeMap, io};

use rootstock_image::ReadAt;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// Bytes of one sector in an input: its number, and what it holds.
const RECORD_BYTES: usize = 4 + SECTOR_BYTES;

/// The largest disk, in sectors: 1 GiB.
const SECTORS_MAX: u32 = 2 << 20;

/// A disk whose absent sectors are zero.
pub struct SparseDisk {
    sectors: BTreeMap<u64, [u8; SECTOR_BYTES]>,
    len_bytes: u64,
}

impl SparseDisk {
    /// The disk that an input stands for: its length in sectors, then records.
    #[must_use]
    pub fn from_input(input: &[u8]) -> Option<Self> {
        let (len, rest) = input.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len).clamp(1, SECTORS_MAX);
        let mut sectors = BTreeMap::new();
        for record in rest.chunks(RECORD_BYTES) {
            let Some((number, bytes)) = record.split_first_chunk::<4>() else {
                break;
            };
            let mut sector = [0; SECTOR_BYTES];
            sector[..bytes.len()].copy_from_slice(bytes);
            sectors.insert(u64::from(u32::from_le_bytes(*number) % len), sector);
        }
        Some(Self {
            sectors,
            len_bytes: u64::from(len) * SECTOR_BYTES as u64,
        })
    }

    /// The input that stands for a disk.
    #[must_use]
    pub fn to_input(disk: &[u8]) -> Vec<u8> {
        let mut input = ((disk.len() / SECTOR_BYTES) as u32).to_le_bytes().to_vec();
        for (number, sector) in (0_u32..).zip(disk.chunks(SECTOR_BYTES)) {
            if sector.iter().any(|byte| *byte != 0) {
                input.extend(number.to_le_bytes());
                input.extend(sector);
            }
        }
        input
    }

    /// Where the sectors that are there begin.
    #[must_use]
    pub fn places(&self) -> Vec<u64> {
        let place = |number: &u64| number * SECTOR_BYTES as u64;
        self.sectors.keys().map(place).collect()
    }

    /// Writes bytes that lie in one sector.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let size = SECTOR_BYTES as u64;
        let sector = self.sectors.entry(offset_bytes / size);
        let at = (offset_bytes % size) as usize;
        sector.or_insert([0; SECTOR_BYTES])[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets the two checksums of the GPT header in sector 1, if it has sane
    /// bounds: a mutation that breaks them is not what is looked for.
    pub fn mend_gpt(&mut self) {
        let Some(header) = self.sectors.get(&1).copied() else {
            return;
        };
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let header_bytes = field(12) as usize;
        let len = u64::from(field(80)) * u64::from(field(84));
        if len > 1 << 20 || header_bytes > SECTOR_BYTES {
            return;
        }
        let mut entries = vec![0; len as usize];
        let start = u64::from(field(72)) * SECTOR_BYTES as u64;
        if self.read_exact_at(start, &mut entries).is_err() {
            return;
        }
        let mut header = header;
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32fast::hash(&header[..header_bytes]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        self.sectors.insert(1, header);
    }
}

impl ReadAt for SparseDisk {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = offset_bytes + buffer.len() as u64;
        buffer.fill(0);
        let size = SECTOR_BYTES as u64;
        let touched = offset_bytes / size..end.div_ceil(size);
        for (number, sector) in self.sectors.range(touched) {
            let start = number * size;
            let from = start.max(offset_bytes);
            let to = (start + size).min(end);
            let part = &sector[(from - start) as usize..(to - start) as usize];
            let at = (from - offset_bytes) as usize;
            buffer[at..at + part.len()].copy_from_slice(part);
        }
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}
