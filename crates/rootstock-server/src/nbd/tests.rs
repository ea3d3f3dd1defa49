//! A server on real sockets, against honest and hostile clients.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rootstock_core::CHUNK_BYTES;
use rootstock_nbd::{
    Command, ErrorCode, ReplyStyle, Request,
    client::{
        Client,
        codec::{put_option, put_string},
    },
    proto::{allocation, chunk, command_flag, magic, option},
    request::encode,
};
use rootstock_volume::BlockDevice;

use super::{
    memory::{MemoryDevice, Temperature},
    *,
};
use device::{BAD_OFFSET, GATE_OFFSET, Gated, PANIC_OFFSET};

pub(crate) mod device;
mod tls;

const NAME: &str = "volume/disk";
const SIZE: u64 = 8 << 20;

/// Longer than anything here takes; a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(60);

struct One(Arc<dyn BlockDevice>);

impl Exports for One {
    fn list(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }

    fn open(&self, name: &str, _client: &str) -> Result<OpenExport, ExportError> {
        if name != NAME {
            let name = name.to_owned();
            return Err(ExportError::Unknown { name });
        }
        Ok(OpenExport {
            device: Arc::clone(&self.0),
            description: "a test".to_owned(),
            lease: Box::new(()),
        })
    }
}

fn start(device: Arc<dyn BlockDevice>, limits: NbdLimits) -> (NbdHandle, SocketAddr) {
    start_with(device, limits, NbdTls::Off)
}

fn start_with(
    device: Arc<dyn BlockDevice>,
    limits: NbdLimits,
    tls: NbdTls,
) -> (NbdHandle, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = NbdConfig {
        listeners: vec![NbdListener::Tcp(listener)],
        tls,
        limits,
    };
    let handle = NbdServer::start(config, Arc::new(One(device))).unwrap();
    let address = handle.addresses()[0];
    (handle, address)
}

fn memory() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(SIZE, Temperature::Warm))
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

fn client(address: SocketAddr) -> Client<TcpStream> {
    Client::connect(connect(address), NAME).unwrap()
}

/// A client that sends what it likes, with extended headers so that each reply
/// has one form.
struct Raw(TcpStream);

struct Reply {
    cookie: u64,
    kind: u16,
    payload: Vec<u8>,
}

impl Raw {
    fn new(address: SocketAddr) -> Self {
        let mut stream = connect(address);
        let mut hello = 3_u32.to_be_bytes().to_vec();
        put_option(&mut hello, option::EXTENDED_HEADERS, &[]);
        let mut data = Vec::new();
        put_string(&mut data, NAME);
        data.extend_from_slice(&1_u32.to_be_bytes());
        put_string(&mut data, allocation::NAME);
        put_option(&mut hello, option::SET_META_CONTEXT, &data);
        data.clear();
        put_string(&mut data, NAME);
        data.extend_from_slice(&0_u16.to_be_bytes());
        put_option(&mut hello, option::GO, &data);
        stream.write_all(&hello).unwrap();
        // Greeting; ack; context and ack; size, block sizes and ack.
        let said = 18 + 20 + (20 + 4 + 15) + 20 + (20 + 12) + (20 + 14) + 20;
        stream.read_exact(&mut vec![0; said]).unwrap();
        Self(stream)
    }

    fn send(&mut self, cookie: u64, command: Command, flags: u16, offset: u64, len: u64) {
        let request = Request {
            command,
            flags,
            cookie,
            offset,
            len,
        };
        let mut message = Vec::new();
        encode(&mut message, ReplyStyle::Extended, &request);
        self.0.write_all(&message).unwrap();
    }

    fn write(&mut self, cookie: u64, flags: u16, offset: u64, data: &[u8]) {
        let flags = flags | command_flag::PAYLOAD_LEN;
        self.send(cookie, Command::Write, flags, offset, data.len() as u64);
        self.0.write_all(data).unwrap();
    }

    fn reply(&mut self) -> Reply {
        let mut header = [0; 32];
        self.0.read_exact(&mut header).unwrap();
        let field = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        assert_eq!(field(0) >> 32, u64::from(magic::EXTENDED_REPLY));
        let mut payload = vec![0; field(24) as usize];
        self.0.read_exact(&mut payload).unwrap();
        Reply {
            cookie: field(8),
            kind: (field(0) & 0xffff) as u16,
            payload,
        }
    }

