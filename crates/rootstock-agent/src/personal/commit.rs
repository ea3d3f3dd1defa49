//! What this machine wrote becomes a version, while it runs on.
//!
//! Its file system is at rest for a moment, so that the version is what an orderly
//! shutdown would have left of it; from then on a view of the writes is read, which
//! later ones do not change.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::personal::{
    COMMIT_BODIES_MAX, COMMIT_PASSES_MAX, CommitOrder, CommitProgress as Progress, CommitTold,
};
use rootstock_core::{ChunkId, Digest, units::HumanBytes};
use rootstock_image::inspect::FreeSpace;
use rootstock_volume::{
    ChunkSource, CommitError, CommitOptions, CommitProgress, SnapshotView, VersionDisk, commit_to,
};

use super::disk::{SPARE_BYTES, Writes};
use super::sender::{SendError, Sender};
use crate::console;
use crate::room::Views;
use crate::service::{CallError, Service};
use crate::sys::{self, Freeze};

/// Between two words to the server on how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// While a view is read, what later writes replace keeps its room, and the file system
/// above does not know: with less than this left none is begun, and one is given up when
/// the spare is touched.
const ROOM_BYTES_MIN: u64 = 4 * SPARE_BYTES;
/// The status of an answer that names missing chunks.
const MISSING: u16 = 409;

/// What can become a version.
pub(crate) struct Source<S> {
    /// The writes.
    pub(crate) writes: Arc<Writes>,
    /// What is below them.
    pub(crate) version: Arc<VersionDisk<S>>,
    /// The node services.
    pub(crate) service: Service,
    pub(crate) urls: Vec<String>,
    /// Open from before the first stage's paths go away.
    pub(crate) views: Views,
}

/// Makes commits, one at a time.
pub(crate) struct Commits<S> {
    source: Source<S>,
    now: Mutex<Option<Going>>,
    /// Held by the one that runs: the next one waits for its end.
    running: Mutex<()>,
}

/// The commit that was ordered last.
struct Going {
    order: CommitOrder,
    stop: Arc<AtomicBool>,
}

