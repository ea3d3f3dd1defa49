//! The machine's own volume on the server: the kernel's requests passed on over NBD.
//!
//! Each request takes a connection of a small pool for itself. When a server
//! dies it may forget what it answered and had not flushed; the kernel, which did
//! not die, counts on it. So writes are kept here until a flush, and are sent
//! again, in their order, before anything else goes over a new connection.
//! All connections of a pool are made before that: one that is made later could
//! reach a server that died meanwhile, unseen, and read what it forgot.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_api::boot::VolumePlace;
use rootstock_nbd::client::codec;
use rootstock_nbd::proto::{
    command_flag, export_flag, handshake_flag, info, magic, option, option_reply,
};
use rootstock_nbd::request::encode;
use rootstock_nbd::{Command, ErrorCode, ReplyStyle, Request};
use rootstock_volume::{BlockDevice, BlockError, Segments, StatusExtent, Zero};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::console;

/// A server answers within this, or the connection is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// A shorter absence is not worth a line on the console.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Tries of the first connection, at the longest pause half a minute.
const FIRST_TRIES_MAX: u32 = 12;
/// Connections at once, when the server promises that a flush on one covers all.
const CONNECTIONS: usize = 8;
/// Unflushed writes that are kept; then the agent flushes by itself.
const UNFLUSHED_BYTES_MAX: usize = 32 << 20;
/// Answers to one option.
const OPTION_REPLIES_MAX: usize = 64;

/// Why the volume was not had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The network, or what is not NBD.
    #[error("the volume's server {address} cannot be used")]
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The place makes no sense.
    #[error("the volume's server {address} cannot be spoken to by TLS: {what}")]
    Tls {
        /// `HOST:PORT`.
        address: String,
        /// What is wrong.
        what: String,
    },
}

/// One connection in the transmission phase.
struct Connection {
    stream: Box<dyn DialStream>,
    size_bytes: u64,
    flags: u16,
    cookie: u64,
}

/// How connections are made.
pub(crate) type Dial = Box<dyn Fn() -> io::Result<Box<dyn DialStream>> + Send + Sync>;

/// What a dial gives.
pub(crate) trait DialStream: Read + Write + Send {}
impl<T: Read + Write + Send> DialStream for T {}

/// A change that is not known to be durable.
#[derive(Clone)]
struct Change {
    number: u64,
    command: Command,
    flags: u16,
    offset: u64,
    len: u64,
    data: Bytes,
}

/// A volume of a server as a block device.
pub(crate) struct RemoteVolume {
    dial: Dial,
    export: String,
    size_bytes: u64,
    flags: u16,
    pool: Mutex<Connections>,
    given_back: Condvar,
    /// Shared by requests, exclusive for sending unflushed changes again.
    serving: RwLock<()>,
    /// One more with each time that the server was lost.
    generation: AtomicU64,
    unflushed: Mutex<VecDeque<Change>>,
    changes: AtomicU64,
}

/// Connections that nobody uses now.
struct Connections {
    idle: Vec<Connection>,
    /// Whether one of the pool was lost, so that all are to be made anew.
    lost: bool,
}

/// How a request ended.
enum Outcome {
    Done,
    Refused(ErrorCode),
}

impl RemoteVolume {
    /// Connects, and tries again while the server may be starting.
    pub(crate) fn connect(place: &VolumePlace, authority_pem: &str) -> Result<Self, VolumeError> {
        let dial = dial(place, authority_pem)?;
        Self::over(dial, &place.export).map_err(|source| VolumeError::Connect {
            address: place.address.clone(),
            source,
        })
    }