    /// The reply's cookie, and its error if it is one.
    fn outcome(&mut self) -> (u64, Option<ErrorCode>) {
        let reply = self.reply();
        let code = || u32::from_be_bytes(reply.payload[..4].try_into().unwrap());
        let error = (reply.kind == chunk::ERROR).then(|| ErrorCode::from_number(code()));
        (reply.cookie, error)
    }

    fn is_closed(&mut self) -> bool {
        is_closed(&mut self.0)
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let mut scratch = [0; 4096];
    loop {
        match stream.read(&mut scratch) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 / 7) as u8 | 1).collect()
}

/// Waits until the server's figures are as said.
fn until(handle: &NbdHandle, what: &str, test: impl Fn(NbdStats) -> bool) {
    let deadline = Instant::now() + LONG;
    while !test(handle.stats()) {
        assert!(Instant::now() < deadline, "{what}: {:?}", handle.stats());
        std::thread::yield_now();
    }
}

#[test]
fn warm_and_cold_devices_read_the_same() {
    for temperature in [Temperature::Warm, Temperature::Cold] {
        let device = MemoryDevice::new(SIZE, temperature);
        let expected = pattern(700_000);
        device.write(300_000, &expected).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let config = NbdConfig {
            listeners: vec![NbdListener::Unix(UnixListener::bind(&path).unwrap())],
            ..NbdConfig::default()
        };
        let handle = NbdServer::start(config, Arc::new(One(Arc::new(device)))).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let mut client = Client::connect(stream, NAME).unwrap();
        assert_eq!(client.size_bytes(), SIZE);
        let mut got = vec![1; SIZE as usize];
        client.read_exact_at(0, &mut got).unwrap();
        assert!(got[..300_000].iter().all(|byte| *byte == 0));
        assert_eq!(&got[300_000..1_000_000], expected);
        assert!(got[1_000_000..].iter().all(|byte| *byte == 0));
        let extents = client.block_status(0, SIZE).unwrap();
        let holes: Vec<_> = extents.iter().map(|e| (e.len, e.hole)).collect();
        assert_eq!(
            holes,
            [(256 << 10, true), (768 << 10, false), (7 << 20, true)]
        );
        client.disconnect().unwrap();
        until(&handle, "the connection ends", |stats| {
            stats.connections == 0
        });
        assert_eq!(handle.stats().errors_total, 0);
        handle.shutdown(LONG);
    }
}

#[test]
fn long_writes_arrive_whole_and_longer_ones_are_drained() {
    let device = memory();
    let (_handle, address) = start(device.clone(), NbdLimits::default());
    let mut raw = Raw::new(address);
    let data = pattern(3_000_001);
    raw.write(1, command_flag::FUA, 12_345, &data);
    assert_eq!(raw.outcome(), (1, None));
    raw.write(2, 0, 0, &vec![7; (32 << 20) + 1]);
    assert_eq!(raw.outcome(), (2, Some(ErrorCode::Inval)));
    raw.write(3, 0, SIZE - 10, &[7; 11]);
    assert_eq!(raw.outcome(), (3, Some(ErrorCode::NoSpace)));
    raw.send(4, Command::Read, command_flag::DF, 12_345, 3_000_001);
    let reply = raw.reply();
    assert_eq!((reply.cookie, reply.kind), (4, chunk::OFFSET_DATA));
    assert!(reply.payload[8..] == data);
    raw.send(5, Command::WriteZeroes, command_flag::NO_HOLE, 0, SIZE);
    assert_eq!(raw.outcome(), (5, None));
    raw.send(6, Command::BlockStatus, command_flag::REQ_ONE, 0, SIZE);
    assert_eq!(raw.reply().payload.len(), 24);
    raw.send(7, Command::Trim, command_flag::FUA, 0, SIZE);
    assert_eq!(raw.outcome(), (7, None));
    let fast = command_flag::FAST_ZERO | command_flag::NO_HOLE;
    raw.send(8, Command::WriteZeroes, fast, 0, SIZE);
    assert_eq!(raw.outcome(), (8, Some(ErrorCode::NotSup)));
    assert!(device.status(0, SIZE, 9).unwrap()[0].hole);
}

