//! A disk that is read and written past the kernel's page cache.
//!
//! What serves the root must not need memory to write: pages that wait to be
//! written to this disk could be those that the kernel wants back first.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rootstock_core::{BLOCK_BYTES, ByteRange, CHUNK_BYTES};
use rootstock_image::ReadAt;
use rootstock_store::disk::DiskFile;
use rustix::fs::{Mode, OFlags};

use crate::mapper::DeviceNumber;

/// What addresses, offsets and lengths are multiples of.
const ALIGN_BYTES: usize = 4096;

/// Buffers that wait to be used again, at most.
const BUFFERS_MAX: usize = 16;

/// A block device, or a file in its place.
pub(crate) struct Device {
    file: File,
    claim: Arc<Claim>,
    len_bytes: u64,
    buffers: Mutex<Vec<Aligned>>,
}

/// The right to a disk, which the kernel gives to one at a time (`O_EXCL`).
pub(crate) struct Claim {
    held: Mutex<Option<OwnedFd>>,
    /// The disk without any right.
    file: File,
    number: DeviceNumber,
}

impl Claim {
    /// The disk's numbers.
    pub(crate) fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Lets somebody else have the right; the disk is used on.
    pub(crate) fn give_up(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes the right again, if nobody else has it.
    pub(crate) fn take_back(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
            *held = rustix::fs::open(path, flags, Mode::empty()).ok();
        }
    }
}

impl Device {
    /// Opens it for this process alone: what is mounted, or swapped to, is refused
    /// by the kernel (`EBUSY`).
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let open = |flags: OFlags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            options.custom_flags(flags.bits() as i32).open(path)
        };
        let claim = open(OFlags::EXCL)?;
        match open(OFlags::DIRECT) {
            // A file system that has no direct access.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Self::new(open(OFlags::empty())?, Some(claim.into()))
            }
            file => Self::new(file?, Some(claim.into())),
        }
    }

    /// As [`Device::open`], below an open directory.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open_at(directory: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let open = |flags| {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | flags;
            rustix::fs::openat(directory, name, flags, Mode::empty())
        };
        let claim = open(OFlags::EXCL)?;
        Self::new(open(OFlags::DIRECT)?.into(), Some(claim))
    }

    /// As [`Device::open_at`], without the right to all of it: other parts of the disk
    /// are in use.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open_shared(directory: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        Self::new(file.into(), None)
    }

    fn new(mut file: File, claim: Option<OwnedFd>) -> io::Result<Self> {
        let len_bytes = file.seek(SeekFrom::End(0))?;
        let number = DeviceNumber::of(rustix::fs::fstat(&file)?.st_rdev);
        Ok(Self {
            claim: Arc::new(Claim {
                held: Mutex::new(claim),
                file: file.try_clone()?,
                number,
            }),
            file,
            len_bytes,
            buffers: Mutex::default(),
        })
    }

    /// The right to it.
    pub(crate) fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.claim)
    }

    fn buffer(&self, len: usize) -> Aligned {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        match buffers.iter().position(|buffer| buffer.len() >= len) {
            Some(at) => buffers.swap_remove(at),
            None => Aligned::new(len.max(CHUNK_BYTES as usize)),
        }
    }

    fn give_back(&self, buffer: Aligned) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
    }
}

/// The first bytes of a disk, read as anybody may.
///
/// # Errors
/// The system's.
pub(crate) fn head(directory: BorrowedFd<'_>, name: &str, len: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File = rustix::fs::openat(directory, name, flags, Mode::empty())?.into();
    let mut bytes = Vec::new();
    file.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl DiskFile for Device {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut memory = self.buffer(buffer.len());
        let read = self
            .file
            .read_exact_at(memory.part(buffer.len()), offset_bytes);
        if read.is_ok() {
            buffer.copy_from_slice(memory.part(buffer.len()));
        }
        self.give_back(memory);
        read
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        if data.as_ptr().align_offset(ALIGN_BYTES) == 0 {
            return self.file.write_all_at(data, offset_bytes);
        }
        let mut memory = self.buffer(data.len());
        memory.part(data.len()).copy_from_slice(data);
        let written = self
            .file
            .write_all_at(memory.part(data.len()), offset_bytes);
        self.give_back(memory);
        written
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

/// A disk that is read at any place, by its blocks.
pub(crate) struct Blocks<'a>(pub(crate) &'a Device);

impl ReadAt for Blocks<'_> {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let first = offset_bytes / BLOCK_BYTES * BLOCK_BYTES;
        let end = offset_bytes + buffer.len() as u64;
        let len = end.next_multiple_of(BLOCK_BYTES) - first;
        let mut blocks = vec![0; len as usize];
        self.0.read_at(first, &mut blocks)?;
        let from = (offset_bytes - first) as usize;
        buffer.copy_from_slice(&blocks[from..from + buffer.len()]);
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        // A block that is there in part is not read.
        self.0.len_bytes / BLOCK_BYTES * BLOCK_BYTES
    }
}

/// Memory that a disk reads into without a copy.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES);
        Self { memory, start }
    }

    fn len(&self) -> usize {
        self.memory.len() - ALIGN_BYTES
    }

    fn part(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_out_and_come_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        File::create(&path)
            .and_then(|file| file.set_len(1 << 20))
            .expect("a disk");
        let device = Device::open(&path).expect("opens");
        assert_eq!(device.len().expect("known"), 1 << 20);
        let data: Vec<u8> = (0..8192_u32).map(|at| (at % 251) as u8).collect();
        device.write_at(4096, &data).expect("written");
        device.sync_data().expect("kept");
        let mut back = vec![0; 8192];
        device.read_at(4096, &mut back).expect("read");
        assert_eq!(back, data);
        device
            .read_at(1 << 20, &mut back)
            .expect_err("past the end");
        assert!(device.set_len(1).is_err());
    }
}
