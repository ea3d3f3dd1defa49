//! The import pipeline: a disk becomes a version, and only what is new is sent.
//!
//! Worker threads take batches of chunks in the disk's order. Each reads its
//! batch, zeroes what the file systems say is free, drops what is all zero,
//! hashes, asks the daemon which chunks it lacks, compresses those and sends
//! them. Nothing is remembered on this side: whoever starts again after an
//! interruption is told that most chunks are there already.

mod plan;
mod send;
mod turns;

use std::{
    collections::HashSet,
    io,
    num::NonZero,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rootstock_api::{ImageFacts, ImportCommit, ImportCommitted, ImportCreate, ProblemCode};
use rootstock_core::{
    ByteRange, CHUNK_BYTES, ChunkId, Extents, ImageName, TagName, units::is_zero,
};
use rootstock_image::{
    ReadAt,
    grid::{ChunkSpan, Grid, GridError},
    manifest::{BuildError, ManifestBuilder},
};

use crate::{Client, ClientError};
use plan::Plan;
use send::{Offer, Sender};
use turns::Turns;

/// Raw bytes that a worker reads at a time.
pub const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Workers beyond one for each core.
const WORKERS_WAITING: usize = 3;

/// Ids that are remembered as sent; past it the daemon is asked again.
const SEEN_IDS_MAX: usize = 1 << 20;

/// How often the whole disk is gone over when the daemon misses chunks at the
/// end, such as when its operator aborted the import and gc ran meanwhile.
const PASSES_MAX: u32 = 3;

/// A disk to import.
pub trait Source: ReadAt {
    /// The next bytes at or after `from_bytes` that may be something else than
    /// zeros; `None` when there are none.
    ///
    /// # Errors
    /// When the source cannot be asked.
    fn next_data(&self, from_bytes: u64) -> io::Result<Option<ByteRange>>;

    /// Whether the source is as it was when it was opened.
    ///
    /// # Errors
    /// [`Changed`] when it is not.
    fn check_unchanged(&self) -> Result<(), Changed>;
}

/// A source that was changed while it was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{source_name}' changed while it was read: {how}")]
pub struct Changed {
    /// The source as the user knows it.
    pub source_name: String,
    /// What shows it.
    pub how: String,
}

/// What is told about the way through a disk. Called from several threads.
pub trait Progress: Sync {
    /// More work is done: the counts since the last call.
    fn advance(&self, more: Counts);
}

/// How far an import is, in raw bytes of the disk unless it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Went past without reading: holes and free space.
    pub skipped_bytes: u64,
    /// Read and gone through to the end.
    pub read_bytes: u64,
    /// Of what was read: all zeros.
    pub zero_bytes: u64,
    /// Of what was read: in chunks that the store or this import had.
    pub known_bytes: u64,
    /// Bytes of frames that were sent.
    pub sent_bytes: u64,
}

/// What to import, and as what.
#[derive(Clone, Copy)]
pub struct Push<'a> {
    /// The disk.
    pub source: &'a dyn Source,
    /// How it is cut into chunks.
    pub grid: &'a Grid,
    /// What reads as zeros, whatever is there.
    pub free: &'a Extents,
    /// What is on it.
    pub facts: &'a ImageFacts,
    /// The image that gets the version.
    pub image: &'a ImageName,
    /// The source as the user knows it.
    pub source_name: &'a str,
    /// A tag to point at the version.
    pub tag: Option<&'a TagName>,
    /// What the author says.
    pub message: Option<&'a str>,
    /// Who is told how far it is.
    pub progress: &'a dyn Progress,
    /// Set to stop it.
    pub cancel: &'a AtomicBool,
}

