//! Garbage to the API's socket: answered where it is HTTP, cut off where it is not, and never the daemon's end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rootstock_tests::{Daemon, disk, http, wait};
use serde_json::Value;
use tempfile::TempDir;

/// How long the daemon may take over one request, hanging ones included.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// What the daemon may hold after all that was thrown at it.
const MEMORY_BYTES_MAX: u64 = 300 * MIB;
/// Orders whose clients leave before the answer.
const ORDERS: usize = 40;
/// By how much later each leaves.
const LEAVING_STEP: Duration = Duration::from_micros(150);

fn started() -> (TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path()).unwrap();
    (directory, daemon)
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    stream.set_write_timeout(Some(ANSWER_LIMIT)).unwrap();
    stream
}

/// Sends bytes and ends, and gives all that comes back until the daemon closes.
fn throw(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(socket);
    // It may close before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    rest(stream)
}

/// Sends a request, and gives its answer.
fn exchange(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(socket);
    let _ = stream.write_all(bytes);
    rest(stream)
}

fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // What was sent and never read makes the close a reset.
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Sends a request that is HTTP, and gives the status and the problem's code.
fn problem(socket: &Path, request: &[u8]) -> (u16, String) {
    let answer = exchange(socket, request);
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| {
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]);
        panic!("no answer to {shown}: {text}")
    });
    assert!(
        head.contains("content-type: application/problem+json"),
        "{text}"
    );
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(body["status"], status, "{body}");
    assert!(!body["detail"].as_str().unwrap().is_empty(), "{body}");
    assert!(text.len() < 4000, "{text}");
    (status, body["code"].as_str().unwrap().to_owned())
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

const JSON: &str = "Content-Type: application/json\r\n";
const BINARY: &str = "Content-Type: application/octet-stream\r\n";

#[test]
fn what_is_not_http_is_cut_off() {
    let (_directory, mut daemon) = started();
    let socket = daemon.socket();
    let long = vec![b'A'; 4 << 20];
    let many_headers = format!("GET /v1/site HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(5000));
    let huge_header = format!(
        "GET /v1/site HTTP/1.1\r\nX: {}\r\n\r\n",
        "y".repeat(4 << 20)
    );
    let huge_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "p".repeat(1 << 20));
    let cases: [&[u8]; 12] = [
        b"",
        b"\0",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NBDMAGICIHAVEOPT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/site HTTP/9.9\r\n\r\n",
        b"GET /v1/site\r\n\r\n",
        &long,
        many_headers.as_bytes(),
        huge_header.as_bytes(),
        huge_path.as_bytes(),
    ];
    for bytes in cases {
        let answer = throw(&socket, bytes);
        let shown = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || shown.starts_with("HTTP/1."), "{shown}");
        assert!(!shown.starts_with("HTTP/1.1 2"), "{shown}");
        daemon.process().check_runs().unwrap();
    }
    assert_eq!(http::get(&socket, "/healthz").unwrap().status, 200);
    daemon.stop().unwrap();
}

#[test]
fn what_is_http_gets_a_problem_with_a_code() {
    let (_directory, mut daemon) = started();
    let socket = daemon.socket();
    let import = r#"{"image":"a","disk_bytes":1048576,"source":"x"}"#;
    let long = "x".repeat(10_000);
    let deep = "[".repeat(100_000);
    let wide = format!(r#"{{"image":"{}"}}"#, "a".repeat(8 << 20));
    let percent = "%F0%9F%8C%B1".repeat(100);
    let cases: Vec<(u16, &str, Vec<u8>)> = vec![
        (
            400,
            "bad-request",
            request("POST", "/v1/imports", JSON, "{"),
        ),
        (400, "bad-request", request("POST", "/v1/imports", JSON, "")),
        (
            400,
            "bad-request",
            request("POST", "/v1/imports", JSON, &deep),
        ),
        (
            400,
            "bad-request",
            request("POST", "/v1/imports", JSON, "\u{0}"),
        ),
        (
            413,
            "too-large",
            request("POST", "/v1/imports", JSON, &wide),
        ),
        (
            415,
            "unsupported-media-type",
            request(
                "POST",
                "/v1/imports",
                "Content-Type: text/plain\r\n",
                import,
            ),
        ),
        (
            415,
            "unsupported-media-type",
            request("POST", "/v1/imports", BINARY, import),
        ),
        (
            400,
            "bad-name",
            request("GET", &format!("/v1/images/{percent}"), "", ""),
        ),
        (
            400,
            "bad-name",
            request("GET", &format!("/v1/images/{long}"), "", ""),
        ),
        (
            404,
            "no-such-path",
            request("GET", &format!("/{long}"), "", ""),
        ),
        (
            404,
            "no-such-path",
            request("GET", "/v1/../../etc/passwd", "", ""),
        ),
        (404, "no-such-path", request("GET", "//", "", "")),
        (
            405,
            "method-not-allowed",
            request("BREW", "/v1/images", "", ""),
        ),
        (
            405,
            "method-not-allowed",
            request(&"X".repeat(2000), "/v1/images", "", ""),
        ),
        (
            400,
            "bad-request",
            request("GET", "/v1/diff?from=%00&to=%ff", "", ""),
        ),
        (
            400,
            "bad-request",
            request("POST", "/v1/chunks/fetch", BINARY, "abc"),
        ),
    ];
    for (status, code, bytes) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        let answer = problem(&socket, &bytes);
        assert_eq!(answer, (status, code.to_owned()), "{shown}");
    }
    daemon.run(["image", "list"]).unwrap();
    daemon.stop().unwrap();
}

