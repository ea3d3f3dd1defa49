//! Fetching ahead: what nobody has asked for yet, until the version is complete.
//!
//! It gives way: while reads are waited for, one chunk at a time moves, by one
//! thread, in a quarter of the time; when nothing is, batches grow until they fill the
//! link, and stay so short that who begins to read is not kept waiting for them.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_api::boot::{DiskCacheReport, FillOrder, NextReport, NextVersion, StartReport};
use rootstock_core::Digest;
use rootstock_core::units::HumanBytes;
use rootstock_image::manifest::Manifest;

use super::Tiers;
use super::flights::Flight;
use super::keeper::{Keeper, Local};
use super::next::{ServiceUpgrades, Upgrade};
use super::pace::{CALM, FETCHERS, LOOK_EVERY, Pace};
use super::pages::Pages;
use super::plan::{Plan, Planned};
use super::remember::{self, Version};
use super::starts::Starts;
use crate::console;
use crate::remote::{Asker, Fetch};

/// Chunks fetched at once when nobody waits for anything.
const BATCH_MAX: usize = 32;
/// Who begins to read shares the link with batches that were asked for before: those
/// take no longer than this, whatever the link.
const BATCH_TIME_MAX: Duration = Duration::from_millis(100);
/// While reads are waited for, a chunk is followed by so many times as long without one,
/// but for no longer than this.
const REST_TIMES: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);
/// Between chunks that are only read to be checked: 26 MB of them a second.
const CHECK_EVERY: Duration = Duration::from_millis(10);
/// Time to fetch the manifest's pages again, when that failed.
const PLAN_PAUSE: Duration = Duration::from_secs(5);

/// While others fill the disk, it is looked at whether it is whole each so many looks.
const WHOLE_EVERY: u32 = 10;

/// Between two tries to bring the next version.
const NEXT_PAUSE: Duration = Duration::from_secs(20);

/// What is done beside the filling of the version that runs.
pub(crate) struct More {
    /// What brings other versions.
    pub(crate) upgrade: Upgrade<ServiceUpgrades>,
    /// What the machine starts from its disk.
    pub(crate) starts: Starts,
}

/// The filling of one version.
pub(crate) struct Fill<F> {
    tiers: Arc<Tiers<F>>,
    pace: Pace,
    next: Mutex<Option<NextVersion>>,
    /// How far that is.
    progress: Mutex<Option<NextReport>>,
    next_changed: Condvar,
    /// What the machine starts from its disk.
    start: Mutex<Option<StartReport>>,
    /// Where the next search for what lacks begins.
    cursor: AtomicUsize,
    /// Bytes of frames that were fetched ahead.
    fetched: AtomicU64,
    complete: AtomicBool,
    rate: Mutex<Rate>,
}

/// Bytes per second between two reports.
struct Rate {
    at: Instant,
    fetched: u64,
    local: u64,
}

