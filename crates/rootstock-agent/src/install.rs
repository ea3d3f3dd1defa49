//! Laying the version out on a disk of the machine's own, while the machine runs it.
//!
//! The machine runs as a diskless one does. When its system is up the disk is looked
//! for, and the site is told that it will not boot for a while: only then is anything
//! written. docs/guide/disk-install.md has the whole way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::{FillOrder, Identity, RootPlace};
use rootstock_api::install::{InstallOrder, InstallReport, InstallState};
use rootstock_core::units::HumanBytes;
use rootstock_image::grid::Grid;
use rootstock_store::disk::DiskFile;

use crate::console;
use crate::disk::device::Device;
use crate::tiers::pace::{FETCHERS, Pace};

pub(crate) mod chunks;
mod layout;
pub(crate) mod mark;
mod own;
mod target;

use chunks::{Bring, Paced};
use layout::Layout;
use mark::Mark;
use own::OwnRoot;
use target::{Disks, Target, TargetError};

/// A named disk is waited for so long: its driver may be slow.
const DISK_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is to be laid out, and where.
pub(crate) struct Wanted {
    /// On which disk.
    pub(crate) order: InstallOrder,
    /// How the disk is known again.
    pub(crate) mark: Mark,
    /// Where the root is.
    pub(crate) root: RootPlace,
    /// Who the machine is.
    pub(crate) identity: Identity,
    /// How the version is cut into chunks.
    pub(crate) grid: Grid,
    /// Its name, for people.
    pub(crate) version: String,
    /// Its chunks.
    pub(crate) chunks: Box<dyn Bring>,
}

/// An installation, from the order to its end.
pub(crate) struct Installation {
    pace: Pace,
    state: Mutex<State>,
    changed: Condvar,
    bytes: u64,
    done_bytes: AtomicU64,
    written_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    state: InstallState,
    device: String,
    reason: Option<String>,
    is_up: bool,
    /// The state that the site was told of last.
    told: Option<InstallState>,
    began: Option<Instant>,
}

/// What is open before the first stage's paths go away.
struct Ground {
    disks: Disks,
    root: OwnRoot,
}

impl Installation {
    /// Begins, once the system is up. What stands against it is told to the site.
    pub(crate) fn start(wanted: Wanted, fill: FillOrder) -> Arc<Self> {
        let installation = Arc::new(Self {
            pace: Pace::new(fill),
            state: Mutex::default(),
            changed: Condvar::new(),
            bytes: wanted.grid.disk_bytes(),
            done_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
        });
        let ground = Disks::open()
            .and_then(|disks| Ok((disks, OwnRoot::look(&wanted.root)?)))
            .map(|(disks, root)| Ground { disks, root });
        let runs = Arc::clone(&installation);
        let started = match ground {
            Ok(ground) => thread::Builder::new()
                .name("install".to_owned())
                .spawn(move || runs.run(&ground, &wanted))
                .map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            installation.fail(error.to_string());
        }
        installation
    }

    /// What holds from now on.
    pub(crate) fn set_order(&self, fill: FillOrder) {
        self.pace.set(fill);
    }

    /// The image's own init says that the system is up, and its check, if there is one,
    /// that it works.
    pub(crate) fn system_is_up(&self) {
        self.lock().is_up = true;
        self.changed.notify_all();
    }

    /// Whether the site is to be told before it is time to.
    pub(crate) fn has_news(&self) -> bool {
        let state = self.lock();
        state.is_up && state.told != Some(state.state)
    }

    /// The site took a report with this state.
    pub(crate) fn was_told(&self, told: InstallState) {
        self.lock().told = Some(told);
        self.changed.notify_all();
    }

