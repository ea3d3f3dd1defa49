//! Machines without our agent: their disk is a volume here, which firmware and system
//! reach over iSCSI.
//!
//! A machine gets its disk from the address that asked for its script, and where it has
//! to prove a secret, each boot has one of its own. Nobody says when such a machine is up: its firmware logs in with the
//! name that its script gave it, its system with the same one, and both are seen.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rootstock_api::{
    boot::{BootStep, NodeMode},
    settings::Settings,
};
use rootstock_catalog::{NodeRow, Secret, VersionRow};
use rootstock_core::{MacAddress, NodeName, VersionSpec, VolumeName};
use rootstock_netboot::script::{LinuxPlan, SanPlan};
use tokio::runtime::Handle;

use super::{
    decide::{Decision, Step, arguments, begin, failed},
    files::Asked,
    first_stage::{DiskBytes, Way},
    health::{self, Chosen},
    networks::Network,
    orders,
    plugins::PluginEvent,
    sessions::{end_earlier, resume},
    staged, told,
    transcript::Told,
};
use crate::{
    app::App,
    http::{ApiError, chain},
    iscsi::{Client, Sessions},
    targets, volumes,
};

/// How long the machine that has a disk open may take to say that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// How long a system may be without its disk until it counts as gone.
const ABSENCE: Duration = Duration::from_secs(60);

/// What begins the ISID of iPXE's initiator: the type that has an enterprise number
/// (RFC 7143, section 11.12.5), and that of Fen Systems Ltd., 10019.
const IPXE_ISID: [u8; 4] = [0x40, 0, 0x27, 0x23];

/// Why a machine is not given its disk.
enum Refusal {
    /// It runs, and has it open.
    Alive,
    /// What failed.
    Error(ApiError),
}

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

fn refused(node: &NodeName, refusal: Refusal) -> Decision {
    match refusal {
        Refusal::Error(error) => failed("make its disk ready", error.0.to_string()),
        Refusal::Alive => Decision::Refused {
            lines: vec![format!("{node} is up, and has its disk open over iSCSI.")],
        },
    }
}

/// A disk that is ready for a boot.
struct Disk {
    portal: SocketAddr,
    target: String,
    initiator: String,
    secret: Option<Secret>,
}

impl Disk {
    /// What its machine's firmware is told.
    fn plan(&self, title: String) -> SanPlan {
        SanPlan {
            title,
            portal: self.portal,
            target: self.target.clone(),
            initiator: self.initiator.clone(),
            secret: self
                .secret
                .as_ref()
                .map(|secret| secret.reveal().to_owned()),
        }
    }
}

/// Makes a machine's disk ready, which it reaches over iSCSI, and begins its boot.
pub(super) async fn start(
    app: &Arc<App>,
    asked: Asked<'_>,
    node: &NodeRow,
    mac: MacAddress,
    settings: &Settings,
    network: &Network,
    chosen: Chosen,
) -> Step<Decision> {
    let (name, spec) = (&node.name, chosen.version.spec());
    let place = (asked.peer, asked.local);
    let disk = prepare(app, node, settings, &spec, place).await;
    let disk = disk.map_err(|refusal| refused(name, refusal))?;
    let way = way(app, node, settings, &chosen.version).await?;
    let (boot, token) = begin(app, node, mac, asked.peer, settings, &chosen.version).await?;
    let ended = end_earlier(app, name, &boot).await;
    ended.map_err(|error| failed("end its last boot", error.0.to_string()))?;
    let more = told::booting(app, &boot, node, settings, &spec, network).await;
    let says = health::says(&spec, name, chosen.abandoned.as_ref());
    app.boot
        .transcripts
        .step(mac, Told::new(BootStep::ScriptServed, says));
    let plan = disk.plan(format!("{name} starts {spec} over iSCSI"));
    let stage = match way {
        Way::Kernel(stage) => (*stage).clone(),
        Way::Loader(warning) => {
            if let Some(warning) = warning {
                app.boot.transcripts.note(&boot, warning);
            }
            return Ok(Decision::San(Box::new(plan)));
        }
    };
    let arguments = arguments(settings, &stage, &more.kernel_arguments);
    let arguments = arguments.map_err(|reason| failed("use the kernel arguments", reason))?;
    let (peer, name) = (asked.peer, node.name.clone());
    app.boot.staged.offer(&token, peer, mac, name, boot, stage);
    Ok(Decision::Linux(Box::new(LinuxPlan {
        title: plan.title.clone(),
        path: staged::path(&token),
        arguments,
        disk: Some(plan),
    })))
}

