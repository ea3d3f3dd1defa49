//! Machines on which a distribution's installer is to run before anything else: it is
//! started, gets files made for this machine, and calls home.
//!
//! Everything that an installer asks for is made when it asks, of the catalog and of the
//! installer's folder: nothing is lost when the daemon restarts meanwhile.

use std::{net::IpAddr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    InstallerEnd, InstallerRendered, ProblemCode,
    boot::{BootStep, NodeMode},
    settings::Settings,
};
use rootstock_catalog::{CatalogError, InstallerRunRow, InstallerStart, NewBoot, NodeRow};
use rootstock_core::{Digest, InstallerName, MacAddress, NodeName};
use rootstock_netboot::script::{Argument, LinuxPlan, SanPlan};

use self::machine::{Known, Machine};
use super::{
    decide::{Decision, Step, failed},
    files::Asked,
    interfaces::BootPlace,
    networks::Network,
    orders, san, sessions,
    transcript::{Told, name_of},
};
use crate::{
    app::{App, random_id},
    http::{ApiError, chain},
    installers::Folder,
};

mod files;
mod machine;

pub(super) use files::find;

/// How soon after its start no installer is done: a machine that starts again within this
/// time has not run it.
const SOONEST_END: SignedDuration = SignedDuration::from_secs(60);

/// What paths of installers begin with; their token follows.
pub(super) const PATH: &str = "/boot/i/";

/// What installers say, below that.
pub(super) const CALLS: [&str; 3] = ["done", "failed", "say"];

/// Where the files of an installer's start are.
fn path(token: &str) -> String {
    format!("{PATH}{token}/")
}

/// Sends a machine to its installer, if one is to run on it.
pub(super) async fn next(
    app: &Arc<App>,
    asked: Asked<'_>,
    node: &NodeRow,
    mac: MacAddress,
    settings: &Settings,
    network: &Network,
) -> Step<()> {
    let lost = |error: CatalogError| failed("look for an installer", chain(&error));
    let run = app.catalog.installer_run(&node.name).await.map_err(lost)?;
    let Some(run) = run else {
        return Ok(());
    };
    if let Some(reason) = &run.failed {
        return Err(given_up(&run, reason));
    }
    if run.ended.is_some() {
        return Ok(());
    }
    let folder = folder(app, &run.installer).await;
    let folder = folder.map_err(|error| failed("start the installer", error.0.detail))?;
    let was_sent = was_sent(app, &run).await.map_err(lost)?;
    if was_sent && folder.ends() == InstallerEnd::Restart {
        end(app, &run, None).await.map_err(lost)?;
        return Ok(());
    }
    let goes_on = app.boot.transcripts.open_boot(mac);
    let goes_on = goes_on.filter(|boot| run.start.as_ref().is_some_and(|s| s.boot == *boot));
    if goes_on.is_none() && run.starts >= folder.starts_max() {
        let reason = format!("was started {} times and did not call home", run.starts);
        end(app, &run, Some(&reason)).await.map_err(lost)?;
        return Err(given_up(&run, &reason));
    }
    let start = Start {
        app,
        asked,
        node,
        mac,
        settings,
        network,
        run: &run,
        folder: &folder,
    };
    Err(start.begin(goes_on).await?)
}

/// The machine waits: to start an installer again and again helps nobody, and neither
/// does half a system.
fn given_up(run: &InstallerRunRow, reason: &str) -> Decision {
    let (node, installer) = (&run.node, &run.installer);
    Decision::Refused {
        lines: vec![
            format!("{installer} {reason}."),
            format!("Start it anew:  rootstock node install {node} --installer {installer}"),
            format!("Or go without:  rootstock node install {node} --cancel"),
        ],
    }
}

/// Whether the machine got all of the installer at its last start, long enough ago to
/// have run it.
async fn was_sent(app: &App, run: &InstallerRunRow) -> Result<bool, CatalogError> {
    let Some(start) = &run.start else {
        return Ok(false);
    };
    let (_, steps) = match app.catalog.boot_transcript(&start.boot).await {
        Err(CatalogError::BootNotFound { .. }) => return Ok(false),
        found => found?,
    };
    let sent = name_of(BootStep::Installer);
    let sent = steps.into_iter().find(|step| step.step == sent);
    Ok(sent.is_some_and(|step| Timestamp::now().duration_since(step.time) >= SOONEST_END))
}

/// Records that a run is over. Answers whether that is news.
async fn end(app: &App, run: &InstallerRunRow, reason: Option<&str>) -> Result<bool, CatalogError> {
    let is_news = app
        .catalog
        .end_installer(run, reason, Timestamp::now())
        .await?;
    if is_news {
        app.nodes.note_change();
        let (node, installer) = (&run.node, &run.installer);
        tracing::info!(%node, %installer, reason, "installer ended");
    }
    Ok(is_news)
}

/// Reads an installer's folder.
async fn folder(app: &App, name: &InstallerName) -> Result<Folder, ApiError> {
    let (directory, name) = (app.config.boot.installers.clone(), name.clone());
    let read = tokio::task::spawn_blocking(move || Folder::read(&directory, &name)).await;
    let read = read.map_err(|error| ApiError::internal("read an installer", &error))?;
    Ok(read?)
}

/// A start of an installer on a machine.
struct Start<'a> {
    app: &'a Arc<App>,
    asked: Asked<'a>,
    node: &'a NodeRow,
    mac: MacAddress,
    settings: &'a Settings,
    network: &'a Network,
    run: &'a InstallerRunRow,
    folder: &'a Folder,
}