#[test]
fn a_slow_read_holds_up_nothing_else() {
    let device = Arc::new(Gated::new(SIZE));
    let limits = NbdLimits {
        workers: 2,
        ..NbdLimits::default()
    };
    let (_handle, address) = start(device.clone(), limits);
    let mut raw = Raw::new(address);
    raw.send(1, Command::Read, 0, GATE_OFFSET, 4096);
    raw.send(2, Command::Read, 0, 0, 4096);
    raw.send(3, Command::Flush, 0, 0, 0);
    let mut first = [raw.reply().cookie, raw.reply().cookie];
    first.sort_unstable();
    assert_eq!(first, [2, 3]);
    client(address).read_exact_at(0, &mut [0; 512]).unwrap();
    device.open_gate();
    assert_eq!(raw.reply().cookie, 1);
}

#[test]
fn a_crowd_of_slow_reads_is_bounded_and_answered() {
    let device = Arc::new(Gated::new(SIZE));
    let limits = NbdLimits {
        requests_in_flight_max: 3,
        workers: 2,
        ..NbdLimits::default()
    };
    let (_handle, address) = start(device.clone(), limits);
    let mut raw = Raw::new(address);
    for cookie in 0..50 {
        raw.send(cookie, Command::Read, 0, GATE_OFFSET, 4096);
    }
    device.wait_for_visitors(2);
    assert!(device.visitors() <= 3);
    device.open_gate();
    let mut cookies: Vec<_> = (0..50).map(|_| raw.reply().cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..50).collect::<Vec<_>>());
}

#[test]
fn the_rest_of_a_long_read_is_fetched_beside_it() {
    let device = Arc::new(Gated::new(SIZE));
    let (_handle, address) = start(device.clone(), NbdLimits::default());
    let mut raw = Raw::new(address);
    raw.send(1, Command::Read, 0, GATE_OFFSET, 3 * CHUNK_BYTES);
    // The read itself is still at the gate.
    assert_eq!(
        device.wait_for_fetches(2),
        [1, 2].map(|n| (GATE_OFFSET + n * CHUNK_BYTES, CHUNK_BYTES))
    );
    device.open_gate();
    assert_eq!(raw.outcome(), (1, None));
}

#[test]
fn a_stream_is_read_ahead_of() {
    let device = Arc::new(Gated::new(SIZE));
    let (_handle, address) = start(device.clone(), NbdLimits::default());
    let mut raw = Raw::new(address);
    for cookie in 1..3 {
        let offset = GATE_OFFSET + cookie * 4096;
        raw.send(cookie, Command::Read, 0, offset, 4096);
        assert_eq!(raw.outcome(), (cookie, None));
    }
    let read = 3 * 4096;
    assert_eq!(
        device.wait_for_fetches(2),
        [
            (GATE_OFFSET + read, CHUNK_BYTES - read),
            (GATE_OFFSET + CHUNK_BYTES, CHUNK_BYTES)
        ]
    );
}

#[test]
fn failures_of_the_device_are_told_and_survived() {
    let (_handle, address) = start(Arc::new(Gated::new(SIZE)), NbdLimits::default());
    let mut raw = Raw::new(address);
    raw.send(1, Command::Read, 0, BAD_OFFSET, 512);
    let reply = raw.reply();
    assert_eq!(reply.kind, chunk::ERROR);
    assert_eq!(
        String::from_utf8_lossy(&reply.payload[6..]),
        format!("the data at byte {BAD_OFFSET} is damaged (bit rot) and was not served")
    );
    raw.send(2, Command::Read, 0, PANIC_OFFSET, 512);
    assert_eq!(raw.outcome(), (2, Some(ErrorCode::Io)));
    raw.send(3, Command::Read, 0, 0, 512);
    assert_eq!(raw.outcome(), (3, None));
}

#[test]
fn a_resize_shows_at_once() {
    let device = memory();
    let (_handle, address) = start(device.clone(), NbdLimits::default());
    let mut raw = Raw::new(address);
    device.resize(4096);
    raw.send(1, Command::Read, 0, 4096, 1);
    assert_eq!(raw.outcome(), (1, Some(ErrorCode::Inval)));
    device.resize(SIZE);
    raw.send(2, Command::Read, 0, 4096, 1);
    assert_eq!(raw.outcome(), (2, None));
}

