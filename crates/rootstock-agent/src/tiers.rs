//! Where chunks come from: the machine's own disk, then the site's servers.
//!
//! What a server gave goes to the disk, by a thread of its own: no read ever
//! waits for it. A disk that fails, or is slow, is done without.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_store::ReadError;
use rootstock_volume::ChunkSource;

use crate::remote::{Fetch, Remote};
use crate::stats::Stats;

pub(crate) mod attach;
pub(crate) mod fill;
pub(crate) mod flights;
pub(crate) mod keeper;
pub(crate) mod plan;
pub(crate) mod remember;

use flights::{Flights, Join};
use keeper::Keeper;

/// How long a reader waits for a chunk that somebody else is fetching, before it
/// asks for it itself.
const FLIGHT_LIMIT: Duration = Duration::from_secs(2);

/// All places of chunks, best first.
pub(crate) struct Tiers<F> {
    remote: Remote<F>,
    stats: Arc<Stats>,
    /// The disk, once it was found.
    disk: OnceLock<Arc<Keeper>>,
    flights: Flights,
    foreground: Foreground,
}

impl<F: Fetch> Tiers<F> {
    /// The servers alone, until a disk is found.
    pub(crate) fn new(remote: Remote<F>, stats: Arc<Stats>) -> Self {
        Self {
            remote,
            stats,
            disk: OnceLock::new(),
            flights: Flights::default(),
            foreground: Foreground::default(),
        }
    }

    /// Uses a disk from now on. There is one.
    pub(crate) fn attach(&self, disk: Arc<Keeper>) {
        // The first stays: nobody looks for another.
        let _ = self.disk.set(disk);
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

    fn local(&self, chunk: ChunkId) -> Option<Bytes> {
        let raw = self.disk.get()?.read(chunk)?;
        self.stats.local(raw.len() as u64);
        Some(raw)
    }
}

impl<F: Fetch> ChunkSource for Tiers<F> {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        if let Some(raw) = self.local(chunk) {
            return Ok(raw);
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
