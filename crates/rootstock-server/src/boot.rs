//! Booting machines: the services, what they share, and their life with the daemon.
//!
//! For every address that machines may reach us by there is plain HTTP for
//! firmware and boot programs, HTTPS for first stages, and NBD for volumes of
//! personal machines. Addresses come and go with their interfaces; a service that
//! cannot start says what it lacks and is tried again, while everything else runs.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rootstock_catalog::NodeRow;
use rootstock_core::NodeName;
use rootstock_netboot::dhcp::{Progress, Who};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    app::App,
    config::{BootConfig, Config},
    http::chain,
    nbd::{NbdConfig, NbdHandle, NbdLimits, NbdListener, NbdServer, NbdTls},
    nodes::{self, NodeHooks},
    stop::Stop,
    tls,
};

mod body;
mod causes;
mod decide;
pub mod dhcp;
pub(crate) mod doctor;
mod exports;
mod files;
pub(crate) mod first_stage;
mod http;
mod identity;
mod interfaces;
mod leasing;
mod listen;
mod neighbours;
mod networks;
mod node_api;
mod orders;
mod plugins;
mod programs;
mod sessions;
mod stage;
mod staged;
mod tftp;
mod told;
mod transcript;
mod udp;

use dhcp::{DhcpHandle, DhcpService};
use interfaces::BootPlace;
use listen::{Listener, Places};
use networks::Networks;
use plugins::{PluginEvent, Plugins};
use programs::Programs;
use sessions::Sessions;
use stage::Stages;
use staged::StagedFiles;
use tftp::{TftpServer, Transfers};
use told::{AdditionsByBoot, Roster};
use transcript::{Transcripts, step_of};

/// How often interfaces are looked at.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// How often silent machines are looked for.
const TEND_INTERVAL: Duration = Duration::from_secs(10);

/// How often boots are looked for that nobody goes on with.
const ABANDONED_INTERVAL: Duration = Duration::from_secs(600);

/// Changes of nodes that live views have not been told of yet.
const CHANGES_MAX: usize = 16_384;

/// After how long a boot whose token was not given in is over.
const ABANDONED_MINUTES: i64 = 30;

/// How long NBD connections of personal machines may take to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// What the boot services share with the rest of the daemon.
pub(crate) struct Boot {
    pub(crate) transcripts: Arc<Transcripts>,
    pub(crate) plugins: Plugins,
    pub(crate) programs: Programs,
    pub(crate) networks: Networks,
    pub(crate) sessions: Sessions,
    pub(crate) staged: StagedFiles,
    pub(crate) roster: Roster,
    pub(crate) additions: AdditionsByBoot,
    stages: OnceLock<Arc<dyn Stages>>,
    dhcp: Mutex<Option<DhcpHandle>>,
}

