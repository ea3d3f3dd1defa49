//! From the first stage to the image: mounts, the root, and `switch_root`.

use std::convert::Infallible;
use std::env;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::RootPlace;
use rootstock_core::ByteRange;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};

use crate::mapper::SECTOR_BYTES;
use crate::nbd;

/// Where the root is mounted before it becomes the root.
pub(crate) const SYSROOT: &str = "/sysroot";

/// What every system has, with what is mounted there: where, kind, options.
const BASICS: [(&str, &str, MountFlags, &str); 4] = [
    ("/proc", "proc", STRICT, ""),
    ("/sys", "sysfs", STRICT, ""),
    ("/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755"),
    ("/run", "tmpfs", NO_DEVICES, "mode=0755"),
];
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const STRICT: MountFlags = NO_DEVICES.union(MountFlags::NOEXEC);

/// The kernel reads the partition table when the device is opened first.
const PARTITION_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `RAMFS_MAGIC` and `TMPFS_MAGIC` (`statfs(2)`): what a first stage is kept in.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x8584_58f6, 0x0102_1994];

/// Mounts what the first stage itself needs.
///
/// # Errors
/// When the kernel refuses one.
pub(crate) fn mount_basics() -> io::Result<()> {
    for (at, kind, flags, options) in BASICS {
        fs::create_dir_all(at)?;
        let options = CString::new(options)?;
        match mount(kind, at, kind, flags, options.as_c_str()) {
            // Mounted already, by the kernel itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => {
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("{at} cannot be mounted: {error}"),
                ));
            }
        }
    }
    Ok(())
}

/// Lets go what [`mount_basics`] mounted, for an init that mounts them itself. Who has
/// files there open keeps them.
pub(crate) fn leave_basics() {
    for (at, ..) in BASICS.iter().rev() {
        // An init that finds one mounted goes on.
        let _ = unmount(*at, UnmountFlags::DETACH);
    }
}

/// Mounts the root file system, writable, at [`SYSROOT`]: from its partition, or a
/// device that is there instead.
///
/// # Errors
/// When its partition does not appear, or the kernel refuses it.
pub(crate) fn mount_root(place: &RootPlace, device: Option<&str>) -> io::Result<()> {
    let device = match device {
        Some(device) => device.to_owned(),
        None => format!("/dev/{}", partition_name(place.partition)),
    };
    wait_for_partition(&device)?;
    fs::create_dir_all(SYSROOT)?;
    let options = CString::new(place.options.as_str())?;
    mount(
        device.as_str(),
        SYSROOT,
        place.fs.as_str(),
        MountFlags::RELATIME,
        options.as_c_str(),
    )
    .map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("{device} cannot be mounted as {}: {error}", place.fs),
        )
    })
}

/// What the kernel calls a partition of the image's disk; 0 is the whole disk.
pub(crate) fn partition_name(number: u32) -> String {
    match number {
        0 => nbd::NAME.to_owned(),
        number => format!("{}p{number}", nbd::NAME),
    }
}

/// Waits until the kernel has found a partition of the image's disk.
///
/// # Errors
/// When it does not.
pub(crate) fn wait_for_partition(device: &str) -> io::Result<()> {
    let began = Instant::now();
    while !Path::new(device).exists() {
        if began.elapsed() > PARTITION_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the image's disk has no {device}: does the order name the partition?"),
            ));
        }
        // A look at the disk makes the kernel look for its partitions.
        drop(fs::File::open(format!("/dev/{}", nbd::NAME)));
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Where a partition is on the image's disk, once the kernel has found it; 0 is all of
/// the disk.
///
/// # Errors
/// When it does not.
pub(crate) fn partition_range(number: u32) -> io::Result<ByteRange> {
    let name = partition_name(number);
    wait_for_partition(&format!("/dev/{name}"))?;
    let bytes = |of: &str| -> io::Result<u64> {
        let text = fs::read_to_string(format!("/sys/class/block/{name}/{of}"))?;
        let sectors = text.trim().parse::<u64>().map_err(io::Error::other)?;
        Ok(sectors * SECTOR_BYTES)
    };
    let start = if number == 0 { 0 } else { bytes("start")? };
    Ok(ByteRange::new(start, bytes("size")?))
}

/// Where this program is for an administrator who is logged in.
const PROGRAM: &str = "/run/rootstock/rootstock-agent";

/// Leaves this program where it can be run in the image, too: it prepares disks.
///
/// # Errors
/// When there is no room in memory.
pub(crate) fn leave_program() -> io::Result<()> {
    fs::create_dir_all("/run/rootstock")?;
    fs::copy("/proc/self/exe", PROGRAM)?;
    fs::set_permissions(PROGRAM, Permissions::from_mode(0o755))
}

/// Whether the image has a program there.
pub(crate) fn has_init(init: &str) -> bool {
    let root = crate::confined::Root::new(Path::new(SYSROOT));
    root.place(init).is_ok_and(|place| place.is_file())
}

/// Makes [`SYSROOT`] the root and becomes its init.
///
/// # Errors
/// When that fails; it does not return otherwise.
pub(crate) fn switch_root(init: &str) -> io::Result<Infallible> {
    for (at, ..) in BASICS {
        let to = format!("{SYSROOT}{at}");
        fs::create_dir_all(&to)?;
        mount_move(at, to.as_str())?;
    }
    env::set_current_dir(SYSROOT)?;
    // Its memory is the image's from here; this program's own pages stay with it.
    free_first_stage()?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    env::set_current_dir("/")?;
    Err(become_program(init))
}

/// Becomes a program of the root, with what the kernel gave to its first process.
fn become_program(init: &str) -> io::Error {
    Command::new(init).args(env::args_os().skip(1)).exec()
}

/// A shell of the mounted root, in a process of its own.
pub(crate) fn rescue_shell() -> io::Error {
    run_in_root(&["/bin/sh".to_owned(), "-i".to_owned()])
}

/// Becomes a program of the mounted root, in that root.
pub(crate) fn run_in_root(words: &[String]) -> io::Error {
    let Some((program, rest)) = words.split_first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    let entered = rustix::process::chroot(SYSROOT)
        .map_err(io::Error::from)
        .and_then(|()| env::set_current_dir("/"));
    match entered {
        Ok(()) => Command::new(program).args(rest).exec(),
        Err(error) => error,
    }
}

/// Deletes the first stage's files, if it is one.
fn free_first_stage() -> io::Result<()> {
    let kind = rustix::fs::statfs("/")?.f_type as u64;
    if !MEMORY_FILE_SYSTEMS.contains(&kind) {
        return Ok(());
    }
    let device = fs::metadata("/")?.dev();
    delete(Path::new("/"), device);
    Ok(())
}

/// Deletes what is on one device; what cannot be deleted costs memory, no more.
fn delete(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(facts) = fs::symlink_metadata(&path) else {
            continue;
        };
        if facts.dev() != device {
            continue;
        }
        if facts.is_dir() {
            delete(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}
