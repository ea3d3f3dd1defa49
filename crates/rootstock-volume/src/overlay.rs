//! A volume's own writes: 4 KiB slots in a data file and a log of the map to them.
//!
//! No slot that a reader, a snapshot view or the last flushed state may need is
//! ever written to: a write takes free slots, fills them outside all locks, and
//! then enters them in the map. So a write that fails changes nothing, readers
//! hold no lock while they read, and a power cut leaves the last flushed state.
//! Overwriting a block's slot in place between flushes would save the map entry,
//! but tears the block when it fails and races with readers of it.
//!
//! This module knows neither what the base holds nor how blocks are split: that
//! is [`crate::volume`].

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::{ControlFlow, Range},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rootstock_core::{BLOCK_BYTES, Digest, Extents};
use rootstock_store::disk::{Disk, DiskFile};

use self::{
    changed::Changed,
    log::{Log, Recorded},
    map::{BlockMap, Entry},
    recent::{Change, Recent},
    slots::{Slots, runs_of},
};

mod changed;
mod copy;
mod flush;
mod format;
mod log;
pub(crate) mod map;
mod read;
mod recent;
mod slots;

pub(crate) use copy::copy;
pub(crate) use flush::PinnedState;
pub(crate) use log::is_log_name;
pub(crate) use read::{Lookup, Source, Wait, lookup_in};
pub(crate) use recent::is_recent_name;

const DATA_NAME: &str = "data";

/// Why a volume was not opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there that could be opened.
    #[error("there is no volume in {path}")]
    NotAVolume {
        /// The directory.
        path: String,
    },
    /// Something is there already.
    #[error("{path} already holds a volume's files: delete that volume or choose another name")]
    Exists {
        /// The directory.
        path: String,
    },
    /// The volume belongs to another version.
    #[error(
        "{path} holds the writes made over version {found}, not {expected}: open it over the former"
    )]
    OtherBase {
        /// The log file.
        path: String,
        /// What was to be its base.
        expected: Digest,
        /// What it says its base is.
        found: Digest,
    },
    /// Written by a newer release.
    #[error("{path} has format version {version}, which this release does not know: upgrade it")]
    Version {
        /// The log file.
        path: String,
        /// The version found.
        version: u32,
    },
    /// What was flushed is no longer all there.
    #[error("{path} is damaged at byte {offset_bytes} ({what}): restore it, or reset the volume")]
    Damaged {
        /// The log file.
        path: String,
        /// Where.
        offset_bytes: u64,
        /// What was found.
        what: String,
    },
    /// A size that volumes cannot have.
    #[error("a volume over a disk of {base_bytes} B cannot have {size_bytes} B")]
    Size {
        /// What was asked for.
        size_bytes: u64,
        /// The base's size.
        base_bytes: u64,
    },
    /// The server's disk failed.
    #[error("cannot open or make the volume in {path}")]
    Io {
        /// The directory or file.
        path: String,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

/// How an overlay is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayOptions {
    /// A write that brings the unflushed data past this many bytes flushes.
    pub checkpoint_bytes: u64,
    /// A map log shorter than this many bytes is not compacted.
    pub log_bytes_min: u64,
}

impl Default for OverlayOptions {
    /// 256 MiB unflushed, logs from 4 MiB compacted.
    fn default() -> Self {
        Self {
            checkpoint_bytes: 256 << 20,
            log_bytes_min: log::LOG_BYTES_MIN,
        }
    }
}

/// A volume's own writes.
pub(crate) struct Overlay {
    data: Box<dyn DiskFile>,
    /// Taken before `slots` where both are.
    state: RwLock<State>,
    slots: Mutex<Slots>,
    /// Held by the one flush at a time. `None`: ephemeral, nothing is kept.
    log: Mutex<Option<Log>>,
    /// Taken after `state` where both are. `None`: nothing outlives the process.
    recent: Mutex<Option<Recent>>,
    /// Counts returns of slots, each before the slot can be taken again: a reader
    /// that saw the same count before and after read what it looked up.
    frees: AtomicU64,
    /// Bytes written since the last flush took its state.
    unflushed_bytes: AtomicU64,
    /// Unflushed bytes from which a write flushes: more than the option says after
    /// a flush failed, or every write would try again.
    checkpoint_at_bytes: AtomicU64,
    options: OverlayOptions,
}

