//! What boots of this version read first, fetched as one stream ahead of the guest's reads.
//!
//! The site's trace of this version becomes chunk ids in the order of its boots;
//! the ids are sent once, and the chunks come in that order for as long as the
//! boot goes on. Nothing waits for this, and nothing is wrong without it.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use rootstock_api::boot::PACK_IDS_MAX;
use rootstock_api::record::{RECORD_HEADER_BYTES, Record, RecordError, Records};
use rootstock_core::ChunkId;
use rootstock_core::units::CHUNK_BYTES;
use rootstock_image::frame::{Codec, Decoder};
use rootstock_image::trace::{Trace, TraceError};
use rootstock_volume::{BlockDevice as _, BlockError, ChunkSource, VersionDisk};

use crate::console;
use crate::service::{CallError, Service};
use crate::stats::Stats;
use crate::swarm::SwarmPacks;
use crate::trace::Teller;

mod landing;
#[cfg(test)]
mod tests;

pub(crate) use landing::{Landed, Landing};

/// How often a stream is begun: where one broke off the next goes on.
const STREAMS_MAX: u32 = 5;

/// Takes the chunks of a boot pack. Each was checked.
pub(crate) trait ChunkSink: Send + Sync {
    /// Takes a chunk. It may wait until there is room: the stream waits with it.
    fn offer(&self, chunk: ChunkId, raw: Bytes);

    /// Whether the chunk is there, and need not be fetched.
    fn has(&self, chunk: ChunkId) -> bool;
}

