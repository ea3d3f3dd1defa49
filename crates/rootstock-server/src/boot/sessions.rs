//! Sessions: what a machine that gave its token in may ask for, until it is gone.
//!
//! The catalog keeps them by the digest of their secret, so that machines go on
//! when the daemon restarts; what is here is a memory of it that is checked now
//! and then.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rootstock_api::{
    boot::{BootStep, NodeMode, NodeReport},
    install::InstallState,
    settings::Settings,
};
use rootstock_catalog::{BootRow, VersionRow};
use rootstock_core::{ChunkId, Digest, MacAddress, NodeName, VersionSelector, VersionSpec};
use rootstock_store::ChunkStore;
use tokio::sync::{Notify, futures::Notified};

use super::{
    plugins::PluginEvent,
    swarm::Issued,
    told,
    transcript::{Told, step_of},
    version_ids::{self, short},
};
use crate::{
    app::App,
    http::{ApiError, chain},
};

/// Seconds between a machine's reports.
pub(crate) const REPORT_SECONDS: u32 = 30;

/// A machine that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(3 * REPORT_SECONDS as u64);

/// How long a machine that said goodbye keeps its session: it reads its disk until
/// the power is off.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(300);

/// How long a machine that fell silent keeps it. Its network may be down, and it
/// waits for the disk it runs on: to close it too early would take the disk away.
const SILENT_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// How often the address of a machine that runs is kept for it anew.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(300);

/// How long the memory of a session is believed without asking the catalog.
const MEMORY_LIFE: Duration = Duration::from_secs(60);

/// How long it is believed what a machine is to run next.
const NEXT_LIFE: Duration = Duration::from_secs(10);

/// A machine's session.
#[derive(Debug)]
pub(crate) struct Session {
    /// The boot it is of.
    pub(crate) boot: String,
    /// The machine's name.
    pub(crate) node: NodeName,
    /// The card it booted from.
    pub(crate) mac: MacAddress,
    /// The version it runs.
    pub(crate) version: VersionRow,
    /// Whether the secret was seen on a connection that anybody could read.
    pub(crate) was_shown: AtomicBool,
    chunks: OnceLock<HashSet<u64>>,
    is_traced: AtomicBool,
    /// Where its writes are, as its order said; nobody knows since an earlier daemon.
    pub(crate) writes: OnceLock<Writes>,
    /// The certificate that it got last.
    pub(crate) certificate: Mutex<Option<Issued>>,
    state: Mutex<State>,
    /// Ends the request for control that is held, when there is a newer one.
    relieved: Notify,
}

#[derive(Debug)]
struct State {
    checked: Instant,
    heard: Instant,
    gone: Gone,
    report: Option<NodeReport>,
    /// Why its disk went out of use, as far as that was noted.
    off_noted: Option<String>,
    address_kept: Option<Instant>,
    /// How far its installation is, as far as that was noted.
    install_noted: Option<InstallState>,
    /// What it is to run next, and when that was found out.
    next: Option<(Instant, VersionRow)>,
}

/// Where a machine's writes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// In its memory, or on a disk that is installed: they become no version.
    Elsewhere,
    /// In its volume on the server.
    Volume,
    /// On its own disk.
    Disk,
}

impl Writes {
    /// Those of a machine that boots with these settings.
    pub(crate) fn of(settings: &Settings) -> Self {
        match settings.mode {
            _ if settings.has_volume() || settings.is_iscsi() => Self::Volume,
            Some(NodeMode::Personal) => Self::Disk,
            _ => Self::Elsewhere,
        }
    }
}

/// What is new in a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    /// The machine is up, for the first time.
    pub(crate) came_up: bool,
    /// The disk that it keeps chunks on went out of use: what to note of it.
    pub(crate) cache_off: Option<String>,
}

/// How a machine went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    Not,
    Silent,
    SaidSo,
}

/// All sessions that were used since the daemon started.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<Digest, Arc<Session>>>);

impl Session {
    /// Whether a chunk or page is one of the version that this machine runs. Ids
    /// are told apart by eight of their bytes, which is enough here: what somebody
    /// might fetch by a collision has to be known to them to collide with.
    pub(crate) fn has(&self, store: &ChunkStore, chunk: ChunkId) -> Result<bool, ApiError> {
        if let Some(chunks) = self.chunks.get() {
            return Ok(chunks.contains(&short(chunk)));
        }
        let chunks = version_ids::read(store, self.version.manifest)?;
        Ok(self.chunks.get_or_init(|| chunks).contains(&short(chunk)))
    }

    /// What it is to run next, if that was found out not long ago.
    pub(crate) fn next_version(&self) -> Option<VersionRow> {
        let state = self.state();
        let (found, next) = state.next.as_ref()?;
        (found.elapsed() < NEXT_LIFE).then(|| next.clone())
    }

