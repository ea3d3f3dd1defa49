//! The kernel's iSCSI initiator, as it is told what to do: `NETLINK_ISCSI`.
//!
//! The layouts are those of `struct iscsi_uevent` in the kernel's
//! `include/scsi/iscsi_if.h`, which has been the same since 2.6: a kind, an error, the
//! transport, 24 bytes of arguments, 16 bytes of an answer, and what comes after them.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rootstock_iscsi::{Digests, Frame, HEADER_BYTES, decode};
use rustix::net::netlink;

use crate::netlink::{Message, REQUEST, Socket};

const HANDLE: &str = "/sys/class/iscsi_transport/tcp/handle";

/// The kernel's own group of events.
const EVENTS: u32 = 1;
/// `struct iscsi_uevent`.
const EVENT_BYTES: usize = 56;
/// Where arguments begin, and the answer.
const ARGUMENTS: usize = 16;
const ANSWER: usize = 40;
/// What a login's PDU may carry.
const DATA_BYTES_MAX: usize = 64 << 10;
/// The kernel answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Events that nobody has asked for yet; a session has few.
const EVENTS_MAX: usize = 64;

// `enum iscsi_uevent_e`.
const CREATE_SESSION: u32 = 11;
const CREATE_CONNECTION: u32 = 13;
const BIND_CONNECTION: u32 = 15;
const SET_PARAMETER: u32 = 16;
const START_CONNECTION: u32 = 17;
const STOP_CONNECTION: u32 = 18;
const SEND_PDU: u32 = 19;
const RECEIVED_PDU: u32 = 101;
const CONNECTION_ERROR: u32 = 102;

/// `STOP_CONN_RECOVER`: the session goes on when there is another connection.
const RECOVER: u32 = 3;

/// Commands at once, a power of two, and of these those of one disk.
const COMMANDS: u16 = 128;
const COMMANDS_OF_DISK: u16 = 64;

/// `enum iscsi_param`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Parameter {
    ReceiveSegment = 0,
    SendSegment = 1,
    HeaderDigest = 2,
    DataDigest = 3,
    InitialR2t = 4,
    MaxR2t = 5,
    ImmediateData = 6,
    FirstBurst = 7,
    MaxBurst = 8,
    PduInOrder = 9,
    SequenceInOrder = 10,
    RecoveryLevel = 11,
    StatusNumber = 14,
    TargetName = 15,
    PortalGroup = 16,
    PersistentAddress = 17,
    PersistentPort = 18,
    RecoveryTimeout = 19,
    UserName = 22,
    Password = 24,
    PingTimeout = 30,
    ReceiveTimeout = 31,
    InitiatorName = 34,
}

/// What the kernel tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A PDU that the kernel does not know what to do with.
    Pdu {
        /// The session.
        session: u32,
        /// The connection.
        connection: u32,
        /// Header and data.
        pdu: Pdu,
    },
    /// A connection is lost.
    Lost {
        /// The session.
        session: u32,
        /// The connection.
        connection: u32,
    },
}

/// A PDU, as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pdu(Vec<u8>);

impl Pdu {
    /// Its parts, if it is whole.
    pub(super) fn frame(&self) -> Option<Frame<'_>> {
        let decoded = decode(&self.0, Digests::default(), DATA_BYTES_MAX);
        decoded.ok().flatten().map(|(frame, _)| frame)
    }
}

/// The kernel's initiator over TCP.
pub(super) struct Transport {
    socket: Socket,
    handle: u64,
    events: VecDeque<Event>,
}

/// Arguments of a request.
struct Arguments([u8; ANSWER - ARGUMENTS]);

impl Arguments {
    fn new() -> Self {
        Self([0; ANSWER - ARGUMENTS])
    }

    /// Of nearly all requests.
    fn of(session: u32, connection: u32) -> Self {
        Self::new().word(16, session).word(20, connection)
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        let at = at - ARGUMENTS;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn half(self, at: usize, value: u16) -> Self {
        self.put(at, &value.to_ne_bytes())
    }

    fn word(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_ne_bytes())
    }