/// What a machine starts from its disk, which nobody has open.
async fn way(
    app: &Arc<App>,
    node: &NodeRow,
    settings: &Settings,
    version: &VersionRow,
) -> Step<Way> {
    let lost = |error: String| failed("look at its disk", error);
    let Some(stages) = app.first_stages.get() else {
        return Ok(Way::Loader(None));
    };
    let volume =
        orders::volume_of(&node.name, settings).map_err(|error| lost(error.0.to_string()))?;
    let disk = volumes::open(app, &volume).await;
    let disk = disk.map_err(|error| lost(error.0.to_string()))?;
    let bytes = Arc::new(DiskBytes(Arc::clone(&disk.volume)));
    let found = stages.way(bytes, settings.clone()).await;
    drop(disk);
    found.map_err(|error| {
        let reason = format!("{}: {}", version.spec(), chain(&error));
        failed("start its kernel over iSCSI", reason)
    })
}

/// Makes a machine's disk ready for an installer: a volume that is there.
pub(super) async fn installing(
    app: &Arc<App>,
    node: &NodeRow,
    settings: &Settings,
    place: (IpAddr, IpAddr),
) -> Step<SanPlan> {
    let lost = |error: ApiError| failed("make its disk ready", error.0.to_string());
    let volume = orders::volume_of(&node.name, settings).map_err(lost)?;
    let row = app.catalog.volume(&volume).await;
    let row = row.map_err(|error| lost(error.into()))?;
    let disk = prepare(app, node, settings, &row.base(), place).await;
    let disk = disk.map_err(|refusal| refused(&node.name, refusal))?;
    Ok(disk.plan(String::new()))
}

/// Makes a machine's disk ready: nobody else has it open, it is fresh where it is to
/// be, and it may be reached from there alone.
async fn prepare(
    app: &Arc<App>,
    node: &NodeRow,
    settings: &Settings,
    version: &VersionSpec,
    (peer, local): (IpAddr, IpAddr),
) -> Result<Disk, Refusal> {
    let portal = portal(app, local)?;
    let volume = orders::volume_of(&node.name, settings)?;
    let (initiator, target) = (
        targets::node_name(app, &node.name),
        targets::own_target(app, &volume),
    );
    release(app, &initiator, &target).await?;
    orders::own_volume(app, &node.name, settings, version).await?;
    if settings.mode == Some(NodeMode::IscsiFrozen) {
        refresh(app, settings, &volume, version).await?;
    }
    let chap = settings.chap.unwrap_or(false);
    let secret = targets::share_with_node(app, &node.name, volume, peer, chap).await?;
    Ok(Disk {
        portal,
        target,
        initiator,
        secret,
    })
}

/// Where the target is, on the address that a machine has asked.
pub(super) fn portal(app: &App, local: IpAddr) -> Result<SocketAddr, ApiError> {
    let iscsi = app.iscsi();
    let addresses = iscsi.handle.as_ref().map(crate::iscsi::Handle::addresses);
    let mut all = addresses.unwrap_or_default().iter();
    let found = all.find(|address| address.ip().is_unspecified() || address.ip() == local);
    let found = found.map(|address| SocketAddr::new(local, address.port()));
    found.ok_or_else(|| {
        let detail = format!("the daemon has no iSCSI target at {local}");
        ApiError::new(rootstock_api::ProblemCode::Unavailable, detail)
            .with_hint("set `listen = [\"0.0.0.0:3260\"]` below [iscsi] in its configuration")
    })
}

/// Ends what a machine has left open that was switched off. One that runs is left
/// alone: whoever asks in its name would take its disk away.
async fn release(app: &Arc<App>, initiator: &str, target: &str) -> Result<(), Refusal> {
    let Some(sessions) = sessions(app) else {
        return Ok(());
    };
    let (initiator, target) = (initiator.to_owned(), target.to_owned());
    let work = move || {
        if sessions.is_alive(&initiator, &target, SIGN_OF_LIFE) {
            return false;
        }
        // What does not end keeps the volume from being opened, which says so.
        sessions.end(&initiator, &target);
        true
    };
    let done = tokio::task::spawn_blocking(work).await;
    match done.map_err(|error| ApiError::internal("look for sessions", &error))? {
        true => Ok(()),
        false => Err(Refusal::Alive),
    }
}

