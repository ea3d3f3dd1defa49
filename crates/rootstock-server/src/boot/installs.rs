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
    sessions::{self, Session},
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

/// One that was sent there so often within so long was not either: some firmware takes
/// minutes until it is back.
const SENT_MAX: usize = 3;
const SENT_LIMIT: SignedDuration = SignedDuration::from_mins(30);

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

/// Whether the node was sent to its disk a moment ago, or again and again.
async fn was_just_sent(app: &App, node: &NodeName) -> Result<bool, ApiError> {
    let now = Timestamp::now();
    let mut sent = Vec::new();
    for boot in app.catalog.boots_of(node).await?.into_iter().take(SENT_MAX) {
        let (_, steps) = app.catalog.boot_transcript(&boot.id).await?;
        match steps.last() {
            Some(step) if step.step == name_of(BootStep::OwnDisk) => sent.push(step.time),
            _ => break,
        }
    }
    let within =
        |at: Option<&Timestamp>, limit| at.is_some_and(|at| now.duration_since(*at) < limit);
    Ok(within(sent.first(), BACK_LIMIT) || within(sent.get(SENT_MAX - 1), SENT_LIMIT))
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
    sessions::end_earlier(app, &node.name, &boot).await?;
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
            let version = (&session.version.image, session.version.number);
            let begun =
                app.catalog
                    .begin_installation(node, version, &session.boot, &report.device);
            begun.await?;
        }
        InstallState::Installed => {
            let now = Timestamp::now();
            let whole = app.catalog.finish_installation(node, &session.boot, now);
            if whole.await? {
                let version = session.version.spec();
                tracing::info!(%node, %version, device = report.device, "node installed");
            }
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
