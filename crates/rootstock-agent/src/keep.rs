//! Paths of the root that outlive it: they lie on a file system of the machine's own.
//!
//! It is found by its label, so that nothing has to be said at boot and no disk is
//! touched that its owner did not mean. A path that is not there yet begins as the
//! image has it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::KeptPath;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::confined::Root;
use crate::disk::find::Devices;
use crate::switch::SYSROOT;

mod label;

/// What the file system is called: short enough for all kinds that have labels.
const LABEL: &str = "rootstock";
/// Where it is mounted while the machine runs.
const MOUNT: &str = "/run/rootstock/keep";
/// Where it is seen from inside the image while paths are copied to it.
const INSIDE: &str = "/run";
/// A disk that is to be there may take long to be ready.
const DISK_LIMIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What runs a program of the image: this one, in a process of its own.
pub(crate) const ROLE: &str = "in-root";
/// How that one ends when the image has no such program, as a shell does.
pub(crate) const NO_PROGRAM: u8 = 127;

/// Why paths are not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// Nothing has the label.
    #[error(
        "no disk has a file system labelled '{LABEL}': make one \
         (mkfs.ext4 -L {LABEL} /dev/sdXN)"
    )]
    NoFileSystem,
    /// More than one has it.
    #[error("{one} and {other} are both labelled '{LABEL}': let one of them have another label")]
    Several {
        /// The first.
        one: String,
        /// The second.
        other: String,
    },
    /// One path holds another.
    #[error("{path} lies inside {outer}, which is kept already: name one of them")]
    Nested {
        /// The inner one.
        path: KeptPath,
        /// The outer one.
        outer: KeptPath,
    },
    /// It is there and cannot be mounted.
    #[error("{device} cannot be mounted as {kind}")]
    Mount {
        /// The device.
        device: String,
        /// What its superblock says.
        kind: &'static str,
        #[source]
        source: io::Error,
    },
    /// A path does not get to its place.
    #[error("{path} is not kept")]
    Path {
        /// The path.
        path: KeptPath,
        #[source]
        source: io::Error,
    },
}

/// Has these paths of the mounted root on the machine's own file system.
///
/// # Errors
/// [`KeepError`]; paths before the one that failed are kept.
pub(crate) fn apply(paths: &[KeptPath]) -> Result<(), KeepError> {
    if paths.is_empty() {
        return Ok(());
    }
    let inside = |path: &KeptPath, outer: &KeptPath| {
        let rest = path.as_str().strip_prefix(outer.as_str());
        rest.is_some_and(|rest| rest.starts_with('/'))
    };
    for path in paths {
        if let Some(outer) = paths.iter().find(|outer| inside(path, outer)) {
            return Err(KeepError::Nested {
                path: path.clone(),
                outer: outer.clone(),
            });
        }
    }
    let (device, kind) = labelled()?;
    let failed = |source| KeepError::Mount {
        device: device.clone(),
        kind,
        source,
    };
    mount_at(&device, kind, MOUNT).map_err(failed)?;
    for path in paths {
        keep(path).map_err(|source| KeepError::Path {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The device and the kind of the machine's own file system.
///
/// # Errors
/// When there is none, or more than one.
pub(crate) fn labelled() -> Result<(String, &'static str), KeepError> {
    match find().as_slice() {
        [] => Err(KeepError::NoFileSystem),
        [found] => Ok(found.clone()),
        [one, other, ..] => Err(KeepError::Several {
            one: one.0.clone(),
            other: other.0.clone(),
        }),
    }
}

/// Devices and kinds of labelled file systems, once there is one.
fn find() -> Vec<(String, &'static str)> {
    let Ok(devices) = Devices::open() else {
        return Vec::new();
    };
    let began = Instant::now();
    loop {
        let heads = devices.heads(label::HEAD_BYTES).into_iter();
        let found: Vec<_> = heads
            .filter_map(|(name, head)| {
                let (kind, found) = label::of(&head)?;
                (found == LABEL).then(|| (format!("/dev/{name}"), kind))
            })
            .collect();
        if !found.is_empty() || began.elapsed() > DISK_LIMIT {
            return found;
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn mount_at(device: &str, kind: &str, at: &str) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let mount = || mount(device, at, kind, MountFlags::RELATIME, c"");
    match mount() {
        // The kernel lacks its driver: the image may have it.
        Err(rustix::io::Errno::NODEV) => {
            in_root(&["modprobe", kind])?;
            Ok(mount()?)
        }
        other => Ok(other?),
    }
}

/// Puts one path on the mounted file system.
fn keep(path: &KeptPath) -> io::Result<()> {
    let kept = Path::new(MOUNT).join(path.file_name());
    let place = Root::new(Path::new(SYSROOT)).place(path.as_str())?;
    if !place.exists() {
        fs::create_dir(&place)?;
    }
    match fs::symlink_metadata(&kept) {
        Ok(facts) if facts.is_symlink() => {
            return Err(io::Error::other("a link is in its place"));
        }
        Ok(_) => {}
        Err(_) => begin(path, &place, &kept)?,
    }
    Ok(mount_bind(&kept, &place)?)
}

/// Makes what is kept of a path what the image has there: all of it or nothing.
fn begin(path: &KeptPath, place: &Path, kept: &Path) -> io::Result<()> {
    // No path's own name has a `%` before an `n`.
    let name = format!("{}%new", path.file_name());
    let half: PathBuf = Path::new(MOUNT).join(&name);
    remove(&half)?;
    let inside = format!("{SYSROOT}{INSIDE}");
    fs::create_dir_all(&inside)?;
    mount_bind(MOUNT, inside.as_str())?;
    // Where links lead to, not the link.
    let from = Path::new("/").join(place.strip_prefix(SYSROOT).unwrap_or(place));
    let copied = match from.to_str() {
        Some(from) => in_root(&["cp", "-a", "--", from, &format!("{INSIDE}/{name}")]),
        None => Err(io::ErrorKind::InvalidFilename.into()),
    };
    unmount(inside.as_str(), UnmountFlags::DETACH)?;
    match copied {
        Ok(()) => {}
        // An image without `cp`: the directory begins empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound && place.is_dir() => {
            let facts = fs::metadata(place)?;
            fs::create_dir(&half)?;
            fs::set_permissions(&half, fs::Permissions::from_mode(facts.mode() & 0o7777))?;
            std::os::unix::fs::chown(&half, Some(facts.uid()), Some(facts.gid()))?;
        }
        Err(error) => {
            remove(&half)?;
            return Err(error);
        }
    }
    rustix::fs::syncfs(fs::File::open(MOUNT)?)?;
    fs::rename(&half, kept)
}

/// Removes what is there, whatever it is.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Runs a program of the image in its root.
fn in_root(words: &[&str]) -> io::Result<()> {
    let status = Command::new("/proc/self/exe")
        .arg(ROLE)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ended(words[0], status)
}

/// What the end of a program in the image means.
fn ended(program: &str, status: ExitStatus) -> io::Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) if code == i32::from(NO_PROGRAM) => Err(io::ErrorKind::NotFound.into()),
        _ => Err(io::Error::other(format!("{program} ended with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn an_image_without_a_program_is_not_one_where_it_failed() {
        let ended = |raw| ended("cp", ExitStatus::from_raw(raw)).map_err(|error| error.kind());
        assert_eq!(ended(0), Ok(()));
        assert_eq!(ended(127 << 8), Err(io::ErrorKind::NotFound));
        // It failed, or was killed.
        assert_eq!(ended(1 << 8), Err(io::ErrorKind::Other));
        assert_eq!(ended(9), Err(io::ErrorKind::Other));
    }
}
