//! The system calls that have no safe wrapper: the crate's only unsafe code.
#![expect(
    unsafe_code,
    reason = "calls of the C library that take plain numbers, or bytes of ours"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `PR_SET_IO_FLUSHER` of `include/uapi/linux/prctl.h`.
const IO_FLUSHER: libc::c_int = 57;

/// Marks this thread, and those it starts, as one that file systems wait for:
/// its allocations never wait for a file system (`PR_SET_IO_FLUSHER`, since 5.6).
pub(crate) fn become_io_flusher() -> io::Result<()> {
    let one: libc::c_ulong = 1;
    let zero: libc::c_ulong = 0;
    // SAFETY: this operation of prctl reads its numbers and no memory of ours.
    let result = unsafe { libc::prctl(IO_FLUSHER, one, zero, zero, zero) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What asks a process to end.
const IGNORED: [libc::c_int; 7] = [
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Ignores what asks a process to end: the root's server ends with the machine.
pub(crate) fn ignore_signals() {
    for signal in IGNORED {
        // SAFETY: SIG_IGN installs no handler, so no code of ours runs in a
        // signal's context.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Sends a signal, by its number, to the first process.
pub(crate) fn signal_init(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill reads its two numbers and no memory of ours.
    if unsafe { libc::kill(1, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has a program run in the root that is above this process's directory, which is its
/// `/run`, and with signals as programs expect them.
pub(crate) fn enter_image(command: &mut Command) {
    let enter = || {
        rustix::process::chroot("..")?;
        rustix::process::chdir("/")?;
        for signal in IGNORED {
            // SAFETY: SIG_DFL installs no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec there are system calls alone, which allocate
    // nothing and take no lock.
    unsafe { command.pre_exec(enter) };
}

/// Kills a group of processes.
pub(crate) fn kill_group(leader: u32) -> io::Result<()> {
    let group = libc::pid_t::try_from(leader).map_err(io::Error::other)?;
    // SAFETY: kill reads its two numbers and no memory of ours.
    if unsafe { libc::kill(-group, libc::SIGKILL) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ties a socket to one interface, by name (`SO_BINDTODEVICE`).
pub(crate) fn bind_to_device(socket: BorrowedFd<'_>, interface: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live string, which the
    // kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            interface.as_ptr().cast(),
            interface.len() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has a socket, and those it accepts, send nothing beyond the next router
/// (`SO_DONTROUTE`, `socket(7)`).
pub(crate) fn stay_on_link(socket: BorrowedFd<'_>) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of a live number, which the kernel
    // only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DONTROUTE,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has a file system write all out and let nobody write (`FIFREEZE`, `ioctl_fs(2)`), or
/// go on (`FITHAW`).
pub(crate) fn freeze(file_system: BorrowedFd<'_>, freeze: Freeze) -> io::Result<()> {
    // `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of `include/uapi/linux/fs.h`.
    let code: u32 = match freeze {
        Freeze::Rest => 0xc004_5877,
        Freeze::GoOn => 0xc004_5878,
    };
    let zero: libc::c_int = 0;
    // SAFETY: both ignore their argument.
    let result = unsafe { libc::ioctl(file_system.as_raw_fd(), code as libc::Ioctl, zero) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What a file system is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// Be at rest.
    Rest,
    /// Go on.
    GoOn,
}

/// A call to the device mapper, whose request becomes its answer. The request
/// tells its own length, as `struct dm_ioctl` has it.
pub(crate) fn device_mapper(
    control: BorrowedFd<'_>,
    number: u8,
    request: &mut [u8],
) -> io::Result<()> {
    /// `sizeof(struct dm_ioctl)`.
    const HEADER_BYTES: usize = 312;
    let told = request.get(12..16).map(|field| {
        let mut number = [0; 4];
        number.copy_from_slice(field);
        u32::from_ne_bytes(number) as usize
    });
    assert!(
        request.len() >= HEADER_BYTES && told == Some(request.len()),
        "the kernel writes as much as the request says it is long"
    );
    // `_IOWR(DM_IOCTL, number, struct dm_ioctl)` of `include/uapi/linux/dm-ioctl.h`.
    let code = (3_u32 << 30) | ((HEADER_BYTES as u32) << 16) | (0xfd << 8) | u32::from(number);
    // SAFETY: the kernel reads and writes `data_size` bytes from this pointer on,
    // which are those of the slice, by the assertion above.
    let result = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            code as libc::Ioctl,
            request.as_mut_ptr(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