struct State {
    map: BlockMap,
    size_bytes: u64,
    /// Of the last durable transaction.
    generation: u64,
    /// Blocks changed since a flush last took the state. Their slots are in no
    /// transaction, so they are free as soon as they are replaced.
    pending: Changed,
    /// Changed blocks that a failed flush took: a transaction with their slots may
    /// be on the disk or not.
    unlogged: Extents,
    /// Replaced slots that a recorded state may need, until the next flush.
    retired: Retired,
    /// Replaced slots that views older than the generation may need.
    waiting: VecDeque<(u64, Retired)>,
    /// How many views there are of each generation.
    views: BTreeMap<u64, usize>,
    /// The next flush writes the whole map.
    full_next: bool,
    /// The size changed since the last flush.
    resized: bool,
    /// A sync failed: what it should have written may be gone from the page cache
    /// and is written again.
    rewrite: bool,
}

/// Slots to give back later.
#[derive(Default)]
struct Retired {
    /// Replaced by other data: their space will be used again.
    replaced: Vec<u32>,
    /// Discarded: their space goes back to the file system.
    discarded: Vec<u32>,
}

impl Retired {
    fn extend(&mut self, other: Self) {
        self.replaced.extend(other.replaced);
        self.discarded.extend(other.discarded);
    }

    fn is_empty(&self) -> bool {
        self.replaced.is_empty() && self.discarded.is_empty()
    }
}

/// Slots filled and ready to be entered: consecutive blocks in runs of slots.
pub(crate) struct Filled {
    slots: Vec<Range<u32>>,
    crcs: Vec<u32>,
}

impl State {
    /// Enters consecutive blocks in these slots; gives the slots that are free now.
    fn place(&mut self, first_block: u64, slots: &[Range<u32>], crcs: &[u32]) -> Vec<u32> {
        let blocks = first_block..first_block + crcs.len() as u64;
        let mut free = Vec::new();
        let slots = slots.iter().cloned().flatten();
        for ((block, slot), crc) in blocks.zip(slots).zip(crcs) {
            let old = self.map.set(block, Entry::data(slot, *crc));
            let fresh = self.pending.mark(block);
            if let Some((old, _)) = old.placed() {
                if fresh {
                    free.push(old);
                } else {
                    self.retired.replaced.push(old);
                }
            }
        }
        free
    }

    /// Has blocks read as zeros; gives the slots that are free now.
    fn zero(&mut self, blocks: Range<u64>) -> Vec<u32> {
        let (mut free, mut retired) = (Vec::new(), Vec::new());
        let pending = &self.pending;
        self.map.set_zero(blocks.clone(), |block, slot| {
            if pending.contains(block) {
                free.push(slot);
            } else {
                retired.push(slot);
            }
        });
        self.retired.discarded.extend(retired);
        self.pending.insert(blocks);
        free
    }

    /// Forgets all blocks; gives the slots that are free now.
    fn clear(&mut self) -> Vec<u32> {
        let map = std::mem::take(&mut self.map);
        let (mut free, mut retired) = (Vec::new(), Vec::new());
        let pending = std::mem::take(&mut self.pending);
        each_slot(&map, |block, slot| {
            if pending.contains(block) {
                free.push(slot);
            } else {
                retired.push(slot);
            }
        });
        self.retired.discarded.extend(retired);
        self.unlogged = Extents::new();
        self.full_next = true;
        free
    }
}