/// Why an import failed. Nothing of it is visible; what was sent helps the next.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The source gave an error.
    #[error("'{source_name}' cannot be read at byte {offset_bytes}")]
    Source {
        /// The source as the user knows it.
        source_name: String,
        /// Where.
        offset_bytes: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The source ends before its own end.
    #[error("'{source_name}' ended at or before byte {end_bytes} of {disk_bytes}")]
    Short {
        /// The source as the user knows it.
        source_name: String,
        /// The end of what was to be read.
        end_bytes: u64,
        /// The disk's size at the beginning.
        disk_bytes: u64,
    },
    /// The source was changed meanwhile.
    #[error(transparent)]
    Changed(#[from] Changed),
    /// The daemon refused or went away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The disk cannot be cut into chunks.
    #[error("'{source_name}' cannot be an image")]
    Grid {
        /// The source as the user knows it.
        source_name: String,
        /// Why.
        #[source]
        cause: GridError,
    },
    /// Somebody stopped it.
    #[error("the import was stopped")]
    Cancelled,
}

/// Imports a disk.
///
/// # Errors
/// [`PushError`]; the import stays open at the daemon, and the next call for the
/// same image, source and size goes on with it.
pub fn push(client: &Client, push: &Push<'_>) -> Result<ImportCommitted, PushError> {
    let import = open_import(client, push)?;
    let mut pass = 1;
    loop {
        let commit = one_pass(client, push, &import)?;
        match client.import_commit(&import, &commit) {
            Err(error) if error.code() == Some(ProblemCode::ChunksMissing) && pass < PASSES_MAX => {
                pass += 1;
            }
            answer => return Ok(answer?),
        }
    }
}

/// The id of an import: one that was left open by an interrupted call, or a new
/// one.
fn open_import(client: &Client, push: &Push<'_>) -> Result<String, ClientError> {
    let disk_bytes = push.grid.disk_bytes();
    let open = client.imports()?.imports;
    let left = open.into_iter().rfind(|import| {
        import.image == *push.image
            && import.source == push.source_name
            && import.disk_bytes == disk_bytes
    });
    if let Some(import) = left {
        return Ok(import.id);
    }
    let import = client.import_create(&ImportCreate {
        image: push.image.clone(),
        disk_bytes,
        source: push.source_name.to_owned(),
    })?;
    Ok(import.id)
}

/// Goes over the whole disk, so that the daemon has all of it, and says what is
/// to be committed.
fn one_pass(client: &Client, push: &Push<'_>, import: &str) -> Result<ImportCommit, PushError> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let shared = Shared {
        push,
        client,
        import,
        turns: Turns::new(cores),
        plan: Mutex::new(Plan::new(push.grid, push.free)),
        builder: Mutex::new(ManifestBuilder::new(push.grid.clone())),
        seen: Mutex::new(HashSet::new()),
        stop: AtomicBool::new(false),
    };
    // More than cores: while some wait for the daemon to store a pack, others
    // compute.
    let workers = cores + WORKERS_WAITING;
    let results: Vec<Result<(), PushError>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| shared.work()))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    });
    // The first true cause, not the stops that it led to.
    let failed = results.into_iter().filter_map(Result::err);
    let failed = failed.reduce(|first, next| match first {
        PushError::Cancelled => next,
        _ => first,
    });
    if let Some(error) = failed {
        if matches!(error, PushError::Source { .. } | PushError::Short { .. }) {
            push.source.check_unchanged()?;
        }
        return Err(error);
    }
    push.source.check_unchanged()?;
    let builder = shared
        .builder
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let mut sender = Sender::new(client, import, &shared.turns);
    let mut pages = Pages::default();
    let manifest = builder
        .finish(|id, page| {
            pages.push(id, page);
            if pages.raw.len() >= BATCH_BYTES_MAX as usize {
                pages.send(&mut sender)?;
            }
            Ok::<_, ClientError>(())
        })
        .map_err(|error| match error {
            BuildError::Sink(error) => PushError::Client(error),
            BuildError::Lookup(_) => unreachable!("a manifest made from nothing reads no page"),
        })?;
    let document = manifest.encode();
    pages.push(ChunkId::of(&document), &document);
    pages.send(&mut sender)?;
    Ok(ImportCommit {
        manifest: manifest.id(),
        tag: push.tag.cloned(),
        message: push.message.map(str::to_owned),
        facts: push.facts.clone(),
    })
}

/// Pages of the manifest on their way.
#[derive(Default)]
struct Pages {
    offers: Vec<Offer>,
    raw: Vec<u8>,
}

impl Pages {
    fn push(&mut self, id: ChunkId, page: &[u8]) {
        let start = self.raw.len();
        self.raw.extend_from_slice(page);
        let place = start..self.raw.len();
        self.offers.push(Offer { id, place });
    }

    fn send(&mut self, sender: &mut Sender<'_>) -> Result<(), ClientError> {
        sender.send(&self.raw, &self.offers)?;
        self.offers.clear();
        self.raw.clear();
        Ok(())
    }
}

/// What the workers share.
struct Shared<'a> {
    push: &'a Push<'a>,
    client: &'a Client,
    import: &'a str,
    /// One for each core.
    turns: Turns,
    plan: Mutex<Plan<'a>>,
    builder: Mutex<ManifestBuilder>,
    /// The first halves of ids that this pass has sent or found at the daemon.
    /// Should two chunks share one, the commit says that a chunk is missing.
    seen: Mutex<HashSet<u128>>,
    /// Set when a worker failed.
    stop: AtomicBool,
}

