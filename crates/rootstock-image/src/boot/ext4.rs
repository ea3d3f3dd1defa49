//! ext2, ext3 and ext4 as a [`RootFs`], read without mounting.
//!
//! The reader of the file system is another project's and the file system
//! anybody's: it sees the disk through a budget, and a panic in it is an error
//! of the path that was asked for.

use std::{
    cell::RefCell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::root_fs::{DIR_ENTRIES_MAX, FileKind, FsError, PATH_BYTES_MAX, RootFs, Stat};
use crate::read_at::ReadAt;

/// What one file system may cost, in reads and in bytes. A kernel with all the
/// modules that a first stage takes is some 100 MB.
const READS_MAX: u64 = 4_000_000;
const READ_BYTES_MAX: u64 = 4 << 30;

/// The largest single read, in bytes.
const ONE_READ_BYTES_MAX: usize = 16 << 20;

/// An ext file system.
pub struct Ext4Fs {
    fs: Ext4,
    failed: Arc<std::sync::Mutex<Option<io::Error>>>,
    broken: RefCell<bool>,
}

impl Ext4Fs {
    /// The file system in `len_bytes` of `disk` from `start_bytes`.
    ///
    /// # Errors
    /// When it is none that can be read.
    pub fn open(disk: Arc<dyn ReadAt>, start_bytes: u64, len_bytes: u64) -> Result<Self, FsError> {
        let failed = Arc::default();
        let reader = Partition {
            start_bytes,
            len_bytes: len_bytes.min(disk.len_bytes().saturating_sub(start_bytes)),
            disk,
            reads: 0,
            read_bytes: 0,
            failed: Arc::clone(&failed),
        };
        let loaded = catch_unwind(AssertUnwindSafe(|| Ext4::load(Box::new(reader))));
        match loaded {
            Ok(Ok(fs)) => Ok(Self {
                fs,
                failed,
                broken: RefCell::new(false),
            }),
            Ok(Err(error)) => Err(error_of("/", &error, &failed)),
            Err(_) => Err(panicked("/")),
        }
    }

    /// Asks the reader; absence is no error here.
    fn ask<T>(
        &self,
        path: &str,
        question: impl FnOnce(&Ext4) -> Result<T, Ext4Error>,
    ) -> Result<Option<T>, FsError> {
        if path.len() > PATH_BYTES_MAX || *self.broken.borrow() {
            return Err(panicked(path));
        }
        match catch_unwind(AssertUnwindSafe(|| question(&self.fs))) {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(Ext4Error::NotFound | Ext4Error::NotADirectory)) => Ok(None),
            Ok(Err(error)) => Err(error_of(path, &error, &self.failed)),
            Err(_) => {
                self.broken.replace(true);
                Err(panicked(path))
            }
        }
    }
}

impl RootFs for Ext4Fs {
    fn stat(&self, path: &str) -> Result<Option<Stat>, FsError> {
        let metadata = self.ask(path, |fs| fs.metadata(path))?;
        Ok(metadata.map(|metadata| {
            let kind = metadata.file_type();
            Stat {
                kind: if kind.is_regular_file() {
                    FileKind::File
                } else if kind.is_dir() {
                    FileKind::Dir
                } else {
                    FileKind::Other
                },
                len_bytes: metadata.len(),
            }
        }))
    }

    fn read_head(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FsError> {
        let missing = || FsError::Missing {
            path: path.to_owned(),
        };
        let stat = self.stat(path)?.ok_or_else(missing)?;
        if stat.kind != FileKind::File {
            return Err(missing());
        }
        let len = usize::try_from(stat.len_bytes.min(bytes_max)).unwrap_or(usize::MAX);
        let read = self.ask(path, |fs| {
            let mut file = fs.open(path)?;
            // A sparse file may claim any length: the memory grows with what is read.
            let mut bytes = Vec::new();
            let mut block = [0; 16 << 10];
            while bytes.len() < len {
                let wanted = block.len().min(len - bytes.len());
                let read = file.read_bytes(&mut block[..wanted])?;
                if read == 0 {
                    break;
                }
                bytes.extend_from_slice(&block[..read]);
            }
            Ok(bytes)
        })?;
        read.ok_or_else(missing)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, FsError> {
        let names = self.ask(dir, |fs| {
            let mut names = Vec::new();
            for entry in fs.read_dir(dir)?.take(DIR_ENTRIES_MAX) {
                if let Ok(name) = entry?.file_name().as_str()
                    && name != "."
                    && name != ".."
                {
                    names.push(name.to_owned());
                }
            }
            Ok(names)
        })?;
        let mut names = names.unwrap_or_default();
        names.sort_unstable();
        Ok(names)
    }
}

fn error_of(
    path: &str,
    error: &Ext4Error,
    failed: &std::sync::Mutex<Option<io::Error>>,
) -> FsError {
    let mut failed = failed
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = path.to_owned();
    match failed.take() {
        Some(source) => FsError::Io { path, source },
        None => FsError::Damaged {
            path,
            why: format!("ext4: {error}"),
        },
    }
}

fn panicked(path: &str) -> FsError {
    FsError::Damaged {
        path: path.to_owned(),
        why: "the file system is damaged: run e2fsck on it".to_owned(),
    }
}

/// A partition as the reader sees it.
struct Partition {
    disk: Arc<dyn ReadAt>,
    start_bytes: u64,
    len_bytes: u64,
    reads: u64,
    read_bytes: u64,
    /// The disk's own error, which the reader would turn into text.
    failed: Arc<std::sync::Mutex<Option<io::Error>>>,
}

/// A read that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("the disk has no such bytes, or too many were asked for")]
struct Refused;

impl Ext4Read for Partition {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        self.reads += 1;
        self.read_bytes = self.read_bytes.saturating_add(dst.len() as u64);
        let end = start_byte.checked_add(dst.len() as u64);
        let inside = end.is_some_and(|end| end <= self.len_bytes);
        let affordable = self.reads <= READS_MAX && self.read_bytes <= READ_BYTES_MAX;
        if !inside || !affordable || dst.len() > ONE_READ_BYTES_MAX {
            return Err(Refused.into());
        }
        let read = self.disk.read_exact_at(self.start_bytes + start_byte, dst);
        read.map_err(|error| {
            let mut failed = self
                .failed
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *failed = Some(error);
            Refused.into()
        })
    }
}
