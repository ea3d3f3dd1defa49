//! File systems of images, mounted by the kernel, read-only.
//!
//! A FUSE file shows a partition's bytes, a loop device makes a block device of it, and
//! the kernel mounts that without replaying a journal. The mount is attached to no
//! directory (fsmount(2)), so nobody else sees it until its owner attaches it, and it ends
//! with its last descriptor, also when its process dies; only the FUSE file has a path,
//! until losetup has opened it.
//!
//! A driver in the kernel trusts a disk more than a reader of our own would: whoever
//! mounts what is not trusted should have a reason.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, Request, Session, SessionACL,
};
use rootstock_core::chain;
use rootstock_image::ReadAt;
use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags},
};

/// Where a mount has its path for a moment.
const RUN_DIR: &str = "/run";

/// Nothing of a version ever changes.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// A file system that is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4, by the driver of the last.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs. A kernel before 6.7 has at most one of all copies of a file system.
    Btrfs,
}

impl Kind {
    /// The kind that the kernel calls so.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let all = [Self::Ext4, Self::Xfs, Self::Btrfs];
        all.into_iter().find(|kind| kind.name() == name)
    }

    /// The kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Options that keep the driver from writing, and from minding a twin of the
    /// file system on another version.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["ro", "noload"],
            Self::Xfs => &["ro", "norecovery", "nouuid"],
            Self::Btrfs => &["ro"],
        }
    }
}

/// What could not be done on the way to a mount.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct MountError {
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

/// A part of a disk that is to be mounted.
pub struct Part {
    /// The disk.
    pub disk: Arc<dyn ReadAt>,
    /// Where the part begins.
    pub start_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
}

/// Mounts what is in a part of a disk, with options such as `subvol=@`; `readers` threads
/// read the disk. The mount is read-only and without devices, programs and rights of
/// programs, and ends when nobody has its root directory or a file of it.
///
/// # Errors
/// When the kernel has no FUSE, loop devices or driver, or the file system is damaged.
pub fn mount(part: Part, kind: Kind, options: &str, readers: usize) -> Result<OwnedFd, MountError> {
    let part = Part {
        len_bytes: part
            .len_bytes
            .min(part.disk.len_bytes().saturating_sub(part.start_bytes)),
        ..part
    };
    let file = show(part, readers)?;
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
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let set = match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(fs.as_fd(), key, value),
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), option),
        };
        set.map_err(cannot("set an option of the image"))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(cannot("read the file system"))?;
    detached(&fs)
}

/// Attaches a mount to a directory.
///
/// # Errors
/// When the directory cannot be mounted on.
pub fn attach(mounted: &OwnedFd, directory: &std::path::Path) -> io::Result<()> {
    rustix::mount::move_mount(
        mounted.as_fd(),
        "",
        rustix::fs::CWD,
        directory,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
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
fn show(part: Part, readers: usize) -> Result<OwnedFd, MountError> {
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
    let mut config = Config::default();
    config.n_threads = Some(readers);
    let session =
        Session::from_fd(part, fuse, SessionACL::All, config).map_err(cannot("serve FUSE"))?;
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
            tracing::warn!(device = self.0, error = chain(&error), "loop device stays");
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

    // losetup asks for both when it has attached a file.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
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

/// A name for a file that nobody else has.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
