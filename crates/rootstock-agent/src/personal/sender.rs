//! Where a commit's chunks go: to the server, those that it lacks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::personal::CommitTold;
use rootstock_api::record::{IDS_MAX, Record};
use rootstock_core::{CHUNK_BYTES, ChunkId};
use rootstock_image::frame::Encoder;
use rootstock_volume::{Sink, Stored};

use crate::service::{CallError, Service};

/// Raw bytes that are offered at once; as much again is being sent.
const BATCH_BYTES: usize = 4 << 20;
/// A server that is away for longer, or has no time, makes a commit fail.
const AWAY_LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_secs(2);

/// Why chunks were not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The server, or the way to it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Nobody asks for it any more.
    #[error("it was given up")]
    Stopped,
}

/// Sends to one commit.
pub(super) struct Sender<'a> {
    pub(super) service: &'a Service,
    pub(super) urls: &'a [String],
    pub(super) commit: &'a str,
    pub(super) stop: &'a AtomicBool,
    pub(super) batch: Mutex<Batch>,
    pub(super) stored: Mutex<Stored>,
    /// Bytes of frames that were sent so far.
    pub(super) sent_bytes: AtomicU64,
}

/// Chunks that were not offered yet, one behind the other.
#[derive(Default)]
pub(super) struct Batch {
    ids: Vec<(ChunkId, usize)>,
    raw: Vec<u8>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.raw.len() + CHUNK_BYTES as usize > BATCH_BYTES || self.ids.len() >= IDS_MAX
    }
}

impl Sender<'_> {
    /// Tells the server something of this commit.
    pub(super) fn tell(&self, told: &CommitTold) -> Result<(), SendError> {
        self.call(|url| self.service.commit_told(url, self.commit, told))
    }

    /// Calls one server after the other, while it may pass.
    fn call<T>(&self, mut one: impl FnMut(&str) -> Result<T, CallError>) -> Result<T, SendError> {
        let began = Instant::now();
        for url in self.urls.iter().cycle() {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            match one(url) {
                Err(error) if error.may_pass() && began.elapsed() < AWAY_LIMIT => {}
                answer => return Ok(answer?),
            }
            thread::sleep(PAUSE);
        }
        Err(SendError::Stopped)
    }

    fn send(&self, batch: &Batch) -> Result<(), SendError> {
        if batch.ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<ChunkId> = batch.ids.iter().map(|(id, _)| *id).collect();
        let lacking = self.call(|url| self.service.commit_lacking(url, self.commit, &ids))?;
        let mut encoder = Encoder::new();
        let mut frame = vec![0; CHUNK_BYTES as usize];
        let mut records = Vec::new();
        let mut stored = Stored::default();
        let mut start = 0;
        for (bit, (id, len)) in batch.ids.iter().enumerate() {
            let raw = &batch.raw[start..start + len];
            start += len;
            if !lacking.get(bit) {
                continue;
            }
            let (codec, frame_bytes) = encoder.encode_to(raw, &mut frame);
            Record {
                chunk: *id,
                raw_bytes: raw.len() as u32,
                codec: codec.to_byte(),
                frame: &frame[..frame_bytes],
            }
            .write(&mut records);
            stored.chunks += 1;
            stored.raw_bytes += raw.len() as u64;
            stored.frame_bytes += frame_bytes as u64;
        }
        if !records.is_empty() {
            self.call(|url| self.service.commit_chunks(url, self.commit, &records))?;
        }
        self.sent_bytes
            .fetch_add(stored.frame_bytes, Ordering::Relaxed);
        let mut all = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        all.chunks += stored.chunks;
        all.raw_bytes += stored.raw_bytes;
        all.frame_bytes += stored.frame_bytes;
        Ok(())
    }
}

impl Sink for Sender<'_> {
    type Error = SendError;

    fn put(&self, id: ChunkId, raw: &[u8]) -> Result<(), SendError> {
        let full = {
            let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
            batch.ids.push((id, raw.len()));
            batch.raw.extend_from_slice(raw);
            match batch.is_full() {
                true => std::mem::take(&mut *batch),
                false => Batch::default(),
            }
        };
        self.send(&full)
    }

    fn put_page(&self, id: ChunkId, raw: &[u8]) -> Result<(), SendError> {
        self.put(id, raw)
    }

    fn flush(&self) -> Result<Stored, SendError> {
        let rest = std::mem::take(&mut *self.batch.lock().unwrap_or_else(PoisonError::into_inner));
        self.send(&rest)?;
        Ok(*self.stored.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