    fn long(self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_ne_bytes())
    }
}

/// Four bytes of an event.
fn word(event: &[u8], at: usize) -> u32 {
    let bytes = event
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

impl Transport {
    /// Finds the transport; its module has to be loaded.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn open() -> io::Result<Self> {
        let text = fs::read_to_string(HANDLE)?;
        Ok(Self {
            socket: Socket::open(Some(netlink::ISCSI), EVENTS)?,
            handle: text.trim().parse().map_err(io::Error::other)?,
            events: VecDeque::new(),
        })
    }

    /// Makes a session, and gives its number and that of its host.
    pub(super) fn create_session(&mut self) -> io::Result<(u32, u32)> {
        let arguments = Arguments::new()
            .word(16, 1)
            .half(20, COMMANDS)
            .half(22, COMMANDS_OF_DISK);
        let answer = self.call(CREATE_SESSION, &arguments, &[])?;
        Ok((word(&answer, ANSWER), word(&answer, ANSWER + 4)))
    }

    /// Makes a session's connection, and gives its number.
    pub(super) fn create_connection(&mut self, session: u32) -> io::Result<u32> {
        let answer = self.call(CREATE_CONNECTION, &Arguments::of(session, 0), &[])?;
        Ok(word(&answer, ANSWER + 4))
    }

    /// Gives a connection its socket.
    pub(super) fn bind(
        &mut self,
        session: u32,
        connection: u32,
        stream: &TcpStream,
    ) -> io::Result<()> {
        let socket = u64::try_from(stream.as_raw_fd()).map_err(io::Error::other)?;
        let arguments = Arguments::of(session, connection)
            .long(24, socket)
            .word(32, 1);
        self.order(BIND_CONNECTION, &arguments, &[])
    }

    /// Tells a session or its connection one thing.
    pub(super) fn set(
        &mut self,
        session: u32,
        connection: u32,
        parameter: Parameter,
        value: &str,
    ) -> io::Result<()> {
        let mut text = value.as_bytes().to_vec();
        text.push(0);
        let arguments = Arguments::of(session, connection)
            .word(24, parameter as u32)
            .word(28, text.len() as u32);
        self.order(SET_PARAMETER, &arguments, &text)
            .map_err(|error| named(&error, &format!("{parameter:?} cannot be set")))
    }

    /// Has a connection that is logged in carry commands.
    pub(super) fn start(&mut self, session: u32, connection: u32) -> io::Result<()> {
        self.order(START_CONNECTION, &Arguments::of(session, connection), &[])
    }

    /// Takes a connection's socket away; its session waits for another one.
    pub(super) fn stop(&mut self, session: u32, connection: u32) -> io::Result<()> {
        let arguments = Arguments::of(session, connection)
            .long(24, u64::from(connection))
            .word(32, RECOVER);
        let stopped = self.order(STOP_CONNECTION, &arguments, &[]);
        // What it told of what is over.
        self.events.clear();
        stopped
    }

    /// Sends a PDU of a login.
    pub(super) fn send_pdu(
        &mut self,
        session: u32,
        connection: u32,
        header: &[u8; HEADER_BYTES],
        data: &[u8],
    ) -> io::Result<()> {
        let arguments = Arguments::of(session, connection)
            .word(24, HEADER_BYTES as u32)
            .word(28, data.len() as u32);
        let pdu = [&header[..], data].concat();
        self.order(SEND_PDU, &arguments, &pdu)
    }

    /// The next PDU of a connection.
    ///
    /// # Errors
    /// When it is lost, or says nothing in time.
    pub(super) fn pdu(
        &mut self,
        session: u32,
        connection: u32,
        limit: Duration,
    ) -> io::Result<Pdu> {
        let began = Instant::now();
        loop {
            let left = limit.checked_sub(began.elapsed());
            let silent = || io::Error::new(io::ErrorKind::TimedOut, "the target says nothing");
            let left = left.filter(|left| !left.is_zero()).ok_or_else(silent)?;
            match self.event(Some(left))? {
                Some(Event::Pdu {
                    session: of,
                    connection: on,
                    pdu,
                }) if (of, on) == (session, connection) => return Ok(pdu),
                Some(Event::Lost {
                    session: of,
                    connection: on,
                }) if (of, on) == (session, connection) => {
                    return Err(io::Error::other("the target closed the connection"));
                }
                _ => {}
            }
        }
    }

    /// The next event; none when none comes in time.
    pub(super) fn event(&mut self, limit: Option<Duration>) -> io::Result<Option<Event>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.socket.next(limit)? {
            Some((_, body)) => Ok(told(&body)),
            None => Ok(None),
        }
    }

    /// A request whose answer is an error number, or its absence.
    fn order(&mut self, kind: u32, arguments: &Arguments, more: &[u8]) -> io::Result<()> {
        let answer = self.call(kind, arguments, more)?;
        match word(&answer, ANSWER) as i32 {
            0 => Ok(()),
            number if number < 0 => Err(io::Error::from_raw_os_error(-number)),
            number => Err(io::Error::other(format!("the kernel says {number}"))),
        }
    }

    fn call(&mut self, kind: u32, arguments: &Arguments, more: &[u8]) -> io::Result<Vec<u8>> {
        let mut event = vec![0; EVENT_BYTES];
        event[..4].copy_from_slice(&kind.to_ne_bytes());
        event[8..16].copy_from_slice(&self.handle.to_ne_bytes());
        event[ARGUMENTS..ANSWER].copy_from_slice(&arguments.0);
        event.extend_from_slice(more);
        let message = Message::new(kind as u16, REQUEST).raw(&event);
        self.socket.tell(message)?;
        let began = Instant::now();
        loop {
            let left = ANSWER_LIMIT.saturating_sub(began.elapsed());
            if left.is_zero() {
                let silent = "the kernel's initiator does not answer";
                return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
            }
            let Some((of, body)) = self.socket.next(Some(left))? else {
                continue;
            };
            if u32::from(of) == kind && word(&body, 0) == kind {
                return match word(&body, 4) as i32 {
                    number if number < 0 => Err(io::Error::from_raw_os_error(-number)),
                    _ => Ok(body),
                };
            }
            if let Some(event) = told(&body)
                && self.events.len() < EVENTS_MAX
            {
                self.events.push_back(event);
            }
        }
    }
}

