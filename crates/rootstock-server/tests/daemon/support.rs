//! A daemon, a small client, and hand-made disks.

use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rootstock_api::{
    BINARY_MEDIA_TYPE, Bitmap, Import, ImportCommit, ImportCommitted, ImportCreate, ImportReceipt,
    Problem, ProblemCode, Record, paths, record::encode_ids,
};
use rootstock_core::{CHUNK_BYTES, ChunkId, Digest};
use rootstock_image::{
    frame::{Encoder, Frame},
    grid::Grid,
    manifest::ManifestBuilder,
};
use rootstock_server::{
    Config, Daemon,
    config::{ApiAddress, BootInterface, NbdConfig},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        let text = String::from_utf8_lossy(&self.body);
        assert!(self.status.is_success(), "{} {text}", self.status);
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The problem, which has to be a good one.
    pub(crate) fn problem(&self) -> Problem {
        let text = String::from_utf8_lossy(&self.body);
        let kind = self.headers.get(header::CONTENT_TYPE);
        assert_eq!(
            kind.and_then(|v| v.to_str().ok()),
            Some("application/problem+json"),
            "{} {text}",
            self.status
        );
        let problem: Problem = serde_json::from_slice(&self.body).expect("is a problem");
        assert_eq!(problem.status, self.status.as_u16());
        assert_ne!(problem.code, ProblemCode::Unknown);
        problem
    }

    /// The lines of a long operation.
    pub(crate) fn lines<T: DeserializeOwned>(&self) -> Vec<T> {
        assert!(self.status.is_success(), "{}", self.status);
        let lines = self.body.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).expect("is an event"))
            .collect()
    }
}

pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    daemon: Option<Daemon>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut site = Self { dir, daemon: None };
        site.daemon = Some(Daemon::start(site.config()).await.expect("starts"));
        site
    }

    pub(crate) async fn start_with(dir: tempfile::TempDir, config: Config) -> Self {
        let daemon = Some(Daemon::start(config).await.expect("starts"));
        Self { dir, daemon }
    }

    /// The same site, running again.
    pub(crate) async fn started(mut self) -> Self {
        self.daemon = Some(Daemon::start(self.config()).await.expect("starts again"));
        self
    }

    pub(crate) fn config(&self) -> Config {
        config_in(self.dir.path())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("runs")
    }

    pub(crate) async fn stop(&mut self) {
        let daemon = self.daemon.take().expect("runs");
        daemon.shutdown().await.expect("stops");
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.daemon = Some(Daemon::start(self.config()).await.expect("starts again"));
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let stream = UnixStream::connect(self.socket()).await.expect("connects");
        exchange(stream, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(request(Method::DELETE, path, Body::empty()))
            .await
    }

    pub(crate) async fn post(&self, path: &str, document: &impl Serialize) -> Answer {
        self.send(json(Method::POST, path, document)).await
    }

    pub(crate) async fn put(&self, path: &str, document: &impl Serialize) -> Answer {
        self.send(json(Method::PUT, path, document)).await
    }

    pub(crate) async fn bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        self.send(binary(path, Body::from(body))).await
    }

    pub(crate) async fn open_import(&self, image: &str, disk: &Disk) -> Import {
        let create = ImportCreate {
            image: image.parse().expect("a name"),
            disk_bytes: disk.disk_bytes,
            source: "disk.raw".to_owned(),
        };
        self.post(paths::IMPORTS, &create).await.json()
    }

    pub(crate) async fn lacking(&self, import: &str, ids: &[ChunkId]) -> Vec<bool> {
        let answer = self
            .bytes(&paths::import_lacking(import), encode_ids(ids))
            .await;
        assert!(answer.status.is_success());
        let bitmap = Bitmap::from_bytes(answer.body.to_vec(), ids.len()).expect("fits");
        (0..ids.len()).map(|index| bitmap.get(index)).collect()
    }

    pub(crate) async fn send_frames<'a>(
        &self,
        import: &str,
        frames: impl IntoIterator<Item = &'a Frame>,
    ) -> ImportReceipt {
        let mut body = Vec::new();
        for frame in frames {
            record(frame).write(&mut body);
        }
        self.bytes(&paths::import_chunks(import), body).await.json()
    }

    pub(crate) async fn commit(&self, import: &str, disk: &Disk, tag: Option<&str>) -> Answer {
        let commit = ImportCommit {
            manifest: disk.manifest,
            tag: tag.map(|tag| tag.parse().expect("a tag")),
            message: None,
            facts: rootstock_api::ImageFacts::default(),
        };
        self.post(&paths::import_commit(import), &commit).await
    }

    /// A whole import, as the client does it.
    pub(crate) async fn import(&self, image: &str, disk: &Disk) -> ImportCommitted {
        let import = self.open_import(image, disk).await;
        let ids: Vec<_> = disk.frames.iter().map(|frame| frame.chunk).collect();
        let lacking = self.lacking(&import.id, &ids).await;
        let wanted = disk.frames.iter().zip(lacking);
        let wanted = wanted.filter_map(|(frame, lacks)| lacks.then_some(frame));
        self.send_frames(&import.id, wanted).await;
        self.commit(&import.id, disk, None).await.json()
    }
}