    /// Remembers what it is to run next.
    pub(crate) fn set_next_version(&self, next: VersionRow) {
        self.state().next = Some((Instant::now(), next));
    }

    /// How it does, as it said last, unless it is gone.
    pub(crate) fn report(&self) -> Option<NodeReport> {
        let state = self.state();
        state.report.clone().filter(|_| state.gone == Gone::Not)
    }

    /// The machine said how it does. Answers what is new in that.
    pub(crate) fn reported(&self, report: NodeReport) -> Reported {
        let mut state = self.state();
        let was_up = state.report.as_ref().is_some_and(|report| report.up);
        let came_up = report.up && !was_up;
        let off = report.disk_cache.as_ref().and_then(|disk| {
            let reason = disk.off.as_ref()?;
            Some(format!("its disk {} is out of use: {reason}", disk.device))
        });
        state.report = Some(report);
        if off.is_none() || off == state.off_noted {
            return Reported {
                came_up,
                cache_off: None,
            };
        }
        state.off_noted.clone_from(&off);
        Reported {
            came_up,
            cache_off: off,
        }
    }

    /// How far its installation is, as far as that was noted.
    pub(crate) fn noted_install(&self) -> Option<InstallState> {
        self.state().install_noted
    }

    /// It is noted how far its installation is.
    pub(crate) fn note_install(&self, state: InstallState) {
        self.state().install_noted = Some(state);
    }

