//! Accepting connections.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{NbdListener, connection, shared::Shared};
use crate::serving::transport::Socket;

/// How long to leave a listener alone after it ran out of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A connection thread's stack, in bytes: nothing in it recurses.
const STACK_BYTES: usize = 512 << 10;

/// Accepts in a thread of its own until the server stops.
pub(super) fn spawn(listener: NbdListener, shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    match &listener {
        NbdListener::Tcp(listener) => listener.set_nonblocking(true)?,
        NbdListener::Unix(listener) => listener.set_nonblocking(true)?,
    }
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("nbd-accept".to_owned())
        .spawn(move || {
            while wait(&listener, &shared, None) {
                if let Err(error) = accept_all(&listener, &shared) {
                    tracing::warn!(%error, "cannot accept NBD connections; waiting a moment");
                    wait_for_stop(&shared, BACK_OFF);
                }
            }
        })
}

/// Waits for a connection; `false` when the server stops.
fn wait(listener: &NbdListener, shared: &Shared, timeout: Option<&Timespec>) -> bool {
    let mut fds = [
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(&shared.stop_event, PollFlags::IN),
    ];
    // An interrupted wait is as good as a finished one: accepting will tell.
    let _ = poll(&mut fds, timeout);
    !shared.is_stopping()
}

fn wait_for_stop(shared: &Shared, timeout: Duration) {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut fds = [PollFd::new(&shared.stop_event, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&timeout));
}

fn accept_all(listener: &NbdListener, shared: &Arc<Shared>) -> io::Result<()> {
    loop {
        let accepted = match listener {
            NbdListener::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::Tcp(stream)),
            NbdListener::Unix(listener) => {
                listener.accept().map(|(stream, _)| Socket::Unix(stream))
            }
        };
        match accepted {
            Ok(socket) => start(socket, shared)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The client left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn start(socket: Socket, shared: &Arc<Shared>) -> io::Result<()> {
    let socket = Arc::new(socket);
    let Some(admission) = shared.admit(&socket) else {
        return Ok(());
    };
    let thread = thread::Builder::new()
        .name(format!("nbd-{}", admission.id))
        .stack_size(STACK_BYTES)
        .spawn(move || connection::run(socket, &admission))?;
    shared.keep_thread(thread);
    Ok(())
}

impl AsFd for NbdListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}
