//! What a local file system promises, and the real one behind it.

use std::{
    fs, io,
    io::IoSlice,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

use rootstock_core::{ByteRange, Digest};
use rustix::fs::FallocateFlags;

mod direct;
pub mod sim;

pub use sim::{Fault, SimDisk};

/// The time from one start of a machine to its next.
pub type Boot = [u8; 16];

/// A directory tree on a local disk.
///
/// Paths are relative to the tree's root, with `/` between the parts; an empty
/// path is the root. What is not synced may be lost, in part and in any order,
/// when the power is cut: a file's bytes by [`DiskFile::sync_data`], its name by
/// [`Disk::sync_dir`] on the directory that holds the name.
pub trait Disk: Send + Sync {
    /// Makes a new, empty file.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one, or the file system's error.
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, or the file system's error.
    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, atomically, in place of what had that name.
    /// Durable once the directory of `to` is synced.
    ///
    /// # Errors
    /// `NotFound`, or the file system's error.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Takes a file's name away; open files stay usable.
    ///
    /// # Errors
    /// `NotFound`, or the file system's error.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// The names in a directory, sorted; those of directories end in `/`.
    ///
    /// # Errors
    /// `NotFound`, or the file system's error.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Makes a directory if it is not there; its parent must be.
    ///
    /// # Errors
    /// `NotFound` without the parent, or the file system's error.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// Takes an empty directory away.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, `NotFound`, or the file system's error.
    fn remove_dir(&self, dir: &str) -> io::Result<()>;

    /// Returns when the names in this directory are durable.
    ///
    /// # Errors
    /// `NotFound`, or the file system's error: nothing is known of the names then.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// In which boot of its machine this is, if that can be told: what was written and
    /// not synced in the same one is still there, whatever became of its writer.
    fn boot(&self) -> Option<Boot> {
        None
    }
}

/// An open file of a [`Disk`].
#[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
pub trait DiskFile: Send + Sync {
    /// Fills `buffer` from `offset_bytes`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, or the disk's error.
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset_bytes`, growing the file if need be.
    ///
    /// # Errors
    /// `StorageFull`, or the disk's error: any part may have been written.
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()>;

    /// Writes all parts, one after the other, at `offset_bytes`.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// The disk's error.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or grows it with zeros.
    ///
    /// # Errors
    /// The disk's error.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Makes a range read as zeros and gives its space back where the file
    /// system can; the length stays.
    ///
    /// # Errors
    /// The disk's error.
    fn punch(&self, range: ByteRange) -> io::Result<()>;

    /// Returns when all bytes written before, and the length, are durable.
    ///
    /// # Errors
    /// The disk's error: what was unsynced may be lost even if a later call
    /// succeeds, so it must be written again.
    fn sync_data(&self) -> io::Result<()>;

    /// The file descriptor, where there is one.
    fn raw_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Whether an error says that the disk (or the quota on it) is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Parts that one system call takes (Linux `UIO_MAXIOV`).
const PARTS_MAX: usize = 1024;

/// Mode of new files: images hold secrets, only the daemon reads them.
const FILE_MODE: u32 = 0o600;

/// Mode of new directories.
const DIR_MODE: u32 = 0o700;

/// A directory of the host.
#[derive(Debug, Clone)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The tree under `root`, which is made (with its parents) if need be.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(root: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(root)?;
        Ok(Self {
            root: root.to_path_buf(),
        })
    }

    /// Where the tree is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn full(&self, path: &str) -> io::Result<PathBuf> {
        let inside = Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("'{path}' is not a path inside the data directory"),
            ));
        }
        Ok(self.root.join(path))
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(self.full(path)?)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.full(path)?)?;
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.full(from)?, self.full(to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.full(path)?)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.full(dir)?)? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours.
            if let Ok(mut name) = entry.file_name().into_string() {
                if entry.file_type()?.is_dir() {
                    name.push('/');
                }
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.full(dir)?;
        match fs::DirBuilder::new().mode(DIR_MODE).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        fs::remove_dir(self.full(dir)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        fs::File::open(self.full(dir)?)?.sync_all()
    }

    fn boot(&self) -> Option<Boot> {
        let id = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        Digest::of(&id).as_bytes().first_chunk().copied()
    }
}

struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset_bytes)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset_bytes)
    }

    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut owned = parts.to_vec();
        let mut parts = &mut owned[..];
        IoSlice::advance_slices(&mut parts, 0);
        let len_bytes = parts.iter().map(|part| part.len()).sum();
        let direct = direct::write(&self.0, offset_bytes, parts, len_bytes)?;
        IoSlice::advance_slices(&mut parts, direct);
        self.write_cached(offset_bytes + direct as u64, parts)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        let end = range.end().min(self.len()?);
        if range.start >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, range.start, end - range.start) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.write_zeros(range.start, end)
            }
            result => Ok(result?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl RealFile {
    fn write_cached(&self, mut offset_bytes: u64, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !parts.is_empty() {
            let some = &parts[..parts.len().min(PARTS_MAX)];
            match rustix::io::pwritev(&self.0, some, offset_bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset_bytes += written as u64;
                    IoSlice::advance_slices(&mut parts, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// What a file system that cannot punch holes gets instead.
    fn write_zeros(&self, mut at: u64, end: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        while at < end {
            let len = (end - at).min(ZEROS.len() as u64);
            self.0.write_all_at(&ZEROS[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }
}