impl<S: ChunkSource + 'static> Commits<S> {
    /// For this machine.
    pub(crate) fn new(source: Source<S>) -> Arc<Self> {
        Arc::new(Self {
            source,
            now: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// What is ordered now: begins it, once, or gives up what is not any more.
    pub(crate) fn set(self: &Arc<Self>, order: Option<CommitOrder>) {
        let mut now = self.lock();
        if now.as_ref().map(|going| &going.order) == order.as_ref() {
            return;
        }
        if let Some(going) = now.take() {
            going.stop.store(true, Ordering::Relaxed);
        }
        let Some(order) = order else { return };
        let stop = Arc::new(AtomicBool::new(false));
        *now = Some(Going {
            order: order.clone(),
            stop: Arc::clone(&stop),
        });
        let commits = Arc::clone(self);
        let work = move || commits.run(&order, &stop);
        let thread = thread::Builder::new().name("commit".to_owned());
        if let Err(error) = thread.spawn(work) {
            console::warn(format_args!("what was written is not sent: {error}"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Going>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, order: &CommitOrder, stop: &AtomicBool) {
        let _alone = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let source = &self.source;
        let sender = Sender {
            service: &source.service,
            urls: &source.urls,
            commit: &order.commit,
            stop,
            batch: Mutex::default(),
            stored: Mutex::default(),
            sent_bytes: 0.into(),
        };
        console::info("what this machine wrote becomes a version");
        match self.send(&sender) {
            Ok(()) => {
                let sent = HumanBytes(sender.sent_bytes.load(Ordering::Relaxed));
                console::info(format_args!(
                    "what this machine wrote is a version: {sent} were sent"
                ));
            }
            Err(reason) => {
                console::warn(format_args!(
                    "what this machine wrote is no version: {reason}"
                ));
                let _ = sender.tell(&CommitTold::Failed { reason });
            }
        }
    }

    fn send(&self, sender: &Sender<'_>) -> Result<(), String> {
        let going = |progress| CommitTold::Going(progress);
        let told = |error: SendError| console::chain(&error);
        sender.tell(&going(Progress::default())).map_err(told)?;
        let view = self.view()?;
        let mut pass = 1;
        loop {
            let manifest = self.pass(&view, sender)?;
            match sender.tell(&CommitTold::Sent { manifest }) {
                Ok(()) => return Ok(()),
                Err(SendError::Call(CallError::Refused { status, .. }))
                    if status == MISSING && pass < COMMIT_PASSES_MAX =>
                {
                    pass += 1;
                }
                Err(error) => return Err(told(error)),
            }
        }
    }

    /// The writes as they are when nobody writes.
    fn view(&self) -> Result<SnapshotView, String> {
        let free = self.source.writes.free_bytes();
        if free < ROOM_BYTES_MIN {
            return Err(format!(
                "{} are free on its disk, and {} are needed while it is read: delete something",
                HumanBytes(free),
                HumanBytes(ROOM_BYTES_MIN)
            ));
        }
        let rest = Rest::of(&self.source.views)?;
        let view = self.source.writes.volume.snapshot_view();
        drop(rest);
        view.map_err(|error| console::chain(&error))
    }

    fn pass(&self, view: &SnapshotView, sender: &Sender<'_>) -> Result<Digest, String> {
        let failed = |error: CommitError<SendError>| console::chain(&error);
        let options = CommitOptions {
            // This machine has its file systems mounted.
            free_space: FreeSpace::DropIfMarked,
            // Each sends what it has gathered.
            threads: COMMIT_BODIES_MAX,
        };
        let last = Mutex::new(Instant::now());
        let is_full = AtomicBool::new(false);
        let progress = |progress: CommitProgress| {
            let is_time = {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                let is_time = last.elapsed() >= TELL_EVERY;
                if is_time {
                    *last = Instant::now();
                }
                is_time
            };
            let told = is_time.then(|| {
                sender.tell(&CommitTold::Going(Progress {
                    done_bytes: progress.done_bytes,
                    total_bytes: progress.total_bytes,
                    sent_bytes: sender.sent_bytes.load(Ordering::Relaxed),
                }))
            });
            if self.source.writes.free_bytes() < SPARE_BYTES {
                is_full.store(true, Ordering::Relaxed);
                return ControlFlow::Break(());
            }
            match told {
                // Refused: nobody asks for it any more.
                Some(Err(_)) => ControlFlow::Break(()),
                _ if sender.stop.load(Ordering::Relaxed) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        };
        let made = commit_to(view, &self.source.version, sender, options, &progress);
        if is_full.load(Ordering::Relaxed) {
            return Err("its disk became full meanwhile: delete something".to_owned());
        }
        let (manifest, _) = made.map_err(failed)?;
        let id = manifest.id();
        let document = manifest.encode();
        rootstock_volume::Sink::put(sender, ChunkId(id), &document)
            .and_then(|()| rootstock_volume::Sink::flush(sender))
            .map_err(|error| console::chain(&error))?;
        Ok(id)
    }
}

/// Says of a commit that there is nothing to send: this boot's writes are elsewhere.
pub(crate) fn decline(service: &Service, urls: &[String], order: &CommitOrder) {
    let (service, urls, order) = (service.clone(), urls.to_vec(), order.clone());
    let told = move || say_no(&service, &urls, &order);
    let thread = thread::Builder::new().name("commit".to_owned());
    if let Err(error) = thread.spawn(told) {
        console::warn(format_args!(
            "the server is not told that nothing is kept: {error}"
        ));
    }
}

fn say_no(service: &Service, urls: &[String], order: &CommitOrder) {
    let told = CommitTold::Failed {
        reason: "nothing that it writes in this boot is on its own disk: it booted with other \
                 settings, or the disk could not be used (`rootstock node log` says why)"
            .to_owned(),
    };
    let tell = |url: &String| service.commit_told(url, &order.commit, &told).is_ok();
    if !urls.iter().any(tell) {
        console::warn("the server could not be told that nothing of this machine is kept");
    }
}

/// The root's file system at rest, for as long as this lives.
struct Rest(OwnedFd);

impl Rest {
    fn of(views: &Views) -> Result<Self, String> {
        let failed =
            |error: io::Error| format!("the root's file system cannot be brought to rest: {error}");
        let root = views.root_directory().map_err(failed)?;
        // Most of it before nobody may write.
        rustix::fs::syncfs(&root).map_err(|error| failed(error.into()))?;
        sys::freeze(root.as_fd(), Freeze::Rest).map_err(failed)?;
        Ok(Self(root))
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if let Err(error) = sys::freeze(self.0.as_fd(), Freeze::GoOn) {
            console::error(format_args!(
                "the root's file system stays at rest: {error}"
            ));
        }
    }
}
