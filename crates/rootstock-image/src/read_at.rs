//! How the parsers of this crate are given bytes.

use std::io;

/// A disk, a partition or a file that can be read at any place.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset_bytes`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the range passes the end, or the source's own error.
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// How many bytes there are.
    fn len_bytes(&self) -> u64;
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let source = start
            .checked_add(buffer.len())
            .and_then(|end| self.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_exact_at(offset_bytes, buffer)
    }

    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// A part of another source, such as one partition of a disk.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    source: &'a dyn ReadAt,
    start_bytes: u64,
    len_bytes: u64,
}

impl<'a> Window<'a> {
    /// The `len_bytes` of `source` from `start_bytes`, cut where `source` ends.
    #[must_use]
    pub fn new(source: &'a dyn ReadAt, start_bytes: u64, len_bytes: u64) -> Self {
        let rest = source.len_bytes().saturating_sub(start_bytes);
        Self {
            source,
            start_bytes,
            len_bytes: len_bytes.min(rest),
        }
    }
}

impl ReadAt for Window<'_> {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.source
            .read_exact_at(self.start_bytes + offset_bytes, buffer)
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}
