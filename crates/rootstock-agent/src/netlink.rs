//! Netlink messages and a socket for them: the kernel's network and nbd settings.
//!
//! The layouts are those of `netlink(7)`, `rtnetlink(7)` and the kernel's
//! `include/uapi/linux/genetlink.h`. Numbers are in the machine's own order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
    netlink::SocketAddrNetlink, recv, send, socket_with, sockopt,
};

/// A request.
pub(crate) const REQUEST: u16 = 1;
/// The kernel answers with an error number, 0 when all is well.
pub(crate) const ACK: u16 = 4;
/// Make what is not there.
pub(crate) const CREATE: u16 = 0x400;
/// Replace what is there.
pub(crate) const REPLACE: u16 = 0x100;

/// An error, or its absence.
const ERROR: u16 = 2;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The message's header: length, kind, flags, sequence, port.
const HEADER_BYTES: usize = 16;
/// Longer than any answer to what is asked here.
const ANSWER_BYTES_MAX: usize = 32 << 10;
/// The kernel answers at once; this is for a kernel that does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Answers to one request that are looked at.
const ANSWERS_MAX: usize = 64;

/// A message being written.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

/// Where a nested attribute began.
pub(crate) struct Nest(usize);

impl Message {
    /// A message of this kind.
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// Appends a fixed part.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = 4 + value.len() as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a number.
    pub(crate) fn number32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a long number.
    pub(crate) fn number64(self, kind: u16, value: u64) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Begins an attribute that holds what is appended until [`Message::end`].
    pub(crate) fn begin(mut self, kind: u16) -> (Self, Nest) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        (self, Nest(at))
    }

    /// Ends the attribute begun there.
    pub(crate) fn end(mut self, nest: &Nest) -> Self {
        let len = (self.bytes.len() - nest.0) as u16;
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    /// The message with its length and its sequence number.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The first attribute of this kind among `bytes`.
pub(crate) fn find_attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = bytes;
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let found = u16::from_ne_bytes([head[2], head[3]]) & !NESTED;
        let value = rest.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
    None
}

/// What a datagram from the kernel says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The end: success, or an error number.
    Done(i32),
    /// A message of another kind, without its header.
    Data(Vec<u8>),
}

/// Divides a datagram into the messages that answer `sequence`.
fn answers(mut bytes: &[u8], sequence: u32) -> Vec<Answer> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let field = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let len = u32::from_ne_bytes(field(0)) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let Some(body) = bytes.get(HEADER_BYTES..len) else {
            break;
        };
        if u32::from_ne_bytes(field(8)) == sequence {
            found.push(match (kind, body.first_chunk::<4>()) {
                (ERROR, Some(number)) => Answer::Done(i32::from_ne_bytes(*number)),
                _ => Answer::Data(body.to_vec()),
            });
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The first message of a datagram: its kind, and what is in it.
fn message(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let head = bytes.first_chunk::<HEADER_BYTES>()?;
    let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let kind = u16::from_ne_bytes([head[4], head[5]]);
    Some((kind, bytes.get(HEADER_BYTES..len)?.to_vec()))
}

/// A netlink socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket of this family (`rustix::net::netlink`; none is rtnetlink, number 0),
    /// in these multicast groups.
    pub(crate) fn open(family: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            family,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request, which must ask for [`ACK`], and gives the data that came
    /// before the acknowledgement.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<Vec<Vec<u8>>> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
        self.sequence += 1;
        send(&self.fd, &message.finish(self.sequence), SendFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        let mut data = Vec::new();
        for _ in 0..ANSWERS_MAX {
            let (len, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            for answer in answers(&buffer[..len], self.sequence) {
                match answer {
                    Answer::Done(0) => return Ok(data),
                    Answer::Done(number) => return Err(io::Error::from_raw_os_error(-number)),
                    Answer::Data(body) => data.push(body),
                }
            }
        }
        Err(io::Error::other("the kernel's answer has no end"))
    }

    /// Sends what has no acknowledgement.
    pub(crate) fn tell(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        send(&self.fd, &message.finish(self.sequence), SendFlags::empty())?;
        Ok(())
    }

    /// The next message, its kind and what is in it; none when none comes in time.
    pub(crate) fn next(&self, limit: Option<Duration>) -> io::Result<Option<(u16, Vec<u8>)>> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, limit)?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        match recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => Ok(message(&buffer[..len])),
            // A message may have been dropped: the next one is as good.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The next multicast message.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (len, _) = recv(&self.fd, buffer, RecvFlags::DONTWAIT)?;
        Ok(len)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_nest_and_are_found_again() {
        let (message, outer) = Message::new(9, REQUEST | ACK)
            .raw(&[1, 2, 3, 4])
            .attribute(2, b"nbd\0x")
            .begin(7);
        let (message, inner) = message.begin(1);
        let bytes = message.number32(1, 77).end(&inner).end(&outer).finish(5);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
        let body = &bytes[HEADER_BYTES + 4..];
        assert_eq!(find_attribute(body, 2), Some(&b"nbd\0x"[..]));
        let outer = find_attribute(body, 7).expect("nested");
        let inner = find_attribute(outer, 1).expect("nested twice");
        assert_eq!(find_attribute(inner, 1), Some(&77_u32.to_ne_bytes()[..]));
        assert_eq!(find_attribute(body, 3), None);
        assert_eq!(find_attribute(&[9, 0, 1, 0], 1), None);
    }

    #[test]
    fn answers_of_others_are_not_ours() {
        let done = |sequence: u32, number: i32| {
            Message::new(ERROR, 0)
                .raw(&number.to_ne_bytes())
                .finish(sequence)
        };
        let mut bytes = done(1, -5);
        bytes.extend(Message::new(30, 0).raw(b"data").finish(2));
        bytes.extend(done(2, 0));
        assert_eq!(
            answers(&bytes, 2),
            [Answer::Data(b"data".to_vec()), Answer::Done(0)]
        );
        assert_eq!(answers(&bytes[..20], 1), [Answer::Done(-5)]);
        assert_eq!(answers(&[0; 16], 0), []);
    }
}
