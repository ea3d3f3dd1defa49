//! What this boot reads, in order: recorded beside the reads, and sent in when the system is up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rootstock_api::boot::NodeReport;
use rootstock_core::units::HumanBytes;
use rootstock_core::{BLOCK_BYTES, ByteRange};
use rootstock_image::grid::Grid;
use rootstock_image::trace::{Trace, TraceBuilder};

use crate::console;
use crate::replay::Landing;
use crate::service::{CallError, Service};
use crate::stats::Stats;

/// A boot goes on this long after the system says that it is up: its services
/// begin to do what they are for.
const AFTER_UP: Duration = Duration::from_secs(10);

/// A boot is over then, whatever the system says.
const BOOT_MAX: Duration = Duration::from_secs(600);

/// Whoever waits for the system to be up waits no longer: some never say so.
const STARTING_MAX: Duration = Duration::from_secs(180);

/// How often the trace is offered when no server takes it.
const TRIES_MAX: u32 = 10;

/// Between two of these.
const TRY_PAUSE: Duration = Duration::from_secs(30);

/// Notes reads while a boot is going on. A read costs a lock that nobody else
/// holds, and a look into a small map.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    is_on: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    builder: Option<TraceBuilder>,
    began: Option<Instant>,
    up: Option<Instant>,
}

impl Recorder {
    /// Begins, for a disk of this size.
    pub(crate) fn start(&self, disk_bytes: u64) {
        let mut state = self.lock();
        state.builder = Some(TraceBuilder::new(disk_bytes));
        state.began = Some(Instant::now());
        drop(state);
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Notes a read.
    pub(crate) fn read(&self, offset_bytes: u64, len_bytes: u64) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        let Some(builder) = &mut state.builder else {
            return;
        };
        builder.read(ByteRange::new(offset_bytes, len_bytes));
        if builder.is_full() {
            self.is_on.store(false, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    /// Whether a boot is being recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Whether the system is still coming up, as far as that can take.
    pub(crate) fn is_starting(&self) -> bool {
        let state = || {
            let state = self.lock();
            let began = state.began;
            state.up.is_none() && began.is_some_and(|began| began.elapsed() < STARTING_MAX)
        };
        self.is_on() && state()
    }

    /// The system says that it is up.
    pub(crate) fn system_is_up(&self) {
        self.lock().up.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Waits until the boot is over, and gives what it read.
    fn wait(&self, after_up: Duration, boot_max: Duration) -> Option<Trace> {
        let began = Instant::now();
        let mut state = self.lock();
        loop {
            let end = match state.up {
                Some(up) => (up + after_up).min(began + boot_max),
                None => began + boot_max,
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.is_on.load(Ordering::Relaxed) {
                self.is_on.store(false, Ordering::Relaxed);
                return state.builder.take().map(TraceBuilder::finish);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a trace goes.
pub(crate) struct Teller {
    /// The client, with its session.
    pub(crate) service: Service,
    /// Node services, best first.
    pub(crate) urls: Vec<String>,
    /// What was recorded.
    pub(crate) stats: Arc<Stats>,
    /// How the disk is cut into chunks.
    pub(crate) grid: Grid,
    /// Where chunks come in ahead while the machine boots.
    pub(crate) landing: Arc<Landing>,
}

impl Teller {
    /// Waits for the end of the boot, ends its replay, and sends in what was read.
    pub(crate) fn run(&self, replay: JoinHandle<Option<Trace>>) {
        let trace = self.stats.trace.wait(AFTER_UP, BOOT_MAX);
        self.landing.end();
        let given = replay.join().unwrap_or_default();
        let Some(trace) = trace else {
            return;
        };
        let coverage = given.map(|given| trace.coverage_permille(&given, &self.grid));
        self.sum_up(&trace, coverage);
        self.send(&trace.encode(), coverage);
    }

    /// What the boot was like, for whoever wonders why it took so long.
    fn sum_up(&self, trace: &Trace, coverage_permille: Option<u16>) {
        let mut report = NodeReport::default();
        self.stats.report(&mut report);
        let covered = coverage_permille.map_or_else(String::new, |permille| {
            format!(", {} % of it foreseen", f64::from(permille) / 10.0)
        });
        console::info(format_args!(
            "the boot read {}{covered}; {} came over the network; \
             reads waited {} ms together, {} ms at worst",
            HumanBytes(trace.block_count() * BLOCK_BYTES),
            HumanBytes(report.fetched_bytes),
            report.stall_ms,
            report.stall_worst_ms
        ));
    }

    fn send(&self, bytes: &[u8], coverage_permille: Option<u16>) {
        for number in 0..TRIES_MAX {
            let at = number as usize % self.urls.len().max(1);
            let Some(url) = self.urls.get(at) else {
                return;
            };
            match self.service.tell_trace(url, bytes, coverage_permille) {
                Err(error) if error.may_pass() => thread::sleep(TRY_PAUSE),
                told => return say(told),
            }
        }
    }
}

fn say(told: Result<(), CallError>) {
    if let Err(error) = told {
        console::info(format_args!(
            "what this boot read is not learnt from: {}",
            console::chain(&error)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(600);

    #[test]
    fn nothing_is_noted_before_the_start_and_after_the_end() {
        let recorder = Recorder::default();
        recorder.read(0, 4096);
        assert_eq!(recorder.wait(LATE, SOON), None);
        recorder.start(1 << 30);
        recorder.read(8192, 4096);
        let trace = recorder.wait(LATE, SOON).expect("was recorded");
        assert_eq!((trace.disk_bytes(), trace.block_count()), (1 << 30, 1));
        recorder.read(0, 4096);
        assert_eq!(recorder.wait(LATE, SOON), None);
    }

    #[test]
    fn a_boot_is_over_soon_after_the_system_is_up_or_when_the_trace_is_full() {
        for fill in [false, true] {
            let recorder = Arc::new(Recorder::default());
            recorder.start(1 << 40);
            let other = Arc::clone(&recorder);
            let waiting = thread::spawn(move || other.wait(SOON, LATE));
            if fill {
                recorder.read(0, 1 << 40);
            } else {
                recorder.read(0, 1);
                recorder.system_is_up();
            }
            let trace = waiting.join().expect("no panic").expect("was recorded");
            assert_eq!(trace.block_count() > 1, fill);
        }
    }
}