    /// Ends an earlier request for control that is still held: the machine asks on
    /// one connection, so it has given that one up. Hears when this one is ended so.
    pub(crate) fn relieve(&self) -> Notified<'_> {
        self.relieved.notify_waiters();
        self.relieved.notified()
    }

    /// Whether the machine has not told what its boot read yet; then it has now.
    pub(crate) fn first_trace(&self) -> bool {
        !self.is_traced.swap(true, Relaxed)
    }

    /// Whether it is time to keep the machine's address for it; then that is done.
    pub(crate) fn needs_address(&self) -> bool {
        let mut state = self.state();
        let kept = state.address_kept;
        if kept.is_some_and(|kept| kept.elapsed() < ADDRESS_INTERVAL) {
            return false;
        }
        state.address_kept = Some(Instant::now());
        true
    }

    /// The machine says that it goes.
    pub(crate) fn goes(&self) {
        self.state().gone = Gone::SaidSo;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// The session of a secret, if there is one.
    pub(crate) async fn find(
        &self,
        app: &Arc<App>,
        secret: &str,
    ) -> Result<Option<Arc<Session>>, ApiError> {
        let digest = Digest::of(secret.as_bytes());
        let now = Instant::now();
        let known = self.all().get(&digest).cloned();
        if let Some(session) = &known
            && now.duration_since(session.state().checked) < MEMORY_LIFE
        {
            self.heard(app, session, now);
            return Ok(known);
        }
        let Some(row) = app.catalog.session(digest).await? else {
            self.all().remove(&digest);
            return Ok(None);
        };
        let session = match known {
            Some(session) => {
                session.state().checked = now;
                session
            }
            None => {
                let session = Arc::new(load(app, row).await?);
                let mut all = self.all();
                Arc::clone(all.entry(digest).or_insert(session))
            }
        };
        self.heard(app, &session, now);
        Ok(Some(session))
    }

    fn heard(&self, app: &App, session: &Session, now: Instant) {
        let was_silent = {
            let mut state = session.state();
            state.heard = now;
            let silent = state.gone == Gone::Silent;
            if silent {
                state.gone = Gone::Not;
            }
            let was_up = state.report.as_ref().is_some_and(|report| report.up);
            silent.then_some(was_up)
        };
        if let Some(was_up) = was_silent {
            let boot = &session.boot;
            let transcripts = &app.boot.transcripts;
            let started = Timestamp::now();
            transcripts.resume(
                session.mac,
                &session.node,
                boot,
                started,
                BootStep::Switched,
            );
            // What never was up is not up because it is heard again.
            let step = if was_up {
                BootStep::Up
            } else {
                BootStep::Switched
            };
            transcripts.step(session.mac, Told::new(step, "it is back"));
        }
    }

    /// Forgets the earlier sessions of a node that boots anew.
    pub(crate) fn forget(&self, node: &NodeName) {
        self.all().retain(|_, session| session.node != *node);
    }

    /// Whether the machine of a boot was heard of not long ago.
    pub(crate) fn is_alive(&self, boot: &str) -> bool {
        let all = self.all();
        let mut of = all.values().filter(|session| session.boot == boot);
        of.any(|session| {
            let state = session.state();
            state.gone == Gone::Not && state.heard.elapsed() < SILENCE
        })
    }

    /// What the machine of a boot said last, while it runs.
    pub(crate) fn report_of(&self, boot: &str) -> Option<NodeReport> {
        let all = self.all();
        let mut of = all.values().filter(|session| session.boot == boot);
        of.find_map(|session| session.report())
    }

    /// What all machines that run said last, by their boots.
    pub(crate) fn reports(&self) -> HashMap<String, NodeReport> {
        let all = self.all();
        let report = |session: &Arc<Session>| Some((session.boot.clone(), session.report()?));
        all.values().filter_map(report).collect()
    }

    /// Every session in memory.
    pub(crate) fn list(&self) -> Vec<Arc<Session>> {
        self.all().values().cloned().collect()
    }

    /// Notices machines that are silent, and ends the boots of those that are
    /// gone for good.
    pub(crate) async fn tend(&self, app: &Arc<App>) {
        let now = Instant::now();
        for session in self.list() {
            let (gone, rests) = {
                let state = session.state();
                (state.gone, now.saturating_duration_since(state.heard))
            };
            match gone {
                Gone::Not if rests > SILENCE => {
                    session.state().gone = Gone::Silent;
                    let detail = format!("no word for {} s", rests.as_secs());
                    let told = Told::new(BootStep::Gone, detail);
                    app.boot.transcripts.step(session.mac, told);
                    self.tell_gone(app, &session).await;
                }
                Gone::SaidSo if rests > GOODBYE_PATIENCE => self.end(app, &session).await,
                Gone::Silent if rests > SILENT_PATIENCE => self.end(app, &session).await,
                _ => {}
            }
        }
    }

    /// Tells plug-ins that a machine is gone.
    pub(crate) async fn tell_gone(&self, app: &Arc<App>, session: &Session) {
        match app.catalog.node(&session.node).await {
            Ok(node) => told::later(app, PluginEvent::Gone, &node),
            Err(error) => tracing::debug!(error = chain(&error), "a deleted node is gone"),
        }
    }

    async fn end(&self, app: &App, session: &Session) {
        match app.catalog.end_boot(&session.boot, Timestamp::now()).await {
            Ok(_) => {
                tracing::info!(node = %session.node, boot = session.boot, "boot is over");
                self.all().retain(|_, other| other.boot != session.boot);
            }
            Err(error) => {
                tracing::warn!(boot = session.boot, error = chain(&error), "boot not ended");
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn load(app: &App, row: BootRow) -> Result<Session, ApiError> {
    let Some((image, number)) = row.image else {
        return Err(ApiError::damaged(format!("boot {} has no version", row.id)));
    };
    let spec = VersionSpec {
        image,
        selector: VersionSelector::Number(number),
    };
    let version = app.catalog.resolve(&spec).await?;
    let known = app.boot.transcripts.mac_of(&row.id);
    let mac = match known {
        Some(mac) => mac,
        None => {
            let node = app.catalog.node(&row.node).await?;
            let mac = node.macs.first().copied();
            let mac = mac.ok_or_else(|| ApiError::damaged("a node without cards has booted"))?;
            resume(app, &row.id, &row.node, mac, row.started).await?;
            mac
        }
    };
    let last = app.boot.transcripts.last(mac);
    let now = Instant::now();
    Ok(Session {
        boot: row.id,
        node: row.node,
        mac,
        version,
        // Since an earlier daemon nobody knows: chunks were fetched by then.
        was_shown: AtomicBool::new(last.is_some_and(|last| last >= BootStep::DeviceUp)),
        chunks: OnceLock::new(),
        is_traced: AtomicBool::new(false),
        writes: OnceLock::new(),
        certificate: Mutex::default(),
        state: Mutex::new(State {
            checked: now,
            heard: now,
            gone: Gone::Not,
            report: None,
            off_noted: None,
            address_kept: None,
            install_noted: None,
            next: None,
        }),
        relieved: Notify::new(),
    })
}

/// Has what a node ran before be over.
pub(super) async fn end_earlier(app: &App, node: &NodeName, boot: &str) -> Result<(), ApiError> {
    let now = Timestamp::now();
    for earlier in app.catalog.boots_of(node).await? {
        if earlier.id != boot && earlier.ended.is_none() {
            app.catalog.end_boot(&earlier.id, now).await?;
        }
    }
    app.boot.sessions.forget(node);
    Ok(())
}

/// Follows a boot again whose beginning an earlier daemon saw.
pub(super) async fn resume(
    app: &App,
    boot: &str,
    node: &NodeName,
    mac: MacAddress,
    started: Timestamp,
) -> Result<(), ApiError> {
    let (_, steps) = app.catalog.boot_transcript(boot).await?;
    let last = steps.last().and_then(|row| step_of(&row.step));
    let last = last.unwrap_or(BootStep::Session);
    app.boot.transcripts.resume(mac, node, boot, started, last);
    Ok(())
}

/// What a session's secret has been shown to.
impl Session {
    /// Remembers that the secret went over a connection that anybody could read.
    pub(crate) fn shown(&self) {
        self.was_shown.store(true, Relaxed);
    }
}