impl Overlay {
    /// A new overlay in `dir`, which must be there and empty. Durable on return.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        dir: &str,
        base: Digest,
        size_bytes: u64,
        options: OverlayOptions,
    ) -> Result<Self, OpenError> {
        let data = create_data(&*disk, dir)?;
        let state = Recorded {
            map: BlockMap::new(),
            size_bytes,
            generation: 1,
        };
        let io_error = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        let recent = Recent::begin(&*disk, dir, state.generation, |_| ()).map_err(io_error)?;
        let log = data
            .sync_data()
            .and_then(|()| Log::create(disk, dir, base, &state, options.log_bytes_min))
            .map_err(io_error)?;
        let made = Self::assemble(data, state, Some(log), Slots::new(0), options);
        *made.lock_recent() = recent;
        Ok(made)
    }

    /// A new overlay that is gone when it is closed.
    pub(crate) fn create_ephemeral(
        disk: &dyn Disk,
        dir: &str,
        size_bytes: u64,
        options: OverlayOptions,
    ) -> Result<Self, OpenError> {
        let data = create_data(disk, dir)?;
        // Without its name the file goes when it is closed, however that happens.
        disk.remove(&format!("{dir}/{DATA_NAME}"))
            .map_err(|source| OpenError::Io {
                path: dir.to_owned(),
                source,
            })?;
        let state = Recorded {
            map: BlockMap::new(),
            size_bytes,
            generation: 1,
        };
        Ok(Self::assemble(data, state, None, Slots::new(0), options))
    }

    /// The overlay in `dir`, in its last flushed state.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: &str,
        base: Digest,
        options: OverlayOptions,
    ) -> Result<Self, OpenError> {
        let path = format!("{dir}/{DATA_NAME}");
        let (log, state) = Log::open(Arc::clone(disk), dir, base, options.log_bytes_min)?;
        let io_error = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        let data = disk.open(&path).map_err(io_error)?;
        let data_bytes = data.len().map_err(io_error)?;
        let slots = slots_in_use(&state, &path, data_bytes)?;
        let flushed = state.clone();
        let mut opened = Self::assemble(data, state, Some(log), slots, options);
        if opened.catch_up(disk, dir, data_bytes).is_none() {
            tracing::error!(
                path = dir,
                "notes of recent writes make no sense: what was not flushed is lost"
            );
            let slots = slots_in_use(&flushed, &path, data_bytes)?;
            let Self { data, log, .. } = opened;
            let log = log.into_inner().unwrap_or_else(PoisonError::into_inner);
            opened = Self::assemble(data, flushed, log, slots, options);
        }
        opened.note_again(disk, dir).map_err(io_error)?;
        // What neither a transaction nor a note mentions was never answered.
        let used_bytes = u64::from(opened.lock_slots().total()) * BLOCK_BYTES;
        if data_bytes > used_bytes {
            opened.data.set_len(used_bytes).map_err(io_error)?;
        }
        Ok(opened)
    }

    /// Enters what was written after the last flush by a process that was killed; none
    /// when that makes no sense.
    fn catch_up(&self, disk: &Arc<dyn Disk>, dir: &str, data_bytes: u64) -> Option<()> {
        let generation = self.read_state().generation;
        recent::read(&**disk, dir, generation, |size_bytes, change| {
            let mut state = self.write_state();
            if size_bytes > state.size_bytes {
                state.size_bytes = size_bytes;
                state.resized = true;
            }
            let free = match change {
                Change::Data {
                    first_block,
                    slots,
                    crcs,
                } => {
                    for run in *slots {
                        let there = u64::from(run.end) * BLOCK_BYTES <= data_bytes;
                        if !there || !self.lock_slots().occupy(run.clone()) {
                            return None;
                        }
                    }
                    let bytes = crcs.len() as u64 * BLOCK_BYTES;
                    self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
                    state.place(*first_block, slots, crcs)
                }
                Change::Zero(blocks) => state.zero(blocks.clone()),
                Change::Clear => state.clear(),
            };
            drop(state);
            self.release(free);
            Some(())
        })
    }

    /// Begins to note what is written, with what is not flushed yet.
    fn note_again(&self, disk: &Arc<dyn Disk>, dir: &str) -> io::Result<()> {
        let state = self.read_state();
        *self.lock_recent() = Recent::begin(&**disk, dir, state.generation, |recent| {
            if state.full_next {
                recent.note(state.size_bytes, &Change::Clear);
            }
            for range in state.pending.to_extents().iter() {
                let blocks = range.start / BLOCK_BYTES..range.end() / BLOCK_BYTES;
                let _: ControlFlow<()> = state.map.visit(blocks, |blocks, run| {
                    note_run(recent, state.size_bytes, blocks, run);
                    ControlFlow::Continue(())
                });
            }
        })?;
        Ok(())
    }

    fn assemble(
        data: Box<dyn DiskFile>,
        state: Recorded,
        log: Option<Log>,
        slots: Slots,
        options: OverlayOptions,
    ) -> Self {
        Self {
            data,
            state: RwLock::new(State {
                map: state.map,
                size_bytes: state.size_bytes,
                generation: state.generation,
                pending: Changed::default(),
                unlogged: Extents::new(),
                retired: Retired::default(),
                waiting: VecDeque::new(),
                views: BTreeMap::new(),
                full_next: false,
                resized: false,
                rewrite: false,
            }),
            slots: Mutex::new(slots),
            log: Mutex::new(log),
            recent: Mutex::new(None),
            frees: AtomicU64::new(0),
            unflushed_bytes: AtomicU64::new(0),
            checkpoint_at_bytes: AtomicU64::new(options.checkpoint_bytes),
            options,
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.read_state().size_bytes
    }

    /// Bytes of slots in use, those of views and of unflushed states included.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::from(self.lock_slots().used()) * BLOCK_BYTES
    }

    /// Bytes written since the last flush.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Relaxed)
    }

    /// The map log's length in bytes.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.lock_log().as_ref().map_or(0, Log::len_bytes)
    }

    /// Writes whole blocks into free slots. The map does not know of them yet.
    pub(crate) fn fill(&self, data: &[u8]) -> io::Result<Filled> {
        debug_assert!(data.len().is_multiple_of(BLOCK_BYTES as usize));
        let crcs = data
            .chunks_exact(BLOCK_BYTES as usize)
            .map(crc32fast::hash)
            .collect::<Vec<_>>();
        let filled = Filled {
            slots: self.take_slots(crcs.len())?,
            crcs,
        };
        let mut rest = data;
        for run in &filled.slots {
            let (part, tail) = rest.split_at(run.len() * BLOCK_BYTES as usize);
            if let Err(error) = self.data.write_at(u64::from(run.start) * BLOCK_BYTES, part) {
                self.give_back(&filled);
                return Err(error);
            }
            rest = tail;
        }
        Ok(filled)
    }

    /// Enters filled slots as the blocks from `first_block`, unless one of the
    /// blocks in `expected` is no longer what its writer read: then `false`, and
    /// the slots are free again.
    pub(crate) fn enter(
        &self,
        first_block: u64,
        filled: &Filled,
        expected: &[(u64, Entry)],
    ) -> bool {
        let mut state = self.write_state();
        if expected
            .iter()
            .any(|(block, entry)| state.map.get(*block) != *entry)
        {
            drop(state);
            self.give_back(filled);
            return false;
        }
        let free = state.place(first_block, &filled.slots, &filled.crcs);
        let change = Change::Data {
            first_block,
            slots: &filled.slots,
            crcs: &filled.crcs,
        };
        self.note(state, &change);
        self.release(free);
        self.unflushed_bytes
            .fetch_add(filled.crcs.len() as u64 * BLOCK_BYTES, Ordering::Relaxed);
        true
    }

    /// Makes whole blocks read as zeros.
    pub(crate) fn zero(&self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let mut state = self.write_state();
        let free = state.zero(blocks.clone());
        self.note(state, &Change::Zero(blocks));
        self.release(free);
        // An entry in the log for each run, so that discards get flushed, too.
        self.unflushed_bytes
            .fetch_add(BLOCK_BYTES, Ordering::Relaxed);
    }

    /// Forgets all writes. In effect at once, durable with the next flush.
    pub(crate) fn clear(&self) {
        let mut state = self.write_state();
        let free = state.clear();
        self.note(state, &Change::Clear);
        self.release(free);
    }

    /// Notes a change for the case that this process is killed, before a slot that it
    /// freed is taken again. Readers need not wait for it.
    fn note(&self, state: RwLockWriteGuard<'_, State>, change: &Change<'_>) {
        let size_bytes = state.size_bytes;
        let mut recent = self.lock_recent();
        drop(state);
        if let Some(recent) = &mut *recent {
            recent.note(size_bytes, change);
        }
    }

    /// Changes the size, which may only grow. Durable with the next flush.
    pub(crate) fn grow(&self, size_bytes: u64) {
        let mut state = self.write_state();
        if size_bytes > state.size_bytes {
            state.size_bytes = size_bytes;
            state.resized = true;
        }
    }

    /// The map as it is now: cheap, since it shares everything.
    pub(crate) fn map_now(&self) -> BlockMap {
        self.read_state().map.clone()
    }

    /// Whether so much is unflushed that it is time to.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.unflushed_bytes() >= self.checkpoint_at_bytes.load(Ordering::Relaxed)
    }

    fn take_slots(&self, count: usize) -> io::Result<Vec<Range<u32>>> {
        let mut slots = self.lock_slots();
        let mut left = u32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut runs = Vec::with_capacity(1);
        while left > 0 {
            let Some(run) = slots.take(left) else {
                for run in runs {
                    slots.release(run);
                }
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "the volume's data file cannot grow beyond 16 TiB",
                ));
            };
            left -= run.len() as u32;
            runs.push(run);
        }
        Ok(runs)
    }

    /// Frees slots that no reader can have looked up.
    fn give_back(&self, filled: &Filled) {
        let mut slots = self.lock_slots();
        for run in &filled.slots {
            slots.release(run.clone());
        }
    }

    fn release(&self, free: Vec<u32>) {
        if free.is_empty() {
            return;
        }
        self.frees.fetch_add(1, Ordering::SeqCst);
        let runs = runs_of(free);
        let mut slots = self.lock_slots();
        for run in runs {
            slots.release(run);
        }
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_recent(&self) -> MutexGuard<'_, Option<Recent>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_log(&self) -> MutexGuard<'_, Option<Log>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note_run(recent: &mut Recent, size_bytes: u64, blocks: Range<u64>, run: map::Run<'_>) {
    match run {
        map::Run::Base => {}
        map::Run::Zero => recent.note(size_bytes, &Change::Zero(blocks)),
        map::Run::Data(entries) => {
            let placed = entries.iter().filter_map(|entry| entry.placed());
            let (slots, crcs): (Vec<_>, Vec<_>) = placed.unzip();
            let change = Change::Data {
                first_block: blocks.start,
                slots: &runs_of(slots),
                crcs: &crcs,
            };
            recent.note(size_bytes, &change);
        }
    }
}

fn create_data(disk: &dyn Disk, dir: &str) -> Result<Box<dyn DiskFile>, OpenError> {
    disk.create(&format!("{dir}/{DATA_NAME}"))
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => OpenError::Exists {
                path: dir.to_owned(),
            },
            _ => OpenError::Io {
                path: dir.to_owned(),
                source,
            },
        })
}

