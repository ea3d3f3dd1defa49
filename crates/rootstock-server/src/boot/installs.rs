//! Nodes that have their image on a disk of their own: what is known of that, and what
//! such a machine is told when it asks what to boot.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    Installation, Node,
    boot::{BootStep, NodeMode},
    install::{InstallOrder, InstallReport, InstallState},
    settings::Settings,
};
use rootstock_catalog::{InstallationRow, NewBoot, NodeRow, VersionRow};
use rootstock_core::{MacAddress, NodeName};

use super::{
    sessions::Session,
    transcript::{Told, name_of},
};
use crate::{
    app::{App, random_id},
    http::ApiError,
};

/// What a script asks with when the disk that it was to start did not start. No query
/// of a script that goes to the network has it.
pub(crate) const DISK_FAILED: &str = "disk=failed";

/// A machine that asks again so soon after it was sent to its disk was not started by
/// it: firmware went on to the network.
const BACK_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// Where a node with an installation goes.
pub(super) enum Way {
    /// To the network: nothing that it is to run is installed.
    Network,
    /// To its own disk.
    OwnDisk(InstallationRow),
    /// To the network, since the disk did not start.
    BackFrom(InstallationRow),
}

/// The installation of just this version on a node whose mode asks for one.
async fn installed(
    app: &App,
    node: &NodeName,
    settings: &Settings,
    version: &VersionRow,
) -> Result<Option<InstallationRow>, ApiError> {
    if settings.mode != Some(NodeMode::Install) {
        return Ok(None);
    }
    let row = app.catalog.installation(node).await?;
    Ok(row.filter(|row| row.is_of(&version.image, version.number)))
}

/// Where a node goes that is to run this version.
pub(super) async fn way(
    app: &App,
    node: &NodeName,
    settings: &Settings,
    version: &VersionRow,
    query: Option<&str>,
) -> Result<Way, ApiError> {
    let Some(row) = installed(app, node, settings, version).await? else {
        return Ok(Way::Network);
    };
    let has_failed = query.is_some_and(|query| query.split('&').any(|one| one == DISK_FAILED));
    if has_failed || was_just_sent(app, node).await? {
        return Ok(Way::BackFrom(row));
    }
    Ok(Way::OwnDisk(row))
}

/// Whether the node's last boot was from its own disk, and began a moment ago.
async fn was_just_sent(app: &App, node: &NodeName) -> Result<bool, ApiError> {
    let Some(last) = app.catalog.boots_of(node).await?.into_iter().next() else {
        return Ok(false);
    };
    let (_, steps) = app.catalog.boot_transcript(&last.id).await?;
    let own_disk = name_of(BootStep::OwnDisk);
    let now = Timestamp::now();
    Ok(steps
        .last()
        .is_some_and(|step| step.step == own_disk && now.duration_since(step.time) < BACK_LIMIT))
}

/// Has the way of a machine end at its own disk. What it ran before is over.
pub(super) async fn leave(
    app: &Arc<App>,
    node: &NodeRow,
    mac: MacAddress,
    row: &InstallationRow,
) -> Result<(), ApiError> {
    let now = Timestamp::now();
    let boot = random_id()?;
    let new = NewBoot {
        id: boot.clone(),
        node: node.name.clone(),
        token: None,
    };
    app.catalog.begin_boot(&new, now).await?;
    app.boot.transcripts.adopt(mac, &node.name, &boot);
    for earlier in app.catalog.boots_of(&node.name).await? {
        if earlier.id != boot && earlier.ended.is_none() {
            app.catalog.end_boot(&earlier.id, now).await?;
        }
    }
    app.boot.sessions.forget(&node.name);
    let detail = format!("{} is installed on {}", row.version, row.device);
    let told = Told::new(BootStep::OwnDisk, detail);
    app.boot.transcripts.step(mac, told);
    Ok(())
}

/// What the transcript of a boot says whose disk did not start.
pub(super) fn says_back(row: &InstallationRow) -> String {
    format!(
        "{} did not start {}, which is installed there: `rootstock node reinstall {}` lays it \
         out anew",
        row.device, row.version, row.node
    )
}

/// What a machine is to lay out.
pub(super) async fn order(
    app: &App,
    session: &Session,
    settings: &Settings,
) -> Result<Option<InstallOrder>, ApiError> {
    if settings.mode != Some(NodeMode::Install) {
        return Ok(None);
    }
    let row = installed(app, &session.node, settings, &session.version).await?;
    // What its user wrote there stays, also when the disk did not start.
    Ok(row.is_none().then(|| InstallOrder {
        disk: settings.install_disk.clone(),
    }))
}

/// Notes how far a machine's installation is. The machine waits for the answer before
/// it writes. Answers what its transcript is to say of that.
pub(super) async fn reported(
    app: &App,
    session: &Session,
    report: &InstallReport,
) -> Result<Option<String>, ApiError> {
    if session.noted_install() == Some(report.state) {
        return Ok(None);
    }
    let mut note = None;
    let node = &session.node;
    match report.state {
        InstallState::Laying => {
            let nodes = std::slice::from_ref(node);
            app.catalog.forget_installations(nodes).await?;
        }
        InstallState::Installed => {
            let (version, now) = (&session.version, Timestamp::now());
            let (image, number) = (&version.image, version.number);
            let set = app
                .catalog
                .set_installation(node, image, number, &report.device, now);
            set.await?;
            let spec = version.spec();
            tracing::info!(%node, version = %spec, device = report.device, "node installed");
        }
        InstallState::Failed => {
            let reason = report.reason.as_deref().unwrap_or("no reason is known");
            note = Some(format!("nothing is installed: {reason}"));
        }
        InstallState::Waiting | InstallState::Unknown => {}
    }
    session.note_install(report.state);
    Ok(note)
}

/// What nodes have installed, entered into their descriptions.
pub(crate) async fn describe(app: &App, nodes: &mut [Node]) -> Result<(), ApiError> {
    let rows = match nodes {
        [node] => Vec::from_iter(app.catalog.installation(&node.name).await?),
        _ => app.catalog.installations().await?,
    };
    let rows = rows.into_iter().map(|row| (row.node.clone(), row));
    let mut rows: HashMap<NodeName, InstallationRow> = rows.collect();
    for node in nodes {
        node.installed = rows.remove(&node.name).map(|row| Installation {
            version: row.version,
            device: row.device,
            at: row.at.to_string(),
        });
    }
    Ok(())
}
