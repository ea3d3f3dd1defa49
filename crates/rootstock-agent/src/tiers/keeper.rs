//! The disk in service: reads with a limit of time, writes by a thread of their own.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_api::boot::DiskCacheReport;
use rootstock_cache::{Cache, CacheError, Put, PutError};
use rootstock_core::ChunkId;

use super::plan::Plan;
use crate::console;

/// Reads in a row that the network was quicker with, before it races the disk at once.
const SLOW_MAX: u32 = 8;
/// Reads and writes that failed, before the disk is given up.
const FAULTS_MAX: u32 = 8;
/// Reads at once: what a disk's own queue makes use of.
const READERS: usize = 8;
/// Bytes of chunks that wait to be written. What is more is not kept this time.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// What a power cut may cost, in bytes and in time.
const UNSAVED_BYTES_MAX: usize = 64 << 20;
const UNSAVED_LIMIT: Duration = Duration::from_secs(2);
/// Chunks that are forgotten at once when there is no room.
const FORGET_AT_ONCE: u64 = 256;

/// A cache that serves and is written.
pub(crate) struct Keeper {
    cache: Cache,
    device: String,
    plan: OnceLock<Plan>,
    off: OnceLock<String>,
    patience: Patience,
    faults: AtomicU32,
    slow: Mutex<Slow>,
    jobs: SyncSender<Job>,
    queue: Mutex<Queue>,
    /// Something to write, or the plan to write it by.
    news: Condvar,
    /// Room in the queue.
    room: Condvar,
}

/// How long a disk may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// A read that takes longer is tried over the network, too.
    pub(crate) read: Duration,
    /// A disk that answered no read in time for so long is given up.
    pub(crate) hung: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(1),
            // A disk that slept has turned up to speed by then, and a link was reset.
            hung: Duration::from_secs(40),
        }
    }
}

/// Reads in a row that the network was quicker with.
#[derive(Default)]
struct Slow {
    reads: u32,
    since: Option<Instant>,
}

/// Chunks that wait to be written, in order.
#[derive(Default)]
struct Queue {
    order: VecDeque<ChunkId>,
    chunks: HashMap<ChunkId, Bytes>,
    bytes: usize,
    /// Whether what was written may be gone after a power cut.
    is_unsaved: bool,
    /// Who waits until nothing of that is left.
    settling: usize,
}

/// A read of the disk. Whoever asked may be gone when it is done.
struct Job {
    chunk: ChunkId,
    asked: Instant,
    answer: SyncSender<Read>,
}

type Read = Result<Option<Bytes>, CacheError>;

/// What the disk says to a read.
pub(crate) enum Local {
    /// This is it.
    Here(Bytes),
    /// It is not there, or not right.
    Lacking,
    /// It may come yet.
    Late(Late),
}

/// A read that takes long.
pub(crate) struct Late(Receiver<Read>);

impl Keeper {
    /// Puts a cache into service.
    ///
    /// # Errors
    /// When the system has no threads to give.
    pub(crate) fn start(device: String, cache: Cache, patience: Patience) -> io::Result<Arc<Self>> {
        let (jobs, work) = sync_channel(4 * READERS);
        let keeper = Arc::new(Self {
            cache,
            device,
            plan: OnceLock::new(),
            off: OnceLock::new(),
            patience,
            faults: AtomicU32::new(0),
            slow: Mutex::default(),
            jobs,
            queue: Mutex::default(),
            news: Condvar::new(),
            room: Condvar::new(),
        });
        let work = Arc::new(Mutex::new(work));
        for number in 0..READERS {
            // They end with the keeper: it holds the other end.
            let (reader, work) = (Arc::downgrade(&keeper), Arc::clone(&work));
            thread::Builder::new()
                .name(format!("disk-read-{number}"))
                .spawn(move || {
                    while let (Some(job), Some(keeper)) = (next(&work), reader.upgrade()) {
                        let read = keeper.cache.read(job.chunk);
                        if job.asked.elapsed() < patience.read {
                            *keeper.lock_slow() = Slow::default();
                        }
                        let _ = job.answer.try_send(read);
                    }
                })?;
        }
        let writer = Arc::downgrade(&keeper);
        thread::Builder::new()
            .name("disk-write".to_owned())
            .spawn(move || {
                let mut unsaved = Unsaved::default();
                while let Some(keeper) = writer.upgrade() {
                    if keeper.off.get().is_some() {
                        return;
                    }
                    keeper.write_some(&mut unsaved);
                }
            })?;
        Ok(keeper)
    }

    /// What the cache remembers beside chunks, and where.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Says which version runs; nothing is written before.
    pub(crate) fn set_plan(&self, plan: Plan) {
        let _ = self.plan.set(plan);
        self.news.notify_all();
    }