impl Shared<'_> {
    fn work(&self) -> Result<(), PushError> {
        let mut worker = Worker {
            shared: self,
            sender: Sender::new(self.client, self.import, &self.turns),
            raw: vec![0; (BATCH_BYTES_MAX + CHUNK_BYTES) as usize],
            offers: Vec::new(),
        };
        let result = worker.run();
        if result.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        result
    }

    fn source_error(&self, range: ByteRange, cause: io::Error) -> PushError {
        let source_name = self.push.source_name.to_owned();
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            return PushError::Short {
                source_name,
                end_bytes: range.end(),
                disk_bytes: self.push.grid.disk_bytes(),
            };
        }
        PushError::Source {
            source_name,
            offset_bytes: range.start,
            cause,
        }
    }
}

/// One thread's buffers, which it uses for batch after batch.
struct Worker<'w, 'a> {
    shared: &'w Shared<'a>,
    sender: Sender<'w>,
    /// Room for a batch.
    raw: Vec<u8>,
    /// Those chunks of the batch that may be new.
    offers: Vec<Offer>,
}

impl Worker<'_, '_> {
    fn run(&mut self) -> Result<(), PushError> {
        let push = self.shared.push;
        loop {
            if push.cancel.load(Ordering::Relaxed) || self.shared.stop.load(Ordering::Relaxed) {
                return Err(PushError::Cancelled);
            }
            let step = lock(&self.shared.plan)
                .next(push.source)
                .map_err(|(at, cause)| self.shared.source_error(ByteRange::new(at, 0), cause))?;
            if step.skipped_bytes > 0 {
                push.progress.advance(Counts {
                    skipped_bytes: step.skipped_bytes,
                    ..Counts::default()
                });
            }
            if step.spans.is_empty() {
                return Ok(());
            }
            self.batch(&step.spans)?;
        }
    }

    fn batch(&mut self, spans: &[ChunkSpan]) -> Result<(), PushError> {
        let mut counts = Counts::default();
        let mut at = 0;
        self.offers.clear();
        let turn = self.shared.turns.take();
        for run in spans.chunk_by(|a, b| a.end_bytes() == b.start_bytes) {
            let place = at..self.read(at, run)?;
            at = place.end;
            self.digest(place, run, &mut counts);
        }
        drop(turn);
        let sent = self.sender.send(&self.raw, &self.offers)?;
        counts.known_bytes += sent.known_bytes;
        counts.sent_bytes += sent.frame_bytes;
        self.shared.push.progress.advance(counts);
        Ok(())
    }

    /// Reads neighbouring chunks to this place of the batch, their free parts as
    /// zeros, and answers where they end.
    fn read(&mut self, at: usize, run: &[ChunkSpan]) -> Result<usize, PushError> {
        let push = self.shared.push;
        let start = run[0].start_bytes;
        let range = ByteRange::new(start, run[run.len() - 1].end_bytes() - start);
        let end = at + range.len as usize;
        let raw = &mut self.raw[at..end];
        push.source
            .read_exact_at(start, raw)
            .map_err(|cause| self.shared.source_error(range, cause))?;
        for free in push.free.within(range) {
            let from = (free.start - start) as usize;
            raw[from..from + free.len as usize].fill(0);
        }
        Ok(end)
    }

    /// Names the chunks at this place of the batch, and offers those that may be
    /// new.
    fn digest(&mut self, place: Range<usize>, run: &[ChunkSpan], counts: &mut Counts) {
        let mut named = Vec::with_capacity(run.len());
        let mut at = place.start;
        for span in run {
            let place = at..at + span.len_bytes as usize;
            at = place.end;
            let raw = &self.raw[place.clone()];
            counts.read_bytes += u64::from(span.len_bytes);
            if is_zero(raw) {
                counts.zero_bytes += u64::from(span.len_bytes);
            } else {
                let id = ChunkId::of(raw);
                named.push((span.index, Offer { id, place }));
            }
        }
        let mut builder = lock(&self.shared.builder);
        for (index, offer) in &named {
            builder.set(*index, offer.id);
        }
        drop(builder);
        let mut seen = lock(&self.shared.seen);
        for (_, offer) in named {
            if seen.contains(&half(offer.id)) {
                counts.known_bytes += offer.place.len() as u64;
                continue;
            }
            if seen.len() < SEEN_IDS_MAX {
                seen.insert(half(offer.id));
            }
            self.offers.push(offer);
        }
    }
}

fn half(id: ChunkId) -> u128 {
    let (half, _) = id.as_bytes().split_at(16);
    half.iter()
        .fold(0, |value, byte| value << 8 | u128::from(*byte))
}

/// A worker that panicked ends the whole; what it left locked is not used.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
