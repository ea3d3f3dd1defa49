//! A version that comes by difference, from a server that is made up.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Mutex;

use ed25519_dalek::SigningKey;
use rootstock_cache::{Cache, Label};
use rootstock_core::{BLOCK_BYTES, CHUNK_BYTES, VersionNumber};
use rootstock_image::frame::Encoder;
use rootstock_image::grid::Grid;
use rootstock_image::manifest::{Manifest, ManifestBuilder};
use rootstock_image::recipe::Finder;
use rootstock_image::seal::Seal;

use super::super::keeper::Patience;
use super::*;
use crate::disk::device::Device;

const CHUNKS: usize = 4;
const KEY: [u8; 32] = [7; 32];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn site() -> Site {
    let key = hex(SigningKey::from_bytes(&KEY).verifying_key().as_bytes());
    let text =
        format!(r#"{{"format":1,"public_key":"{key}","authority_pem":"","made_seconds":0}}"#);
    Site::parse(&text).expect("a site")
}

/// Bytes that do not compress.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let word = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 33) as u8
    };
    std::iter::repeat_with(word).take(len).collect()
}

/// A version of these chunks, with the page that names them.
fn version(chunks: &[Vec<u8>]) -> (Manifest, Vec<Vec<u8>>) {
    let grid = Grid::whole(chunks.len() as u64 * CHUNK_BYTES).expect("a grid");
    let mut builder = ManifestBuilder::new(grid);
    for (index, raw) in chunks.iter().enumerate() {
        builder.set(index as u64, ChunkId::of(raw));
    }
    let mut pages = Vec::new();
    let manifest = builder.finish(|_, bytes| {
        pages.push(bytes.to_vec());
        Ok::<(), std::convert::Infallible>(())
    });
    (manifest.expect("built"), pages)
}

/// What a server would send, and what it sent.
struct Server {
    manifest: Vec<u8>,
    seal: String,
    frames: HashMap<ChunkId, Vec<u8>>,
    deltas: HashMap<ChunkId, Vec<u8>>,
    asked: Mutex<Vec<(bool, usize)>>,
}

impl Upgrades for &Server {
    fn manifest(&self, _: &NextVersion) -> Result<(Vec<u8>, String), CallError> {
        Ok((self.manifest.clone(), self.seal.clone()))
    }

    fn deltas(
        &self,
        from: Option<&str>,
        _: &NextVersion,
        ids: &[ChunkId],
    ) -> Result<Vec<u8>, CallError> {
        let mut body = Vec::new();
        for id in ids {
            let delta = self.deltas.get(id).filter(|_| from == Some("lab:1"));
            body.extend(delta.unwrap_or(&self.frames[id]));
        }
        let mut asked = self.asked.lock().expect("no panic");
        asked.push((from.is_some(), ids.len()));
        Ok(body)
    }
}

impl Server {
    /// A server of `new` for machines that have `old`.
    fn new(old: &[Vec<u8>], new: &[Vec<u8>]) -> (Self, NextVersion) {
        let (manifest, pages) = version(new);
        let next = NextVersion {
            image: "lab".parse().expect("a name"),
            version: VersionNumber(2),
            manifest: manifest.id(),
        };
        let key = SigningKey::from_bytes(&KEY);
        let seal = Seal::sign(&key, &next.image, next.version, next.manifest);
        let (mut frames, mut deltas) = (HashMap::new(), HashMap::new());
        let mut encoder = Encoder::new();
        let mut finder = Finder::new();
        new.iter().for_each(|raw| finder.want(raw));
        old.iter()
            .for_each(|raw| finder.search(ChunkId::of(raw), raw));
        for raw in new.iter().chain(&pages) {
            let chunk = ChunkId::of(raw);
            let record = |codec: u8, frame: &[u8]| {
                let mut body = Vec::new();
                Record {
                    chunk,
                    raw_bytes: raw.len() as u32,
                    codec,
                    frame,
                }
                .write(&mut body);
                body
            };
            let frame = encoder.encode(chunk, raw);
            frames.insert(chunk, record(frame.codec.to_byte(), &frame.bytes));
            if let Some(delta) = finder.delta(raw, &mut encoder) {
                deltas.insert(chunk, record(CODEC_DELTA, &delta));
            }
        }
        let server = Self {
            manifest: manifest.encode(),
            seal: hex(&seal.encode()),
            frames,
            deltas,
            asked: Mutex::default(),
        };
        (server, next)
    }
}