    /// The volume behind any kind of connection.
    pub(crate) fn over(dial: Dial, export: &str) -> io::Result<Self> {
        let mut tries = 0;
        let idle = loop {
            tries += 1;
            match open_all(&dial, export) {
                Ok(connections) => break connections,
                Err(error) if tries == FIRST_TRIES_MAX => return Err(error),
                Err(_) => thread::sleep(PAUSE_MAX),
            }
        };
        Ok(Self {
            dial,
            export: export.to_owned(),
            size_bytes: idle[0].size_bytes,
            flags: idle[0].flags,
            pool: Mutex::new(Connections { idle, lost: false }),
            given_back: Condvar::new(),
            serving: RwLock::new(()),
            generation: AtomicU64::new(0),
            unflushed: Mutex::default(),
            changes: AtomicU64::new(0),
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Has a request answered, over as many connections as it takes.
    fn ask(
        &self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        data: &Bytes,
        into: &mut [u8],
    ) -> Outcome {
        let began = Instant::now();
        let mut told = false;
        let mut pause = PAUSE_MIN;
        loop {
            let generation = self.generation.load(Ordering::SeqCst);
            match self.try_once(command, flags, offset, len, data, into) {
                Ok(outcome) => {
                    if told {
                        console::error("the volume's server answers again");
                    }
                    return outcome;
                }
                Err(error) => {
                    if !told && began.elapsed() > SILENCE_MAX {
                        told = true;
                        console::error(format_args!(
                            "the volume's server does not answer, and the root waits for it: \
                             {error}; check the cable and the server"
                        ));
                    }
                }
            }
            self.recover(generation);
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn try_once(
        &self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        data: &Bytes,
        into: &mut [u8],
    ) -> io::Result<Outcome> {
        let _serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        // Only what was answered before a flush was sent is flushed by it.
        let flushed = self.changes.load(Ordering::SeqCst);
        let mut connection = self.take()?;
        let outcome = connection.exchange(command, flags, offset, len, data, into);
        let outcome = outcome.inspect_err(|_| {
            lock(&self.pool).lost = true;
            self.given_back.notify_all();
        })?;
        if matches!(outcome, Outcome::Done) {
            match command {
                Command::Write | Command::WriteZeroes | Command::Trim => {
                    let mut unflushed = lock(&self.unflushed);
                    unflushed.push_back(Change {
                        number: self.changes.fetch_add(1, Ordering::SeqCst),
                        command,
                        flags,
                        offset,
                        len,
                        data: data.clone(),
                    });
                }
                Command::Flush => {
                    lock(&self.unflushed).retain(|change| change.number >= flushed);
                }
                _ => {}
            }
        }
        lock(&self.pool).idle.push(connection);
        self.given_back.notify_one();
        Ok(outcome)
    }

    /// A connection, when one is idle.
    fn take(&self) -> io::Result<Connection> {
        let mut pool = lock(&self.pool);
        loop {
            if pool.lost {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            pool = self
                .given_back
                .wait(pool)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// After a connection was lost: drops all of them, and sends again what may
    /// have been forgotten. The first to come does it for all.
    fn recover(&self, lost: u64) {
        let _alone = self.serving.write().unwrap_or_else(PoisonError::into_inner);
        if self.generation.load(Ordering::SeqCst) != lost {
            return;
        }
        lock(&self.pool).idle.clear();
        let Ok(mut connections) = open_all(&self.dial, &self.export) else {
            return;
        };
        if self.send_again(&mut connections).is_ok() {
            let mut pool = lock(&self.pool);
            pool.idle = connections;
            pool.lost = false;
            self.generation.store(lost + 1, Ordering::SeqCst);
        }
    }

    /// Sends unflushed changes over the connection that was made last: a server
    /// that died after it was made has all connections lost.
    fn send_again(&self, connections: &mut [Connection]) -> io::Result<()> {
        let connection = connections
            .last_mut()
            .filter(|connection| connection.size_bytes >= self.size_bytes)
            .ok_or_else(|| io::Error::other("the volume became smaller"))?;
        for change in lock(&self.unflushed).iter() {
            connection.exchange(
                change.command,
                change.flags,
                change.offset,
                change.len,
                &change.data,
                &mut [],
            )?;
        }
        Ok(())
    }

    fn done(
        &self,
        command: Command,
        flags: u16,
        offset_bytes: u64,
        len_bytes: u64,
        data: &Bytes,
        into: &mut [u8],
    ) -> Result<(), BlockError> {
        match self.ask(command, flags, offset_bytes, len_bytes, data, into) {
            Outcome::Done => Ok(()),
            Outcome::Refused(ErrorCode::NoSpace) => Err(BlockError::NoSpace {
                source: io::ErrorKind::StorageFull.into(),
            }),
            Outcome::Refused(code) => Err(BlockError::Io {
                doing: "use the volume",
                offset_bytes,
                source: io::Error::other(code),
            }),
        }
    }

    /// Keeps the changes that would have to be sent again within their bound.
    fn bound(&self) -> Result<(), BlockError> {
        let bytes: usize = lock(&self.unflushed)
            .iter()
            .map(|change| change.data.len())
            .sum();
        if bytes > UNFLUSHED_BYTES_MAX {
            self.flush()?;
        }
        Ok(())
    }
}

impl BlockDevice for RemoteVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.has(export_flag::READ_ONLY)
    }

    fn read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<(), BlockError> {
        let mut bytes = vec![0; len_bytes as usize];
        let len = u64::from(len_bytes);
        self.done(
            Command::Read,
            0,
            offset_bytes,
            len,
            &Bytes::new(),
            &mut bytes,
        )?;
        out.push(bytes.into());
        Ok(())
    }

    fn try_read(&self, _: u64, _: u32, _: &mut Segments) -> Result<bool, BlockError> {
        Ok(false)
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), BlockError> {
        let data = Bytes::copy_from_slice(data);
        let len = data.len() as u64;
        self.done(Command::Write, 0, offset_bytes, len, &data, &mut [])?;
        self.bound()
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zero: Zero,
    ) -> Result<(), BlockError> {
        let flags = match zero {
            Zero::MayPunch => 0,
            Zero::Allocate => command_flag::NO_HOLE,
        };
        if self.has(export_flag::SEND_WRITE_ZEROES) {
            let none = Bytes::new();
            return self.done(
                Command::WriteZeroes,
                flags,
                offset_bytes,
                len_bytes,
                &none,
                &mut [],
            );
        }
        let mut at = offset_bytes;
        while at < offset_bytes + len_bytes {
            let len = (offset_bytes + len_bytes - at).min(1 << 20);
            self.write(at, &vec![0; len as usize])?;
            at += len;
        }
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        if !self.has(export_flag::SEND_TRIM) {
            return Ok(());
        }
        let none = Bytes::new();
        self.done(Command::Trim, 0, offset_bytes, len_bytes, &none, &mut [])
    }

    fn flush(&self) -> Result<(), BlockError> {
        if !self.has(export_flag::SEND_FLUSH) {
            return Ok(());
        }
        self.done(Command::Flush, 0, 0, 0, &Bytes::new(), &mut [])
    }

    fn status(
        &self,
        _offset_bytes: u64,
        len_bytes: u64,
        _extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        Ok(vec![StatusExtent {
            len_bytes,
            hole: false,
            zero: false,
        }])
    }

    /// The server reads ahead by itself.
    fn prefetch(&self, _offset_bytes: u64, _len_bytes: u64) {}
}

impl Connection {
    /// One request and its reply; the connection is lost after an error.
    fn exchange(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        data: &[u8],
        into: &mut [u8],
    ) -> io::Result<Outcome> {
        self.cookie += 1;
        let request = Request {
            command,
            flags,
            cookie: self.cookie,
            offset,
            len,
        };
        let mut message = Vec::with_capacity(28 + data.len());
        encode(&mut message, ReplyStyle::Simple, &request);
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        self.stream.flush()?;
        let mut header = [0; 20];
        self.stream.read_exact(&mut header[..16])?;
        match codec::chunk(&header) {
            Some((reply, cookie)) if cookie == self.cookie && reply.done => {
                match reply.simple_error {
                    // It goes away: another connection will be answered.
                    Some(ErrorCode::Shutdown) => Err(io::ErrorKind::ConnectionReset.into()),
                    Some(code) => Ok(Outcome::Refused(code)),
                    None => {
                        self.stream.read_exact(into)?;
                        Ok(Outcome::Done)
                    }
                }
            }
            _ => Err(broken("a reply to no request")),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not NBD: {what}"))
}

/// As many connections as the server allows for, at least one.
fn open_all(dial: &Dial, export: &str) -> io::Result<Vec<Connection>> {
    let mut connections = vec![open(dial, export)?];
    if connections[0].flags & export_flag::CAN_MULTI_CONN != 0 {
        while connections.len() < CONNECTIONS {
            connections.push(open(dial, export)?);
        }
    }
    Ok(connections)
}

/// Negotiates an export with simple replies ("Fixed newstyle negotiation").
fn open(dial: &Dial, export: &str) -> io::Result<Connection> {
    let mut stream = dial()?;
    let mut data = Vec::new();
    codec::put_string(&mut data, export);
    data.extend(0_u16.to_be_bytes());
    ask_option(&mut stream, option::GO, &data)?;
    for _ in 0..OPTION_REPLIES_MAX {
        let (kind, data) = option_answer(&mut stream)?;
        if kind & option_reply::ERROR != 0 {
            let reason = codec::OptionReply { kind, data }.reason();
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let told = data.first_chunk::<12>();
        if let (option_reply::INFO, Some(told)) = (kind, told)
            && told[..2] == info::EXPORT.to_be_bytes()
        {
            let mut size = [0; 8];
            size.copy_from_slice(&told[2..10]);
            let connection = Connection {
                stream,
                size_bytes: u64::from_be_bytes(size),
                flags: u16::from_be_bytes([told[10], told[11]]),
                cookie: 0,
            };
            return acknowledged(connection);
        }
    }
    Err(broken("too many answers"))
}

/// Reads on to the end of the answers to GO.
fn acknowledged(mut connection: Connection) -> io::Result<Connection> {
    for _ in 0..OPTION_REPLIES_MAX {
        match option_answer(&mut connection.stream)?.0 {
            option_reply::ACK => return Ok(connection),
            option_reply::INFO => {}
            _ => break,
        }
    }
    Err(broken("an export without an end"))
}

/// The greeting of a server and our answer to it.
fn greet(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..8] != magic::GREETING.to_be_bytes()
        || greeting[8..16] != magic::OPTION.to_be_bytes()
    {
        return Err(broken("another greeting"));
    }
    let flags = u32::from(u16::from_be_bytes([greeting[16], greeting[17]]));
    let ours = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    stream.write_all(&ours.to_be_bytes())
}

fn ask_option(stream: &mut impl Write, number: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::new();
    codec::put_option(&mut message, number, data);
    stream.write_all(&message)?;
    stream.flush()
}

fn option_answer(stream: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let len = number(16) as usize;
    if header[..8] != magic::OPTION_REPLY.to_be_bytes() || len > codec::OPTION_REPLY_BYTES_MAX {
        return Err(broken("an answer to no option"));
    }
    let mut data = vec![0; len];
    stream.read_exact(&mut data)?;
    Ok((number(12), data))
}

/// TCP, greeted, and in TLS where the place says so ("NBD_OPT_STARTTLS").
fn dial(place: &VolumePlace, authority_pem: &str) -> Result<Dial, VolumeError> {
    let address = place.address.clone();
    let refused = |what: String| VolumeError::Tls {
        address: place.address.clone(),
        what,
    };
    let tls = if place.tls {
        let host = address.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| refused(error.to_string()))?;
        let config = tls_config(authority_pem).map_err(refused)?;
        Some((Arc::new(config), name))
    } else {
        None
    };
    Ok(Box::new(move || {
        let to = address
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not an ADDRESS:PORT"))?;
        let mut stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        greet(&mut stream)?;
        let Some((config, name)) = &tls else {
            return Ok(Box::new(stream));
        };
        ask_option(&mut stream, option::STARTTLS, &[])?;
        if option_answer(&mut stream)?.0 != option_reply::ACK {
            return Err(broken("TLS is refused"));
        }
        let session =
            ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(session, stream)))
    }))
}

fn tls_config(authority_pem: &str) -> Result<ClientConfig, String> {
    let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes())
        .map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests;