    /// The version that runs.
    pub(crate) fn plan(&self) -> Option<&Plan> {
        self.plan.get()
    }

    /// Whether the disk is still used.
    pub(crate) fn is_on(&self) -> bool {
        self.off.get().is_none()
    }

    /// Whether a chunk is here, or about to be.
    pub(crate) fn has(&self, chunk: ChunkId) -> bool {
        self.is_on() && (self.cache.has(chunk) || self.lock().chunks.contains_key(&chunk))
    }

    /// A chunk from the disk, checked.
    pub(crate) fn read(&self, chunk: ChunkId) -> Local {
        if !self.is_on() {
            return Local::Lacking;
        }
        if !self.cache.has(chunk) {
            let waits = self.lock().chunks.get(&chunk).cloned();
            return waits.map_or(Local::Lacking, Local::Here);
        }
        let (answer, read) = sync_channel(1);
        let asked = Instant::now();
        let is_slow = self.lock_slow().reads >= SLOW_MAX;
        let limit = if is_slow {
            Duration::ZERO
        } else {
            self.patience.read
        };
        let job = Job {
            chunk,
            asked,
            answer,
        };
        match self.jobs.try_send(job) {
            Ok(()) => match self.wait(Late(read), limit) {
                Ok(local) => local,
                Err(late) => Local::Late(late),
            },
            // All that the disk was asked is late.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.outrun();
                Local::Lacking
            }
        }
    }

    /// Waits longer for a late read; gives it back when it does not come.
    pub(crate) fn wait(&self, late: Late, limit: Duration) -> Result<Local, Late> {
        match late.0.recv_timeout(limit) {
            Ok(Ok(Some(raw))) => Ok(Local::Here(raw)),
            Ok(Ok(None)) => {
                self.fault("it gave back other bytes than were written");
                Ok(Local::Lacking)
            }
            Ok(Err(error)) => {
                self.fault(&console::chain(&error));
                Ok(Local::Lacking)
            }
            Err(RecvTimeoutError::Timeout) => Err(late),
            Err(RecvTimeoutError::Disconnected) => Ok(Local::Lacking),
        }
    }

    /// The network was quicker than the disk.
    pub(crate) fn outrun(&self) {
        let mut slow = self.lock_slow();
        slow.reads = slow.reads.saturating_add(1);
        let since = *slow.since.get_or_insert_with(Instant::now);
        if slow.reads >= SLOW_MAX && since.elapsed() >= self.patience.hung {
            drop(slow);
            self.turn_off(&format!(
                "it answered nothing in time for {} s",
                since.elapsed().as_secs()
            ));
        }
    }

    /// Has a chunk written some time, if there is room for it to wait.
    pub(crate) fn offer(&self, chunk: ChunkId, raw: Bytes) {
        self.store_within(chunk, raw, Duration::ZERO);
    }

    /// Has a chunk written, and waits for room before.
    pub(crate) fn store(&self, chunk: ChunkId, raw: Bytes) {
        self.store_within(chunk, raw, Duration::MAX);
    }

    /// Has a chunk written, and waits so long for room before; whether there was any.
    pub(crate) fn store_within(&self, chunk: ChunkId, raw: Bytes, limit: Duration) -> bool {
        let full = |queue: &mut Queue| self.is_on() && queue.bytes >= WAITING_BYTES_MAX;
        let waited = self.room.wait_timeout_while(self.lock(), limit, full);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let has_room = self.is_on() && queue.bytes < WAITING_BYTES_MAX;
        if has_room {
            queue.push(chunk, raw);
            drop(queue);
            self.news.notify_one();
        }
        has_room
    }

    /// Waits until all that is to be written would outlast a power cut; whether it
    /// does.
    pub(crate) fn settle(&self) -> bool {
        let mut queue = self.lock();
        queue.settling += 1;
        self.news.notify_one();
        let unsettled =
            |queue: &mut Queue| self.is_on() && (queue.is_unsaved || !queue.order.is_empty());
        let settled = self.room.wait_while(queue, unsettled);
        settled.unwrap_or_else(PoisonError::into_inner).settling -= 1;
        self.is_on()
    }

    /// How the disk does.
    pub(crate) fn report(&self) -> DiskCacheReport {
        let usage = self.cache.usage();
        let slot = u64::from(usage.slot_bytes);
        let plan = self.plan.get();
        let local = plan.map_or(0, |plan| {
            let here = plan.chunks().iter().filter(|one| self.cache.has(one.chunk));
            here.map(|one| u64::from(one.len_bytes)).sum()
        });
        DiskCacheReport {
            device: self.device.clone(),
            off: self.off.get().cloned(),
            bytes_max: usage.slots_max * slot,
            used_bytes: usage.slots_used * slot,
            version_bytes: plan.map_or(0, Plan::bytes),
            version_local_bytes: local,
            ..DiskCacheReport::default()
        }
    }

    /// Writes what waits, as soon as there is a plan to write it by.
    fn write_some(&self, unsaved: &mut Unsaved) {
        let idle = |queue: &mut Queue| {
            let can_write = !queue.order.is_empty() && self.plan.get().is_some();
            let can_settle = queue.is_unsaved && queue.settling > 0;
            !can_write && !can_settle
        };
        let waited = self
            .news
            .wait_timeout_while(self.lock(), UNSAVED_LIMIT, idle);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let first = self.plan.get().and_then(|_| queue.first());
        let is_waited_for = queue.settling > 0 && queue.order.is_empty();
        drop(queue);
        if let Some((chunk, raw)) = first {
            let written = self.write(chunk, &raw);
            let mut queue = self.lock();
            queue.pop();
            queue.is_unsaved |= matches!(written, Ok(true));
            drop(queue);
            self.room.notify_all();
            match written {
                Ok(true) => unsaved.add(raw.len()),
                Ok(false) => {}
                Err(error) => self.failed(&error),
            }
        }
        if unsaved.is_due() || is_waited_for {
            *unsaved = Unsaved::default();
            // Only this thread writes, and nothing since.
            match self.cache.checkpoint() {
                Ok(()) => self.lock().is_unsaved = false,
                Err(error) => self.turn_off(&console::chain(&error)),
            }
            self.room.notify_all();
        }
    }

    /// Writes a chunk; whether it was new and there was room.
    fn write(&self, chunk: ChunkId, raw: &[u8]) -> Result<bool, PutError> {
        let slots = self.cache.label().slot_count;
        let planned = self.plan.get().and_then(|plan| plan.find(chunk));
        let want = match planned {
            // Where the chunk is on the version's own disk, so that runs stay runs.
            Some(planned) => u64::from(planned.index) % slots,
            // Pages are out of the way at the end.
            None => slots - 1,
        };
        match self.cache.put(chunk, raw, want as u32)? {
            Put::Stored { .. } => Ok(true),
            Put::Present => Ok(false),
            Put::Full => {
                if self.cache.make_room(FORGET_AT_ONCE)? == 0 {
                    return Ok(false);
                }
                let put = self.cache.put(chunk, raw, want as u32)?;
                Ok(matches!(put, Put::Stored { .. }))
            }
        }
    }

    fn failed(&self, error: &PutError) {
        match error {
            PutError::Disk(CacheError::Failed) => self.turn_off(&console::chain(error)),
            _ => self.fault(&console::chain(error)),
        }
    }

    fn fault(&self, what: &str) {
        if self.faults.fetch_add(1, Ordering::Relaxed) + 1 >= FAULTS_MAX {
            self.turn_off(what);
        } else {
            console::warn(format_args!("the cache on {}: {what}", self.device));
        }
    }

    /// From here on the machine is one without a disk.
    fn turn_off(&self, why: &str) {
        if self.off.set(why.to_owned()).is_ok() {
            console::error(format_args!(
                "the cache on {} is not used any more: {why}; the machine goes on from the \
                 network: look at the disk (smartctl -a {})",
                self.device, self.device
            ));
        }
        let mut queue = self.lock();
        *queue = Queue {
            settling: queue.settling,
            ..Queue::default()
        };
        drop(queue);
        self.room.notify_all();
    }

    fn lock_slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next(work: &Mutex<Receiver<Job>>) -> Option<Job> {
    work.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv()
        .ok()
}

impl Queue {
    fn push(&mut self, chunk: ChunkId, raw: Bytes) {
        let len = raw.len();
        if self.chunks.insert(chunk, raw).is_none() {
            self.order.push_back(chunk);
            self.bytes += len;
        }
    }

    /// The next one, which stays until it is written: it can be read meanwhile.
    fn first(&self) -> Option<(ChunkId, Bytes)> {
        let chunk = self.order.front()?;
        Some((*chunk, self.chunks.get(chunk)?.clone()))
    }

    fn pop(&mut self) {
        if let Some(chunk) = self.order.pop_front()
            && let Some(raw) = self.chunks.remove(&chunk)
        {
            self.bytes -= raw.len();
        }
    }
}

/// What a checkpoint would save.
#[derive(Default)]
struct Unsaved {
    bytes: usize,
    since: Option<Instant>,
}

impl Unsaved {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.since.get_or_insert_with(Instant::now);
    }

    fn is_due(&self) -> bool {
        self.bytes >= UNSAVED_BYTES_MAX
            || self
                .since
                .is_some_and(|since| since.elapsed() >= UNSAVED_LIMIT)
    }
}
