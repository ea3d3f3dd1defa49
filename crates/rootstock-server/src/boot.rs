//! Booting machines: the services, what they share, and their life with the daemon.
//!
//! For every address that machines may reach us by there is plain HTTP for
//! firmware and boot programs, HTTPS for first stages, and NBD for volumes of
//! personal machines. Addresses come and go with their interfaces; a service that
//! cannot start says what it lacks and is tried again, while everything else runs.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rootstock_catalog::NodeRow;
use rootstock_core::{MacAddress, NodeName};
use rootstock_netboot::dhcp::{Progress, Who};
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

use crate::{
    app::App,
    config::{BootConfig, BootInterface, Config},
    http::chain,
    nodes::{self, NodeHooks},
    stop::Stop,
};

mod body;
mod causes;
pub(crate) mod clock;
pub(crate) mod commits;
pub(crate) mod control;
mod decide;
pub mod dhcp;
pub(crate) mod doctor;
mod exports;
mod files;
pub(crate) mod first_stage;
mod guests;
pub(crate) mod health;
mod held;
mod http;
mod identity;
pub(crate) mod installer;
pub(crate) mod installs;
mod interfaces;
mod leasing;
mod listen;
mod local;
mod neighbours;
mod networks;
pub(crate) mod nfs;
mod node_api;
mod node_metrics;
pub(crate) mod orders;
mod plugins;
mod programs;
mod rights;
pub(crate) mod san;
mod services;
mod sessions;
mod stage;
mod staged;
pub(crate) mod swarm;
mod tftp;
mod told;
mod trace_api;
mod tracker;
mod transcript;
mod udp;
mod version_ids;
pub(crate) mod wake;

use clock::SiteClock;
use commits::Commits;
use control::Controls;
use dhcp::DhcpHandle;
use held::HeldFiles;
use networks::Networks;
use nfs::Nfs;
use plugins::{PluginEvent, Plugins};
use programs::Programs;
pub use services::ClaimError;
pub(crate) use services::claim;
use sessions::{Session, Sessions};
use stage::Stages;
use staged::StagedFiles;
use swarm::Swarm;
use told::{AdditionsByBoot, Roster};
use transcript::{Transcripts, step_of};
use version_ids::VersionIds;

/// Where the agent's package puts it.
const AGENT_DEFAULT: &str = "/usr/lib/rootstock/rootstock-agent";

/// How often silent machines are looked for.
const TEND_INTERVAL: Duration = Duration::from_secs(10);

/// How often boots are looked for that nobody goes on with.
const ABANDONED_INTERVAL: Duration = Duration::from_secs(600);

/// Changes of nodes that live views have not been told of yet.
const CHANGES_MAX: usize = 16_384;

/// After how long a boot whose token was not given in is over.
const ABANDONED_MINUTES: i64 = 30;

/// How long nobody else gets the address of a machine that runs; it is kept anew
/// while the machine is heard. Its system never asks by DHCP for it.
const ADDRESS_KEPT: Duration = Duration::from_secs(3600);

/// What the boot services share with the rest of the daemon.
pub(crate) struct Boot {
    pub(crate) transcripts: Arc<Transcripts>,
    pub(crate) plugins: Plugins,
    pub(crate) programs: Programs,
    pub(crate) networks: Networks,
    pub(crate) sessions: Sessions,
    pub(crate) version_ids: VersionIds,
    pub(crate) staged: StagedFiles,
    pub(crate) held: HeldFiles,
    pub(crate) grub: local::Grub,
    pub(crate) roster: Roster,
    pub(crate) additions: AdditionsByBoot,
    pub(crate) clock: SiteClock,
    pub(crate) controls: Controls,
    pub(crate) commits: Commits,
    pub(crate) swarm: Swarm,
    pub(crate) nfs: Nfs,
    /// What `auto` lacks, when it boots nothing.
    pub(crate) auto_lack: Option<String>,
    is_on: bool,
    stages: OnceLock<Arc<dyn Stages>>,
    dhcp: Mutex<Option<DhcpHandle>>,
}

