//! Turning a volume's state into a version: only chunks that changed are read.
//!
//! The manifest is built from the parent's. Where the partitions are as they
//! were, that takes the chunks the volume wrote to; a region that is new or was
//! moved gets a grid of its own and is gone through as a whole, without reading
//! what is zero or what the parent has in the same place.

use std::{
    io,
    ops::ControlFlow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rootstock_core::{ByteRange, ChunkId, Extents, units::is_zero};
use rootstock_image::{
    ReadAt,
    grid::{ChunkSpan, Grid, Region},
    inspect::{DiskReport, FreeSpace, inspect},
    manifest::{BuildError, LookupError, Manifest, ManifestBuilder},
};
use rootstock_store::{ChunkStore, PutError, ReadError};

use crate::{
    cache::{ChunkSource, Pages},
    device::{BlockDevice, BlockError, Segment, Segments},
    version::VersionDisk,
    view::SnapshotView,
};

/// The most extents that a status call of a commit asks for.
const STATUS_EXTENTS_MAX: usize = 1024;

/// The most bytes read at once for the inspection.
const READ_BYTES_MAX: usize = 1 << 20;

/// How a commit is done.
#[derive(Debug, Clone, Copy)]
pub struct CommitOptions {
    /// Whether blocks that a file system has free become zeros, in the chunks
    /// that changed.
    pub free_space: FreeSpace,
    /// Threads that hash and compress; each holds one chunk.
    pub threads: usize,
}

/// How far a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitProgress {
    /// Bytes of chunks gone through.
    pub done_bytes: u64,
    /// Bytes of chunks to go through.
    pub total_bytes: u64,
}

/// What a commit did.
#[derive(Debug, Clone)]
pub struct CommitReport {
    /// Chunks that were read, because they may have changed.
    pub chunks_read: u64,
    /// Of these, what was new.
    pub stored: Stored,
    /// Whether the disk is cut into other regions than the parent.
    pub regions_changed: bool,
    /// What is on the disk.
    pub disk: DiskReport,
}

/// Where a commit's chunks go.
pub trait Sink: Sync {
    /// Why a chunk was not taken.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Takes a chunk, which may be there already. Called from several threads.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn put(&self, id: ChunkId, raw: &[u8]) -> Result<(), Self::Error>;

    /// As [`Sink::put`], of a page of the manifest.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn put_page(&self, id: ChunkId, raw: &[u8]) -> Result<(), Self::Error>;

    /// Returns when all that was put is durable: what was new of it, without pages.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn flush(&self) -> Result<Stored, Self::Error>;
}

/// Chunks that were not there before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// How many.
    pub chunks: u64,
    /// Their raw bytes.
    pub raw_bytes: u64,
    /// Bytes of their frames.
    pub frame_bytes: u64,
}

