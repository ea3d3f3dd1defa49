//! A device in memory, for tests, measurements and trying a client.

use std::sync::{
    PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use rootstock_core::CHUNK_BYTES;
use rootstock_volume::{
    BlockDevice, BlockError, Segments, StatusExtent, Zero, device::check_range,
};

/// How a [`MemoryDevice`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Temperature {
    /// Every read is served at once.
    #[default]
    Warm,
    /// Every read goes by way of a worker.
    Cold,
}

/// A sparse disk in memory. It forgets everything when dropped.
#[derive(Debug)]
pub struct MemoryDevice {
    size_bytes: AtomicU64,
    read_only: bool,
    temperature: Temperature,
    chunks: Vec<RwLock<Option<Bytes>>>,
}

impl MemoryDevice {
    /// A writable disk of zeros.
    #[must_use]
    pub fn new(size_bytes: u64, temperature: Temperature) -> Self {
        let count = size_bytes.div_ceil(CHUNK_BYTES);
        Self {
            size_bytes: AtomicU64::new(size_bytes),
            read_only: false,
            temperature,
            chunks: (0..count).map(|_| RwLock::default()).collect(),
        }
    }

    /// The same disk, read-only from now on.
    #[must_use]
    pub fn into_read_only(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }

    /// Makes it smaller, or as large as it was made.
    pub fn resize(&self, size_bytes: u64) {
        let most = self.chunks.len() as u64 * CHUNK_BYTES;
        self.size_bytes
            .store(size_bytes.min(most), Ordering::Release);
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        check_range(offset_bytes, len_bytes, self.size_bytes()).map(|_| ())
    }

    fn check_write(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::ReadOnly);
        }
        self.check(offset_bytes, len_bytes)
    }

    /// Each chunk that a range touches: its number, and where the range lies in it.
    fn parts(offset: u64, len: u64) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let end = offset + len;
        let first = offset / CHUNK_BYTES;
        (first..end.div_ceil(CHUNK_BYTES)).map(move |number| {
            let start = number * CHUNK_BYTES;
            let from = offset.max(start) - start;
            let to = end.min(start + CHUNK_BYTES) - start;
            (number as usize, from as usize..to as usize)
        })
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut [u8])) {
        let mut chunk = self.chunks[number]
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Readers may still hold the bytes; then they keep the old ones.
        let bytes = match chunk.take().map(Bytes::try_into_mut) {
            Some(Ok(mut bytes)) => {
                change(&mut bytes);
                bytes.freeze()
            }
            Some(Err(shared)) => {
                let mut bytes = shared.to_vec();
                change(&mut bytes);
                bytes.into()
            }
            None => {
                let mut bytes = vec![0; CHUNK_BYTES as usize];
                change(&mut bytes);
                bytes.into()
            }
        };
        *chunk = Some(bytes);
    }

    fn chunk(&self, number: usize) -> Option<Bytes> {
        self.chunks[number]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<(), BlockError> {
        self.check(offset_bytes, len_bytes.into())?;
        for (number, range) in Self::parts(offset_bytes, len_bytes.into()) {
            match &*self.chunks[number]
                .read()
                .unwrap_or_else(PoisonError::into_inner)
            {
                Some(bytes) => out.push(bytes.slice(range)),
                None => out.push_zero(range.len() as u32),
            }
        }
        Ok(())
    }

    fn try_read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        if self.temperature == Temperature::Cold {
            return Ok(false);
        }
        self.read(offset_bytes, len_bytes, out).map(|()| true)
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check_write(offset_bytes, data.len() as u64)?;
        let mut rest = data;
        for (number, range) in Self::parts(offset_bytes, data.len() as u64) {
            let (head, tail) = rest.split_at(range.len());
            rest = tail;
            self.change(number, |chunk| chunk[range].copy_from_slice(head));
        }
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zero: Zero,
    ) -> Result<(), BlockError> {
        self.check_write(offset_bytes, len_bytes)?;
        for (number, range) in Self::parts(offset_bytes, len_bytes) {
            if range.len() as u64 == CHUNK_BYTES && zero == Zero::MayPunch {
                let mut chunk = self.chunks[number]
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                *chunk = None;
            } else if zero == Zero::Allocate || self.chunk(number).is_some() {
                self.change(number, |chunk| chunk[range].fill(0));
            }
        }
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        self.write_zeroes(offset_bytes, len_bytes, Zero::MayPunch)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        self.check(offset_bytes, len_bytes)?;
        let mut extents: Vec<StatusExtent> = Vec::new();
        for (number, range) in Self::parts(offset_bytes, len_bytes) {
            let hole = self.chunk(number).is_none();
            let len_bytes = range.len() as u64;
            if let Some(last) = extents.last_mut()
                && last.hole == hole
            {
                last.len_bytes += len_bytes;
                continue;
            }
            if extents.len() == extents_max {
                break;
            }
            extents.push(StatusExtent {
                len_bytes,
                hole,
                zero: hole,
            });
        }
        Ok(extents)
    }

    fn prefetch(&self, _offset_bytes: u64, _len_bytes: u64) {}
}