#[test]
fn lengths_that_lie_take_no_memory() {
    let (_directory, mut daemon) = started();
    let socket = daemon.socket();
    let paths = ["/v1/imports", "/v1/chunks/fetch", "/v1/imports/x/chunks"];
    // A length and nothing, held open; a length with some of it; a length that is none.
    let mut held = Vec::new();
    for path in paths {
        for length in ["1073741824", "18446744073709551615", "100"] {
            let mut stream = connect(&socket);
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            // The daemon may have closed by now.
            let _ = stream.write_all(&[b'{'; 50]);
            held.push(stream);
        }
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{JSON}");
        for lie in [
            "Content-Length: -1\r\n\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        ] {
            let answer = throw(&socket, format!("{head}{lie}{{}}").as_bytes());
            assert!(!answer.starts_with(b"HTTP/1.1 2"));
        }
        let chunked = "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nx";
        throw(&socket, format!("{head}{chunked}").as_bytes());
    }
    // Half heads, held open beside them, in hundreds.
    for _ in 0..300 {
        let mut stream = connect(&socket);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").unwrap();
        held.push(stream);
    }
    assert_eq!(http::get(&socket, "/healthz").unwrap().status, 200);
    daemon.run(["image", "list"]).unwrap();
    let memory_bytes = daemon.process().memory_bytes().unwrap();
    assert!(memory_bytes < MEMORY_BYTES_MAX, "{memory_bytes} bytes");
    // They do not keep the daemon from ending either.
    daemon.stop().unwrap();
    drop(held);
}

#[test]
fn an_import_survives_garbage_in_its_path() {
    let (directory, mut daemon) = started();
    let socket = daemon.socket();
    let body = r#"{"image":"lab","disk_bytes":1048576,"source":"x"}"#;
    let made = exchange(&socket, &request("POST", "/v1/imports", JSON, body));
    let made = String::from_utf8(made).unwrap();
    let body = made.split_once("\r\n\r\n").unwrap().1;
    let id = serde_json::from_str::<Value>(body).unwrap()["id"].clone();
    let path = format!("/v1/imports/{}", id.as_str().unwrap());
    let record = "\u{7f}".repeat(5000);
    for (part, kind) in [("chunks", BINARY), ("lacking", BINARY), ("commit", JSON)] {
        let (status, _) = problem(
            &socket,
            &request("POST", &format!("{path}/{part}"), kind, &record),
        );
        assert!((400..500).contains(&status), "{part}: {status}");
    }
    let empty = r#"{"manifest":""}"#;
    let bytes = request("POST", &format!("{path}/commit"), JSON, empty);
    assert!((400..500).contains(&problem(&socket, &bytes).0));
    // Nothing of it became a version, and a real import still does.
    daemon.refused(["image", "show", "lab:1"]).unwrap();
    let source = directory.path().join("disk.img");
    disk::noise(&source, MIB, 1).unwrap();
    daemon
        .run(["image", "import", "lab", source.to_str().unwrap()])
        .unwrap();
    daemon.run(["image", "verify", "lab:1"]).unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_client_that_leaves_leaves_nothing_half_done() {
    let (directory, mut daemon) = started();
    let source = directory.path().join("disk.img");
    disk::noise(&source, MIB, 1).unwrap();
    daemon
        .run(["image", "import", "lab", source.to_str().unwrap()])
        .unwrap();
    let socket = daemon.socket();
    let name = |number: usize| format!("v{number}");
    for number in 0..ORDERS {
        let body = format!(r#"{{"name":"{}","from":"lab"}}"#, name(number));
        leave(
            &socket,
            &request("POST", "/v1/volumes", JSON, &body),
            number,
        );
    }
    // Each is there or never was: whichever, the name can be used.
    for number in 0..ORDERS {
        let name = name(number);
        wait::until("a volume to be whole or absent", ANSWER_LIMIT, || {
            let words = ["volume", "create", &name, "--from", "lab"];
            let made = daemon.output(words)?.status.success();
            let there = made || daemon.output(["volume", "show", &name])?.status.success();
            Ok(there.then_some(()))
        })
        .unwrap();
        leave(
            &socket,
            &request("DELETE", &format!("/v1/volumes/{name}"), "", ""),
            number,
        );
    }
    for number in 0..ORDERS {
        let name = name(number);
        wait::until("a volume to be whole or absent", ANSWER_LIMIT, || {
            let there = daemon.output(["volume", "delete", &name])?.status.success();
            let words = ["volume", "create", &name, "--from", "lab"];
            let made = daemon.output(words)?.status.success();
            Ok((there || made).then_some(()))
        })
        .unwrap();
    }
    daemon.stop().unwrap();
}

/// Sends a request and goes away, each time a little later.
fn leave(socket: &Path, request: &[u8], number: usize) {
    let mut stream = connect(socket);
    stream.write_all(request).unwrap();
    let leaving = Instant::now() + LEAVING_STEP * u32::try_from(number).unwrap();
    // A socket's own timeout counts in milliseconds, which is too coarse.
    while Instant::now() < leaving {
        thread::yield_now();
    }
}

#[test]
fn the_document_served_is_the_one_in_the_repository() {
    let (_directory, daemon) = started();
    let served = http::get(&daemon.socket(), "/openapi.json").unwrap();
    assert_eq!(served.status, 200);
    let served: Value = serde_json::from_str(&served.body).unwrap();
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/rootstock.json");
    let committed = std::fs::read_to_string(committed).unwrap();
    let committed: Value = serde_json::from_str(&committed).unwrap();
    assert_eq!(served, committed);
}