/// Why nothing is replayed, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// The server did not answer, or not well.
    #[error("the boot pack cannot be fetched")]
    Call(#[from] CallError),
    /// What it gave is no trace.
    #[error("the site's boot trace cannot be used")]
    Trace(#[from] TraceError),
    /// A page of the manifest is not to be had.
    #[error("the boot trace's chunks cannot be looked up")]
    Manifest(#[source] BlockError),
    /// The stream broke off.
    #[error("the boot pack broke off")]
    Read(#[source] io::Error),
    /// The stream is no records.
    #[error("the boot pack makes no sense")]
    Record(#[source] RecordError),
    /// There is none in the bytes of one.
    #[error("the boot pack has a record of nothing")]
    Empty,
    /// A chunk that was not asked for, or came before.
    #[error("the boot pack has chunk {chunk}, for which nobody asked")]
    Unasked {
        /// Its id.
        chunk: ChunkId,
    },
    /// A chunk is not what it says.
    #[error("chunk {chunk} of the boot pack is damaged")]
    Damaged {
        /// Its id.
        chunk: ChunkId,
    },
}

/// What asks for traces and packs; the network in production.
pub(crate) trait Packs: Send {
    /// The site's trace, if it has one.
    fn trace(&self) -> Result<Option<Vec<u8>>, CallError>;

    /// The records of these chunks, as they come; those that do not come are asked for
    /// again.
    fn pack(&self, ids: &[ChunkId]) -> Result<Box<dyn Read>, CallError>;
}

/// The node service as it is reached for chunks.
pub(crate) struct ServicePacks {
    /// The client.
    pub(crate) service: Service,
    /// Base URLs, best first.
    pub(crate) urls: Vec<String>,
}

impl ServicePacks {
    /// The answer of the first server that gives one; others are not asked then.
    fn first<T>(&self, ask: impl Fn(&str) -> Result<T, CallError>) -> Result<T, CallError> {
        let Some((last, others)) = self.urls.split_last() else {
            return ask("");
        };
        for url in others {
            if let Ok(answer) = ask(url) {
                return Ok(answer);
            }
        }
        ask(last)
    }
}

impl Packs for ServicePacks {
    fn trace(&self) -> Result<Option<Vec<u8>>, CallError> {
        self.first(|url| self.service.trace(url))
    }

    fn pack(&self, ids: &[ChunkId]) -> Result<Box<dyn Read>, CallError> {
        self.first(|url| self.service.boot_pack(url, ids))
    }
}

/// Replays a boot.
pub(crate) struct Replay<P, S> {
    /// Where traces and packs come from.
    pub(crate) packs: P,
    /// The version, to look chunks up in.
    pub(crate) version: VersionDisk<S>,
    /// Who takes the chunks.
    pub(crate) sink: Arc<dyn ChunkSink>,
    /// Who waits for chunks.
    pub(crate) landing: Arc<Landing>,
    /// Counts what is fetched.
    pub(crate) stats: Arc<Stats>,
}

/// Begins to record the boot and to replay what is known of earlier ones, beside
/// whatever else goes on.
///
/// # Errors
/// When the system has no threads to give.
pub(crate) fn start<S: ChunkSource + 'static>(
    packs: SwarmPacks,
    version: VersionDisk<S>,
    landing: Arc<Landing>,
    sink: Arc<dyn ChunkSink>,
    stats: Arc<Stats>,
) -> io::Result<()> {
    stats.trace.start(version.size_bytes());
    let teller = Teller {
        service: packs.service.service.clone(),
        urls: packs.service.urls.clone(),
        stats: Arc::clone(&stats),
        grid: version.manifest().grid().clone(),
        landing: Arc::clone(&landing),
    };
    let replay = Replay {
        packs,
        version,
        sink,
        landing,
        stats,
    };
    let replay = thread::Builder::new()
        .name("replay".to_owned())
        .spawn(move || replay.run())?;
    thread::Builder::new()
        .name("trace".to_owned())
        .spawn(move || teller.run(replay))?;
    Ok(())
}

impl<P: Packs, S: ChunkSource> Replay<P, S> {
    /// Fetches the trace, and hands its chunks on until all are there or the boot
    /// is over. Answers with the trace.
    pub(crate) fn run(&self) -> Option<Trace> {
        let trace = match self.trace() {
            Ok(trace) => trace?,
            Err(error) => {
                say(&error);
                return None;
            }
        };
        if let Err(error) = self.stream(&trace) {
            say(&error);
        }
        self.landing.stream_ended();
        Some(trace)
    }

    fn trace(&self) -> Result<Option<Trace>, ReplayError> {
        let bytes = self.packs.trace()?;
        Ok(bytes.map(|bytes| Trace::decode(&bytes)).transpose()?)
    }

    fn stream(&self, trace: &Trace) -> Result<(), ReplayError> {
        let mut left = self.chunks(trace)?;
        let (count, began) = (left.len(), Instant::now());
        for number in 1..=STREAMS_MAX {
            left.retain(|id| !self.sink.has(*id));
            if left.is_empty() || self.landing.is_over() {
                break;
            }
            let Err(error) = self.receive(&mut left) else {
                break;
            };
            if number == STREAMS_MAX {
                return Err(error);
            }
        }
        console::info(format_args!(
            "the {count} chunks of the boot pack came within {} ms",
            began.elapsed().as_millis()
        ));
        Ok(())
    }

    /// The ids of a trace's chunks, each once and none of zeros.
    fn chunks(&self, trace: &Trace) -> Result<Vec<ChunkId>, ReplayError> {
        let grid = self.version.manifest().grid();
        let mut seen = HashSet::new();
        let mut ids = Vec::new();
        for index in trace.chunks(grid) {
            let id = self.version.chunk(grid.span(index));
            let id = id.map_err(ReplayError::Manifest)?;
            if !id.is_zero() && seen.insert(id) && ids.len() < PACK_IDS_MAX {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Receives a pack of these; they stay that did not come.
    fn receive(&self, left: &mut Vec<ChunkId>) -> Result<(), ReplayError> {
        let mut body = self.packs.pack(left)?;
        self.landing.expect(left);
        let mut coming: HashSet<ChunkId> = left.iter().copied().collect();
        let received = self.take(&mut *body, &mut coming);
        left.retain(|id| coming.contains(id));
        received
    }

    /// Takes them as they come. Machines of the swarm do not answer in the order in which
    /// they were asked.
    fn take(&self, body: &mut dyn Read, coming: &mut HashSet<ChunkId>) -> Result<(), ReplayError> {
        let mut decoder = Decoder::default();
        while !coming.is_empty() && !self.landing.is_over() {
            let (chunk, raw) = self.next(body, coming, &mut decoder)?;
            coming.remove(&chunk);
            self.sink.offer(chunk, raw);
            self.landing.landed(chunk);
        }
        Ok(())
    }

    /// The next record, which has to be of one of these.
    fn next(
        &self,
        body: &mut dyn Read,
        coming: &HashSet<ChunkId>,
        decoder: &mut Decoder,
    ) -> Result<(ChunkId, Bytes), ReplayError> {
        let bytes = read_record(body)?;
        self.stats.fetched(bytes.len() as u64);
        let mut records = Records::new(&bytes);
        let record: Record<'_> = match records.next() {
            Some(record) => record.map_err(ReplayError::Record)?,
            None => return Err(ReplayError::Empty),
        };
        let chunk = record.chunk;
        if !coming.contains(&chunk) {
            return Err(ReplayError::Unasked { chunk });
        }
        let damaged = || ReplayError::Damaged { chunk };
        let codec = Codec::from_byte(record.codec).ok_or_else(damaged)?;
        // Decoding checks that these bytes are the chunk that it says.
        let raw = decoder.decode(chunk, record.raw_bytes, codec, record.frame);
        Ok((chunk, raw.map(Bytes::from).map_err(|_| damaged())?))
    }
}

/// The bytes of one record.
fn read_record(body: &mut dyn Read) -> Result<Vec<u8>, ReplayError> {
    let mut bytes = vec![0; RECORD_HEADER_BYTES];
    body.read_exact(&mut bytes).map_err(ReplayError::Read)?;
    let frame_bytes = u32::from_le_bytes([bytes[36], bytes[37], bytes[38], bytes[39]]);
    // A longer one is refused with the record.
    let frame_bytes = u64::from(frame_bytes).min(CHUNK_BYTES) as usize;
    bytes.resize(RECORD_HEADER_BYTES + frame_bytes, 0);
    body.read_exact(&mut bytes[RECORD_HEADER_BYTES..])
        .map_err(ReplayError::Read)?;
    Ok(bytes)
}

fn say(error: &ReplayError) {
    console::info(format_args!(
        "the boot goes on without its pack: {}",
        console::chain(error)
    ));
}
