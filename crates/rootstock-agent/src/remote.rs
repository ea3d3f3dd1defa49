//! Chunks from the site's servers: checked, and waited for as long as it takes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_api::boot::FETCH_IDS_MAX;
use rootstock_api::record::{Record, Records};
use rootstock_core::ChunkId;
use rootstock_image::frame::{Codec, Decoder, Frame};
use rootstock_store::ReadError;
use rootstock_swarm::Class;
use rootstock_volume::ChunkSource;

use crate::console;
use crate::service::{CallError, Service};
use crate::stats::Stats;

/// The first pause after a failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause: a machine goes on this soon after its server is back.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// A shorter wait is not worth a line on the console.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Answers without the chunk, or with a damaged one, before its reader is told.
const BAD_ANSWERS_MAX: u32 = 6;

/// What fetches a chunk once; the network in production.
pub(crate) trait Fetch: Send + Sync {
    /// These chunks, from the server with this number or whoever is quicker: as many of
    /// them as come.
    fn fetch(&self, server: usize, ids: &[ChunkId], class: Class) -> Result<Answer, CallError>;

    /// How many servers there are.
    fn servers(&self) -> usize;

    /// Lets it fetch by itself what lacks on this machine, or not; the bytes that came
    /// since it was asked last. Nothing when it never does.
    fn fill(&self, may: bool) -> Option<u64> {
        let _ = may;
        None
    }
}

/// What came.
pub(crate) enum Answer {
    /// Records that were not looked at.
    Records(Vec<u8>),
    /// Frames with their raw bytes, which were checked.
    Checked(Vec<(Frame, Vec<u8>)>),
}

/// The chunk routes of the node service.
pub(crate) struct ServiceFetch {
    /// The client.
    pub(crate) service: Service,
    /// Base URLs, best first.
    pub(crate) urls: Vec<String>,
}

impl Fetch for ServiceFetch {
    fn fetch(&self, server: usize, ids: &[ChunkId], _: Class) -> Result<Answer, CallError> {
        let records = self.service.chunks(&self.urls[server], ids)?;
        Ok(Answer::Records(records))
    }

    fn servers(&self) -> usize {
        self.urls.len()
    }
}

/// Who asks for chunks, and for how long.
#[derive(Clone, Copy)]
pub(crate) enum Asker<'a> {
    /// The machine's user, who waits for as long as it takes, or until this says
    /// that nobody waits any more.
    User(&'a dyn Fn() -> bool),
    /// Nobody yet. It takes its time, and is not worth a line on the console.
    Ahead,
}

impl Asker<'_> {
    /// One who does not go away.
    pub(crate) const PATIENT: Asker<'static> = Asker::User(&|| false);

    fn class(self) -> Class {
        match self {
            Self::User(_) => Class::User,
            Self::Ahead => Class::Bulk,
        }
    }

    fn is_gone(self) -> bool {
        matches!(self, Self::User(gone) if gone())
    }
}

/// A source of checked frames.
pub(crate) struct Remote<F> {
    fetch: F,
    stats: Arc<Stats>,
    /// The server that answered last.
    server: AtomicUsize,
    /// Whether the console was told that the network is gone.
    told: AtomicBool,
    decoders: Mutex<Vec<Decoder>>,
}

impl<F: Fetch> Remote<F> {
    /// A source that counts what it fetches.
    pub(crate) fn new(fetch: F, stats: Arc<Stats>) -> Self {
        Self {
            fetch,
            stats,
            server: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            decoders: Mutex::default(),
        }
    }