/// Why a commit was not done. The volume and its parent are as they were.
#[derive(Debug, thiserror::Error)]
pub enum CommitError<E: std::error::Error + 'static = PutError> {
    /// The parent is not what the volume is a clone of.
    #[error("the volume is not a clone of the version given as its parent")]
    OtherParent,
    /// The caller's callback said so.
    #[error("the commit was stopped")]
    Stopped,
    /// The volume could not be read.
    #[error("cannot read the volume to commit it")]
    Read(#[source] BlockError),
    /// Its file systems could not be looked at.
    #[error("cannot look at the file systems of the volume to commit it")]
    Inspect(#[source] io::Error),
    /// A page of the parent could not be read.
    #[error("cannot read the manifest of the volume's parent version")]
    Parent(#[source] LookupError<ReadError>),
    /// A chunk could not be stored.
    #[error("cannot store the volume's chunks")]
    Store(#[source] E),
}

impl<E: std::error::Error + 'static> From<BlockError> for CommitError<E> {
    fn from(error: BlockError) -> Self {
        Self::Read(error)
    }
}

/// Stores what `view` has that `parent` has not, and makes the manifest of it.
/// All of it is in the store, and durable, on return; nothing refers to it yet,
/// so the caller checks under a hold that a collection left it all in place.
///
/// `progress` is called after every chunk, from several threads, and stops the
/// commit by breaking.
///
/// # Errors
/// [`CommitError`]; chunks that were stored by then are left to the collector.
pub fn commit(
    view: &SnapshotView,
    parent: &VersionDisk,
    options: CommitOptions,
    progress: &(dyn Fn(CommitProgress) -> ControlFlow<()> + Sync),
) -> Result<(Manifest, CommitReport), CommitError> {
    let sink = StoreSink {
        store: parent.cache().store(),
        stored: Mutex::default(),
    };
    commit_to(view, parent, &sink, options, progress)
}

/// As [`commit()`], with chunks going to a sink.
///
/// # Errors
/// [`CommitError`].
pub fn commit_to<S: ChunkSource, T: Sink>(
    view: &SnapshotView,
    parent: &VersionDisk<S>,
    sink: &T,
    options: CommitOptions,
    progress: &(dyn Fn(CommitProgress) -> ControlFlow<()> + Sync),
) -> Result<(Manifest, CommitReport), CommitError<T::Error>> {
    if view.base().id != parent.id() {
        return Err(CommitError::OtherParent);
    }
    let pages = Pages(parent.cache().store());
    let disk = inspect(&DeviceReader(view), options.free_space).map_err(CommitError::Inspect)?;
    let changed = view.changed();
    let work = candidates(view, parent.manifest().grid(), &disk.grid, &changed)?;
    let regions_changed = disk.grid.regions() != parent.manifest().grid().regions();
    let builder = ManifestBuilder::from_parent_regions(parent.manifest(), disk.grid.clone(), pages);
    let job = Job {
        view,
        parent,
        sink,
        disk: &disk,
        changed: &changed,
        total_bytes: work.total_bytes(),
        done_bytes: AtomicU64::new(0),
        chunks_read: AtomicU64::new(0),
        builder: Mutex::new(builder),
        stop: AtomicBool::new(false),
        progress,
    };
    job.run(&work, options.threads)?;
    let chunks_read = job.chunks_read.load(Ordering::Relaxed);
    let builder = job.builder.into_inner();
    let manifest = builder
        .unwrap_or_else(PoisonError::into_inner)
        .finish(|id, page| sink.put_page(id, page))
        .map_err(|error| match error {
            BuildError::Lookup(error) => CommitError::Parent(error),
            BuildError::Sink(error) => CommitError::Store(error),
        })?;
    let report = CommitReport {
        chunks_read,
        stored: sink.flush().map_err(CommitError::Store)?,
        regions_changed,
        disk,
    };
    Ok((manifest, report))
}

/// A block device as what the parsers of images read from.
pub struct DeviceReader<'a, D: ?Sized>(pub &'a D);

impl<D: BlockDevice + ?Sized> ReadAt for DeviceReader<'_, D> {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut out = Segments::new();
        let mut offset_bytes = offset_bytes;
        for part in buffer.chunks_mut(READ_BYTES_MAX) {
            out.clear();
            self.0
                .read(offset_bytes, part.len() as u32, &mut out)
                .map_err(|error| match error {
                    BlockError::OutOfRange { .. } => {
                        io::Error::new(io::ErrorKind::UnexpectedEof, error)
                    }
                    other => io::Error::other(other),
                })?;
            out.copy_to(part);
            offset_bytes += part.len() as u64;
        }
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

/// The bytes, in whole chunks of the new grid, whose chunks may not be those that
/// a builder from the parent's regions begins with.
fn candidates(
    view: &SnapshotView,
    old: &Grid,
    new: &Grid,
    changed: &Extents,
) -> Result<Extents, BlockError> {
    let mut work = Extents::new();
    let mut add = |range: ByteRange| {
        let start = new.at(range.start).start_bytes;
        let end = new.at(range.end() - 1).end_bytes();
        work.insert(ByteRange::new(start, end - start));
    };
    let place = |region: &Region| (region.start_bytes, region.len_bytes);
    for region in new.regions() {
        let range = ByteRange::new(region.start_bytes, region.len_bytes);
        if old
            .regions()
            .iter()
            .any(|other| place(other) == place(region))
        {
            changed.within(range).for_each(&mut add);
            continue;
        }
        let mut next = range.start;
        while next < range.end() {
            for extent in view.status(next, range.end() - next, STATUS_EXTENTS_MAX)? {
                if !extent.zero {
                    add(ByteRange::new(next, extent.len_bytes));
                }
                next += extent.len_bytes;
            }
        }
    }
    Ok(work)
}

struct Job<'a, S: ChunkSource, T> {
    view: &'a SnapshotView,
    parent: &'a VersionDisk<S>,
    sink: &'a T,
    disk: &'a DiskReport,
    changed: &'a Extents,
    total_bytes: u64,
    done_bytes: AtomicU64,
    chunks_read: AtomicU64,
    builder: Mutex<ManifestBuilder<Pages<'a, S>>>,
    stop: AtomicBool,
    progress: &'a (dyn Fn(CommitProgress) -> ControlFlow<()> + Sync),
}

