//! Four files over HTTP/1.1 (RFC 9112), as far as boot programs ask for them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use super::{Boots, Offer, PORT};

/// Machines that are served at once; others wait in the kernel's queue, or come again.
const CONNECTIONS_MAX: usize = 16;

/// Those of one address: boot programs need one or two.
const OF_ADDRESS_MAX: usize = 4;

/// The longest request, in bytes.
const REQUEST_BYTES_MAX: usize = 4 << 10;

/// How long a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How long an answer may take: kernel and first stage over a bad link.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);

/// How long nothing of it may go.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// What is written at once.
const PIECE_BYTES: usize = 64 << 10;

/// Between two looks at whether somebody came.
const ACCEPT_EVERY: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Script,
    Kernel,
    FirstStage,
    Document,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// For all of a file.
    Get(Path),
    /// For its length.
    Head(Path),
    /// It is refused with this status.
    Refused(&'static str),
}

/// To whom there is a connection: each address as often as it has one.
#[derive(Default)]
struct Places(Mutex<Vec<IpAddr>>);

impl Places {
    fn is_full(&self) -> bool {
        let served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        served.len() >= CONNECTIONS_MAX
    }

    /// Takes a connection; whether this address may have another one.
    fn begin(&self, address: IpAddr) -> bool {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = served.iter().filter(|other| **other == address).count();
        let may = of_it < OF_ADDRESS_MAX;
        if may {
            served.push(address);
        }
        may
    }

    fn end(&self, address: IpAddr) {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = served.iter().position(|other| *other == address) {
            served.swap_remove(at);
        }
    }
}

/// What is served, and to whom.
pub(super) struct Server {
    offer: RwLock<Arc<Offer>>,
    places: Places,
}

impl Server {
    pub(super) fn new(offer: Offer) -> Self {
        Self {
            offer: RwLock::new(Arc::new(offer)),
            places: Places::default(),
        }
    }

    /// Gives this from now on.
    pub(super) fn set(&self, offer: Offer) {
        *self.offer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(offer);
    }

    fn offer(&self) -> Arc<Offer> {
        Arc::clone(&self.offer.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers whoever comes, until it is to stop.
pub(super) fn accept(
    listener: &TcpListener,
    server: &Arc<Server>,
    boots: &Arc<Boots>,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) {
        if server.places.is_full() {
            thread::sleep(ACCEPT_EVERY);
            continue;
        }
        let Ok((stream, address)) = listener.accept() else {
            thread::sleep(ACCEPT_EVERY);
            continue;
        };
        let address = address.ip();
        // What is too much is closed at once.
        if !server.places.begin(address) {
            continue;
        }
        let (served, boots) = (Arc::clone(server), Arc::clone(boots));
        let serve = move || {
            // Who breaks off comes again.
            let _ = answer(&stream, &served, &boots);
            served.places.end(address);
        };
        let thread = thread::Builder::new().name("boots-other".to_owned());
        if thread.spawn(serve).is_err() {
            server.places.end(address);
        }
    }
}

fn answer(stream: &TcpStream, server: &Server, boots: &Boots) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    let request = parse(&read(stream)?);
    let (path, with_body) = match request {
        Request::Get(path) => (path, true),
        Request::Head(path) => (path, false),
        Request::Refused(status) => return write(stream, status, b"", true),
    };
    let offer = server.offer();
    let local = match stream.local_addr()?.ip() {
        IpAddr::V4(local) => local,
        IpAddr::V6(_) => return Ok(()),
    };
    let made;
    let body = match path {
        Path::Kernel => &offer.kernel,
        Path::FirstStage => &offer.first_stage,
        Path::Script => {
            made = script(local, boots, &offer.arguments).into_bytes();
            &made
        }
        Path::Document => {
            made = serde_json::to_vec(&boots.members(&offer, local))?;
            &made
        }
    };
    write(stream, "200 OK", body, with_body)
}

/// All of a request's head, as far as it comes in time.
fn read(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let began = Instant::now();
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = REQUEST_LIMIT.saturating_sub(began.elapsed());
        if left.is_zero() || head.len() > REQUEST_BYTES_MAX {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        head.extend(&buffer[..len]);
    }
    Ok(head)
}

fn parse(head: &[u8]) -> Request {
    const BAD: Request = Request::Refused("400 Bad Request");
    let is_whole = head.len() <= REQUEST_BYTES_MAX && head.windows(4).any(|end| end == b"\r\n\r\n");
    let line = head.split(|byte| *byte == b'\r').next();
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else {
        return BAD;
    };
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return BAD;
    };
    if !is_whole || !version.starts_with("HTTP/1.") {
        return BAD;
    }
    let path = match target.split('?').next() {
        Some("/boot.ipxe") => Path::Script,
        Some("/kernel") => Path::Kernel,
        Some("/first-stage") => Path::FirstStage,
        Some("/guest.json") => Path::Document,
        _ => return Request::Refused("404 Not Found"),
    };
    match method {
        "GET" => Request::Get(path),
        "HEAD" => Request::Head(path),
        _ => Request::Refused("405 Method Not Allowed"),
    }
}