impl Boot {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            transcripts: Arc::default(),
            plugins: Plugins::new(&config.boot.plugins),
            programs: Programs::new(&config.boot.files),
            networks: Networks::new(&config.network),
            sessions: Sessions::default(),
            staged: StagedFiles::default(),
            roster: Roster::default(),
            additions: AdditionsByBoot::default(),
            stages: OnceLock::new(),
            dhcp: Mutex::default(),
        }
    }

    /// Who makes first stages; nobody while there is no agent for them.
    pub(crate) fn stages(&self) -> Option<Arc<dyn Stages>> {
        self.stages.get().cloned()
    }

    /// Tells DHCP how far a machine has come, so that it keeps to what works.
    pub(crate) fn progress(&self, who: Who, progress: Progress) {
        if let Some(dhcp) = &*self.dhcp() {
            dhcp.progress(who, progress);
        }
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
    if app.config.boot.is_on() {
        parts.spawn(learn_keys(Arc::clone(&app)));
    }
    parts.spawn(tell_changes(Arc::clone(&app), changes));
    if app.config.boot.is_on() {
        parts.spawn(serve(Arc::clone(&app), keys, stop));
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

/// What plug-ins hear of nodes that administrators add and delete.
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
        self.tell(PluginEvent::Registered, node);
    }

    fn gone(&self, node: &NodeRow) {
        self.tell(PluginEvent::Gone, node);
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

/// Where `rootstock-agent` is: as configured, beside this program, or where its
/// package puts it.
pub(crate) fn agent_path(config: &BootConfig) -> Option<PathBuf> {
    if let Some(path) = &config.agent {
        return path.is_file().then(|| path.clone());
    }
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|path| Some(path.parent()?.join("rootstock-agent")));
    let packaged = Path::new("/usr/lib/rootstock/rootstock-agent").to_owned();
    beside
        .into_iter()
        .chain([packaged])
        .find(|path| path.is_file())
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
        app.boot.staged.tidy();
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

/// The services of one address.
struct Served {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    nbd: Option<NbdHandle>,
    tftp: Option<TftpServer>,
}

impl Served {
    /// Starts TFTP unless it runs. Its port may be another server's for a while, and
    /// everything else works without it.
    fn ensure_tftp(&mut self, app: &Arc<App>, place: &BootPlace, transfers: &Arc<Transfers>) {
        if self.tftp.is_none() {
            match TftpServer::of_app(app, place.address, transfers) {
                Ok(tftp) => self.tftp = Some(tftp),
                Err(error) => {
                    let address = place.address;
                    lacks(
                        app,
                        &format!(
                            "cannot listen on {address}:69 for TFTP: {error} (is another TFTP server running?)"
                        ),
                    );
                }
            }
        }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        if let Some(tftp) = self.tftp {
            let ended = tokio::task::spawn_blocking(move || tftp.shutdown());
            if ended.await.is_err() {
                tracing::error!("the TFTP server of a boot address panicked");
            }
        }
        if let Some(nbd) = self.nbd {
            let ended = tokio::task::spawn_blocking(move || nbd.shutdown(SHUTDOWN_PATIENCE));
            if ended.await.is_err() {
                tracing::error!("the NBD server of a boot address panicked");
            }
        }
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a boot service panicked");
            }
        }
    }
}

/// Serves each boot address as long as it is there.
async fn serve(app: Arc<App>, keys: PathBuf, mut stop: Stop) {
    let connections = Places::default();
    let transfers = Arc::default();
    let mut served: HashMap<(String, Ipv4Addr), Served> = HashMap::new();
    let mut dhcp = Dhcp::default();
    loop {
        let places = look(&app).await;
        dhcp.follow(&app, &places).await;
        let gone: Vec<_> = served
            .keys()
            .filter(|(name, address)| {
                let same = |place: &BootPlace| place.name == *name && place.address == *address;
                !places.iter().any(same)
            })
            .cloned()
            .collect();
        for key in gone {
            if let Some(services) = served.remove(&key) {
                tracing::info!(interface = key.0, address = %key.1, "boot services end");
                services.end().await;
            }
        }
        for place in places {
            let key = (place.name.clone(), place.address);
            if let Some(services) = served.get_mut(&key) {
                services.ensure_tftp(&app, &place, &transfers);
                continue;
            }
            match start(&app, &keys, &place, &connections).await {
                Ok(mut services) => {
                    services.ensure_tftp(&app, &place, &transfers);
                    tracing::info!(
                        interface = place.name,
                        address = %place.address,
                        mode = %place.mode,
                        "boot services start"
                    );
                    served.insert(key, services);
                }
                Err(text) => lacks(&app, &text),
            }
        }
        // A machine that was just added or changed is known at its next question.
        let stopped = tokio::select! {
            stopped = stop.rest(SCAN_INTERVAL) => stopped,
            () = app.nodes.changed() => false,
        };
        if stopped {
            break;
        }
    }
    dhcp.end().await;
    for services in served.into_values() {
        services.end().await;
    }
}

/// DHCP on all places together: it begins anew when they change.
#[derive(Default)]
struct Dhcp {
    service: Option<DhcpService>,
    places: Vec<BootPlace>,
}