impl<F: Fetch + 'static> Fill<F> {
    /// Starts to fill the disk that is attached with `version`, as `order` allows.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(
        tiers: Arc<Tiers<F>>,
        disk: Arc<Keeper>,
        version: Version,
        order: FillOrder,
        mut more: More,
    ) -> io::Result<Arc<Self>> {
        let fill = Arc::new(Self {
            tiers,
            pace: Pace::new(order),
            next: Mutex::default(),
            progress: Mutex::default(),
            next_changed: Condvar::new(),
            start: Mutex::default(),
            cursor: AtomicUsize::new(0),
            fetched: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            rate: Mutex::new(Rate {
                at: Instant::now(),
                fetched: 0,
                local: 0,
            }),
        });
        let runs = Arc::clone(&fill);
        thread::Builder::new()
            .name("fill".to_owned())
            .spawn(move || {
                let running = NextVersion {
                    image: version.image.clone(),
                    version: version.version,
                    manifest: Digest::of(&version.manifest),
                };
                runs.run(&disk, version);
                let (checks, checked) = (Arc::clone(&runs), Arc::clone(&disk));
                let check = move || checks.check_unseen(&checked);
                if let Err(error) = thread::Builder::new().name("check".to_owned()).spawn(check) {
                    console::warn(error);
                }
                runs.prepare(&disk, &running, &mut more);
            })?;
        Ok(fill)
    }

    /// What holds from now on.
    pub(crate) fn set_order(&self, order: FillOrder) {
        self.pace.set(order);
    }

    /// What the machine is to run next, when that is not what runs.
    pub(crate) fn set_next(&self, next: Option<NextVersion>) {
        let mut present = self.lock_next();
        if *present == next {
            return;
        }
        *self.lock_progress() = next.as_ref().map(|next| NextReport {
            version: next.spec(),
            fetched_bytes: 0,
            complete: false,
            trouble: None,
        });
        *present = next;
        drop(present);
        self.next_changed.notify_all();
    }

    /// Enters how the filling does.
    pub(crate) fn report(&self, report: &mut DiskCacheReport) {
        report.next.clone_from(&self.lock_progress());
        report.start.clone_from(&self.lock_start());
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = rate.at.elapsed().as_secs_f64().max(0.001);
        let fetched = self.fetched.load(Ordering::Relaxed);
        let local = report.version_local_bytes;
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        report.fill_bytes_per_second = per_second(fetched, rate.fetched) as u64;
        let grows = per_second(local, rate.local);
        let left = report.version_bytes.saturating_sub(local);
        if left > 0 && grows > 0.0 && report.off.is_none() {
            report.seconds_to_complete = Some((left as f64 / grows) as u64);
        }
        *rate = Rate {
            at: Instant::now(),
            fetched,
            local,
        };
    }

    fn run(&self, disk: &Keeper, version: Version) {
        let Some(plan) = self.plan(&version) else {
            return;
        };
        let others = match remember::enter(disk.cache(), version) {
            Ok(versions) => remember::needed_by(disk.cache(), &versions[1..]),
            Err(error) => {
                console::warn(console::chain(&error));
                Vec::new()
            }
        };
        disk.cache().set_needed(plan.needed().chain(others));
        disk.set_plan(plan);
        self.fetch_pages(disk);
        thread::scope(|scope| {
            for number in 0..FETCHERS {
                scope.spawn(move || self.fetch_all(disk, number));
            }
        });
    }

    /// The version's chunks. Its pages come as any chunk does.
    fn plan(&self, version: &Version) -> Option<Plan> {
        let manifest = Manifest::decode(&version.manifest).ok()?;
        loop {
            match Plan::walk(&manifest, &Pages(&*self.tiers)) {
                Ok(plan) => return Some(plan),
                Err(error) => {
                    console::warn(format_args!(
                        "nothing is fetched ahead yet: {}",
                        console::chain(&error)
                    ));
                    thread::sleep(PLAN_PAUSE);
                }
            }
        }
    }

    /// Has the manifest's pages on the disk, too: there was no room for them to wait,
    /// or no disk, when they were read.
    fn fetch_pages(&self, disk: &Keeper) {
        let pages = disk.plan().map(Plan::pages).unwrap_or_default();
        for page in pages {
            self.pace.allowed();
            if !disk.has(*page)
                && let Some(flight) = self.tiers.flights().lead(*page)
            {
                self.fetch(disk, vec![flight]);
            }
        }
    }

    /// Fetches until nothing lacks, or the disk is full or gone.
    fn fetch_all(&self, disk: &Keeper, number: usize) {
        let mut size = 1;
        let mut idle = 0;
        let mut looks = 0;
        while disk.is_on() && !self.complete.load(Ordering::Relaxed) {
            let mbit_max = self.pace.allowed();
            if self.tiers.is_booting() {
                self.tiers.remote().fill(false);
                thread::sleep(LOOK_EVERY);
                continue;
            }
            let is_busy = self.tiers.foreground().is_busy(CALM);
            // Others are asked in an order of their own, which no cap could hold.
            let is_capped = mbit_max.is_some();
            let by_others = self.tiers.remote().fill(!is_busy && !is_capped);
            if let Some(bytes) = by_others.filter(|_| !is_capped) {
                self.fetched.fetch_add(bytes, Ordering::Relaxed);
                looks += 1;
                if number == 0 && looks % WHOLE_EVERY == 0 && self.is_complete(disk, looks) {
                    return;
                }
                thread::sleep(LOOK_EVERY);
                continue;
            }
            if is_busy {
                size = 1;
                if number > 0 {
                    thread::sleep(LOOK_EVERY);
                    continue;
                }
            }
            let began = Instant::now();
            let batch = self.lacking(disk, size);
            if batch.is_empty() {
                // The rest is on its way to others, or was written a moment ago.
                idle += 1;
                if number == 0 && self.is_complete(disk, idle) {
                    return;
                }
                thread::sleep(LOOK_EVERY);
                continue;
            }
            idle = 0;
            let bytes = self.fetch(disk, batch);
            let took = began.elapsed();
            size = next_size(size, took);
            self.pace.hold(mbit_max, bytes, began);
            if self.tiers.foreground().is_busy(CALM) {
                thread::sleep((took * REST_TIMES).min(REST_MAX));
            }
        }
    }

    /// The next chunks that are not here, and that nobody else fetches.
    fn lacking(&self, disk: &Keeper, count: usize) -> Vec<Flight<'_>> {
        let chunks = disk.plan().map(Plan::chunks).unwrap_or_default();
        let mut batch = Vec::with_capacity(count);
        while batch.len() < count {
            let at = self.cursor.fetch_add(1, Ordering::Relaxed);
            let Some(Planned { chunk, .. }) = chunks.get(at) else {
                break;
            };
            if !disk.has(*chunk) {
                batch.extend(self.tiers.flights().lead(*chunk));
            }
        }
        batch
    }

    /// Whether a whole search found nothing that lacks. Otherwise another begins.
    fn is_complete(&self, disk: &Keeper, idle: u32) -> bool {
        let chunks = disk.plan().map(Plan::chunks).unwrap_or_default();
        let lacks = chunks.iter().filter(|one| !disk.has(one.chunk)).count();
        if lacks == 0 && disk.settle() {
            self.complete.store(true, Ordering::Relaxed);
            console::info("the image is complete on this machine's disk");
            return true;
        }
        let usage = disk.cache().usage();
        if usage.slots_used >= usage.slots_max && idle > 10 {
            self.complete.store(true, Ordering::Relaxed);
            let room = HumanBytes(usage.slots_max * u64::from(usage.slot_bytes));
            console::warn(format_args!(
                "the cache of {room} is full, and {lacks} chunks of the image lack: a larger \
                 partition would hold it whole"
            ));
            return true;
        }
        self.cursor.store(0, Ordering::Relaxed);
        false
    }

    /// Fetches a batch and has it written; the bytes that travelled.
    fn fetch(&self, disk: &Keeper, batch: Vec<Flight<'_>>) -> u64 {
        let ids: Vec<_> = batch.iter().map(Flight::chunk).collect();
        let mut flights: Vec<Option<Flight<'_>>> = batch.into_iter().map(Some).collect();
        let mut bytes = 0;
        let fetched = self
            .tiers
            .remote()
            .frames(&ids, Asker::Ahead, |frame, raw| {
                bytes += frame.bytes.len() as u64;
                self.fetched
                    .fetch_add(frame.bytes.len() as u64, Ordering::Relaxed);
                let raw = Bytes::from(raw);
                let at = ids.iter().position(|id| *id == frame.chunk);
                let flight = at.and_then(|at| flights[at].take());
                if let Some(flight) = &flight {
                    flight.land(raw.clone());
                }
                // Who asks now finds it on its way, and then on the disk.
                disk.store(frame.chunk, raw);
                drop(flight);
            });
        if let Err(error) = fetched {
            // Whoever reads it will be told; the rest of the version can be fetched.
            console::warn(format_args!("fetching ahead: {}", console::chain(&error)));
            thread::sleep(PLAN_PAUSE);
        }
        bytes
    }

    /// Reads what earlier boots wrote of this version, and so checks it: the kernel
    /// is to read it without the agent, and whoever had the machine then could write
    /// to its disk. Ends when nothing is left to be checked or brought again.
    fn check_unseen(&self, disk: &Keeper) {
        while disk.is_on() && self.check_once(disk) {
            thread::sleep(PLAN_PAUSE);
        }
    }

    /// Whether there was anything to do.
    fn check_once(&self, disk: &Keeper) -> bool {
        let chunks = disk.plan().map(Plan::chunks).unwrap_or_default();
        let mut found = false;
        for Planned { chunk, .. } in chunks {
            let usage = disk.cache().usage();
            let lacks = !disk.has(*chunk) && usage.slots_used < usage.slots_max;
            if !lacks && !disk.cache().is_unseen(*chunk) {
                continue;
            }
            found = true;
            self.pace.allowed();
            while self.tiers.is_booting() || self.tiers.foreground().is_busy(CALM) {
                thread::sleep(LOOK_EVERY);
            }
            if !disk.is_on() {
                return false;
            }
            // Also what a read of the machine found to be damaged since.
            if matches!(disk.read(*chunk), Local::Lacking)
                && let Some(flight) = self.tiers.flights().lead(*chunk)
            {
                self.fetch(disk, vec![flight]);
            }
            thread::sleep(CHECK_EVERY);
        }
        found
    }

    /// Has the machine start what it is to run from its disk, and brings versions that
    /// are to run next there, for as long as the disk is used.
    fn prepare(&self, disk: &Keeper, running: &NextVersion, more: &mut More) {
        while disk.is_on() && disk.plan().is_some() {
            let next = self.lock_next().clone().filter(|_| self.has_next());
            if next.is_some() || self.is_whole(disk) {
                more.starts.tend(next.as_ref().unwrap_or(running));
                *self.lock_start() = more.starts.report();
            }
            let is_done = |next: &mut Option<NextVersion>| next.is_none() || self.has_next();
            let waited =
                self.next_changed
                    .wait_timeout_while(self.lock_next(), NEXT_PAUSE, is_done);
            let (next, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(next) = next.clone().filter(|_| !self.has_next()) else {
                continue;
            };
            let began = Cell::new(Instant::now());
            let pace = |bytes: u64| {
                self.note(&next, |progress| {
                    progress.fetched_bytes += bytes;
                    progress.trouble = None;
                });
                let mbit_max = self.pace.allowed();
                while self.tiers.foreground().is_busy(CALM) && bytes == 0 {
                    thread::sleep(LOOK_EVERY);
                }
                self.pace
                    .hold(mbit_max, bytes, began.replace(Instant::now()));
            };
            let spec = next.spec();
            match more.upgrade.fetch(disk, &next, &pace) {
                Ok(bytes) => {
                    console::info(format_args!(
                        "{spec} is on this machine's disk for its next boot: {bytes} B were fetched"
                    ));
                    self.note(&next, |progress| {
                        progress.fetched_bytes = progress.fetched_bytes.max(bytes);
                        progress.complete = true;
                        progress.trouble = None;
                    });
                }
                Err(error) => {
                    let why = console::chain(&error);
                    console::warn(format_args!("{spec}: {why}"));
                    self.note(&next, |progress| progress.trouble = Some(why));
                    thread::sleep(NEXT_PAUSE);
                }
            }
        }
    }

    /// Whether all of the version that runs is on the disk.
    fn is_whole(&self, disk: &Keeper) -> bool {
        let lacks = |plan: &Plan| plan.chunks().iter().any(|one| !disk.has(one.chunk));
        disk.plan().is_some_and(|plan| !lacks(plan))
    }

    /// Whether the version that is to run next is on the disk.
    fn has_next(&self) -> bool {
        let progress = self.lock_progress();
        progress.as_ref().is_some_and(|progress| progress.complete)
    }

    /// Notes how far a version is, unless another is to run next by now.
    fn note(&self, next: &NextVersion, change: impl FnOnce(&mut NextReport)) {
        let spec = next.spec();
        let mut progress = self.lock_progress();
        if let Some(progress) = progress.as_mut().filter(|one| one.version == spec) {
            change(progress);
        }
    }

    fn lock_progress(&self) -> MutexGuard<'_, Option<NextReport>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_start(&self) -> MutexGuard<'_, Option<StartReport>> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_next(&self) -> MutexGuard<'_, Option<NextVersion>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many chunks to fetch at once, after so many took so long.
fn next_size(size: usize, took: Duration) -> usize {
    if took > BATCH_TIME_MAX {
        (size / 2).max(1)
    } else if took <= BATCH_TIME_MAX / 2 {
        (size * 2).min(BATCH_MAX)
    } else {
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_take_their_time_and_no_more() {
        for (chunk_ms, expected) in [(1, 32), (3, 32), (10, 8), (42, 2), (500, 1)] {
            let took = |size: usize| Duration::from_millis(chunk_ms * size as u64);
            let grown = (0..10).fold(1, |size, _| next_size(size, took(size)));
            assert_eq!(grown, expected, "{chunk_ms} ms a chunk");
            // From a link that was quicker.
            let shrunk = (0..10).fold(BATCH_MAX, |size, _| next_size(size, took(size)));
            assert!(shrunk <= expected && took(shrunk) <= took(1).max(BATCH_TIME_MAX));
        }
    }
}