fn write(mut stream: &TcpStream, status: &str, body: &[u8], with_body: bool) -> io::Result<()> {
    let len = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let began = Instant::now();
    for piece in body.chunks(PIECE_BYTES).take_while(|_| with_body) {
        if began.elapsed() > ANSWER_LIMIT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.write_all(piece)?;
    }
    Ok(())
}

/// What iPXE does: a head has three seconds to answer, and then this machine boots it.
fn script(local: Ipv4Addr, boots: &Boots, arguments: &[String]) -> String {
    let heads = boots.plain_urls.iter().map(|url| {
        format!(
            "chain --timeout 3000 --replace {url}/boot/ipxe/${{netX/mac:hexhyp}}?uuid=${{uuid}}\
             &arch=${{buildarch}}&platform=${{platform}} ||\n"
        )
    });
    let heads: String = heads.collect();
    let mut words: Vec<String> = boots
        .urls
        .iter()
        .map(|url| format!("rootstock.url={url}"))
        .collect();
    let own = format!("http://{local}:{PORT}");
    words.push(format!("rootstock.guest={own}"));
    words.push("BOOTIF=01-${netX/mac:hexhyp}".to_owned());
    words.push("rootstock.ip=${netX/ip}/${netX/netmask},${netX/gateway},${netX/dns}".to_owned());
    words.extend(arguments.iter().cloned());
    let words = words.join(" ");
    format!(
        "\
#!ipxe
:start
isset ${{netX/ip}} || dhcp || goto again
{heads}echo Rootstock: no server answers, {local} boots this machine
kernel {own}/kernel initrd=initrd {words} || goto again
initrd --name initrd {own}/first-stage || goto again
boot ||
:again
imgfree ||
echo Rootstock: that did not work, trying again
sleep 5
goto start
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places() {
        let places = Places::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        for _ in 0..OF_ADDRESS_MAX {
            assert!(places.begin(one));
        }
        assert!(!places.begin(one));
        assert!(places.begin(other));
        places.end(one);
        assert!(places.begin(one));
        for last in 3..3 + CONNECTIONS_MAX - OF_ADDRESS_MAX - 1 {
            assert!(!places.is_full());
            assert!(places.begin(IpAddr::from([10, 0, 0, last as u8])));
        }
        assert!(places.is_full());
    }

    #[test]
    fn requests_are_read_as_the_standard_says() {
        let long = format!(
            "GET /kernel HTTP/1.1\r\nx: {}\r\n\r\n",
            "y".repeat(REQUEST_BYTES_MAX)
        );
        for (head, expected) in [
            (
                "GET /kernel HTTP/1.1\r\nhost: x\r\n\r\n",
                Request::Get(Path::Kernel),
            ),
            (
                "GET /boot.ipxe?a=b HTTP/1.0\r\n\r\n",
                Request::Get(Path::Script),
            ),
            (
                "HEAD /first-stage HTTP/1.1\r\n\r\n",
                Request::Head(Path::FirstStage),
            ),
            (
                "GET /guest.json HTTP/1.1\r\n\r\n",
                Request::Get(Path::Document),
            ),
            (
                "POST /kernel HTTP/1.1\r\n\r\n",
                Request::Refused("405 Method Not Allowed"),
            ),
            (
                "GET /../etc/shadow HTTP/1.1\r\n\r\n",
                Request::Refused("404 Not Found"),
            ),
            (
                "GET /kernel HTTP/1.1\r\n",
                Request::Refused("400 Bad Request"),
            ),
            ("GET /kernel\r\n\r\n", Request::Refused("400 Bad Request")),
            (
                "GET /kernel SMTP\r\n\r\n",
                Request::Refused("400 Bad Request"),
            ),
            ("\r\n\r\n", Request::Refused("400 Bad Request")),
            ("", Request::Refused("400 Bad Request")),
            (&long, Request::Refused("400 Bad Request")),
        ] {
            assert_eq!(parse(head.as_bytes()), expected, "{head:?}");
        }
        assert_eq!(parse(&[0xff; 100]), Request::Refused("400 Bad Request"));
    }
}
