//! The bytes of a connection, encrypted or not.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};

use bytes::{Buf as _, Bytes, BytesMut};
use mio::net::TcpStream;
use rootstock_swarm::wire;
use rustls::Connection;

/// What is read at once, so that no connection keeps the others waiting.
const READ_BYTES_MAX: usize = 1 << 20;

/// Room that is made for reading.
const SPARE_BYTES: usize = 128 << 10;

/// Bytes of messages that wait for the socket; the state machine holds the rest.
pub(crate) const WAITING_BYTES_MAX: usize = 16 << 10;

/// Slices in one system call.
const SLICES_MAX: usize = 64;

/// A socket with what is read of it and what is to be written.
pub(crate) struct Io {
    pub(crate) stream: TcpStream,
    pub(crate) tls: Option<Box<Connection>>,
    pub(crate) input: BytesMut,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
}

/// How much of what is there was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// All of it.
    All,
    /// There may be more, of which nothing is said again.
    Part,
    /// All of it, and there will be no more.
    End,
}

impl Io {
    pub(crate) fn new(stream: TcpStream, tls: Option<Connection>) -> Self {
        Self {
            stream,
            tls: tls.map(Box::new),
            input: BytesMut::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// Reads what there is, or a good deal of it.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) fn read(&mut self) -> io::Result<Came> {
        let mut left = READ_BYTES_MAX;
        while left > 0 {
            let read = if self.tls.is_some() {
                self.read_tls()
            } else {
                self.read_plain()
            };
            match read {
                Ok(0) => return Ok(Came::End),
                Ok(len) => left = left.saturating_sub(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Came::All),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Came::Part)
    }

    /// Whether the other end has begun without TLS: a record of TLS begins with another
    /// byte than the preface (RFC 8446, section 5.1).
    pub(crate) fn begins_plain(&self) -> bool {
        let mut first = [0];
        let is_new = self.tls.as_ref().is_some_and(|tls| tls.is_handshaking());
        is_new && matches!(self.stream.peek(&mut first), Ok(1)) && first[0] == wire::MAGIC[0]
    }

    fn read_plain(&mut self) -> io::Result<usize> {
        let old = self.input.len();
        // There is always room for a good deal, and it is not filled with zeros each time.
        self.input.reserve(SPARE_BYTES);
        let capacity = self.input.capacity().min(old + 2 * SPARE_BYTES);
        self.input.resize(capacity, 0);
        let read = self.stream.read(&mut self.input[old..]);
        self.input.truncate(old + *read.as_ref().unwrap_or(&0));
        read
    }

    fn read_tls(&mut self) -> io::Result<usize> {
        let Some(tls) = self.tls.as_mut() else {
            return Ok(0);
        };
        let len = tls.read_tls(&mut self.stream)?;
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let more = state.plaintext_bytes_to_read();
        let old = self.input.len();
        self.input.resize(old + more, 0);
        tls.reader().read_exact(&mut self.input[old..])?;
        Ok(len)
    }

    /// Whether there is room for another message.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting_bytes < WAITING_BYTES_MAX
    }

    /// Adds bytes to what is to be written.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.waiting_bytes += bytes.len();
        self.waiting.push_back(bytes);
    }

    /// Writes as much as the socket takes; whether it took all.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) fn write(&mut self) -> io::Result<bool> {
        let written = if self.tls.is_some() {
            self.write_tls()
        } else {
            self.write_plain()
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }

    fn write_plain(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let slices = self.waiting.iter().take(SLICES_MAX);
            let slices: Vec<IoSlice<'_>> = slices.map(|bytes| IoSlice::new(bytes)).collect();
            match self.stream.write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.took(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_tls(&mut self) -> io::Result<()> {
        loop {
            while let Some(first) = self.waiting.front() {
                let Some(tls) = self.tls.as_mut().filter(|tls| !tls.is_handshaking()) else {
                    break;
                };
                let len = tls.writer().write(first)?;
                if len == 0 {
                    break;
                }
                self.took(len);
            }
            let Some(tls) = self.tls.as_mut() else {
                return Ok(());
            };
            if !tls.wants_write() {
                return Ok(());
            }
            match tls.write_tls(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn took(&mut self, mut len: usize) {
        self.waiting_bytes -= len;
        while let Some(first) = self.waiting.front_mut() {
            if len < first.len() {
                first.advance(len);
                return;
            }
            len -= first.len();
            self.waiting.pop_front();
        }
    }
}
