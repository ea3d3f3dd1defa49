//! A disk in memory, and what a server sends, for tests.

use rootstock_api::record::Record;
use rootstock_core::ChunkId;
use rootstock_image::frame::Encoder;
use rootstock_volume::{BlockDevice, BlockError, Segments, StatusExtent, Zero};
use std::sync::atomic::{AtomicBool, Ordering};

/// The record of a chunk, as a server sends it.
pub(crate) fn record(encoder: &mut Encoder, raw: &[u8]) -> Vec<u8> {
    let frame = encoder.encode(ChunkId::of(raw), raw);
    let mut body = Vec::new();
    Record {
        chunk: frame.chunk,
        raw_bytes: frame.raw_bytes,
        codec: frame.codec.to_byte(),
        frame: &frame.bytes,
    }
    .write(&mut body);
    body
}

/// A read-only disk of bytes, whose reads wait only when told to.
pub(crate) struct PlainDisk {
    bytes: Vec<u8>,
    /// Whether [`BlockDevice::try_read`] pretends that nothing is in memory.
    pub(crate) cold: AtomicBool,
}

impl PlainDisk {
    /// A disk whose bytes tell their place.
    pub(crate) fn noise(len: usize) -> Self {
        let byte = |at: usize| (at ^ (at >> 8) ^ (at >> 13)) as u8 | 1;
        Self {
            bytes: (0..len).map(byte).collect(),
            cold: AtomicBool::new(false),
        }
    }
}

impl BlockDevice for PlainDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, len: u32, out: &mut Segments) -> Result<(), BlockError> {
        let range = offset as usize..offset as usize + len as usize;
        let bytes = self.bytes.get(range).ok_or(BlockError::OutOfRange {
            offset_bytes: offset,
            len_bytes: len.into(),
            size_bytes: self.size_bytes(),
        })?;
        out.push(bytes.to_vec().into());
        Ok(())
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Result<bool, BlockError> {
        if self.cold.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.read(offset, len, out).map(|()| true)
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Zero) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn status(&self, _: u64, _: u64, _: usize) -> Result<Vec<StatusExtent>, BlockError> {
        Ok(Vec::new())
    }

    fn prefetch(&self, _: u64, _: u64) {}
}
