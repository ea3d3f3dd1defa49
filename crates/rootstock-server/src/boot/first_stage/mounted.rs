//! XFS and Btrfs of a version, read through the kernel's own drivers.
//!
//! A FUSE file shows the partition's bytes, a loop device makes a block device of
//! it, and the kernel mounts that, read-only and without replaying a journal. The
//! mount is attached to no directory (fsmount(2)), so nobody else sees it, and it
//! ends with its last descriptor, also when the daemon dies; only the FUSE file
//! has a path, until losetup has opened it.
//!
//! A driver in the kernel trusts a disk more than a reader of our own would, which
//! is why ext4 does not come this way.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, Request, Session, SessionACL,
};
use rootstock_image::{
    ReadAt,
    boot::{FileKind, FsError, OpenFsError, Opened, RootFs, Stat},
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno as Failure,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags},
};

use super::{make::because, random_name};

/// The most names that are taken from one directory.
const DIR_ENTRIES_MAX: usize = 16_384;

/// How often a look-up is repeated that a change of the mounts disturbed.
const LOOKUPS_MAX: usize = 8;

/// Where a mount has its path for a moment.
const RUN_DIR: &str = "/run";

/// Nothing of a version ever changes.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// Subvolumes that installers put roots into: Ubuntu and Arch Linux, Debian, Fedora.
const SUBVOLUMES: [&str; 3] = ["@", "@rootfs", "root"];

/// What is mounted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Xfs,
    Btrfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Options that keep the driver from writing, and from minding a twin of the
    /// file system on another version.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Xfs => &["ro", "norecovery", "nouuid"],
            Self::Btrfs => &["ro"],
        }
    }
}

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
        len_bytes: len_bytes.min(disk.len_bytes().saturating_sub(start_bytes)),
    };
    let root = mount(part, kind).map_err(|error| {
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

/// What could not be done on the way to a mount.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
struct MountError {
    doing: &'static str,
    #[source]
    source: io::Error,
}

fn cannot<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> MountError {
    move |source| MountError {
        doing,
        source: source.into(),
    }
}

/// The root directory of the mount; it ends when nobody has it or a file of it.
fn mount(part: Part, kind: Kind) -> Result<OwnedFd, MountError> {
    let file = show(part)?;
    let device = LoopDevice::attach(&file)?;
    // The loop device holds the file now.
    drop(file);
    let fs = rustix::mount::fsopen(kind.name(), FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(cannot("use the kernel's driver"))?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), "source", device.0.as_str())
        .map_err(cannot("name the device"))?;
    for flag in kind.flags() {
        rustix::mount::fsconfig_set_flag(fs.as_fd(), *flag).map_err(cannot("set an option"))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(cannot("read the file system"))?;
    detached(&fs)
}

fn detached(fs: &OwnedFd) -> Result<OwnedFd, MountError> {
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(cannot("mount the file system"))
}

/// A file with the bytes of a part of a disk: the only one of a FUSE file system,
/// whose root is no directory. It is served until nobody has it.
fn show(part: Part) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fuse =
        rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(cannot("open /dev/fuse"))?;
    let fs = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(cannot("use the kernel's FUSE"))?;
    let channel = fuse.as_raw_fd().to_string();
    // The mode is octal text: a regular file, to be read by its owner.
    let options = [
        ("source", "rootstock"),
        ("fd", channel.as_str()),
        ("rootmode", "100400"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)
            .map_err(cannot("set an option of FUSE"))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(cannot("start FUSE"))?;
    let mounted = detached(&fs)?;
    let session = Session::from_fd(part, fuse, SessionACL::All, fuser::Config::default())
        .map_err(cannot("serve FUSE"))?;
    thread::Builder::new()
        .name("image-bytes".to_owned())
        .spawn(move || {
            if let Err(error) = session.run() {
                tracing::debug!(%error, "serving an image's bytes ended");
            }
        })
        .map_err(cannot("start a thread"))?;
    Ok(mounted)
}

/// A path to a mount, while losetup needs one: it opens nothing by descriptor.
struct Place(String);

impl Place {
    fn of(mounted: &OwnedFd) -> Result<Self, MountError> {
        let name = random_name().map_err(cannot("choose a name"))?;
        let place = Self(format!("{RUN_DIR}/rootstock-image-{name}"));
        File::create_new(&place.0).map_err(cannot("make a file in /run"))?;
        rustix::mount::move_mount(
            mounted.as_fd(),
            "",
            rustix::fs::CWD,
            place.0.as_str(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(cannot("show the image's bytes"))?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It is not mounted when it could not be.
        let _ = rustix::mount::unmount(self.0.as_str(), UnmountFlags::DETACH);
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = self.0, %error, "a file in /run stays");
        }
    }
}

/// A loop device, which goes away with its last user.
struct LoopDevice(String);

impl LoopDevice {
    fn attach(file: &OwnedFd) -> Result<Self, MountError> {
        let place = Place::of(file)?;
        let said = losetup(&["--find", "--show", "--read-only", &place.0])?;
        Ok(Self(said.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    /// A device that is in use goes when it no longer is (loop(4), `LOOP_CLR_FD`).
    fn drop(&mut self) {
        if let Err(error) = losetup(&["--detach", &self.0]) {
            tracing::warn!(
                device = self.0,
                error = because(&error),
                "loop device stays"
            );
        }
    }
}

fn losetup(arguments: &[&str]) -> Result<String, MountError> {
    let output = Command::new("losetup")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(cannot("run losetup"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(cannot("make a loop device")(io::Error::other(said)))
}

/// A part of a disk, served as a file.
struct Part {
    disk: Arc<dyn ReadAt>,
    start_bytes: u64,
    len_bytes: u64,
}

impl Filesystem for Part {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let then = SystemTime::UNIX_EPOCH;
        let attributes = FileAttr {
            ino: INodeNo::ROOT,
            size: self.len_bytes,
            blocks: self.len_bytes.div_ceil(512),
            atime: then,
            mtime: then,
            ctime: then,
            crtime: then,
            kind: FileType::RegularFile,
            perm: 0o400,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&FOREVER, &attributes);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.len_bytes.saturating_sub(offset));
        let mut bytes = vec![0; len as usize];
        match self
            .disk
            .read_exact_at(self.start_bytes + offset, &mut bytes)
        {
            Ok(()) => reply.data(&bytes),
            Err(error) => {
                tracing::error!(%error, offset, "an image's bytes cannot be read");
                reply.error(Errno::EIO);
            }
        }
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
