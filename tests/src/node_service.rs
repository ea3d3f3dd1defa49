//! A node service without a daemon: one image, one order, plain HTTP, and faults on demand.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use ed25519_dalek::{Signer, SigningKey};
use rootstock_api::SEAL_HEADER;
use rootstock_api::boot::{
    BootOrder, BootStep, CHUNKS, FETCH_IDS_MAX, MANIFEST, NodeReport, ORDER,
    ORDER_SIGNATURE_HEADER, REPORT, SESSION, STEPS, StepReport, Steps,
};
use rootstock_api::record::{Record, decode_ids};
use rootstock_core::units::is_zero;
use rootstock_core::{ByteRange, ChunkId, Digest, VersionNumber};
use rootstock_image::frame::Encoder;
use rootstock_image::grid::Grid;
use rootstock_image::manifest::{Manifest, ManifestBuilder};
use rootstock_image::seal::Seal;

/// The session that every token gets.
pub const SESSION_SECRET: &str = "the-session-of-this-test";
/// The token that is taken.
pub const TOKEN: &str = "the-token-of-this-test";

/// A certificate that nobody has the key of: the site's file must name one.
const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----
MIIBjjCCATWgAwIBAgIUG3mqfkroilbKRCd+ls3a6leEhXwwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRZmFrZSBub2RlIHNlcnZpY2UwIBcNMjYxMTIxMTIxOTM5WhgP
MjEyNjEwMjgxMjE5MzlaMBwxGjAYBgNVBAMMEWZha2Ugbm9kZSBzZXJ2aWNlMFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEOlL8Z1yYJEBW7i5UgfBRjge9Wz7tl5xY
cnqGxSMDY8kjwlfG5ffE/HIMQNAx7G/yj+e5pjQBC9b8aRTN5GV2J6NTMFEwHQYD
VR0OBBYEFDkrf/fWJUE694a38H01MZwIbJ8rMB8GA1UdIwQYMBaAFDkrf/fWJUE6
94a38H01MZwIbJ8rMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIg
WIn/X8t6JviuetfKXd/fysmphT5GnnNZ6FuqSwTy+KcCICzOLWPd0D088/SgxXWj
wUUNhXe/J2dLFEvziPpcx/X1
-----END CERTIFICATE-----
";

/// Where a chunk's bytes are.
enum Place {
    Disk(ByteRange),
    Page(Vec<u8>),
}

/// What the image is, and what its machine told.
pub struct NodeService {
    port: u16,
    key: SigningKey,
    manifest: Manifest,
    disk: File,
    places: HashMap<ChunkId, Place>,
    order: Mutex<Vec<u8>>,
    steps: Mutex<Vec<StepReport>>,
    report: Mutex<Option<NodeReport>>,
    away: AtomicBool,
    held: AtomicU64,
    sent_bytes: AtomicU64,
}