#[test]
fn a_client_that_never_reads_is_cut_off_alone() {
    let device = memory();
    device.write(0, &pattern(SIZE as usize)).unwrap();
    let limits = NbdLimits {
        write_timeout: Duration::from_millis(100),
        ..NbdLimits::default()
    };
    let (handle, address) = start(device, limits);
    let mut hog = Raw::new(address);
    for cookie in 0..64 {
        hog.send(cookie, Command::Read, 0, 0, SIZE);
    }
    let mut other = client(address);
    for _ in 0..20 {
        other.read_exact_at(0, &mut [0; 4096]).unwrap();
    }
    until(&handle, "the hog is gone", |stats| stats.connections == 1);
    other.read_exact_at(0, &mut [0; 4096]).unwrap();
    assert!(hog.is_closed());
}

#[test]
fn silent_and_broken_clients_are_closed() {
    let limits = NbdLimits {
        negotiation_timeout: Duration::from_millis(100),
        ..NbdLimits::default()
    };
    let (_impatient, address) = start(memory(), limits);
    let mut silent = connect(address);
    let mut greeting = [0; 18];
    silent.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    assert!(is_closed(&mut silent));
    let (handle, address) = start(memory(), NbdLimits::default());
    for noise in [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = connect(address);
        stream.write_all(noise).unwrap();
        assert!(is_closed(&mut stream));
    }
    let mut raw = Raw::new(address);
    raw.0.write_all(&[0xee; 32]).unwrap();
    assert!(raw.is_closed());
    // Cut off in the middle of a header, and of a payload.
    let mut raw = Raw::new(address);
    raw.0.write_all(&[0x21, 0xe4]).unwrap();
    drop(raw);
    let mut raw = Raw::new(address);
    raw.send(1, Command::Write, command_flag::PAYLOAD_LEN, 0, 4096);
    raw.0.write_all(&[1; 100]).unwrap();
    drop(raw);
    until(&handle, "all are gone", |stats| stats.connections == 0);
    client(address).read_exact_at(0, &mut [0; 512]).unwrap();
}

#[test]
fn a_full_house_gives_up_only_those_who_have_not_begun() {
    let limits = NbdLimits {
        connections_max: 3,
        negotiation_timeout: LONG,
        ..NbdLimits::default()
    };
    let (handle, address) = start(memory(), limits);
    let mut settled = vec![client(address), client(address)];
    let mut silent = connect(address);
    silent.read_exact(&mut [0; 18]).unwrap();
    settled.push(client(address));
    assert!(is_closed(&mut silent));
    let mut late = connect(address);
    assert!(is_closed(&mut late));
    for client in &mut settled {
        client.read_exact_at(0, &mut [0; 512]).unwrap();
    }
    assert_eq!(handle.stats().connections_refused_total, 2);
}

#[test]
fn shutdown_finishes_what_was_begun() {
    let device = Arc::new(Gated::new(SIZE));
    let (handle, address) = start(device.clone(), NbdLimits::default());
    let mut idle = client(address);
    let mut raw = Raw::new(address);
    raw.send(1, Command::Read, 0, GATE_OFFSET, 4096);
    device.wait_for_visitors(1);
    let stopping = std::thread::spawn(move || handle.shutdown(LONG));
    // Once the listener is gone the shutdown has begun.
    while TcpStream::connect(address).is_ok() {
        std::thread::yield_now();
    }
    device.open_gate();
    assert_eq!(raw.outcome(), (1, None));
    assert!(raw.is_closed());
    stopping.join().unwrap();
    assert!(idle.read_exact_at(0, &mut [0; 512]).is_err());
}

#[test]
fn shutdown_does_not_wait_for_ever() {
    let device = memory();
    device.write(0, &pattern(SIZE as usize)).unwrap();
    let limits = NbdLimits {
        write_timeout: LONG,
        ..NbdLimits::default()
    };
    let (handle, address) = start(device, limits);
    let mut hog = Raw::new(address);
    for cookie in 0..64 {
        hog.send(cookie, Command::Read, 0, 0, SIZE);
    }
    let begun = Instant::now();
    handle.shutdown(Duration::from_millis(50));
    assert!(begun.elapsed() < LONG);
}