fn sessions(app: &App) -> Option<Sessions> {
    let iscsi = app.iscsi();
    iscsi.handle.as_ref().map(crate::iscsi::Handle::sessions)
}

/// Makes a volume what the version is. One that the node was given stays a clone of
/// what it was made from.
async fn refresh(
    app: &Arc<App>,
    settings: &Settings,
    volume: &VolumeName,
    version: &VersionSpec,
) -> Result<(), ApiError> {
    let row = app.catalog.volume(volume).await?;
    if row.base() == *version || settings.volume.is_some() {
        return volumes::reset(app, volume).await;
    }
    volumes::delete(app, volume).await?;
    volumes::create(
        app,
        volume.clone(),
        version,
        None,
        volumes::Kind::bootable(false),
    )
    .await?;
    Ok(())
}

/// A node's session with its disk, while it lasts.
pub(crate) struct Presence {
    app: Arc<App>,
    runtime: Handle,
    node: NodeName,
    initiator: String,
    target: String,
}

impl Presence {
    /// Notes that a session begins. Call it from a thread of the session's own.
    pub(crate) fn begin(
        app: &Arc<App>,
        runtime: &Handle,
        node: NodeName,
        target: &str,
        client: &Client<'_>,
    ) -> Self {
        let is_firmware = client.isid.starts_with(&IPXE_ISID);
        runtime.block_on(async {
            if let Err(error) = began(app, &node, is_firmware).await {
                tracing::warn!(%node, detail = error.0.detail, "session not noted");
            }
        });
        Self {
            app: Arc::clone(app),
            runtime: runtime.clone(),
            node,
            initiator: client.initiator.to_owned(),
            target: target.to_owned(),
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let (app, node) = (Arc::clone(&self.app), self.node.clone());
        let (initiator, target) = (self.initiator.clone(), self.target.clone());
        self.runtime.spawn(async move {
            tokio::time::sleep(ABSENCE).await;
            let is_back = sessions(&app).is_none_or(|all| all.has(&initiator, &target));
            if !is_back && let Err(error) = is_gone(&app, &node).await {
                tracing::warn!(%node, detail = error.0.detail, "end of a boot not noted");
            }
        });
    }
}

/// A node's boot that is not over, where it is followed.
async fn followed(app: &App, node: &NodeName) -> Result<Option<(MacAddress, BootStep)>, ApiError> {
    let boots = app.catalog.boots_of(node).await?;
    let Some(boot) = boots.into_iter().find(|boot| boot.ended.is_none()) else {
        return Ok(None);
    };
    if app.boot.transcripts.mac_of(&boot.id).is_none() {
        let row = app.catalog.node(node).await?;
        if let Some(mac) = row.macs.first() {
            resume(app, &boot.id, node, *mac, boot.started).await?;
        }
    }
    let mac = app.boot.transcripts.mac_of(&boot.id);
    Ok(mac.and_then(|mac| Some((mac, app.boot.transcripts.last(mac)?))))
}

async fn began(app: &Arc<App>, node: &NodeName, is_firmware: bool) -> Result<(), ApiError> {
    let Some((mac, last)) = followed(app, node).await? else {
        return Ok(());
    };
    let told = match (is_firmware, last) {
        // An installer has it, which says by itself how it goes.
        (_, BootStep::Installer | BootStep::Installed) => return Ok(()),
        (true, last) if last < BootStep::Iscsi => Told::new(BootStep::Iscsi, "iPXE has logged in"),
        // A connection that was lost, or another of its drivers.
        (true, _) | (false, BootStep::Up) => return Ok(()),
        (false, BootStep::Gone) => Told::new(BootStep::Up, "it is back"),
        (false, _) => Told::new(BootStep::Up, "its system has logged in to its disk"),
    };
    let is_up = told.step == BootStep::Up;
    app.boot.transcripts.step(mac, told);
    if is_up {
        told::later(app, PluginEvent::Up, &app.catalog.node(node).await?);
    }
    Ok(())
}

async fn is_gone(app: &Arc<App>, node: &NodeName) -> Result<(), ApiError> {
    let Some((mac, BootStep::Up)) = followed(app, node).await? else {
        return Ok(());
    };
    let detail = format!("its disk is not open any more, for {} s", ABSENCE.as_secs());
    app.boot
        .transcripts
        .step(mac, Told::new(BootStep::Gone, detail));
    told::later(app, PluginEvent::Gone, &app.catalog.node(node).await?);
    Ok(())
}
