//! A place for chunks on a machine with a system of its own: a disk that was prepared,
//! or a file of a size that somebody said.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rootstock_cache::{Cache, FormatError, Label, LabelError, OpenError};
use rootstock_core::units::{HumanBytes, is_zero};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatvfs, ftruncate};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::device::Device;
use super::find::Found;

/// What the file is called in a directory.
const NAME: &str = "rootstock-chunks";

/// What is looked at at each end of a file that is there already.
const LOOK_BYTES: u64 = 1 << 20;

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{path} is not there: --size says how large it is to be made, such as 40G")]
    NoSize { path: String },
    #[error("{path} is not prepared: `rootstock-agent cache create {path}` does that")]
    NotPrepared { path: String },
    #[error("{path} holds {what}: name a file that is not there yet, and --size")]
    HoldsOther { path: String, what: &'static str },
    #[error("{path} has {has}, not {wanted}: leave out --size, or remove it to have another size")]
    OtherSize {
        path: String,
        has: HumanBytes,
        wanted: HumanBytes,
    },
    #[error("{path} has the size of its disk: leave out --size")]
    DiskSize { path: String },
    #[error("{path} is used by another agent")]
    InUse { path: String },
    #[error("there is no room for {size} at {path}")]
    NoRoom { path: String, size: HumanBytes },
    #[error("{path} cannot be used")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} was not prepared")]
    Format {
        path: String,
        #[source]
        source: FormatError,
    },
    #[error("the chunks on {path} cannot be used")]
    Open {
        path: String,
        #[source]
        source: OpenError,
    },
}

/// Opens what `path` names: a disk, a file, or the file in a directory. A file that is
/// not there is made with `size_bytes`, all of which it takes at once.
///
/// # Errors
/// [`PlaceError`].
pub(crate) fn open(path: &Path, size_bytes: Option<u64>) -> Result<Place, PlaceError> {
    let kind = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(path)(error)),
    };
    match kind {
        Some(kind) if kind.is_block_device() => disk(path, size_bytes),
        Some(kind) if kind.is_dir() => file(&path.join(NAME), size_bytes),
        _ => file(path, size_bytes),
    }
}

/// A place for chunks, as long as this lives.
pub(crate) struct Place {
    /// What is there.
    pub(crate) found: Found,
    /// Says to other agents that a file is in use; the kernel says so of a disk.
    pub(crate) lock: Option<OwnedFd>,
}

fn disk(path: &Path, size_bytes: Option<u64>) -> Result<Place, PlaceError> {
    if size_bytes.is_some() {
        let path = shown(path);
        return Err(PlaceError::DiskSize { path });
    }
    let device = Device::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => PlaceError::InUse { path: shown(path) },
        _ => failed(path)(error),
    })?;
    found(path, device, None)
}

fn file(path: &Path, size_bytes: Option<u64>) -> Result<Place, PlaceError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    // It is made only when its size is known.
    options.create(size_bytes.is_some());
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if size_bytes.is_none() => {
            let path = shown(path);
            PlaceError::NoSize { path }
        }
        _ => failed(path)(error),
    })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(PlaceError::InUse { path: shown(path) }),
        Err(error) => return Err(failed(path)(error.into())),
    }
    make(path, &file, size_bytes)?;
    let device = Device::open(path).map_err(failed(path))?;
    found(path, device, Some(file.into()))
}

/// Prepares a file, unless it is. What was begun and not finished holds zeros alone.
fn make(path: &Path, file: &File, size_bytes: Option<u64>) -> Result<(), PlaceError> {
    let len_bytes = file.metadata().map_err(failed(path))?.len();
    let device = Device::open(path).map_err(failed(path))?;
    let is_prepared = Cache::label_of(&device).is_ok();
    let Some(size_bytes) = size_bytes else {
        return match is_prepared {
            true => Ok(()),
            false => Err(holds_other(path, file)),
        };
    };
    if is_prepared {
        return match size_bytes == len_bytes {
            true => Ok(()),
            false => Err(PlaceError::OtherSize {
                path: shown(path),
                has: HumanBytes(len_bytes),
                wanted: HumanBytes(size_bytes),
            }),
        };
    }
    if !is_empty(file).map_err(failed(path))? {
        return Err(holds_other(path, file));
    }
    let made = fill(path, file, size_bytes);
    if made.is_err() && len_bytes == 0 {
        // There was none before.
        let _ = fs::remove_file(path);
    }
    made
}

