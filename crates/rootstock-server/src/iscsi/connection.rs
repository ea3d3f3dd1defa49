//! Accepting connections, and the life of one.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rootstock_iscsi::{Digests, Frame, FrameError, LoginError, SessionError, decode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    jobs::Bell,
    login, serve,
    shared::{Admission, Shared},
};
use crate::serving::{
    outgoing::Outgoing,
    patience::Patience,
    transport::{Socket, Transport, Wait, wait_readable},
};

/// How long to leave a listener alone after it ran out of descriptors or memory.
const BACK_OFF: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A connection thread's stack, in bytes: nothing in it recurses.
const STACK_BYTES: usize = 512 << 10;

/// What is received at once, in bytes; a PDU may be longer.
const RECEIVE_BYTES: usize = 64 << 10;

/// Longest wait for a departing initiator to close its side.
const LINGER: Duration = Duration::from_millis(200);

/// Why a connection ended otherwise than by a logout.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the initiator broke the framing")]
    Frame(#[source] FrameError),
    #[error("the initiator broke the login")]
    Login(#[source] LoginError),
    #[error("the initiator broke the protocol")]
    Session(#[source] SessionError),
    #[error("the connection failed while {doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the initiator gave no sign of life")]
    Silent,
}

pub(super) fn io_error(doing: &'static str) -> impl Fn(io::Error) -> ConnectionError {
    move |source| ConnectionError::Io { doing, source }
}

/// Accepts in a thread of its own until the target stops.
pub(super) fn listen(listener: TcpListener, shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("iscsi-accept".to_owned())
        .spawn(move || {
            while wait(&listener, &shared) {
                if let Err(error) = accept_all(&listener, &shared) {
                    tracing::warn!(%error, "cannot accept iSCSI connections; waiting a moment");
                    let mut fds = [PollFd::new(&shared.stop_event, PollFlags::IN)];
                    let _ = poll(&mut fds, Some(&BACK_OFF));
                }
            }
        })
}

/// Waits for a connection; `false` when the target stops.
fn wait(listener: &TcpListener, shared: &Shared) -> bool {
    let mut fds = [
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(&shared.stop_event, PollFlags::IN),
    ];
    // An interrupted wait is as good as a finished one: accepting will tell.
    let _ = poll(&mut fds, None);
    !shared.is_stopping()
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, address)) => start(Socket::Tcp(stream), address, shared)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The initiator left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn start(socket: Socket, address: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let socket = Arc::new(socket);
    let Some(admission) = shared.admit(&socket, Some(address.ip().to_canonical())) else {
        return Ok(());
    };
    let thread = thread::Builder::new()
        .name(format!("iscsi-{}", admission.id))
        .stack_size(STACK_BYTES)
        .spawn(move || run(socket, address.ip().to_canonical(), &admission))?;
    shared.keep_thread(thread);
    Ok(())
}

fn run(socket: Arc<Socket>, address: IpAddr, admission: &Admission) {
    if let Err(error) = converse(socket, address, admission) {
        let cause = std::error::Error::source(&error).map(tracing::field::display);
        tracing::info!(connection = admission.id, %address, %error, cause, "an iSCSI connection ended");
    }
}

fn converse(
    socket: Arc<Socket>,
    address: IpAddr,
    admission: &Admission,
) -> Result<(), ConnectionError> {
    let limits = &admission.shared.limits;
    let prepared = socket.prepare(limits.login_timeout.min(limits.write_timeout));
    prepared.map_err(io_error("preparing the socket"))?;
    let client = socket.client();
    let mut wire = Wire::new(socket);
    let served = match login::login(&mut wire, address, &client, admission) {
        Ok(Some(opened)) => {
            let prepared = wire.transport.socket.prepare(limits.write_timeout);
            prepared.map_err(io_error("preparing the socket"))?;
            serve::serve(&mut wire, address, admission, opened)
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    wire.linger();
    served
}

/// What ended a wait.
pub(super) enum Received {
    Bytes,
    Ring,
    End,
}

/// The stream of PDUs in both directions.
pub(super) struct Wire {
    pub(super) transport: Transport,
    /// Bytes that have come and were not yet looked at are those from `start` to `end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    patience: Patience,
    /// What is to be sent next.
    pub(super) out: Outgoing,
}

impl Wire {
    fn new(socket: Arc<Socket>) -> Self {
        Self {
            transport: Transport::new(socket),
            input: Vec::new(),
            start: 0,
            end: 0,
            patience: Patience::default(),
            out: Outgoing::default(),
        }
    }

    /// The next whole PDU, if there is one, and the buffer for what it is answered.
    pub(super) fn next(
        &mut self,
        digests: Digests,
        data_bytes_max: usize,
    ) -> Result<Option<(Frame<'_>, &mut Outgoing)>, ConnectionError> {
        let found = decode(&self.input[self.start..self.end], digests, data_bytes_max);
        match found.map_err(ConnectionError::Frame)? {
            Some((frame, used)) => {
                self.start += used;
                Ok(Some((frame, &mut self.out)))
            }
            None => Ok(None),
        }
    }

    /// Receives at least a byte; false at the end of the stream.
    pub(super) fn receive(&mut self, wait: Wait) -> io::Result<bool> {
        // What is left is the beginning of a PDU: seldom much, and mostly nothing.
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.input.len() < self.end + RECEIVE_BYTES {
            self.input.resize(self.end + 2 * RECEIVE_BYTES, 0);
        }
        let room = &mut self.input[self.end..];
        let len = self.transport.recv(room, wait)?;
        self.end += len;
        Ok(len > 0)
    }

    /// Receives at least a byte, unless the bell rings first.
    pub(super) fn receive_or_ring(
        &mut self,
        bell: &Bell,
        deadline: Instant,
    ) -> io::Result<Received> {
        let began = Instant::now();
        while self.patience.looks(began.elapsed()) {
            match self.receive_now()? {
                Received::Ring => thread::yield_now(),
                received => {
                    self.patience.followed(began.elapsed());
                    return Ok(received);
                }
            }
        }
        if wait_readable(&self.transport.socket, Some(bell.event()), Some(deadline))? {
            bell.hush();
        }
        self.patience.followed(began.elapsed());
        self.receive_now()
    }

    /// Receives what is there; that nothing is counts as a ring.
    fn receive_now(&mut self) -> io::Result<Received> {
        match self.receive(Wait::Never) {
            Ok(true) => Ok(Received::Bytes),
            Ok(false) => Ok(Received::End),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Ring),
            Err(error) => Err(error),
        }
    }

    /// Sends what has gathered.
    pub(super) fn send(&mut self) -> Result<(), ConnectionError> {
        let sent = self.out.send(&mut self.transport);
        sent.map_err(io_error("sending answers"))
    }

    /// A socket closed with bytes unread takes the last answers with it, so what an
    /// initiator still sends is read for a moment.
    fn linger(&mut self) {
        self.transport.socket.close_write();
        let deadline = Instant::now() + LINGER;
        let mut scratch = [0; 4096];
        while let Ok(1..) = self.transport.recv(&mut scratch, Wait::Until(deadline)) {
            if Instant::now() >= deadline {
                break;
            }
        }
    }
}