    /// Frames of all these chunks with their raw bytes, at most
    /// [`FETCH_IDS_MAX`] at once.
    ///
    /// # Errors
    /// When every server lacks a chunk, or gives it damaged, again and again, or
    /// nobody waits any more. A network or server that is away is no error: this
    /// waits.
    pub(crate) fn frames(
        &self,
        ids: &[ChunkId],
        asker: Asker<'_>,
        mut each: impl FnMut(Frame, Vec<u8>),
    ) -> Result<(), ReadError> {
        debug_assert!(ids.len() <= FETCH_IDS_MAX, "one request's ids");
        let mut left = ids.to_vec();
        let mut bad = 0;
        let mut pause = PAUSE_MIN;
        let began = Instant::now();
        while let Some(&chunk) = left.first() {
            let server = self.server.load(Ordering::Relaxed) % self.fetch.servers().max(1);
            let before = left.len();
            match self.fetch.fetch(server, &left, asker.class()) {
                Ok(Answer::Records(body)) => {
                    self.stats.fetched(body.len() as u64);
                    self.stats.over_http(body.len() as u64);
                    self.take(server, &body, &mut left, &mut each);
                    self.told_of_return(began);
                }
                Ok(Answer::Checked(frames)) => {
                    for (frame, raw) in frames {
                        self.stats.fetched(frame.bytes.len() as u64);
                        left.retain(|id| *id != frame.chunk);
                        each(frame, raw);
                    }
                    self.told_of_return(began);
                }
                Err(error) => self.told_of_absence(asker, began, &error),
            }
            if asker.is_gone() {
                return Err(ReadError::Missing { chunk });
            }
            if left.len() < before {
                // Some came: the rest did not fit in one answer.
                pause = PAUSE_MIN;
                continue;
            }
            self.server.store(server + 1, Ordering::Relaxed);
            if !self.told.load(Ordering::Relaxed) {
                bad += 1;
            }
            if bad > BAD_ANSWERS_MAX && began.elapsed() > SILENCE_MAX {
                bad = 0;
                if self.reachable(server, chunk) {
                    return Err(ReadError::Missing { chunk });
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(())
    }

    /// As [`Fetch::fill`].
    pub(crate) fn fill(&self, may: bool) -> Option<u64> {
        self.fetch.fill(may)
    }

    /// Whether a server answers at all: then it is the chunk that is not there.
    fn reachable(&self, server: usize, chunk: ChunkId) -> bool {
        let fetched = self.fetch.fetch(server, &[chunk], Class::User);
        !matches!(fetched, Err(error) if error.may_pass())
    }

    /// Hands on the records that are what was asked for.
    fn take(
        &self,
        server: usize,
        body: &[u8],
        left: &mut Vec<ChunkId>,
        each: &mut impl FnMut(Frame, Vec<u8>),
    ) {
        for record in Records::new(body) {
            let Ok(record) = record else {
                console::warn(format_args!("server {server} cut an answer short"));
                return;
            };
            let Some(at) = left.iter().position(|id| *id == record.chunk) else {
                continue;
            };
            let Some((frame, raw)) = self.checked(&record) else {
                console::error(format_args!(
                    "server {server} gave chunk {} damaged: it was not used",
                    record.chunk
                ));
                continue;
            };
            left.swap_remove(at);
            each(frame, raw);
        }
    }

    /// A record's frame and its raw bytes, if they have the id that was asked for.
    fn checked(&self, record: &Record<'_>) -> Option<(Frame, Vec<u8>)> {
        let codec = Codec::from_byte(record.codec)?;
        let decoder = self.lock().pop();
        let mut decoder = decoder.unwrap_or_default();
        let raw = decoder.decode(record.chunk, record.raw_bytes, codec, record.frame);
        self.lock().push(decoder);
        let frame = Frame {
            chunk: record.chunk,
            raw_bytes: record.raw_bytes,
            codec,
            bytes: record.frame.to_vec(),
        };
        Some((frame, raw.ok()?))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Decoder>> {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told_of_absence(&self, asker: Asker<'_>, began: Instant, error: &CallError) {
        if matches!(asker, Asker::Ahead) {
            return;
        }
        if began.elapsed() > SILENCE_MAX && !self.told.swap(true, Ordering::Relaxed) {
            console::error(format_args!(
                "the root's server does not answer, and reads wait for it: {}; \
                 check the cable and the server",
                console::chain(error)
            ));
        }
    }

    fn told_of_return(&self, began: Instant) {
        if self.told.swap(false, Ordering::Relaxed) {
            console::error(format_args!(
                "the root's server answers again after {} s",
                began.elapsed().as_secs()
            ));
        }
    }
}

impl<F: Fetch> Remote<F> {
    /// A chunk, for as long as somebody waits for it.
    ///
    /// # Errors
    /// As [`Remote::frames`].
    pub(crate) fn read_for(&self, chunk: ChunkId, asker: Asker<'_>) -> Result<Bytes, ReadError> {
        let mut found = None;
        self.frames(&[chunk], asker, |_, raw| found = Some(raw))?;
        found.map(Bytes::from).ok_or(ReadError::Missing { chunk })
    }
}

impl<F: Fetch> ChunkSource for Remote<F> {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        self.read_for(chunk, Asker::PATIENT)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rootstock_image::frame::Encoder;

    use super::*;
    use crate::testing::record;

    /// A server that does, in turn, what its script says, and then well.
    struct Scripted {
        records: HashMap<ChunkId, Vec<u8>>,
        script: Mutex<Vec<Fault>>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Fault {
        Away,
        Empty,
        Damaged,
        Cut,
        Foreign,
    }

    impl Fetch for Scripted {
        fn fetch(&self, _: usize, ids: &[ChunkId], _: Class) -> Result<Answer, CallError> {
            let fault = self.script.lock().expect("no panic").pop();
            let mut body = Vec::new();
            for id in ids {
                body.extend(self.records.get(id).into_iter().flatten());
            }
            match fault {
                Some(Fault::Away) => {
                    return Err(CallError::Refused {
                        url: "u".to_owned(),
                        status: 503,
                        reason: String::new(),
                    });
                }
                Some(Fault::Empty) => body.clear(),
                Some(Fault::Damaged) => *body.last_mut().expect("a record") ^= 1,
                Some(Fault::Cut) => body.truncate(body.len() - 1),
                Some(Fault::Foreign) => {
                    let other = self.records.iter().find(|(id, _)| !ids.contains(id));
                    body = other.expect("another").1.clone();
                }
                None => {}
            }
            Ok(Answer::Records(body))
        }

        fn servers(&self) -> usize {
            2
        }
    }

    fn scripted(chunks: &[&[u8]], script: &[Fault]) -> Remote<Scripted> {
        let mut encoder = Encoder::new();
        let records = chunks
            .iter()
            .map(|raw| (ChunkId::of(raw), record(&mut encoder, raw)));
        let fetch = Scripted {
            records: records.collect(),
            script: Mutex::new(script.to_vec()),
        };
        Remote::new(fetch, Arc::default())
    }

    #[test]
    fn every_fault_is_outlasted_and_none_is_passed_on() {
        let raw = b"a chunk of text ".repeat(100);
        for fault in [
            Fault::Away,
            Fault::Empty,
            Fault::Damaged,
            Fault::Cut,
            Fault::Foreign,
        ] {
            let remote = scripted(&[&raw, b"another"], &[fault, fault]);
            let read = remote.read(ChunkId::of(&raw)).expect("outlasted");
            assert_eq!(read, raw, "{fault:?}");
        }
    }

    #[test]
    fn many_chunks_come_in_one_request() {
        let chunks: Vec<Vec<u8>> = (1..60_u8).map(|byte| vec![byte; 4096]).collect();
        let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let remote = scripted(&slices, &[]);
        let ids: Vec<ChunkId> = chunks.iter().map(|raw| ChunkId::of(raw)).collect();
        let mut got = Vec::new();
        remote
            .frames(&ids, Asker::PATIENT, |frame, raw| {
                assert_eq!(frame.chunk, ChunkId::of(&raw));
                got.push(frame.chunk);
            })
            .expect("all are there");
        got.sort_unstable();
        let mut ids = ids;
        ids.sort_unstable();
        assert_eq!(got, ids);
    }
}