impl Boot {
    pub(crate) fn new(config: &Config) -> Self {
        let interfaces = &config.boot.interfaces;
        let auto_lack = match interfaces.contains(&BootInterface::Auto) {
            true => rights::lack_of(&rights::missing()),
            false => None,
        };
        let others = interfaces.iter().any(BootInterface::names_a_place);
        Self {
            is_on: others || (config.boot.is_on() && auto_lack.is_none()),
            auto_lack,
            transcripts: Arc::default(),
            plugins: Plugins::new(&config.boot.plugins),
            programs: Programs::new(&config.boot.files),
            networks: Networks::new(&config.network),
            sessions: Sessions::default(),
            version_ids: VersionIds::default(),
            staged: StagedFiles::default(),
            held: HeldFiles::default(),
            grub: local::Grub::default(),
            roster: Roster::default(),
            additions: AdditionsByBoot::default(),
            clock: SiteClock::new(config.boot.time_zone.as_deref()),
            controls: Controls::default(),
            commits: Commits::default(),
            swarm: Swarm::default(),
            nfs: Nfs::default(),
            stages: OnceLock::new(),
            dhcp: Mutex::default(),
        }
    }

    /// Whether machines are booted anywhere, as configured and allowed.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Who makes first stages; nobody while there is no agent for them.
    pub(crate) fn stages(&self) -> Option<Arc<dyn Stages>> {
        self.stages.get().cloned()
    }

    /// What machines that run said last, as Prometheus text.
    pub(crate) fn render_reports(&self, text: &mut String) {
        let report = |session: Arc<Session>| Some((session.node.clone(), session.report()?));
        let reports = self.sessions.list().into_iter().filter_map(report);
        node_metrics::render(reports.collect(), text);
        node_metrics::render_swarm(&self.swarm.figures(), text);
        if let Some(head) = self.swarm.head_figures() {
            node_metrics::render_head(&head, text);
        }
    }

    /// Tells DHCP how far a machine has come, so that it keeps to what works.
    pub(crate) fn progress(&self, who: Who, progress: Progress) {
        if let Some(dhcp) = &*self.dhcp() {
            dhcp.progress(who, progress);
        }
    }

    /// Keeps the address that a machine runs with from being given to another.
    pub(crate) fn keep(&self, address: Ipv4Addr, mac: MacAddress) {
        if let Some(dhcp) = &*self.dhcp() {
            dhcp.keep(address, mac, ADDRESS_KEPT);
        }
    }

    /// The card that an address belongs to, by our leases or on the link.
    pub(crate) async fn card_at(&self, address: IpAddr) -> Option<MacAddress> {
        let dhcp = self.dhcp().clone();
        if let (IpAddr::V4(address), Some(dhcp)) = (address, dhcp)
            && let Some(mac) = dhcp.card_at(address).await
        {
            return Some(mac);
        }
        neighbours::mac_of(address)
    }

    fn dhcp(&self) -> MutexGuard<'_, Option<DhcpHandle>> {
        self.dhcp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says who makes first stages, once.
    pub(crate) fn set_stages(&self, stages: Arc<dyn Stages>) {
        if self.stages.set(stages).is_err() {
            tracing::error!("first stages have two makers");
        }
    }
}

/// Runs the boot services until the stop.
pub(crate) async fn work(app: Arc<App>, keys: PathBuf, stop: Stop) {
    app.nodes.set_hooks(Box::new(Hooks {
        app: Arc::downgrade(&app),
        runtime: Handle::current(),
    }));
    let transcripts = Arc::clone(&app.boot.transcripts);
    let (changed, changes) = mpsc::channel(CHANGES_MAX);
    let storing = tokio::spawn(transcripts.work(app.catalog.clone(), changed, stop.clone()));
    resume(&app).await;
    let mut parts = JoinSet::new();
    parts.spawn(tend(Arc::clone(&app), stop.clone()));
    parts.spawn(tell_changes(Arc::clone(&app), changes));
    if let Some(text) = &app.boot.auto_lack {
        services::lacks(&app, text);
    }
    if app.boot.is_on() {
        parts.spawn(learn_keys(Arc::clone(&app)));
        parts.spawn(services::serve(Arc::clone(&app), keys, stop));
    }
    while let Some(done) = parts.join_next().await {
        if let Err(error) = done {
            tracing::error!(%error, "a part of the boot services panicked");
        }
    }
    if let Err(error) = storing.await {
        tracing::error!(%error, "the transcripts' keeper panicked");
    }
}

/// What follows when nodes join and leave: plug-ins hear of it, and what a node
/// needs is allocated.
struct Hooks {
    app: Weak<App>,
    runtime: Handle,
}

