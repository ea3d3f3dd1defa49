//! Where chunks come from: the machine's own disk, then the site's servers.
//!
//! What a server gave goes to the disk, by a thread of its own: no read ever
//! waits for it. A disk that fails, or is slow, is done without.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_store::ReadError;
use rootstock_volume::ChunkSource;

use crate::remote::{Asker, Fetch, Remote};
use crate::stats::Stats;

pub(crate) mod attach;
pub(crate) mod boot;
pub(crate) mod fill;
pub(crate) mod flights;
pub(crate) mod keeper;
pub(crate) mod next;
pub(crate) mod pace;
pub(crate) mod pages;
pub(crate) mod plan;
pub(crate) mod remember;
pub(crate) mod starts;
#[cfg(test)]
mod tests;

use flights::{Flights, Join};
use keeper::{Keeper, Late, Local};

/// How long a reader waits for a chunk that somebody else is fetching, before it
/// asks for it itself.
const FLIGHT_LIMIT: Duration = Duration::from_secs(2);

/// Between looks which of disk and network is quicker.
const RACE_LOOK: Duration = Duration::from_millis(20);
/// Reads at once that the network races the disk for; others wait for the disk.
const RACES_MAX: usize = 32;

/// All places of chunks, best first.
pub(crate) struct Tiers<F> {
    /// For the threads that race a slow disk.
    me: Weak<Self>,
    races: AtomicUsize,
    remote: Remote<F>,
    stats: Arc<Stats>,
    /// The disk, once it was found.
    disk: OnceLock<Arc<Keeper>>,
    flights: Flights,
    foreground: Foreground,
    /// Whether a boot pack is on its way.
    is_booting: AtomicBool,
}

impl<F: Fetch + 'static> Tiers<F> {
    /// The servers alone, until a disk is found.
    pub(crate) fn new(remote: Remote<F>, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            races: AtomicUsize::new(0),
            remote,
            stats,
            disk: OnceLock::new(),
            flights: Flights::default(),
            foreground: Foreground::default(),
            is_booting: AtomicBool::new(false),
        })
    }

    /// Uses a disk from now on. There is one.
    pub(crate) fn attach(&self, disk: Arc<Keeper>) {
        // The first stays: nobody looks for another.
        let _ = self.disk.set(disk);
    }

    /// The disk.
    pub(crate) fn disk(&self) -> Option<&Arc<Keeper>> {
        self.disk.get()
    }

    /// The servers.
    pub(crate) fn remote(&self) -> &Remote<F> {
        &self.remote
    }

    /// Who fetches what.
    pub(crate) fn flights(&self) -> &Flights {
        &self.flights
    }

    /// What the machine's user waits for.
    pub(crate) fn foreground(&self) -> &Foreground {
        &self.foreground
    }

    /// Lets the network race a disk that takes long: either may be the one that is
    /// there at all.
    fn race(&self, disk: &Keeper, chunk: ChunkId, late: Late) -> Result<Bytes, ReadError> {
        let is_over = Arc::new(AtomicBool::new(false));
        // Closed at once when there is no thread for it.
        let remote = self.racer(chunk, Arc::clone(&is_over));
        let mut late = Some(late);
        loop {
            match late.take().map(|late| disk.wait(late, RACE_LOOK)) {
                Some(Ok(Local::Here(raw))) => {
                    is_over.store(true, Ordering::Relaxed);
                    self.stats.local(raw.len() as u64);
                    return Ok(raw);
                }
                Some(Err(still)) => late = Some(still),
                // The disk will not give it: only the network is left.
                Some(Ok(_)) | None => {
                    return remote.recv().unwrap_or_else(|_| self.remote.read(chunk));
                }
            }
            if let Ok(read) = remote.try_recv() {
                disk.outrun();
                return read;
            }
        }
    }

    /// Fetches a chunk by a thread of its own, until it is there or all is over. What
    /// is given is closed, and stays empty, when there are too many of them already.
    fn racer(
        &self,
        chunk: ChunkId,
        is_over: Arc<AtomicBool>,
    ) -> Receiver<Result<Bytes, ReadError>> {
        let (answer, remote) = sync_channel(1);
        let Some(tiers) = self.me.upgrade() else {
            return remote;
        };
        if self.races.fetch_add(1, Ordering::Relaxed) >= RACES_MAX {
            self.races.fetch_sub(1, Ordering::Relaxed);
            return remote;
        }
        let race = move || {
            let gone = || is_over.load(Ordering::Relaxed);
            let read = tiers.remote.read_for(chunk, Asker::User(&gone));
            tiers.races.fetch_sub(1, Ordering::Relaxed);
            // The disk may have been quicker.
            let _ = answer.try_send(read);
        };
        if thread::Builder::new().spawn(race).is_err() {
            self.races.fetch_sub(1, Ordering::Relaxed);
        }
        remote
    }
}

impl<F> Tiers<F> {
    /// A boot pack comes: nothing else is fetched ahead.
    pub(crate) fn boot_began(&self) {
        self.is_booting.store(true, Ordering::Relaxed);
    }

    /// The boot pack is here, or will not come.
    pub(crate) fn boot_ended(&self) {
        self.is_booting.store(false, Ordering::Relaxed);
    }

    /// Whether a boot pack is on its way, or the system is not up yet: its user waits
    /// for that, and on few cores whatever else runs takes its time.
    pub(crate) fn is_booting(&self) -> bool {
        self.is_booting.load(Ordering::Relaxed) || self.stats.trace.is_starting()
    }
}

impl<F: Fetch + 'static> ChunkSource for Tiers<F> {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        if let Some(disk) = self.disk.get() {
            match disk.read(chunk) {
                Local::Here(raw) => {
                    self.stats.local(raw.len() as u64);
                    return Ok(raw);
                }
                Local::Late(late) => return self.race(disk, chunk, late),
                Local::Lacking => {}
            }
        }
        let _waiting = self.foreground.enter();
        let flight = match self.flights.join(chunk) {
            Join::Lead(flight) => Some(flight),
            Join::Follow(landing) => {
                if let Some(raw) = landing.wait(FLIGHT_LIMIT) {
                    return Ok(raw);
                }
                None
            }
        };
        let raw = self.remote.read(chunk)?;
        if let Some(disk) = self.disk.get() {
            disk.offer(chunk, raw.clone());
        }
        if let Some(flight) = flight {
            flight.land(raw.clone());
        }
        Ok(raw)
    }
}

/// Reads that the machine's user waits for, and when the last one was.
pub(crate) struct Foreground {
    waiting: AtomicUsize,
    began: Instant,
    /// Milliseconds since `began`; 0 when there was none.
    last_ms: AtomicU64,
}

impl Default for Foreground {
    fn default() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }
}

/// A read that is waited for, as long as this lives.
pub(crate) struct Waiting<'a>(&'a Foreground);

impl Foreground {
    fn enter(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Whether a read is waited for, or was within this time.
    pub(crate) fn is_busy(&self, within: Duration) -> bool {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let last = self.last_ms.load(Ordering::Relaxed);
        let now = self.began.elapsed().as_millis() as u64;
        last > 0 && now.saturating_sub(last) < within.as_millis() as u64
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = self.0.began.elapsed().as_millis() as u64;
        self.0.last_ms.store(now.max(1), Ordering::Relaxed);
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
