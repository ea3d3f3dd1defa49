//! A replay against a server that fails as its script says.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Mutex;

use rootstock_core::ByteRange;
use rootstock_image::frame::Encoder;
use rootstock_image::grid::Grid;
use rootstock_image::manifest::{Manifest, ManifestBuilder};
use rootstock_image::trace::TraceBuilder;
use rootstock_store::ReadError;
use rootstock_volume::ChunkCache;

use super::*;
use crate::testing::record;

const CHUNKS: u8 = 9;

/// What a server does with one pack.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Refuses,
    /// Ends in the middle of this record.
    Cuts(usize),
    /// Has a wrong byte in this record.
    Damages(usize),
    /// Sends the records in the other order.
    Reverses,
    /// Leaves this record out.
    Forgets(usize),
    Garbage,
}

/// A disk of chunks that are each full of a byte, and a server that does what its
/// script says, and then well.
struct Site {
    raw: HashMap<ChunkId, Vec<u8>>,
    manifest: Manifest,
    trace: Option<Vec<u8>>,
    script: Mutex<Vec<Fault>>,
    asked: Mutex<Vec<Vec<ChunkId>>>,
}

impl Site {
    /// Chunk 3 is zeros, and chunk 5 is the same as chunk 4.
    fn new(trace: impl FnOnce(&mut TraceBuilder), script: &[Fault]) -> Arc<Self> {
        let disk_bytes = u64::from(CHUNKS) * CHUNK_BYTES;
        let mut builder = ManifestBuilder::new(Grid::whole(disk_bytes).expect("a grid"));
        let mut raw = HashMap::new();
        for index in 0..CHUNKS {
            let fill = if index == 5 { 4 } else { index };
            let bytes = vec![fill + 1; CHUNK_BYTES as usize];
            if index != 3 {
                builder.set(index.into(), ChunkId::of(&bytes));
                raw.insert(ChunkId::of(&bytes), bytes);
            }
        }
        let manifest = builder.finish(|id, page| {
            raw.insert(id, page.to_vec());
            Ok::<_, std::convert::Infallible>(())
        });
        let mut read = TraceBuilder::new(disk_bytes);
        trace(&mut read);
        let read = read.finish();
        Arc::new(Self {
            raw,
            manifest: manifest.expect("is built"),
            trace: (!read.runs().is_empty()).then(|| read.encode()),
            script: Mutex::new(script.iter().rev().copied().collect()),
            asked: Mutex::default(),
        })
    }

    /// The index of the first chunk that is full of what this one is.
    fn index(&self, id: ChunkId) -> u8 {
        self.raw[&id][0] - 1
    }

    fn asked(&self) -> Vec<Vec<u8>> {
        let asked = self.asked.lock().expect("no panic");
        let indexes = |ids: &Vec<ChunkId>| ids.iter().map(|id| self.index(*id)).collect();
        asked.iter().map(indexes).collect()
    }
}

impl Packs for Arc<Site> {
    fn trace(&self) -> Result<Option<Vec<u8>>, CallError> {
        Ok(self.trace.clone())
    }

    fn pack(&self, ids: &[ChunkId]) -> Result<Box<dyn Read>, CallError> {
        self.asked.lock().expect("no panic").push(ids.to_vec());
        let fault = self.script.lock().expect("no panic").pop();
        let mut encoder = Encoder::new();
        let mut records: Vec<Vec<u8>> = ids
            .iter()
            .map(|id| record(&mut encoder, &self.raw[id]))
            .collect();
        match fault {
            Some(Fault::Refuses) => {
                return Err(CallError::Refused {
                    url: "u".to_owned(),
                    status: 503,
                    reason: String::new(),
                });
            }
            Some(Fault::Cuts(at)) => {
                records.truncate(at + 1);
                records[at].pop();
            }
            Some(Fault::Damages(at)) => *records[at].last_mut().expect("has bytes") ^= 1,
            Some(Fault::Reverses) => records.reverse(),
            Some(Fault::Forgets(at)) => drop(records.remove(at)),
            Some(Fault::Garbage) => records = vec![vec![0xff; 5000]],
            None => {}
        }
        Ok(Box::new(Cursor::new(records.concat())))
    }
}

impl ChunkSource for Site {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        let raw = self.raw.get(&chunk).ok_or(ReadError::Missing { chunk })?;
        Ok(Bytes::from(raw.clone()))
    }
}

/// What the sink of a replay was offered.
#[derive(Default)]
struct Offered {
    all: Mutex<Vec<(ChunkId, Bytes)>>,
    has: Mutex<HashSet<ChunkId>>,
}

impl ChunkSink for Offered {
    fn offer(&self, chunk: ChunkId, raw: Bytes) {
        assert_eq!(ChunkId::of(&raw), chunk);
        self.has.lock().expect("no panic").insert(chunk);
        self.all.lock().expect("no panic").push((chunk, raw));
    }

    fn has(&self, chunk: ChunkId) -> bool {
        self.has.lock().expect("no panic").contains(&chunk)
    }
}

struct Source(Arc<Site>);

impl ChunkSource for Source {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        self.0.read(chunk)
    }
}

