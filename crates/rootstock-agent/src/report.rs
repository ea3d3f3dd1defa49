//! What the machine tells its site while it runs: steps, and how it does.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::{BootStep, Check, NodeReport, STEPS_MAX, StepReport, Steps};
use rustix::time::{ClockId, clock_gettime};

use crate::console;
use crate::install::Installation;
use crate::server::{DiskOf, FillOf, enter_fill};
use crate::service::Service;
use crate::stats::Stats;

mod check;
pub(crate) mod up;
pub(crate) mod users;

/// How often it looks for something to tell.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it looks whether the system is up.
const UP_EVERY: Duration = Duration::from_secs(1);
/// How often the overlay's level is looked at.
const FILL_EVERY: Duration = Duration::from_secs(1);
/// Steps that wait for the network; there are a dozen.
const STEPS_WAITING_MAX: usize = 256;
/// The levels that the console is warned at, in percent.
const WARN_AT: [u8; 2] = [80, 95];
/// Between reports, when the server does not say.
const REPORT_SECONDS: u32 = 30;
/// Between reports whose news the server did not take.
const NEWS_PAUSE: Duration = Duration::from_secs(3);
/// So much sooner than the server a check that does not pass is a failure.
const CHECK_MARGIN: Duration = Duration::from_secs(15);
/// The longest time between reports.
const REPORT_SECONDS_MAX: u32 = 3600;

/// What reports are made from.
pub(crate) struct Source {
    /// The client, with its session.
    pub(crate) service: Service,
    /// Node services, best first.
    pub(crate) urls: Vec<String>,
    /// The counters.
    pub(crate) stats: Arc<Stats>,
    /// The overlay's level.
    pub(crate) fill: FillOf,
    /// How the machine's own disk does.
    pub(crate) disk: DiskOf,
    /// How the image is laid out on a disk, if it is to be.
    pub(crate) install: Option<Arc<Installation>>,
    /// Seconds between reports.
    pub(crate) report_seconds: u32,
    /// What says that the system works, once it is up.
    pub(crate) check: Option<Check>,
}

/// The thread that tells.
pub(crate) struct Reporter {
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    steps: Mutex<VecDeque<StepReport>>,
    switched: Switched,
    /// Whether it was told that the system is up.
    works: AtomicBool,
}

/// Whether the image's own init runs.
#[derive(Clone, Default)]
pub(crate) struct Switched(Arc<AtomicBool>);

impl Switched {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Reporter {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(source: Source) -> io::Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let queue = Arc::clone(&waiting);
        thread::Builder::new()
            .name("reporter".to_owned())
            .spawn(move || tell(source, &queue))?;
        Ok(Self { waiting })
    }

    /// Whether the image's own init runs.
    pub(crate) fn switched(&self) -> Switched {
        self.waiting.switched.clone()
    }

    /// Has a step told; the oldest is dropped when the network stays away.
    pub(crate) fn step(&self, step: StepReport) {
        push(&self.waiting, step);
    }
}

/// A step that happens now.
pub(crate) fn step(step: BootStep, bytes: u64, detail: impl Into<String>) -> StepReport {
    StepReport {
        step,
        uptime_ms: uptime().as_millis() as u64,
        bytes,
        detail: detail.into(),
    }
}