/// A disk that holds a version whole.
fn disk(directory: &std::path::Path, chunks: &[Vec<u8>]) -> std::sync::Arc<Keeper> {
    let path = directory.join("disk");
    File::create(&path)
        .and_then(|file| file.set_len(24 << 20))
        .expect("a disk");
    let device = Device::open(&path).expect("opens");
    Cache::format(&device, &Label::for_disk([1; 16], 24 << 20).expect("room")).expect("prepared");
    let cache = Cache::open(Box::new(device)).expect("opens");
    let keeper = Keeper::start("/dev/disk".to_owned(), cache, Patience::default()).expect("starts");
    let (manifest, pages) = version(chunks);
    for raw in chunks.iter().chain(&pages) {
        keeper.store(ChunkId::of(raw), raw.clone().into());
    }
    struct Memory<'a>(&'a Keeper);
    impl PageSource for Memory<'_> {
        type Error = NotHere;
        type Bytes = Bytes;
        fn page(&self, id: ChunkId) -> Result<Bytes, NotHere> {
            local(self.0, id)
        }
    }
    keeper.set_plan(Plan::walk(&manifest, &Memory(&keeper)).expect("pages"));
    keeper
}

fn chunks() -> Vec<Vec<u8>> {
    (0..CHUNKS as u64)
        .map(|seed| noise(seed + 1, CHUNK_BYTES as usize))
        .collect()
}

/// The next version: what was in the chunks has moved by a block, and one is new.
fn moved(old: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut disk = old.concat();
    disk.rotate_right(BLOCK_BYTES as usize);
    let mut new: Vec<Vec<u8>> = disk
        .chunks(CHUNK_BYTES as usize)
        .map(<[u8]>::to_vec)
        .collect();
    new[2] = noise(99, CHUNK_BYTES as usize);
    new
}

fn upgrade(server: &Server) -> Upgrade<&Server> {
    Upgrade {
        upgrades: server,
        site: site(),
        runs: "lab:1".to_owned(),
    }
}

#[test]
fn what_moved_is_rebuilt_and_what_is_new_is_fetched() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = chunks();
    let new = moved(&old);
    let keeper = disk(directory.path(), &old);
    let (server, next) = Server::new(&old, &new);
    let bytes = upgrade(&server)
        .fetch(&keeper, &next, &|_| {})
        .expect("fetched");
    // One chunk of noise, and next to nothing for the others.
    let limit = CHUNK_BYTES + CHUNK_BYTES / 8;
    assert!((CHUNK_BYTES..limit).contains(&bytes), "{bytes}");
    for raw in &new {
        assert_eq!(local(&keeper, ChunkId::of(raw)).expect("here"), raw);
    }
    // Again it costs the manifest alone.
    let again = upgrade(&server)
        .fetch(&keeper, &next, &|_| {})
        .expect("all is here");
    assert_eq!(again, server.manifest.len() as u64);
}

#[test]
fn a_damaged_delta_is_made_good_by_the_frame() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = chunks();
    let new = moved(&old);
    let keeper = disk(directory.path(), &old);
    let (mut server, next) = Server::new(&old, &new);
    for delta in server.deltas.values_mut() {
        *delta.last_mut().expect("a record") ^= 1;
    }
    upgrade(&server)
        .fetch(&keeper, &next, &|_| {})
        .expect("fetched");
    for raw in &new {
        assert_eq!(local(&keeper, ChunkId::of(raw)).expect("here"), raw);
    }
    let asked = server.asked.lock().expect("no panic");
    assert!(asked.iter().any(|(by_delta, _)| !by_delta), "{asked:?}");
}

#[test]
fn what_the_site_did_not_seal_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = chunks();
    let keeper = disk(directory.path(), &old);
    let (mut server, next) = Server::new(&old, &moved(&old));
    let other = NextVersion {
        version: VersionNumber(3),
        ..next.clone()
    };
    let refused = upgrade(&server).fetch(&keeper, &other, &|_| {});
    assert!(matches!(refused, Err(NextError::Trust(_))));
    server.manifest[40] ^= 1;
    let refused = upgrade(&server).fetch(&keeper, &next, &|_| {});
    assert!(matches!(refused, Err(NextError::Trust(_))));
}
