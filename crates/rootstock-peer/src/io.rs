//! The bytes of a connection, encrypted or not.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use mio::net::TcpStream;
use rootstock_swarm::wire;
use rustls::Connection;
use socket2::SockRef;

/// What is read at once, so that no connection keeps the others waiting.
const READ_BYTES_MAX: usize = 1 << 20;

/// Room for what one call of the system reads.
pub(crate) const ROOM_BYTES: usize = 128 << 10;

/// What waits to be sent is as much as the connection sends in this time: more only makes
/// what is in a hurry wait, and each question waits behind the answers that go the same
/// way; less leaves a fast link idle between two turns of the loop.
const AHEAD: Duration = Duration::from_millis(10);

/// The bounds of it: a slow connection still fills its packets, a fast one has no more
/// for a longer time.
const AHEAD_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=512 << 10;

/// How often it is measured what a connection sends.
const MEASURED_EVERY: Duration = Duration::from_millis(50);

/// Slices in one system call.
const SLICES_MAX: usize = 64;

/// A socket with what is read of it and what is to be written.
pub(crate) struct Io {
    pub(crate) stream: TcpStream,
    pub(crate) tls: Option<Box<Connection>>,
    pub(crate) input: BytesMut,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Bytes that may wait here, and as many in the kernel; the state machine holds the
    /// rest.
    ahead_bytes: usize,
    sent_bytes: usize,
    measured: Instant,
}

/// What may wait of a connection that sent `sent_bytes` in `time`.
fn ahead_bytes(sent_bytes: usize, time: Duration) -> usize {
    let bytes = sent_bytes as u128 * AHEAD.as_micros() / time.as_micros().max(1);
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let (least, most) = (*AHEAD_BYTES.start(), *AHEAD_BYTES.end());
    // In steps, so that the kernel is told of great changes only.
    1 << bytes.clamp(least, most).ilog2()
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
            ahead_bytes: 0,
            sent_bytes: 0,
            measured: Instant::now(),
        }
    }

    /// Begins to measure what the connection sends.
    ///
    /// # Errors
    /// When the system does not limit what waits in it.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.keep_ahead(*AHEAD_BYTES.start())
    }

    /// Lets so much wait here, and as much in the kernel (`TCP_NOTSENT_LOWAT`, `tcp(7)`).
    fn keep_ahead(&mut self, bytes: usize) -> io::Result<()> {
        if bytes != self.ahead_bytes {
            let unsent = u32::try_from(bytes).unwrap_or(u32::MAX);
            SockRef::from(&self.stream).set_tcp_notsent_lowat(unsent)?;
            self.ahead_bytes = bytes;
        }
        Ok(())
    }

    fn measure(&mut self) -> io::Result<()> {
        let time = self.measured.elapsed();
        if time < MEASURED_EVERY {
            return Ok(());
        }
        let bytes = ahead_bytes(self.sent_bytes, time);
        self.sent_bytes = 0;
        self.measured = Instant::now();
        self.keep_ahead(bytes)
    }

    /// Reads what there is, or a good deal of it, by way of `room`.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) fn read(&mut self, room: &mut [u8]) -> io::Result<Came> {
        let mut left = READ_BYTES_MAX;
        while left > 0 {
            match self.read_once(room) {
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

    /// Reads once, into `room` first: memory that is made for each read would be cleared
    /// and touched for the first time each time.
    fn read_once(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(room)?;
        match self.tls.as_mut() {
            Some(tls) => decrypt(tls, &room[..len], &mut self.input)?,
            None => self.input.extend_from_slice(&room[..len]),
        }
        Ok(len)
    }

    /// Whether there is room for another message.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting_bytes < self.ahead_bytes
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
        self.measure()?;
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
                Ok(len) => {
                    self.sent_bytes += len;
                    self.took(len);
                }
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
                Ok(len) => self.sent_bytes += len,
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

/// Adds what came encrypted to what was read.
fn decrypt(tls: &mut Connection, mut came: &[u8], input: &mut BytesMut) -> io::Result<()> {
    while !came.is_empty() {
        // Nothing is taken after the other end has said that it sends no more.
        if tls.read_tls(&mut came)? == 0 {
            break;
        }
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let old = input.len();
        input.resize(old + state.plaintext_bytes_to_read(), 0);
        tls.reader().read_exact(&mut input[old..])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_follows_what_is_sent() {
        let second = Duration::from_secs(1);
        for (sent_bytes, time, kib) in [
            (0, second, 16),
            // A link of 100 Mbit/s: alone, and shared by eight.
            (12_500_000, second, 64),
            (1_562_500, second, 16),
            // A link of 1 Gbit/s, and none at all.
            (125_000_000, second, 512),
            (usize::MAX, Duration::from_micros(1), 512),
            (1, Duration::ZERO, 16),
            (6_250_000, Duration::from_millis(50), 512),
        ] {
            assert_eq!(
                ahead_bytes(sent_bytes, time),
                kib << 10,
                "{sent_bytes} in {time:?}"
            );
        }
    }
}
