//! A file system of an image, as far as the first stage's maker needs it.

use std::io;

/// The most names that are taken from one directory.
pub(super) const DIR_ENTRIES_MAX: usize = 16_384;

/// The longest path that is looked up, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// The files of an image.
///
/// Paths are absolute. Symbolic links are followed as a process with this root
/// would follow them: they cannot lead out of it.
pub trait RootFs {
    /// What a path leads to; nothing when it leads nowhere.
    ///
    /// # Errors
    /// When the file system cannot be read or is damaged.
    fn stat(&self, path: &str) -> Result<Option<Stat>, FsError>;

    /// The first bytes of a regular file: all of them when it is not longer.
    ///
    /// # Errors
    /// As for [`RootFs::stat`], and when there is no such regular file.
    fn read_head(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FsError>;

    /// The names in a directory, sorted, without `.` and `..`; none when there
    /// is no such directory. Names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// As for [`RootFs::stat`].
    fn list(&self, dir: &str) -> Result<Vec<String>, FsError>;

    /// A regular file, which may be empty.
    ///
    /// # Errors
    /// As for [`RootFs::read_head`], and when it is longer than `bytes_max`.
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FsError> {
        let bytes = self.read_head(path, bytes_max.saturating_add(1))?;
        if bytes.len() as u64 > bytes_max {
            let path = path.to_owned();
            return Err(FsError::TooLong { path, bytes_max });
        }
        Ok(bytes)
    }

    /// A regular file, or nothing where there is none.
    ///
    /// # Errors
    /// As for [`RootFs::read`], save that it may be absent.
    fn read_if_there(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, FsError> {
        match self.stat(path)? {
            Some(stat) if stat.kind == FileKind::File => self.read(path, bytes_max).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether a path leads to a regular file.
    ///
    /// # Errors
    /// As for [`RootFs::stat`].
    fn is_file(&self, path: &str) -> Result<bool, FsError> {
        Ok(self
            .stat(path)?
            .is_some_and(|stat| stat.kind == FileKind::File))
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// The length of a regular file.
    pub len_bytes: u64,
}

/// What something in a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else.
    Other,
}

/// Why a file of an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// There is none.
    #[error("there is no file {path}")]
    Missing {
        /// Its path.
        path: String,
    },
    /// It is longer than such a file may be.
    #[error("{path} is longer than {bytes_max} bytes")]
    TooLong {
        /// Its path.
        path: String,
        /// What it may have.
        bytes_max: u64,
    },
    /// The file system is damaged, or of a kind that is not known.
    #[error("{path} cannot be read: {why}")]
    Damaged {
        /// The path.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The disk cannot be read.
    #[error("the disk cannot be read at {path}")]
    Io {
        /// The path that was read.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A root with another file system mounted at its `/boot`.
pub struct JoinedFs {
    root: Box<dyn RootFs>,
    boot: Option<Box<dyn RootFs>>,
}

impl JoinedFs {
    /// `root`, with `boot` at its `/boot` where there is one.
    #[must_use]
    pub fn new(root: Box<dyn RootFs>, boot: Option<Box<dyn RootFs>>) -> Self {
        Self { root, boot }
    }

    /// The file system that a path is in, and its path there.
    fn at<'a>(&'a self, path: &'a str) -> (&'a dyn RootFs, &'a str) {
        let Some(boot) = &self.boot else {
            return (&*self.root, path);
        };
        match path.strip_prefix("/boot") {
            Some("") => (&**boot, "/"),
            Some(rest) if rest.starts_with('/') => (&**boot, rest),
            _ => (&*self.root, path),
        }
    }
}

impl RootFs for JoinedFs {
    fn stat(&self, path: &str) -> Result<Option<Stat>, FsError> {
        let (fs, path) = self.at(path);
        fs.stat(path)
    }

    fn read_head(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FsError> {
        let (fs, path) = self.at(path);
        fs.read_head(path, bytes_max)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, FsError> {
        let (fs, path) = self.at(dir);
        fs.list(path)
    }
}

/// Text of a file: what is not UTF-8 is replaced.
pub(super) fn text_of(
    fs: &dyn RootFs,
    path: &str,
    bytes_max: u64,
) -> Result<Option<String>, FsError> {
    let bytes = fs.read_if_there(path, bytes_max)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