/// How long the kernel has been running.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn push(waiting: &Waiting, step: StepReport) {
    if step.step == BootStep::Switched {
        waiting.switched.0.store(true, Ordering::Relaxed);
    }
    if step.step == BootStep::Up {
        waiting.works.store(true, Ordering::Relaxed);
    }
    let mut steps = lock(waiting);
    if steps.len() == STEPS_WAITING_MAX {
        steps.pop_front();
    }
    steps.push_back(step);
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, VecDeque<StepReport>> {
    waiting.steps.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(mut source: Source, waiting: &Arc<Waiting>) {
    let mut up = false;
    let mut warned = 0;
    let mut next_report = Instant::now();
    let mut last_report = Instant::now();
    let mut next_look = Instant::now();
    let mut next_fill = Instant::now();
    loop {
        thread::sleep(LOOK_EVERY);
        if !up && waiting.switched.is_set() && next_look <= Instant::now() {
            next_look = Instant::now() + UP_EVERY;
            if let Some(how) = up::look() {
                up = true;
                source.stats.trace.system_is_up();
                works(&source, waiting, how);
                next_report = Instant::now();
            }
        }
        if next_fill <= Instant::now() {
            next_fill = Instant::now() + FILL_EVERY;
            warned = warn(&source, warned);
        }
        tell_steps(&mut source, waiting);
        let has_news = source.install.as_ref().is_some_and(|it| it.has_news());
        if has_news && last_report.elapsed() >= NEWS_PAUSE {
            next_report = Instant::now();
        }
        if next_report <= Instant::now() {
            let works = waiting.works.load(Ordering::Relaxed);
            let users = up.then(users::count);
            last_report = Instant::now();
            let seconds = report(&mut source, works, users);
            next_report = Instant::now() + Duration::from_secs(u64::from(seconds));
        }
    }
}

/// Tells that the system is up: at once, or when its check passes.
fn works(source: &Source, waiting: &Arc<Waiting>, how: &'static str) {
    let (stats, install) = (Arc::clone(&source.stats), source.install.clone());
    let up = move |waiting: &Waiting, how: &str| {
        if let Some(install) = &install {
            install.system_is_up();
        }
        push(waiting, step(BootStep::Up, stats.fetched_bytes(), how));
    };
    let Some(check) = source.check.clone() else {
        return up(waiting, how);
    };
    let queue = Arc::clone(waiting);
    let pass = move || {
        // The server counts, too, and would only say that it took too long.
        let limit = Duration::from_secs(check.limit_seconds.into());
        let limit = limit.saturating_sub(uptime() + CHECK_MARGIN);
        check::until_passed(&check.command, limit, |why| {
            push(&queue, step(BootStep::Failed, 0, why));
        });
        up(&queue, &format!("{how}, and the check passes"));
    };
    let thread = thread::Builder::new().name("check".to_owned());
    if let Err(error) = thread.spawn(pass) {
        push(
            waiting,
            step(BootStep::Failed, 0, format!("no check: {error}")),
        );
    }
}

fn tell_steps(source: &mut Source, waiting: &Waiting) {
    let steps: Vec<StepReport> = lock(waiting).iter().take(STEPS_MAX).cloned().collect();
    // They wait for the session, too.
    if steps.is_empty() || !source.service.has_session() {
        return;
    }
    let count = steps.len();
    match source.service.steps(&source.urls[0], &Steps { steps }) {
        Err(error) if error.may_pass() => source.urls.rotate_left(1),
        // A refusal would be the same again.
        _ => drop(lock(waiting).drain(..count)),
    }
}

/// Sends a report; gives the seconds to the next.
fn report(source: &mut Source, works: bool, users: Option<u32>) -> u32 {
    let mut report = NodeReport {
        uptime_seconds: uptime().as_secs(),
        up: works,
        users,
        ..NodeReport::default()
    };
    source.stats.report(&mut report);
    enter_fill(&mut report, (source.fill)());
    if let Some(on_disk) = (source.disk)() {
        report.read_bytes += on_disk.native_read_bytes;
        report.local_bytes += on_disk.native_read_bytes;
        report.disk_cache = Some(on_disk.report);
    }
    report.install = source.install.as_ref().map(|install| install.report());
    match source.service.report(&source.urls[0], &report) {
        Ok(answer) => {
            if let (Some(install), Some(told)) = (&source.install, &report.install) {
                install.was_told(told.state);
            }
            if answer.report_seconds > 0 {
                source.report_seconds = answer.report_seconds;
            }
        }
        Err(_) => source.urls.rotate_left(1),
    }
    match source.report_seconds {
        0 => REPORT_SECONDS,
        seconds => seconds.min(REPORT_SECONDS_MAX),
    }
}

/// Warns once at each level, and again when it had gone down since.
fn warn(source: &Source, warned: u8) -> u8 {
    let Some(fill) = (source.fill)() else {
        return 0;
    };
    let level = level(fill.percent);
    if level > warned {
        console::error(format_args!(
            "the room for this machine's writes is {} % full ({} of {} MiB): \
             when it is, writes fail; free space or reboot",
            fill.percent,
            fill.used_bytes >> 20,
            fill.bytes_max >> 20
        ));
    }
    level
}

/// The highest level that is reached.
fn level(percent: u8) -> u8 {
    let reached = WARN_AT.into_iter().filter(|level| percent >= *level);
    reached.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_that_are_warned_of() {
        for (percent, expected) in [(0, 0), (79, 0), (80, 80), (94, 80), (95, 95), (100, 95)] {
            assert_eq!(level(percent), expected, "{percent}");
        }
    }
}