    /// How far it is.
    pub(crate) fn report(&self) -> InstallReport {
        let state = self.lock();
        let mut report = InstallReport {
            state: state.state,
            device: state.device.clone(),
            reason: state.reason.clone(),
            bytes: self.bytes,
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            fetched_bytes: self.fetched_bytes.load(Ordering::Relaxed),
            seconds_to_complete: None,
        };
        if state.state == InstallState::Laying {
            report.reason = self.pace.paused();
            let seconds = state
                .began
                .map_or(0.0, |began| began.elapsed().as_secs_f64());
            let left = self.bytes.saturating_sub(report.done_bytes) as f64;
            if report.done_bytes > 0 && report.reason.is_none() {
                let rest = left * seconds / report.done_bytes as f64;
                report.seconds_to_complete = Some(rest as u64);
            }
        }
        report
    }

    fn fetched(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_there(&self, bytes: u64, written_bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.written_bytes
            .fetch_add(written_bytes, Ordering::Relaxed);
    }

    fn run(&self, ground: &Ground, wanted: &Wanted) {
        self.wait(|state| state.is_up);
        let target = match find(ground, wanted) {
            Ok(target) => target,
            Err(error) => return self.fail(console::chain(&error)),
        };
        self.lock().device.clone_from(&target.device);
        let _claim = match self.install(ground, wanted, &target) {
            Ok(held) => {
                self.set(InstallState::Installed);
                console::info(format_args!(
                    "{} is installed on {}: {} were written, {} fetched for that",
                    wanted.version,
                    target.device,
                    HumanBytes(self.written_bytes.load(Ordering::Relaxed)),
                    HumanBytes(self.fetched_bytes.load(Ordering::Relaxed)),
                ));
                Some(held)
            }
            Err(reason) => {
                self.fail(format!("{}: {reason}", target.device));
                None
            }
        };
        // Its last writer must not go while this system runs: udev would then have the
        // kernel look for partitions, whose file systems have the names of those in use.
        loop {
            thread::park();
        }
    }

    /// Lays it out; answers the claim on the disk.
    fn install(&self, ground: &Ground, wanted: &Wanted, target: &Target) -> Result<Device, String> {
        let source = Paced {
            chunks: &*wanted.chunks,
            installation: self,
        };
        let disk: &dyn DiskFile = &target.disk;
        let layout = Layout::prepare(disk, &wanted.grid, &source, &wanted.mark);
        let layout = layout.map_err(|error| console::chain(&error))?;
        // A site that counts on the disk would send the machine there.
        self.set(InstallState::Laying);
        self.wait(|state| state.told == Some(InstallState::Laying));
        self.lock().began = Some(Instant::now());
        let (device, version) = (&target.device, &wanted.version);
        console::info(format_args!("{version} is being laid out on {device}"));
        if !layout.is_marked() {
            console::info(format_args!(
                "the image leaves no room to mark {device}: another version needs it by name"
            ));
        }
        layout
            .begin()
            .and_then(|()| layout.fill(FETCHERS))
            .map_err(|error| console::chain(&error))?;
        let own = ground.root.write(&target.disk.claim(), &wanted.identity);
        // What is written from here on must be nobody else's.
        let held = ground.disks.claim_again(target);
        own.map_err(|error| format!("its root cannot be made this machine's own: {error}"))?;
        let held = held.map_err(|error| format!("somebody else took it: {error}"))?;
        layout.finish().map_err(|error| console::chain(&error))?;
        Ok(held)
    }

    fn fail(&self, reason: String) {
        console::warn(format_args!("nothing is installed: {reason}"));
        self.lock().reason = Some(reason);
        self.set(InstallState::Failed);
    }

    fn set(&self, to: InstallState) {
        self.lock().state = to;
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let waited = self.changed.wait_while(self.lock(), |state| !until(state));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk; one that is named is waited for.
fn find(ground: &Ground, wanted: &Wanted) -> Result<Target, TargetError> {
    let began = Instant::now();
    loop {
        match ground.disks.find(&wanted.order, &wanted.mark) {
            Err(TargetError::NoDisk { .. }) if began.elapsed() < DISK_LIMIT => {
                thread::sleep(LOOK_EVERY);
            }
            found => return found,
        }
    }
}
