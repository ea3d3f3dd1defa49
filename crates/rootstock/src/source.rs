//! Where disks are imported from, and how each form of them is opened.

pub(crate) mod archive;
pub(crate) mod detect;
pub(crate) mod file;
pub(crate) mod qemu;
pub(crate) mod refs;
pub(crate) mod stream;

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rootstock_client::push::Source;
use rootstock_core::{ByteRange, units::DISK_BYTES_MAX};

use archive::{Place, RangeReader};
use detect::{Foreign, Format, HEAD_BYTES, detect};
use file::{FileDisk, Writes};
use qemu::QemuDisk;
use stream::Spool;

/// How many shells a disk may be in: a qcow2 in an xz in a tar in a gzip.
const NESTING_MAX: usize = 4;

/// How to open a source.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Its format, instead of what its magic bytes say.
    pub(crate) format: Option<Format>,
    /// The member of an archive that is the disk.
    pub(crate) member: Option<String>,
    /// Where streams are unpacked to.
    pub(crate) spool_dir: PathBuf,
    /// The largest disk that is taken, in bytes.
    pub(crate) disk_bytes_max: u64,
    /// What becomes of a source that is written to while it is read.
    pub(crate) writes: Writes,
}

/// Why a source cannot be imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// It cannot be opened or read.
    #[error("'{}' cannot be read", path.display())]
    Open {
        /// The source.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is a directory or the like.
    #[error("'{}' is {what}, not a disk", path.display())]
    NotADisk {
        /// The source.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// There is not a byte in it.
    #[error("'{}' is empty", path.display())]
    Empty {
        /// The source.
        path: PathBuf,
    },
    /// The disk is larger than allowed.
    #[error(
        "the disk in '{}' is larger than {} ({disk_bytes_max} bytes)",
        path.display(), rootstock_core::units::HumanBytes(*disk_bytes_max)
    )]
    TooLarge {
        /// The source.
        path: PathBuf,
        /// The limit.
        disk_bytes_max: u64,
    },
    /// Its header forbids the import.
    #[error("'{}' ({}) is refused: {cause}", path.display(), Format::Foreign(*format))]
    Header {
        /// The source.
        path: PathBuf,
        /// Its format.
        format: Foreign,
        /// Why; said above, since it is the whole point.
        cause: refs::HeaderError,
    },
    /// QEMU cannot read it.
    #[error("'{}' cannot be read as {}: {reason}", path.display(), Format::Foreign(*format))]
    Tool {
        /// The source.
        path: PathBuf,
        /// Its format.
        format: Foreign,
        /// What QEMU said.
        reason: String,
    },
    /// QEMU cannot write it.
    #[error("'{}' cannot be written as {}: {reason}", path.display(), Format::Foreign(*format))]
    Convert {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: Foreign,
        /// What QEMU said.
        reason: String,
    },
    /// QEMU's tools are not installed.
    #[error("'{tool}' is not installed, and this format is read with it")]
    NoTool {
        /// The tool.
        tool: String,
    },
    /// A stream is damaged.
    #[error("'{}' is damaged or cut short: {after_bytes} bytes came out of it", path.display())]
    Stream {
        /// The source.
        path: PathBuf,
        /// What was well before.
        after_bytes: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An archive is damaged.
    #[error("the archive '{}' is damaged or cut short", path.display())]
    Archive {
        /// The source.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An archive has no disk in it.
    #[error("{} in the archive '{}'", none_of(wanted.as_ref()), path.display())]
    NoDisk {
        /// The source.
        path: PathBuf,
        /// The member asked for.
        wanted: Option<String>,
    },
    /// An archive has several disks in it.
    #[error("there is more than one disk in the archive '{}': {}", path.display(), names.join(", "))]
    ManyDisks {
        /// The source.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A member is not what the archive's own manifest says.
    #[error(
        "'{member}' in '{}' is damaged: its {algorithm} is {found}, and '{manifest}' says otherwise",
        path.display()
    )]
    Checksum {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
        /// The manifest.
        manifest: String,
        /// How the digest is made.
        algorithm: &'static str,
        /// The digest of what is there.
        found: String,
    },
    /// It is packed too often.
    #[error("'{}' is packed more than {NESTING_MAX} times", path.display())]
    Nested {
        /// The source.
        path: PathBuf,
    },
    /// The spool cannot be written.
    #[error("'{}', where the source is unpacked to, cannot be written", dir.display())]
    Spool {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The spool would be full.
    #[error("'{}' has no room to unpack '{}'", dir.display(), path.display())]
    SpoolFull {
        /// The directory.
        dir: PathBuf,
        /// The source.
        path: PathBuf,
    },
}

fn none_of(wanted: Option<&String>) -> String {
    match wanted {
        Some(name) => format!("there is no member '{}'", name.escape_debug()),
        None => "there is no disk".to_owned(),
    }
}

/// An open source.
pub(crate) struct Opened {
    /// The disk.
    pub(crate) disk: Box<dyn Source>,
    /// The formats it was found in, outermost first: `gzip, qcow2`.
    pub(crate) formats: Vec<Format>,
    /// Whether it is a device that is mounted here, or used otherwise.
    pub(crate) is_in_use: bool,
}

/// Opens a source; `-` is standard input. `progress` hears how many bytes of a
/// stream are unpacked.
///
/// # Errors
/// [`SourceError`].
pub(crate) fn open(
    path: &Path,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Opened, SourceError> {
    let mut opener = Opener {
        path,
        options,
        progress,
        formats: Vec::new(),
        is_in_use: false,
    };
    let disk = opener.path()?;
    if disk.len_bytes() == 0 {
        return Err(SourceError::Empty {
            path: path.to_owned(),
        });
    }
    if disk.len_bytes() > options.disk_bytes_max.min(DISK_BYTES_MAX) {
        return Err(opener.too_large());
    }
    Ok(Opened {
        disk,
        is_in_use: opener.is_in_use,
        formats: opener.formats,
    })
}

struct Opener<'a> {
    path: &'a Path,
    options: &'a Options,
    progress: &'a mut dyn FnMut(u64),
    formats: Vec<Format>,
    is_in_use: bool,
}

impl Opener<'_> {
    fn path(&mut self) -> Result<Box<dyn Source>, SourceError> {
        if self.path == Path::new("-") {
            return self.stream(&mut io::stdin(), self.options.format);
        }
        // Without O_NONBLOCK a named pipe would wait for its writer here.
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(self.path)
            .map_err(|cause| self.unreadable(cause))?;
        let kind = file
            .metadata()
            .map_err(|cause| self.unreadable(cause))?
            .file_type();
        let path = self.path.to_owned();
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_char_device() {
            "a character device"
        } else if kind.is_fifo() {
            // Read as a stream by whoever wants it: `rootstock … - < PIPE`.
            "a named pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            let file = if kind.is_block_device() {
                let file = self.claim(file);
                forget_cached(&file);
                file
            } else {
                file
            };
            let disk = FileDisk::whole(file, self.path, self.options.writes)
                .map_err(|cause| self.unreadable(cause))?;
            // A guest can write any magic on its own disk: a device is raw.
            let format = match self.options.format {
                None if kind.is_block_device() => Some(Format::Raw),
                format => format,
            };
            return self.file(disk, format);
        };
        Err(SourceError::NotADisk { path, what })
    }

    /// Claims a device, so that nothing of it is mounted while it is read (`open(2)`,
    /// `O_EXCL`). One that is in use is read as it is; what is free in it is not known: the
    /// kernel may show another state of it than the mounted file system has.
    fn claim(&mut self, file: File) -> File {
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::EXCL;
        let claimed = File::options()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(self.path);
        self.is_in_use = claimed.is_err();
        claimed.unwrap_or(file)
    }

    /// A disk, or something that holds one, that can be read at any place.
    fn file(
        &mut self,
        image: FileDisk,
        format: Option<Format>,
    ) -> Result<Box<dyn Source>, SourceError> {
        let range = image.range();
        let format = match format {
            Some(format) => format,
            None => self.look(image.file(), range)?,
        };
        self.enter(format)?;
        match format {
            Format::Raw => Ok(Box::new(image)),
            Format::Foreign(foreign) => {
                let max = self.options.disk_bytes_max;
                Ok(Box::new(QemuDisk::open(foreign, image, self.path, max)?))
            }
            Format::Tar => {
                let wanted = self.options.member.as_deref();
                let file = self.clone_of(image.file())?;
                match archive::find(&file, range, self.path, wanted)? {
                    Place::InFile(member) => {
                        let member = FileDisk::part(file, self.path, member, self.options.writes)
                            .map_err(|cause| self.unreadable(cause))?;
                        self.file(member, None)
                    }
                    Place::Sparse => self.unpack(&mut RangeReader::new(&file, range)),
                }
            }
            Format::Compressed(compression) => {
                let file = self.clone_of(image.file())?;
                let packed = RangeReader::new(&file, range);
                let mut plain = stream::decompress(compression, packed)
                    .map_err(|cause| self.unreadable(cause))?;
                self.stream(&mut plain, None)
            }
        }
    }

    /// The same of something that can be read only once.
    fn stream(
        &mut self,
        stream: &mut (dyn Read + Send),
        format: Option<Format>,
    ) -> Result<Box<dyn Source>, SourceError> {
        let (head, mut stream) = stream::peek(stream).map_err(|cause| SourceError::Stream {
            path: self.path.to_owned(),
            after_bytes: 0,
            cause,
        })?;
        match format.unwrap_or_else(|| detect(&head, &[])) {
            Format::Compressed(compression) => {
                self.enter(Format::Compressed(compression))?;
                let mut plain = stream::decompress(compression, stream)
                    .map_err(|cause| self.unreadable(cause))?;
                self.stream(&mut plain, None)
            }
            Format::Tar => {
                self.enter(Format::Tar)?;
                self.unpack(&mut stream)
            }
            Format::Raw | Format::Foreign(_) => {
                let file = self
                    .spool()
                    .fill(&mut stream, self.path, &mut *self.progress)?;
                self.spooled(file, format)
            }
        }
    }

    fn unpack(&mut self, stream: &mut dyn Read) -> Result<Box<dyn Source>, SourceError> {
        let wanted = self.options.member.as_deref();
        let spool = self.spool();
        let file = archive::unpack(stream, self.path, wanted, &spool, &mut *self.progress)?;
        self.spooled(file, None)
    }

    fn spooled(
        &mut self,
        file: File,
        format: Option<Format>,
    ) -> Result<Box<dyn Source>, SourceError> {
        let disk = FileDisk::whole(file, self.path, Writes::Refuse)
            .map_err(|cause| self.unreadable(cause))?;
        self.file(disk, format)
    }

    fn spool(&self) -> Spool {
        Spool {
            dir: self.options.spool_dir.clone(),
            stream_bytes_max: self.options.disk_bytes_max,
        }
    }

    fn look(&self, file: &File, range: ByteRange) -> Result<Format, SourceError> {
        let read = |at: u64, len: u64| {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, at)
                .map_err(|cause| self.unreadable(cause))?;
            Ok::<_, SourceError>(bytes)
        };
        let head = read(range.start, range.len.min(HEAD_BYTES as u64))?;
        let tail_len = range.len.min(512);
        let tail = read(range.end() - tail_len, tail_len)?;
        Ok(detect(&head, &tail))
    }

    fn enter(&mut self, format: Format) -> Result<(), SourceError> {
        if self.formats.len() == NESTING_MAX {
            return Err(SourceError::Nested {
                path: self.path.to_owned(),
            });
        }
        self.formats.push(format);
        Ok(())
    }

    fn clone_of(&self, file: &File) -> Result<File, SourceError> {
        file.try_clone().map_err(|cause| self.unreadable(cause))
    }

    fn unreadable(&self, cause: io::Error) -> SourceError {
        SourceError::Open {
            path: self.path.to_owned(),
            cause,
        }
    }

    fn too_large(&self) -> SourceError {
        SourceError::TooLarge {
            path: self.path.to_owned(),
            disk_bytes_max: self.options.disk_bytes_max.min(DISK_BYTES_MAX),
        }
    }
}

/// Forgets what the kernel has of a device in memory: a disk has other pages there than
/// its partitions, which nobody renews when a file system on one of them is written to.
fn forget_cached(file: &File) {
    let advised = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    // Nothing is worse than before then.
    let _: Result<(), rustix::io::Errno> = advised;
}