/// A store as a sink.
struct StoreSink<'a> {
    store: &'a ChunkStore,
    stored: Mutex<Stored>,
}

impl Sink for StoreSink<'_> {
    type Error = PutError;

    fn put(&self, id: ChunkId, raw: &[u8]) -> Result<(), PutError> {
        if self.store.contains(id) {
            return Ok(());
        }
        self.store.put_raw(raw)?;
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.chunks += 1;
        stored.raw_bytes += raw.len() as u64;
        // From the store's memory, or soon again if it has just been moved.
        if let Ok(frame) = self.store.frame(id) {
            stored.frame_bytes += frame.bytes.len() as u64;
        }
        Ok(())
    }

    fn put_page(&self, _: ChunkId, raw: &[u8]) -> Result<(), PutError> {
        self.store.put_raw(raw).map(|_| ())
    }

    fn flush(&self) -> Result<Stored, PutError> {
        self.store.flush()?;
        Ok(*self.stored.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: ChunkSource, T: Sink> Job<'_, S, T> {
    fn run(&self, work: &Extents, threads: usize) -> Result<(), CommitError<T::Error>> {
        let spans = Mutex::new(work.iter().flat_map(|range| self.spans(range)));
        let next = || {
            let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
            spans.next()
        };
        let worker = || -> Result<(), CommitError<T::Error>> {
            let mut buffers = Buffers::default();
            while !self.stop.load(Ordering::Relaxed)
                && let Some(span) = next()
            {
                let done = self.chunk(span, &mut buffers);
                if done.is_err() {
                    self.stop.store(true, Ordering::Relaxed);
                }
                done?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(worker)).collect();
            let mut result = worker();
            for other in others {
                match other.join() {
                    // The first failure stops the others; the cause is what counts.
                    Ok(other) => result = result.and(other),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            result
        })
    }

    /// The chunks of a range that begins and ends with one.
    fn spans(&self, range: ByteRange) -> impl Iterator<Item = ChunkSpan> + '_ {
        let grid = &self.disk.grid;
        let mut next = range.start;
        std::iter::from_fn(move || {
            (next < range.end()).then(|| {
                let span = grid.at(next);
                next = span.end_bytes();
                span
            })
        })
    }

    fn chunk(&self, span: ChunkSpan, buffers: &mut Buffers) -> Result<(), CommitError<T::Error>> {
        let id = match self.unchanged(span)? {
            Some(id) => id,
            None => self.store_chunk(span, buffers)?,
        };
        self.builder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set(span.index, id);
        let len_bytes = u64::from(span.len_bytes);
        let progress = CommitProgress {
            done_bytes: self.done_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes,
            total_bytes: self.total_bytes,
        };
        match (self.progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CommitError::Stopped),
        }
    }

    /// The parent's chunk in the same place, if the volume did not touch it.
    fn unchanged(&self, span: ChunkSpan) -> Result<Option<ChunkId>, BlockError> {
        let range = ByteRange::new(span.start_bytes, u64::from(span.len_bytes));
        let old = self.parent.manifest().grid();
        if span.start_bytes >= old.disk_bytes() || self.changed.within(range).next().is_some() {
            return Ok(None);
        }
        let there = old.at(span.start_bytes);
        if (there.start_bytes, there.len_bytes) != (span.start_bytes, span.len_bytes) {
            return Ok(None);
        }
        Ok(Some(self.parent.chunk(there)?))
    }

    fn store_chunk(
        &self,
        span: ChunkSpan,
        buffers: &mut Buffers,
    ) -> Result<ChunkId, CommitError<T::Error>> {
        self.chunks_read.fetch_add(1, Ordering::Relaxed);
        let Buffers { out, raw } = buffers;
        out.clear();
        self.view.read(span.start_bytes, span.len_bytes, out)?;
        if out.iter().all(|piece| matches!(piece, Segment::Zero(_))) {
            return Ok(ChunkId::ZERO);
        }
        raw.resize(span.len_bytes as usize, 0);
        out.copy_to(raw);
        let range = ByteRange::new(span.start_bytes, u64::from(span.len_bytes));
        for free in self.disk.free.within(range) {
            let first = (free.start - span.start_bytes) as usize;
            raw[first..first + free.len as usize].fill(0);
        }
        if is_zero(raw) {
            return Ok(ChunkId::ZERO);
        }
        let id = ChunkId::of(raw);
        self.sink.put(id, raw).map_err(CommitError::Store)?;
        Ok(id)
    }
}

/// What a thread keeps from chunk to chunk.
#[derive(Default)]
struct Buffers {
    out: Segments,
    raw: Vec<u8>,
}