impl Hooks {
    fn tell(&self, event: PluginEvent, node: &NodeRow) {
        if let Some(app) = self.app.upgrade() {
            let _runtime = self.runtime.enter();
            told::later(&app, event, node);
        }
    }
}

impl NodeHooks for Hooks {
    fn registered(&self, node: &NodeRow) {
        if let Some(app) = self.app.upgrade() {
            self.runtime.spawn(allocate(app, node.clone()));
        }
        self.tell(PluginEvent::Registered, node);
    }

    fn gone(&self, node: &NodeRow) {
        self.tell(PluginEvent::Gone, node);
    }
}

/// What cannot be had now is tried again when the node boots, which tells why.
async fn allocate(app: Arc<App>, node: NodeRow) {
    if let Err(error) = orders::allocate(&app, &node).await {
        let detail = error.0.detail;
        tracing::warn!(node = %node.name, detail, "nothing allocated for a new node");
    }
}

/// Makes the host keys of all nodes that have none yet, so that plug-ins can tell
/// every node of every other.
async fn learn_keys(app: Arc<App>) {
    let nodes = app.catalog.nodes().await.unwrap_or_default();
    for node in nodes {
        match identity::host_key(&app, &node).await {
            Ok(key) => app.boot.roster.key(&node.name, &key.public),
            Err(error) => tracing::warn!(node = %node.name, detail = error.0.detail, "no host key"),
        }
    }
}

/// Tells live views of nodes whose boots went on. It ends with the transcripts.
async fn tell_changes(app: Arc<App>, mut changes: mpsc::Receiver<NodeName>) {
    while let Some(node) = changes.recv().await {
        if let Err(error) = nodes::tell_status(&app, &node).await {
            tracing::debug!(%node, detail = error.0.detail, "no status of a node");
        }
    }
}

/// Where `rootstock-agent` is: as configured, or where its package puts it.
pub(crate) fn agent_path(config: &BootConfig) -> Option<PathBuf> {
    let path = config.agent.as_deref().unwrap_or(Path::new(AGENT_DEFAULT));
    path.is_file().then(|| path.to_owned())
}

/// Follows the boots again that an earlier daemon saw begin.
async fn resume(app: &Arc<App>) {
    let boots = match app.catalog.last_boots().await {
        Ok(boots) => boots,
        Err(error) => {
            tracing::error!(error = chain(&error), "boots not read");
            return;
        }
    };
    for (boot, last) in boots {
        let step = last.and_then(|row| step_of(&row.step));
        let (None, Some(_), Some(step)) = (boot.ended, boot.redeemed, step) else {
            continue;
        };
        if let Ok(node) = app.catalog.node(&boot.node).await
            && let Some(mac) = node.macs.first()
        {
            let transcripts = &app.boot.transcripts;
            transcripts.resume(*mac, &boot.node, &boot.id, boot.started, step);
        }
    }
}

/// Looks after sessions, tokens and boots that nobody goes on with.
async fn tend(app: Arc<App>, mut stop: Stop) {
    let mut since_abandoned = ABANDONED_INTERVAL;
    while !stop.rest(TEND_INTERVAL).await {
        app.boot.sessions.tend(&app).await;
        health::judge_all(&app).await;
        app.boot.staged.tidy();
        app.boot.held.tidy();
        app.boot.swarm.tidy();
        since_abandoned += TEND_INTERVAL;
        if since_abandoned >= ABANDONED_INTERVAL {
            since_abandoned = Duration::ZERO;
            end_abandoned(&app).await;
        }
    }
}

async fn end_abandoned(app: &App) {
    let now = Timestamp::now();
    let patience = SignedDuration::from_mins(ABANDONED_MINUTES);
    let boots = app.catalog.last_boots().await.unwrap_or_default();
    for (boot, _) in boots {
        let is_old = now.duration_since(boot.started) > patience;
        let is_followed = app.boot.transcripts.is_followed(&boot.id);
        if boot.ended.is_none() && boot.redeemed.is_none() && is_old && !is_followed {
            match app.catalog.end_boot(&boot.id, now).await {
                Ok(_) => tracing::info!(boot = boot.id, node = %boot.node, "boot abandoned"),
                Err(error) => tracing::warn!(error = chain(&error), "boot not ended"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
