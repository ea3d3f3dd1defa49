//! XFS and Btrfs of a version, read through the kernel's own drivers.
//!
//! A driver in the kernel trusts a disk more than a reader of our own would, which
//! is why ext4 does not come this way.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rootstock_image::{
    ReadAt,
    boot::{FileKind, FsError, OpenFsError, Opened, RootFs, Stat},
};
use rootstock_mount::{Kind, Part};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno as Failure,
};

use super::make::because;

/// The most names that are taken from one directory.
const DIR_ENTRIES_MAX: usize = 16_384;

/// Threads that read a version for the kernel.
const READERS: usize = 1;

/// How often a look-up is repeated that a change of the mounts disturbed.
const LOOKUPS_MAX: usize = 8;

/// Subvolumes that installers put roots into: Ubuntu and Arch Linux, Debian, Fedora.
const SUBVOLUMES: [&str; 3] = ["@", "@rootfs", "root"];

/// Opens the file system in a part of a disk, with the subvolumes that may be roots.
pub(super) fn open(
    disk: &Arc<dyn ReadAt>,
    start_bytes: u64,
    len_bytes: u64,
    kind: Kind,
) -> Result<Vec<Opened>, OpenFsError> {
    let part = Part {
        disk: Arc::clone(disk),
        start_bytes,
        len_bytes,
    };
    let root = rootstock_mount::mount(part, kind, "", READERS).map_err(|error| {
        OpenFsError::Unsupported(format!(
            "the daemon can read {name} only by mounting it, and could not: {}; run the daemon \
             as root on a kernel with FUSE, loop devices and {name}, or use an image with ext4",
            because(&error),
            name = kind.name(),
        ))
    })?;
    let mut trees = Vec::new();
    if let Kind::Btrfs = kind {
        for name in SUBVOLUMES {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            if let Ok(dir) = open_below(root.as_fd(), name, flags) {
                trees.push(tree(dir, kind, format!("subvol={name}")));
            }
        }
    }
    // The default subvolume is what a mount without options shows.
    trees.insert(0, tree(root, kind, String::new()));
    Ok(trees)
}

fn tree(root: OwnedFd, kind: Kind, options: String) -> Opened {
    Opened {
        fs: Box::new(DirFs { root }),
        kind: kind.name(),
        options,
    }
}

/// A directory as the root of an image: no path leads out of it.
struct DirFs {
    root: OwnedFd,
}

fn open_below(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Failure> {
    let path = match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut flags = flags | OFlags::CLOEXEC;
    // openat2(2) refuses flags that would do nothing.
    if !flags.contains(OFlags::PATH) {
        flags |= OFlags::NOCTTY | OFlags::NONBLOCK;
    }
    let mut tries = 0;
    loop {
        let opened = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
        tries += 1;
        // openat2(2): EAGAIN when something was renamed or mounted meanwhile.
        if opened.as_ref().err() != Some(&Failure::AGAIN) || tries >= LOOKUPS_MAX {
            return opened;
        }
    }
}

fn absent(error: Failure) -> bool {
    matches!(
        error,
        Failure::NOENT | Failure::NOTDIR | Failure::LOOP | Failure::NAMETOOLONG
    )
}

fn unreadable(path: &str, source: impl Into<io::Error>) -> FsError {
    FsError::Io {
        path: path.to_owned(),
        source: source.into(),
    }
}

impl RootFs for DirFs {
    fn stat(&self, path: &str) -> Result<Option<Stat>, FsError> {
        let file = match open_below(self.root.as_fd(), path, OFlags::PATH) {
            Ok(file) => file,
            Err(error) if absent(error) => return Ok(None),
            Err(error) => return Err(unreadable(path, error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| unreadable(path, error))?;
        let kind = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::RegularFile => FileKind::File,
            rustix::fs::FileType::Directory => FileKind::Dir,
            _ => FileKind::Other,
        };
        Ok(Some(Stat {
            kind,
            len_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        }))
    }

    fn read_head(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FsError> {
        // A device or a pipe of the image is not opened at all.
        if !self.is_file(path)? {
            let path = path.to_owned();
            return Err(FsError::Missing { path });
        }
        let file = open_below(self.root.as_fd(), path, OFlags::RDONLY);
        let file = File::from(file.map_err(|error| unreadable(path, error))?);
        let mut bytes = Vec::new();
        let read = file.take(bytes_max).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(path, error))?;
        Ok(bytes)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, FsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = match open_below(self.root.as_fd(), dir, flags) {
            Ok(opened) => opened,
            Err(error) if absent(error) => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(dir, error)),
        };
        let entries =
            rustix::fs::Dir::read_from(&opened).map_err(|error| unreadable(dir, error))?;
        let mut names = Vec::new();
        for entry in entries.take(DIR_ENTRIES_MAX) {
            let entry = entry.map_err(|error| unreadable(dir, error))?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn no_path_leads_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        fs::write(root.join("usr/lib/file"), "inside").unwrap();
        symlink("/usr/lib", root.join("lib")).unwrap();
        symlink("../../../secret", root.join("up")).unwrap();
        symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let root = rustix::fs::open(&root, OFlags::PATH, Mode::empty()).unwrap();
        let fs = DirFs { root };
        assert_eq!(fs.read("/lib/file", 10).unwrap(), b"inside");
        assert!(matches!(
            fs.read("/lib/file", 3),
            Err(FsError::TooLong { .. })
        ));
        for path in ["/up", "/absolute", "/../secret", "/loop", "/lib/file/x"] {
            assert_eq!(fs.stat(path).unwrap(), None, "{path}");
            assert!(
                matches!(fs.read(path, 10), Err(FsError::Missing { .. })),
                "{path}"
            );
        }
        assert_eq!(fs.list("/lib").unwrap(), ["file"]);
        assert_eq!(
            fs.list("/").unwrap(),
            ["absolute", "lib", "loop", "up", "usr"]
        );
        assert_eq!(fs.list("/absent").unwrap(), Vec::<String>::new());
    }
}