fn fill(path: &Path, file: &File, size_bytes: u64) -> Result<(), PlaceError> {
    let format = |source| PlaceError::Format {
        path: shown(path),
        source,
    };
    let mut id = [0; 16];
    getrandom(&mut id, GetRandomFlags::empty()).map_err(|error| failed(path)(error.into()))?;
    let label = Label::for_disk(id, size_bytes);
    let label = label.map_err(|error: LabelError| format(FormatError::Label(error)))?;
    file.set_len(0).map_err(failed(path))?;
    match take(file, size_bytes) {
        Ok(()) => {}
        Err(Errno::NOSPC | Errno::FBIG) => {
            let (path, size) = (shown(path), HumanBytes(size_bytes));
            return Err(PlaceError::NoRoom { path, size });
        }
        Err(error) => return Err(failed(path)(error.into())),
    }
    let device = Device::open(path).map_err(failed(path))?;
    Cache::format(&device, &label).map_err(format)
}

/// Takes the room, or as a file system allows: some know no such thing, and there it has
/// to be free at least now.
fn take(file: &File, size_bytes: u64) -> Result<(), Errno> {
    match fallocate(file, FallocateFlags::empty(), 0, size_bytes) {
        Err(Errno::OPNOTSUPP) => {}
        taken => return taken,
    }
    let free = fstatvfs(file)?;
    if free.f_bavail.saturating_mul(free.f_frsize) < size_bytes {
        return Err(Errno::NOSPC);
    }
    ftruncate(file, size_bytes)
}

fn found(path: &Path, device: Device, lock: Option<OwnedFd>) -> Result<Place, PlaceError> {
    if Cache::label_of(&device).is_err() {
        let path = shown(path);
        return Err(PlaceError::NotPrepared { path });
    }
    let claim = device.claim();
    let cache = Cache::open(Box::new(device)).map_err(|source| PlaceError::Open {
        path: shown(path),
        source,
    })?;
    let found = Found {
        device: shown(path),
        cache,
        claim,
        // It is for chunks: the machine's own system writes elsewhere.
        spare: None,
    };
    Ok(Place { found, lock })
}

/// Whether a file holds nothing, as far as its two ends tell.
fn is_empty(file: &File) -> io::Result<bool> {
    let len_bytes = file.metadata()?.len();
    let part = LOOK_BYTES.min(len_bytes);
    let mut bytes = vec![0; part as usize];
    for at in [0, len_bytes - part] {
        file.read_exact_at(&mut bytes, at)?;
        if !is_zero(&bytes) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds_other(path: &Path, file: &File) -> PlaceError {
    let what = match is_empty(file) {
        Ok(true) => "no chunks",
        _ => "something else",
    };
    PlaceError::HoldsOther {
        path: shown(path),
        what,
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> PlaceError {
    let path = shown(path);
    move |source| PlaceError::Io {
        path: path.clone(),
        source,
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use rootstock_core::ChunkId;

    use super::*;

    const BYTES: u64 = 8 << 20;

    fn refused(path: &Path, size_bytes: Option<u64>) -> String {
        match open(path, size_bytes) {
            Ok(_) => panic!("{} was taken", path.display()),
            Err(error) => crate::console::chain(&error),
        }
    }

    #[test]
    fn a_file_is_made_once_and_has_what_it_had() {
        let directory = tempfile::tempdir().expect("a directory");
        let said = refused(directory.path(), None);
        assert!(said.contains("--size says"), "{said}");
        let place = open(directory.path(), Some(BYTES)).expect("is made");
        let path = directory.path().join(NAME);
        assert_eq!(place.found.device, path.display().to_string());
        assert_eq!(fs::metadata(&path).expect("is there").len(), BYTES);
        let chunk = ChunkId::of(b"chunk");
        place.found.cache.put(chunk, b"chunk", 0).expect("is put");
        place.found.cache.checkpoint().expect("is kept");
        let said = refused(&path, None);
        assert!(said.contains("another agent"), "{said}");
        drop(place);
        for size in [None, Some(BYTES)] {
            let place = open(&path, size).expect("is there");
            assert!(place.found.cache.has(chunk));
        }
        let said = refused(&path, Some(2 * BYTES));
        assert!(said.contains("leave out --size"), "{said}");
    }

    #[test]
    fn what_is_no_place_for_chunks_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        // Too small for anything, and too large for any disk: nothing is left of it.
        for size in [4096, 1 << 60] {
            refused(&path, Some(size));
            assert!(!path.exists(), "{size}");
        }
        for (bytes, size) in [(&b"text"[..], None), (b"text", Some(BYTES)), (b"", None)] {
            let file = File::create(&path).expect("is made");
            file.write_all_at(bytes, 0).expect("is written");
            let said = refused(&path, size);
            assert!(said.contains("not there yet"), "{said}");
            assert_eq!(fs::read(&path).expect("is there"), bytes);
        }
        // What was begun and not finished.
        let file = File::create(&path).expect("is made");
        file.set_len(BYTES / 2).expect("is longer");
        open(&path, Some(BYTES)).expect("is taken");
    }
}