impl Dhcp {
    async fn follow(&mut self, app: &Arc<App>, places: &[BootPlace]) {
        let places: Vec<_> = places
            .iter()
            .filter(|place| place.mac.is_some())
            .cloned()
            .collect();
        if let Some(service) = &self.service
            && self.places == places
        {
            service.handle().set_known(leasing::known(app).await).await;
            return;
        }
        self.end().await;
        if places.is_empty() {
            return;
        }
        match leasing::serve(app, &places).await {
            Ok(service) => {
                let handle = service.handle();
                handle.set_worked(leasing::worked(app).await).await;
                *app.boot.dhcp() = Some(handle);
                self.service = Some(service);
                self.places = places;
            }
            Err(text) => lacks(app, &format!("no DHCP for booting machines: {text}")),
        }
    }

    async fn end(&mut self) {
        if let Some(service) = self.service.take() {
            service.stop().await;
        }
    }
}

/// What the interfaces are now.
async fn look(app: &App) -> Vec<BootPlace> {
    let config = app.config.boot.clone();
    let found = tokio::task::spawn_blocking(move || {
        interfaces::discover().map(|all| interfaces::choose(&config, &all))
    });
    match found.await {
        Ok(Ok((places, missing))) => {
            for text in missing {
                lacks(app, &text);
            }
            app.boot.networks.set_places(places.clone());
            places
        }
        Ok(Err(error)) => {
            lacks(
                app,
                &format!("network interfaces cannot be listed: {error}"),
            );
            app.boot.networks.places()
        }
        Err(error) => {
            tracing::error!(%error, "looking at interfaces panicked");
            app.boot.networks.places()
        }
    }
}

/// Says once what the boot services lack.
fn lacks(app: &App, text: &str) {
    if app.boot.networks.lack(text.to_owned()) {
        tracing::warn!(lack = text, "boot services lack something");
    }
}

async fn start(
    app: &Arc<App>,
    keys: &Path,
    place: &BootPlace,
    connections: &Places,
) -> Result<Served, String> {
    let config = &app.config.boot;
    let http = bind(place.address, config.http_port, "HTTP").await?;
    let https = bind(place.address, config.https_port, "HTTPS").await?;
    let nbd = bind(place.address, config.nbd_port, "NBD").await?;
    let names = [place.address.to_string(), "localhost".to_owned()];
    let keys = keys.to_owned();
    let tls = tokio::task::spawn_blocking(move || tls::site_config(&keys, &names)).await;
    let tls = match tls {
        Ok(tls) => tls.map_err(|error| chain(&error))?,
        Err(error) => return Err(format!("the certificate was not made: {error}")),
    };
    let (stop, stopped) = Stop::new();
    let router = http::router(Arc::clone(app));
    let listener = |tls: Option<TlsAcceptor>| Listener {
        router: router.clone(),
        places: connections.clone(),
        tls,
        stop: stopped.clone(),
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls));
    let nbd = volumes_server(app, nbd, tls)?;
    let tasks = vec![
        tokio::spawn(listener(None).serve(http)),
        tokio::spawn(listener(Some(acceptor)).serve(https)),
    ];
    Ok(Served {
        stop,
        tasks,
        nbd: Some(nbd),
        tftp: None,
    })
}

async fn bind(address: Ipv4Addr, port: u16, what: &str) -> Result<TcpListener, String> {
    TcpListener::bind((address, port)).await.map_err(|error| {
        format!("cannot listen on {address}:{port} for {what} of booting machines: {error}")
    })
}

/// NBD for personal machines: their own volumes and nothing else.
fn volumes_server(
    app: &Arc<App>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> Result<NbdHandle, String> {
    let failed = |error: std::io::Error| format!("cannot serve NBD to booting machines: {error}");
    let listener = listener.into_std().map_err(failed)?;
    listener.set_nonblocking(false).map_err(failed)?;
    let config = NbdConfig {
        listeners: vec![NbdListener::Tcp(listener)],
        tls: NbdTls::Optional(tls),
        limits: NbdLimits {
            connections_max: app.config.nbd.connections_max as usize,
            ..NbdLimits::default()
        },
    };
    let exports = exports::SessionExports::new(app, Handle::current());
    NbdServer::start(config, Arc::new(exports)).map_err(failed)
}

#[cfg(test)]
mod tests;
