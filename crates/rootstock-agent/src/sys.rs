//! The system calls that have no safe wrapper: the crate's only unsafe code.
#![expect(unsafe_code, reason = "calls of the C library that take plain numbers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// Ignores what asks a process to end: the root's server ends with the machine.
pub(crate) fn ignore_signals() {
    for signal in [
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
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
