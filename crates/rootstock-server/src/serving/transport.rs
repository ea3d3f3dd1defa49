//! A connection's stream of bytes, in the clear or in TLS.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt},
};

/// Silence after which a TCP peer is asked whether it still lives, and the
/// number of questions it may leave unanswered, ten seconds apart.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES_MAX: u32 = 6;

/// What a Unix socket may hold unread, in bytes: its default makes a 1 MiB reply
/// wait for the reader several times.
const UNIX_SEND_BUFFER_BYTES: usize = 1 << 20;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Sets what every connection needs.
    pub(crate) fn prepare(&self, write_timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(stream, true)?;
                sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
                sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
                sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES_MAX)?;
                stream.set_write_timeout(Some(write_timeout))
            }
            Self::Unix(stream) => {
                sockopt::set_socket_send_buffer_size(stream, UNIX_SEND_BUFFER_BYTES)?;
                stream.set_write_timeout(Some(write_timeout))
            }
        }
    }

    /// Who is at the other end, for people: an address, or a process.
    pub(crate) fn client(&self) -> String {
        match self {
            Self::Tcp(stream) => stream
                .peer_addr()
                .map_or_else(|_| "unknown".to_owned(), |address| address.to_string()),
            Self::Unix(stream) => sockopt::socket_peercred(stream).map_or_else(
                |_| "unix".to_owned(),
                |credentials| format!("process {}", credentials.pid.as_raw_nonzero()),
            ),
        }
    }

    /// Ends the stream of requests: the reader sees its end.
    pub(crate) fn close_read(&self) {
        self.close(Shutdown::Read);
    }

    /// Says that no more replies come.
    pub(crate) fn close_write(&self) {
        self.close(Shutdown::Write);
    }

    /// Ends everything, also a send that waits.
    pub(crate) fn close_both(&self) {
        self.close(Shutdown::Both);
    }

    fn close(&self, how: Shutdown) {
        // A connection that is gone already is what was wanted.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    fn recv(&self, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        let flags = match wait {
            Wait::Forever => RecvFlags::empty(),
            Wait::Never => RecvFlags::DONTWAIT,
            Wait::Until(deadline) => {
                wait_readable(self, None, Some(deadline))?;
                RecvFlags::DONTWAIT
            }
        };
        loop {
            match recv(self, &mut *buffer, flags) {
                Ok((_, len)) => return Ok(len),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, slices: &[IoSlice<'_>], more: More) -> io::Result<usize> {
        let flags = match more {
            More::Follows => SendFlags::NOSIGNAL | SendFlags::MORE,
            More::Nothing => SendFlags::NOSIGNAL,
        };
        loop {
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(self, slices, &mut control, flags) {
                Ok(len) => return Ok(len),
                Err(rustix::io::Errno::INTR) => {}
                // The write timeout: the client does not read.
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// How long a receive waits for the first byte.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    Forever,
    /// `WouldBlock` when there is nothing.
    Never,
    /// `TimedOut` at the deadline.
    Until(Instant),
}

/// Whether a send is followed by another at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Follows,
    Nothing,
}

/// Waits until the socket or the event is readable, and says whether the event is.
pub(crate) fn wait_readable(
    socket: &Socket,
    event: Option<&OwnedFd>,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(socket, PollFlags::IN),
        PollFd::new(socket, PollFlags::empty()),
    ];
    let count = match event {
        Some(event) => {
            fds[1] = PollFd::new(event, PollFlags::IN);
            2
        }
        None => 1,
    };
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(count == 2 && !fds[1].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The stream over a socket.
pub(crate) struct Transport {
    pub(crate) socket: Arc<Socket>,
    tls: Option<Box<rustls::ServerConnection>>,
}

impl Transport {
    pub(crate) const fn new(socket: Arc<Socket>) -> Self {
        Self { socket, tls: None }
    }

    /// Goes on in TLS: the handshake, until the deadline.
    pub(crate) fn start_tls(
        &mut self,
        config: &Arc<rustls::ServerConfig>,
        deadline: Instant,
    ) -> io::Result<()> {
        let mut tls =
            rustls::ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            take_in(&mut tls, &self.socket, Wait::Until(deadline))?;
        }
        flush_tls(&mut tls, &self.socket)?;
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Receives at least a byte, or 0 at the end of the stream.
    pub(crate) fn recv(&mut self, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.recv(buffer, wait);
        };
        loop {
            match tls.reader().read(buffer) {
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The peer left without a TLS goodbye, as many clients do. The
                // protocol's own messages tell whether anything was cut off.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
            take_in(tls, &self.socket, wait)?;
        }
    }

    /// Sends all of the slices.
    pub(crate) fn send(&mut self, mut slices: &mut [IoSlice<'_>], more: More) -> io::Result<()> {
        while !slices.is_empty() {
            let len = match &mut self.tls {
                None => self.socket.send(slices, more)?,
                Some(tls) => {
                    let len = tls.writer().write_vectored(slices)?;
                    flush_tls(tls, &self.socket)?;
                    len
                }
            };
            IoSlice::advance_slices(&mut slices, len);
        }
        Ok(())
    }

    /// Says goodbye inside TLS; nothing is said in the clear.
    pub(crate) fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // The peer may be gone; it has all it asked for.
            let _ = flush_tls(tls, &self.socket);
        }
    }
}

/// Receives TLS records and answers what TLS itself asks.
fn take_in(tls: &mut rustls::ServerConnection, socket: &Socket, wait: Wait) -> io::Result<()> {
    let len = tls.read_tls(&mut Receiver { socket, wait })?;
    if len == 0 && tls.is_handshaking() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let processed = tls.process_new_packets();
    // On an error this carries the alert that tells the client.
    flush_tls(tls, socket)?;
    processed.map(drop).map_err(io::Error::other)
}

fn flush_tls(tls: &mut rustls::ServerConnection, socket: &Socket) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut Sender { socket })?;
    }
    Ok(())
}

struct Receiver<'a> {
    socket: &'a Socket,
    wait: Wait,
}

impl Read for Receiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer, self.wait)
    }
}

struct Sender<'a> {
    socket: &'a Socket,
}

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send(&[IoSlice::new(bytes)], More::Nothing)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(slices, More::Nothing)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