fn replay(site: &Arc<Site>, sink: Arc<dyn ChunkSink>) -> Replay<Arc<Site>, Source> {
    let cache = Arc::new(ChunkCache::new(Source(Arc::clone(site)), 1 << 20));
    Replay {
        packs: Arc::clone(site),
        version: VersionDisk::new(site.manifest.clone(), cache),
        sink,
        landing: Arc::new(Landing::new(1 << 30)),
        stats: Arc::default(),
    }
}

fn touch(trace: &mut TraceBuilder, chunk: u64) {
    trace.read(ByteRange::new(chunk * CHUNK_BYTES, 4096));
}

/// Reads of all chunks, from the end.
fn all(trace: &mut TraceBuilder) {
    for chunk in (0..u64::from(CHUNKS)).rev() {
        touch(trace, chunk);
    }
}

/// What a replay offers, by chunk, with this on the way.
fn offered(site: &Arc<Site>) -> Vec<u8> {
    let sink = Arc::new(Offered::default());
    let trace = replay(site, Arc::clone(&sink) as Arc<dyn ChunkSink>).run();
    assert_eq!(trace.map(|trace| trace.encode()), site.trace);
    let all = sink.all.lock().expect("no panic");
    all.iter().map(|(id, _)| site.index(*id)).collect()
}

#[test]
fn chunks_come_in_the_traces_order_without_zeros_and_once() {
    let site = Site::new(all, &[]);
    assert_eq!(offered(&site), [8, 7, 6, 4, 2, 1, 0]);
    assert_eq!(site.asked().len(), 1);
    let none = Site::new(|_| {}, &[]);
    assert!(offered(&none).is_empty() && none.asked().is_empty());
}

#[test]
fn a_stream_that_breaks_off_is_gone_on_with() {
    for fault in [
        Fault::Refuses,
        Fault::Cuts(0),
        Fault::Cuts(3),
        Fault::Damages(2),
        Fault::Garbage,
    ] {
        let site = Site::new(all, &[fault, fault]);
        assert_eq!(offered(&site), [8, 7, 6, 4, 2, 1, 0], "{fault:?}");
        assert_eq!(site.asked().len(), 3, "{fault:?}");
    }
    let site = Site::new(all, &[Fault::Cuts(3)]);
    offered(&site);
    assert_eq!(site.asked()[1], [4, 2, 1, 0]);
}

#[test]
fn chunks_may_come_in_another_order_and_late() {
    let site = Site::new(all, &[Fault::Reverses]);
    assert_eq!(offered(&site), [0, 1, 2, 4, 6, 7, 8]);
    assert_eq!(site.asked().len(), 1);
    let site = Site::new(all, &[Fault::Forgets(2)]);
    assert_eq!(offered(&site), [8, 7, 4, 2, 1, 0, 6]);
    assert_eq!(site.asked()[1..], [[6]]);
}

#[test]
fn a_server_that_never_gives_a_pack_is_given_up() {
    let site = Site::new(all, &[Fault::Garbage; 9]);
    assert!(offered(&site).is_empty());
    assert_eq!(site.asked().len(), STREAMS_MAX as usize);
}

#[test]
fn what_is_there_is_not_asked_for() {
    let site = Site::new(all, &[]);
    let sink = Arc::new(Offered::default());
    let there = [2_u8, 7].map(|index| ChunkId::of(&vec![index + 1; CHUNK_BYTES as usize]));
    sink.has.lock().expect("no panic").extend(there);
    replay(&site, sink).run();
    assert_eq!(site.asked(), [[8, 6, 4, 1, 0]]);
}

#[test]
fn a_guest_reads_what_came_and_fetches_the_rest() {
    let site = Site::new(|trace| (0..3).for_each(|chunk| touch(trace, chunk)), &[]);
    let landing = Arc::new(Landing::new(1 << 30));
    let counted = Counted(Arc::clone(&site), Mutex::default());
    let source = Landed {
        source: counted,
        landing: Arc::clone(&landing),
    };
    let cache = Arc::new(ChunkCache::new(source, 1 << 30));
    let replay = Replay {
        packs: Arc::clone(&site),
        version: VersionDisk::new(site.manifest.clone(), Arc::clone(&cache)),
        sink: Arc::clone(&landing) as Arc<dyn ChunkSink>,
        landing: Arc::clone(&landing),
        stats: Arc::default(),
    };
    replay.run();
    let guest = VersionDisk::new(site.manifest.clone(), Arc::clone(&cache));
    for index in 0..u64::from(CHUNKS) {
        let mut out = rootstock_volume::Segments::new();
        guest.read(index * CHUNK_BYTES, 1, &mut out).expect("reads");
    }
    // The page once, and the chunks that did not come.
    let fetched = cache.store().source.1.lock().expect("no panic").clone();
    let fetched: Vec<u8> = fetched.iter().skip(1).map(|id| site.index(*id)).collect();
    assert_eq!(fetched, [4, 6, 7, 8]);
}

/// A site that notes what is fetched from it one by one.
struct Counted(Arc<Site>, Mutex<Vec<ChunkId>>);

impl ChunkSource for Counted {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        self.1.lock().expect("no panic").push(chunk);
        self.0.read(chunk)
    }
}