impl NodeService {
    /// Serves the disk image at `disk` on a port of the loopback interface.
    ///
    /// # Errors
    /// When the image cannot be read or no port is to be had.
    pub fn start(disk: &Path) -> Result<Arc<Self>> {
        let file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
        let mut places = HashMap::new();
        let manifest = scan(&file, &mut places)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let service = Arc::new(Self {
            port: listener.local_addr()?.port(),
            key: SigningKey::from_bytes(&[7; 32]),
            manifest,
            disk: file,
            places,
            order: Mutex::default(),
            steps: Mutex::default(),
            report: Mutex::default(),
            away: AtomicBool::new(false),
            held: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&service);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let service = Arc::clone(&accepting);
                // A connection that fails is its client's affair.
                thread::spawn(move || drop(service.connection(&stream)));
            }
        });
        Ok(service)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the first stage carries as `/rootstock/site.json`.
    #[must_use]
    pub fn site(&self) -> String {
        serde_json::json!({
            "format": 1,
            "public_key": hex(self.key.verifying_key().as_bytes()),
            "authority_pem": AUTHORITY,
            "made_seconds": 0,
        })
        .to_string()
    }

    /// The manifest's id.
    #[must_use]
    pub fn manifest(&self) -> Digest {
        self.manifest.id()
    }

    /// The disk's size.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.manifest.grid().disk_bytes()
    }

    /// What the machine will be told to run.
    ///
    /// # Errors
    /// When it has no JSON.
    pub fn give(&self, order: &BootOrder) -> Result<()> {
        *lock(&self.order) = serde_json::to_vec(order)?;
        Ok(())
    }

    /// Has the machine wait for approval this many times.
    pub fn hold(&self, times: u64) {
        self.held.store(times, Ordering::SeqCst);
    }

    /// Ends every connection without an answer, until told otherwise.
    pub fn go_away(&self) {
        self.away.store(true, Ordering::SeqCst);
    }

    /// Answers again.
    pub fn come_back(&self) {
        self.away.store(false, Ordering::SeqCst);
    }

    /// The steps that were told, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<StepReport> {
        lock(&self.steps).clone()
    }

    /// Whether a step was told.
    #[must_use]
    pub fn has_step(&self, step: BootStep) -> bool {
        lock(&self.steps).iter().any(|told| told.step == step)
    }

    /// The last report.
    #[must_use]
    pub fn report(&self) -> Option<NodeReport> {
        lock(&self.report).clone()
    }

    /// Bytes of chunks that were sent.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::SeqCst)
    }

    fn connection(&self, stream: &TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut encoder = Encoder::new();
        loop {
            let Some((line, headers)) = head(&mut reader)? else {
                return Ok(());
            };
            if self.away.load(Ordering::SeqCst) {
                return Ok(());
            }
            let len = headers
                .get("content-length")
                .map_or(Ok(0), |len| len.parse())?;
            let mut body = vec![0; len];
            reader.read_exact(&mut body)?;
            let path = line.split(' ').nth(1).unwrap_or_default();
            let bearer = headers.get("authorization").map(String::as_str);
            let allowed = path == SESSION || bearer == Some(&format!("Bearer {SESSION_SECRET}"));
            let (status, header, answer) = if allowed {
                self.answer(path, &body, &mut encoder)?
            } else {
                (401, None, b"no session".to_vec())
            };
            if self.away.load(Ordering::SeqCst) {
                return Ok(());
            }
            let mut reply = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n",
                answer.len()
            );
            if let Some((name, value)) = header {
                reply.push_str(&format!("{name}: {value}\r\n"));
            }
            reply.push_str("\r\n");
            let mut out: &TcpStream = stream;
            out.write_all(reply.as_bytes())?;
            out.write_all(&answer)?;
        }
    }

    fn answer(&self, path: &str, body: &[u8], encoder: &mut Encoder) -> Result<Answer> {
        Ok(match path {
            SESSION => self.session(body)?,
            ORDER => {
                let order = lock(&self.order).clone();
                let signature = hex(&self.key.sign(&order).to_bytes());
                (200, Some((ORDER_SIGNATURE_HEADER, signature)), order)
            }
            MANIFEST => {
                let order: BootOrder = serde_json::from_slice(&lock(&self.order))?;
                let seal = Seal::sign(&self.key, &order.image, order.version, self.manifest.id());
                let seal = hex(&seal.encode());
                (200, Some((SEAL_HEADER, seal)), self.manifest.encode())
            }
            CHUNKS => (200, None, self.chunks(body, encoder)?),
            STEPS => {
                let told: Steps = serde_json::from_slice(body)?;
                lock(&self.steps).extend(told.steps);
                (204, None, Vec::new())
            }
            REPORT => {
                *lock(&self.report) = Some(serde_json::from_slice(body)?);
                (200, None, br#"{"report_seconds":1}"#.to_vec())
            }
            _ => (404, None, b"no such path".to_vec()),
        })
    }

    fn session(&self, body: &[u8]) -> Result<Answer> {
        let asked: serde_json::Value = serde_json::from_slice(body)?;
        if asked["token"] != TOKEN {
            return Ok((
                403,
                None,
                br#"{"detail":"the token is not known"}"#.to_vec(),
            ));
        }
        let left = self
            .held
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        let answer = if left.is_ok() {
            serde_json::json!({"state": "held", "message": "waiting for approval", "retry_seconds": 1})
        } else {
            serde_json::json!({"state": "open", "session": SESSION_SECRET, "node": "n1"})
        };
        Ok((200, None, serde_json::to_vec(&answer)?))
    }

    fn chunks(&self, body: &[u8], encoder: &mut Encoder) -> Result<Vec<u8>> {
        let mut records = Vec::new();
        for id in decode_ids(body, FETCH_IDS_MAX)? {
            let raw = match self.places.get(&id) {
                Some(Place::Disk(range)) => {
                    let mut raw = vec![0; range.len as usize];
                    self.disk.read_exact_at(&mut raw, range.start)?;
                    raw
                }
                Some(Place::Page(page)) => page.clone(),
                None => continue,
            };
            let frame = encoder.encode(id, &raw);
            Record {
                chunk: id,
                raw_bytes: frame.raw_bytes,
                codec: frame.codec.to_byte(),
                frame: &frame.bytes,
            }
            .write(&mut records);
        }
        let len = records.len() as u64;
        self.sent_bytes.fetch_add(len, Ordering::SeqCst);
        Ok(records)
    }
}

