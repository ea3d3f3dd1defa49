//! A block device, or a file in its place, through the kernel's page cache.

use std::fs::File;
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rootstock_core::ByteRange;
use rootstock_store::disk::DiskFile;

/// A disk whose length is that of its device.
pub struct BlockFile {
    file: File,
    len_bytes: u64,
}

impl BlockFile {
    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        let len_bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len_bytes })
    }
}

impl DiskFile for BlockFile {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset_bytes)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset_bytes)
    }

    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        self.write_at(offset_bytes, &parts.concat())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
