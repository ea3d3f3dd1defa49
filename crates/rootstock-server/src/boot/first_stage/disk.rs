//! A disk as the readers of file systems take it.

use std::{io, sync::Arc};

use rootstock_image::ReadAt;
use rootstock_volume::{BlockDevice, BlockError, Segments};

/// A version or a volume, read through the daemon's cache of chunks.
pub(crate) struct DiskBytes<D>(pub(crate) Arc<D>);

/// What is asked of the disk at once, in bytes.
const READ_BYTES_MAX: usize = 4 << 20;

impl<D: BlockDevice> ReadAt for DiskBytes<D> {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut segments = Segments::new();
        let mut at = offset_bytes;
        for part in buffer.chunks_mut(READ_BYTES_MAX) {
            segments.clear();
            let read = self.0.read(at, part.len() as u32, &mut segments);
            read.map_err(|error| match error {
                BlockError::OutOfRange { .. } => io::ErrorKind::UnexpectedEof.into(),
                error => io::Error::other(error),
            })?;
            segments.copy_to(part);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}