impl Start<'_> {
    async fn begin(&self, goes_on: Option<String>) -> Step<Decision> {
        let Self { app, node, run, .. } = self;
        let lost = |error: ApiError| failed("start the installer", error.0.to_string());
        let disk = self.disk().await?;
        let boot = match goes_on {
            Some(boot) => boot,
            None => self.new_boot().await.map_err(lost)?,
        };
        let token = random_id().map_err(lost)?;
        let start = InstallerStart {
            token: Digest::of(token.as_bytes()),
            source: self.asked.peer,
            boot,
            at: Timestamp::now(),
        };
        let known = Known {
            node,
            settings: self.settings,
            network: self.network,
            peer: Some(self.asked.peer),
            local: self.asked.local,
        };
        let machine = Machine::with_token(app, known, &token)
            .await
            .map_err(lost)?;
        let arguments = arguments(self.folder, self.settings, &machine).map_err(lost)?;
        let goes = app.catalog.start_installer(&node.name, &start).await;
        if !goes.map_err(|error| failed("record the start", chain(&error)))? {
            let line = format!("{} is not to run an installer any more.", node.name);
            return Err(Decision::Refused { lines: vec![line] });
        }
        let is_same = run
            .start
            .as_ref()
            .is_some_and(|last| last.boot == start.boot);
        let count = run.starts + u32::from(!is_same);
        let says = format!(
            "the installer {}, start {count} of {}",
            run.installer,
            self.folder.starts_max()
        );
        let told = Told::new(BootStep::ScriptServed, says);
        app.boot.transcripts.step(self.mac, told);
        Ok(Decision::Linux(Box::new(LinuxPlan {
            title: format!("{} runs the installer {}", node.name, run.installer),
            path: path(&token),
            arguments,
            disk,
        })))
    }

    /// Makes the machine's disk ready, if it is reached over iSCSI.
    async fn disk(&self) -> Step<Option<SanPlan>> {
        if !self.settings.is_iscsi() {
            return Ok(None);
        }
        check_mode(&self.node.name, self.settings)
            .map_err(|error| failed("make its disk ready", error.0.to_string()))?;
        let place = (self.asked.peer, self.asked.local);
        let plan = san::installing(self.app, self.node, self.settings, place).await?;
        Ok(Some(plan))
    }

    async fn new_boot(&self) -> Result<String, ApiError> {
        let boot = random_id()?;
        let new = NewBoot {
            id: boot.clone(),
            node: self.node.name.clone(),
            token: None,
        };
        self.app.catalog.begin_boot(&new, Timestamp::now()).await?;
        let transcripts = &self.app.boot.transcripts;
        transcripts.adopt(self.mac, &self.node.name, &boot);
        sessions::end_earlier(self.app, &self.node.name, &boot).await?;
        Ok(boot)
    }
}

/// The installer's own arguments, and the node's console.
fn arguments(
    folder: &Folder,
    settings: &Settings,
    machine: &Machine,
) -> Result<Vec<Argument>, ApiError> {
    let mut text = folder.arguments(machine)?;
    for console in settings
        .console
        .iter()
        .flat_map(|text| text.split_whitespace())
    {
        text.push_str(" console=");
        text.push_str(console);
    }
    Argument::all(&text).map_err(|error| ApiError::new(ProblemCode::BadValue, error.to_string()))
}

/// Refuses to install on a disk that is thrown away at the next boot.
pub(crate) fn check_mode(node: &NodeName, settings: &Settings) -> Result<(), ApiError> {
    if settings.mode != Some(NodeMode::IscsiFrozen) {
        return Ok(());
    }
    let detail = format!("the mode of {node} is iscsi-frozen: what is installed would be gone");
    let hint = format!(
        "`rootstock node set {node} --mode iscsi`, then commit its volume to an image when it is \
         installed"
    );
    Err(ApiError::new(ProblemCode::BadValue, detail).with_hint(hint))
}

/// What an installer would be given on a node.
pub(crate) async fn render(
    app: &App,
    installer: &InstallerName,
    node: &NodeRow,
) -> Result<InstallerRendered, ApiError> {
    let folder = folder(app, installer).await?;
    let places = app.boot.networks.places();
    let place = place_of(node, &places);
    let local = IpAddr::V4(place.map_or([127, 0, 0, 1].into(), |place| place.address));
    let peer = node.address.map(IpAddr::V4);
    let network = app.boot.networks.of(peer.unwrap_or(local), local);
    let settings = orders::settings(app, node, &network).await?;
    let machine = Machine::without_token(
        app,
        &Known {
            node,
            settings: &settings,
            network: &network,
            peer,
            local,
        },
    );
    let arguments = arguments(&folder, &settings, &machine)?;
    let arguments = arguments.iter().map(|one| one.as_str().to_owned());
    let mut rendered = InstallerRendered {
        arguments: arguments.collect(),
        files: std::collections::BTreeMap::default(),
    };
    for name in folder.files() {
        if let Some(text) = folder.file(name, &machine)? {
            rendered.files.insert(name.to_owned(), text);
        }
    }
    Ok(rendered)
}

/// Where a node would ask.
fn place_of<'a>(node: &NodeRow, places: &'a [BootPlace]) -> Option<&'a BootPlace> {
    let has_it = |place: &&BootPlace| node.address.is_some_and(|one| place.subnet.contains(one));
    places.iter().find(has_it).or_else(|| places.first())
}