/// What an event says, if it concerns connections.
fn told(body: &[u8]) -> Option<Event> {
    let (session, connection) = (word(body, ANSWER), word(body, ANSWER + 4));
    match word(body, 0) {
        RECEIVED_PDU => Some(Event::Pdu {
            session,
            connection,
            pdu: Pdu(body.get(EVENT_BYTES..)?.to_vec()),
        }),
        CONNECTION_ERROR => Some(Event::Lost {
            session,
            connection,
        }),
        _ => None,
    }
}

fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u32, session: u32, connection: u32, more: &[u8]) -> Vec<u8> {
        let mut event = vec![0; EVENT_BYTES];
        event[..4].copy_from_slice(&kind.to_ne_bytes());
        event[40..44].copy_from_slice(&session.to_ne_bytes());
        event[44..48].copy_from_slice(&connection.to_ne_bytes());
        event.extend_from_slice(more);
        event
    }

    #[test]
    fn events_are_told_apart() {
        let lost = event(102, 3, 0, &[]);
        assert_eq!(
            told(&lost),
            Some(Event::Lost {
                session: 3,
                connection: 0
            })
        );
        let mut pdu = vec![0x23; 48];
        pdu[4..8].copy_from_slice(&[0, 0, 0, 2]);
        pdu.extend([7, 8, 0, 0]);
        let Some(Event::Pdu { session, pdu, .. }) = told(&event(101, 3, 0, &pdu)) else {
            panic!("a PDU");
        };
        assert_eq!(session, 3);
        assert_eq!(pdu.frame().expect("a frame").data, [7, 8]);
        for other in [event(104, 3, 0, &[]), vec![0; 10], Vec::new()] {
            assert_eq!(told(&other), None);
        }
        assert!(Pdu(vec![0; 20]).frame().is_none());
    }
}