pub(crate) fn config_in(dir: &Path) -> Config {
    let mut config = Config {
        data: dir.join("data"),
        nbd: NbdConfig {
            listen: Vec::new(),
            ..NbdConfig::default()
        },
        ..Config::default()
    };
    config.api.listen = vec![ApiAddress::Unix(dir.join("api.sock"))];
    // Nothing answers on the networks of the machine that runs the tests.
    config.boot.interfaces = vec![BootInterface::Off];
    // Background work would only disturb what the tests look at.
    config.store.scrub_rate_bytes = 0;
    config.store.gc_interval_minutes = 0;
    config.store.recipe_load_percent = 0;
    config
}

pub(crate) fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(header::HOST, "rootstock");
    request.body(body).expect("a request")
}

pub(crate) fn binary(path: &str, body: Body) -> Request<Body> {
    let mut request = request(Method::POST, path, body);
    let value = header::HeaderValue::from_static(BINARY_MEDIA_TYPE);
    request.headers_mut().insert(header::CONTENT_TYPE, value);
    request
}

pub(crate) fn json(method: Method, path: &str, document: &impl Serialize) -> Request<Body> {
    let body = serde_json::to_vec(document).expect("serializes");
    let mut request = request(method, path, Body::from(body));
    let value = header::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, value);
    request
}

pub(crate) async fn exchange<S>(stream: S, request: Request<Body>) -> Answer
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("speaks HTTP");
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.expect("is answered");
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(Body::new(body), 64 << 20).await;
    let answer = Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.expect("is read"),
    };
    drop(sender);
    // A server that refuses a body may close without reading it.
    let _ = connection.await.expect("does not panic");
    answer
}

pub(crate) fn record(frame: &Frame) -> Record<'_> {
    Record {
        chunk: frame.chunk,
        raw_bytes: frame.raw_bytes,
        codec: frame.codec.to_byte(),
        frame: &frame.bytes,
    }
}

/// A disk as the client's side of an import makes it.
pub(crate) struct Disk {
    pub(crate) disk_bytes: u64,
    pub(crate) manifest: Digest,
    /// Chunks, then pages, then the root document.
    pub(crate) frames: Vec<Frame>,
    /// How many of the frames are chunks.
    pub(crate) chunk_count: usize,
}

impl Disk {
    /// A disk of this many chunks, each full of a byte; zero for none.
    pub(crate) fn of(fills: &[u8]) -> Self {
        let raw = |fill: &u8| match fill {
            0 => vec![0; CHUNK_BYTES as usize],
            fill => chunk_of(*fill),
        };
        Self::of_raw(&fills.iter().flat_map(raw).collect::<Vec<_>>())
    }

    /// A disk of these bytes.
    pub(crate) fn of_raw(bytes: &[u8]) -> Self {
        let disk_bytes = bytes.len() as u64;
        let grid = Grid::whole(disk_bytes).expect("a grid");
        let mut builder = ManifestBuilder::new(grid);
        let mut encoder = Encoder::new();
        let mut frames: Vec<Frame> = Vec::new();
        for (index, raw) in (0..).zip(bytes.chunks(CHUNK_BYTES as usize)) {
            if raw.iter().all(|byte| *byte == 0) {
                continue;
            }
            let id = ChunkId::of(raw);
            builder.set(index, id);
            if frames.iter().all(|frame| frame.chunk != id) {
                frames.push(encoder.encode(id, raw));
            }
        }
        let chunk_count = frames.len();
        let manifest = builder
            .finish(|id, page| {
                frames.push(encoder.encode(id, page));
                Ok::<_, std::convert::Infallible>(())
            })
            .expect("has no parent to read");
        let document = manifest.encode();
        frames.push(encoder.encode(ChunkId(manifest.id()), &document));
        Self {
            disk_bytes,
            manifest: manifest.id(),
            frames,
            chunk_count,
        }
    }
}

/// A chunk that does not compress to nothing: its fill, and noise after it.
pub(crate) fn chunk_of(fill: u8) -> Vec<u8> {
    let mut raw = vec![fill; CHUNK_BYTES as usize];
    let mut state = u64::from(fill) << 32 | 1;
    for byte in &mut raw[..32 * 1024] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    raw
}