fn each_slot(map: &BlockMap, mut each: impl FnMut(u64, u32)) {
    let _: ControlFlow<()> = map.visit(0..map.blocks_end(), |blocks, run| {
        if let map::Run::Data(entries) = run {
            for (block, entry) in blocks.zip(entries) {
                if let Some((slot, _)) = entry.placed() {
                    each(block, slot);
                }
            }
        }
        ControlFlow::Continue(())
    });
}

/// The allocator of a volume that is being opened. Its memory is in proportion to
/// the data file, whatever the map says: a flush syncs that file before the
/// transaction that tells of it, and punching keeps its length, so no power cut
/// leaves a slot past its end.
fn slots_in_use(state: &Recorded, path: &str, data_bytes: u64) -> Result<Slots, OpenError> {
    let mut slots = Slots::new(0);
    let mut wrong = None;
    each_slot(&state.map, |_, slot| {
        if (u64::from(slot) + 1) * BLOCK_BYTES > data_bytes {
            wrong = Some((slot, "the map has a block there, past the file's end"));
        } else if !slots.occupy(slot..slot + 1) {
            wrong = Some((slot, "the map gives one slot to two blocks"));
        }
    });
    match wrong {
        None => Ok(slots),
        Some((slot, what)) => Err(OpenError::Damaged {
            path: path.to_owned(),
            offset_bytes: u64::from(slot) * BLOCK_BYTES,
            what: what.to_owned(),
        }),
    }
}
