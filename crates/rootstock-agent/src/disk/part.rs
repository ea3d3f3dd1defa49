//! A part of a disk, as if it were one.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rootstock_core::ByteRange;
use rootstock_store::disk::DiskFile;

/// A part of a disk.
pub(crate) struct Part<'a> {
    /// The disk.
    pub(crate) disk: &'a dyn DiskFile,
    /// Which part.
    pub(crate) range: ByteRange,
}

impl Part<'_> {
    /// Where it is on the disk, if it lies in this part.
    fn place(&self, offset_bytes: u64, len: usize) -> io::Result<u64> {
        let end = offset_bytes.checked_add(len as u64);
        match end {
            Some(end) if end <= self.range.len => Ok(self.range.start + offset_bytes),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl DiskFile for Part<'_> {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let place = self.place(offset_bytes, buffer.len())?;
        self.disk.read_at(place, buffer)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let place = self.place(offset_bytes, data.len())?;
        self.disk.write_at(place, data)
    }

    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len()).sum();
        let place = self.place(offset_bytes, len)?;
        self.disk.write_vectored_at(place, parts)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.range.len)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
