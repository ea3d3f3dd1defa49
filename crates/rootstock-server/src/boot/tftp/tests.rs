//! The driver against a client of its own, on the loopback.

use bytes::Bytes;
use rootstock_netboot::tftp::Packet;
use std::{fs, sync::mpsc};

use super::*;

/// How long the test's client waits for a packet that has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files `N` of that many bytes, in memory, and `fN` on a disk.
struct Sized {
    dir: tempfile::TempDir,
    sent: mpsc::Sender<u64>,
}

impl TftpFiles for Sized {
    fn open(&self, name: &str, _: Ipv4Addr, local: Ipv4Addr) -> Result<TftpFile, Refusal> {
        assert_eq!(local, Ipv4Addr::LOCALHOST);
        let not_found = || Refusal::NotFound {
            name: name.to_owned(),
        };
        let (on_disk, len) = match name.strip_prefix('f') {
            Some(len) => (true, len),
            None => (false, name),
        };
        let bytes = content(len.parse().map_err(|_| not_found())?);
        let content = if on_disk {
            let path = self.dir.path().join(name);
            fs::write(&path, bytes).expect("writes");
            Content::open(&path).expect("opens")
        } else {
            Content::Bytes(Bytes::from(bytes))
        };
        let sent = self.sent.clone();
        let on_sent = Box::new(move |bytes| {
            sent.send(bytes).expect("is heard");
        });
        Ok(TftpFile { content, on_sent })
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

struct Lab {
    server: TftpServer,
    transfers: Arc<Transfers>,
    sent: mpsc::Receiver<u64>,
}

impl Lab {
    /// Waits until the server knows that files of so many bytes have arrived, and ends.
    fn finish(self, total: u64) {
        let mut sent = 0;
        while sent < total {
            sent += self.sent.recv_timeout(PATIENCE).expect("a file arrives");
        }
        self.server.shutdown();
        assert_eq!(sent + self.sent.try_iter().sum::<u64>(), total);
        assert!(self.transfers.all().is_empty());
    }
}

fn lab() -> Lab {
    let (sender, sent) = mpsc::channel();
    let files = Sized {
        dir: tempfile::tempdir().expect("a directory"),
        sent: sender,
    };
    let transfers = Arc::new(Transfers::default());
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    Lab {
        server: TftpServer::start(any, Arc::new(files), &transfers).expect("starts"),
        transfers,
        sent,
    }
}

fn rrq(fields: &str) -> Vec<u8> {
    let text = fields.replace('|', "\0");
    [b"\0\x01", text.as_bytes(), b"\0"].concat()
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("is set");
    socket
}

/// Asks and receives; an error is given as text.
fn get(lab: &Lab, fields: &str, window: u64) -> Result<Vec<u8>, String> {
    let socket = client();
    socket
        .send_to(&rrq(fields), lab.server.address)
        .expect("sends");
    receive(&socket, lab.server.address, window)
}

fn receive(socket: &UdpSocket, server: SocketAddrV4, window: u64) -> Result<Vec<u8>, String> {
    let (mut file, mut block_bytes, mut got) = (Vec::new(), 512, 0_u64);
    loop {
        let mut packet = [0; 2048];
        let (len, from) = socket.recv_from(&mut packet).expect("an answer");
        assert_eq!(from.ip(), *server.ip());
        let mut is_last = false;
        match Packet::parse(&packet[..len]).expect("a packet") {
            Packet::OptionsAck(pairs) => {
                let mut sizes = pairs.iter().filter(|pair| pair.0 == b"blksize");
                if let Some((_, value)) = sizes.next() {
                    let value = std::str::from_utf8(value).expect("text");
                    block_bytes = value.parse().expect("a number");
                }
                assert_eq!(got, 0);
            }
            Packet::Data { block, bytes } => {
                assert_ne!(from.port(), server.port());
                assert_eq!(block, (got + 1) as u16);
                got += 1;
                file.extend(bytes);
                is_last = bytes.len() < block_bytes;
                if !is_last && !got.is_multiple_of(window) {
                    continue;
                }
            }
            Packet::Error { code, message } => {
                return Err(format!("{code} {}", String::from_utf8_lossy(message)));
            }
            other => panic!("{other:?}"),
        }
        let ack = Packet::Ack { block: got as u16 };
        socket.send_to(&ack.encode(), from).expect("sends");
        if is_last {
            return Ok(file);
        }
    }
}

#[test]
fn files_arrive_with_any_options() {
    let lab = lab();
    let mut total = 0;
    for len in [0, 1, 511, 512, 513, 100_000] {
        for (options, window) in [
            ("", 1),
            ("|blksize|1428", 1),
            ("|tsize|0|blksize|65464|windowsize|7", 7),
            ("|blksize|1468|windowsize|64", 64),
            ("|blksize|100|windowsize|9", 9),
        ] {
            for place in ["", "f"] {
                let fields = format!("{place}{len}|octet{options}");
                let got = get(&lab, &fields, window);
                assert!(got == Ok(content(len)), "{fields}: {:?}", got.err());
                total += len as u64;
            }
        }
    }
    lab.finish(total);
}

#[test]
fn refusals_are_said() {
    let lab = lab();
    for (fields, expected) in [
        ("x|octet", "1 there is no boot file x"),
        (
            "../x|netascii",
            "4 transfer mode netascii is not served: use octet (binary)",
        ),
        (
            "33553920|octet",
            "0 33553920 bytes do not fit in 65535 blocks of 512: ask with a blksize, or use HTTP",
        ),
    ] {
        assert_eq!(get(&lab, fields, 1), Err(expected.to_owned()));
    }
    lab.finish(0);
}

#[test]
fn firmware_probes_and_asks_again_from_the_same_port() {
    let lab = lab();
    let probe = rrq("5000|octet|tsize|0|blksize|1468");
    for again in [probe.clone(), rrq("5000|octet|blksize|1468")] {
        let socket = client();
        socket.send_to(&probe, lab.server.address).expect("sends");
        let mut packet = [0; 2048];
        let (len, from) = socket.recv_from(&mut packet).expect("an answer");
        assert!(matches!(
            Packet::parse(&packet[..len]),
            Ok(Packet::OptionsAck(_))
        ));
        // The new request overtakes the word that the old one is over.
        socket.send_to(&again, lab.server.address).expect("sends");
        let abort = Packet::Error {
            code: rootstock_netboot::tftp::ErrorCode::OPTIONS,
            message: b"User aborted the transfer",
        };
        socket.send_to(&abort.encode(), from).expect("sends");
        let got = receive(&socket, lab.server.address, 1);
        assert!(got == Ok(content(5000)), "{:?}", got.err());
    }
    lab.finish(10_000);
}

#[test]
fn a_client_and_all_of_them_have_bounds() {
    let transfers = Arc::new(Transfers::default());
    let admit = |host: u16, port: u16, request: &[u8]| {
        let [high, low] = host.to_be_bytes();
        let pair = Pair {
            peer: SocketAddrV4::new([10, 0, high, low].into(), port),
            local: Ipv4Addr::LOCALHOST,
        };
        transfers.admit(pair, request)
    };
    let mut places = Vec::new();
    for port in 0..CLIENT_TRANSFERS_MAX as u16 {
        match admit(1, port, b"x") {
            Admission::Begin(place) => places.push(place),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(admit(1, 99, b"x"), Admission::Full(_)));
    assert!(matches!(admit(1, 0, b"x"), Admission::Repeated));
    assert!(places[0].keep_if_asked_again());
    assert!(!places[0].keep_if_asked_again());
    // Its place is free, and dropping it does not free the next one's.
    let Admission::Begin(next) = admit(1, 99, b"x") else {
        panic!("there is room");
    };
    places.push(next);
    places.remove(0);
    assert!(matches!(admit(1, 100, b"x"), Admission::Full(_)));
    let Admission::Begin(other) = admit(1, 99, b"y") else {
        panic!("another request takes the place of the old one");
    };
    assert!(places.pop().is_some_and(|old| old.is_superseded()));
    places.push(other);
    for host in 2.. {
        match admit(host, 1, b"x") {
            Admission::Begin(place) => places.push(place),
            Admission::Full(_) => break,
            Admission::Repeated => panic!("{host}"),
        }
    }
    assert_eq!(places.len(), TRANSFERS_MAX);
    drop(places);
    assert!(transfers.all().is_empty());
}