type Answer = (u16, Option<(&'static str, String)>, Vec<u8>);

/// An order for an image of this service, with what every test wants the same.
///
/// # Errors
/// Never; its name is one.
pub fn order(service: &NodeService) -> Result<BootOrder> {
    let text = serde_json::json!({
        "boot": SESSION_SECRET,
        "node": "n1",
        "mode": "diskless",
        "image": "lab",
        "version": VersionNumber(1),
        "manifest": service.manifest(),
        "disk_bytes": service.disk_bytes(),
        "root": {"partition": 1, "fs": "ext4", "init": "/sbin/init"},
        "chunk_urls": [format!("http://10.0.2.2:{}", service.port())],
        "cache_bytes": 32 << 20,
        "report_seconds": 1,
        "identity": {
            "host_name": "n1",
            "machine_id": "0123456789abcdef0123456789abcdef",
            "hosts": ["10.0.2.99 n99"],
            "name_servers": ["10.0.2.3"],
            "files": [{"path": "/etc/ssh/ssh_host_ed25519_key", "mode": 0o600, "text": "key\n"}],
            "settings": {"colour": "blue"},
        },
    });
    Ok(serde_json::from_value(text)?)
}

/// A request's first line and its headers; `None` at the connection's end.
fn head(reader: &mut BufReader<&TcpStream>) -> Result<Option<(String, HashMap<String, String>)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some((first, headers)));
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// The manifest of a disk as one region, and where its chunks are.
fn scan(disk: &File, places: &mut HashMap<ChunkId, Place>) -> Result<Manifest> {
    let grid = Grid::whole(disk.metadata()?.len())?;
    let mut builder = ManifestBuilder::new(grid.clone());
    let mut raw = Vec::new();
    for index in 0..grid.chunk_count() {
        let span = grid.span(index);
        raw.resize(span.len_bytes as usize, 0);
        disk.read_exact_at(&mut raw, span.start_bytes)?;
        if is_zero(&raw) {
            continue;
        }
        let id = ChunkId::of(&raw);
        builder.set(index, id);
        let range = ByteRange::new(span.start_bytes, span.len_bytes.into());
        places.insert(id, Place::Disk(range));
    }
    let manifest = builder.finish(|id, page: &[u8]| {
        places.insert(id, Place::Page(page.to_vec()));
        Ok::<(), std::convert::Infallible>(())
    })?;
    Ok(manifest)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
