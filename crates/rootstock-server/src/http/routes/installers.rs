//! Installers, and the nodes that are to run one.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use axum::extract::State;
use jiff::Timestamp;
use rootstock_api::{
    InstallTarget, Installer, InstallerList, InstallerRender, InstallerRendered, InstallerRun,
    InstallerRunState, Node, NodeNames, NodesDone, NodesInstall, NodesInstalling, Problem,
    ProblemCode, paths, settings::Settings,
};
use rootstock_catalog::{CatalogError, InstallerRunRow, NodeRow, NodeState};
use rootstock_core::{InstallerName, NodeName, VolumeName};

use super::nodes::{running, runs};
use crate::{
    app::App,
    boot::{installer, orders},
    http::{
        ApiError,
        extract::{ApiJson, ApiPath},
    },
    installers, nodes, volumes,
};

/// All installers
#[utoipa::path(get, path = paths::INSTALLERS, tag = "installers", operation_id = "installer_list",
    responses((status = 200, body = InstallerList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<InstallerList>, ApiError> {
    let directory = app.config.boot.installers.clone();
    let text = directory.display().to_string();
    let listed = app
        .blocking(move |_| Ok(installers::list(&directory)?))
        .await?;
    Ok(ApiJson(InstallerList {
        installers: listed,
        directory: text,
    }))
}

/// One installer
#[utoipa::path(get, path = paths::INSTALLER, tag = "installers", operation_id = "installer_show",
    params(("installer" = String, Path, description = "The installer's name")),
    responses((status = 200, body = Installer), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(name): ApiPath<InstallerName>,
) -> Result<ApiJson<Installer>, ApiError> {
    let directory = app.config.boot.installers.clone();
    let described = move |_: &App| Ok(installers::describe(&directory, name)?);
    Ok(ApiJson(app.blocking(described).await?))
}

/// What an installer would be given on a node
#[utoipa::path(post, path = paths::INSTALLER_RENDER, tag = "installers",
    operation_id = "installer_render",
    params(("installer" = String, Path, description = "The installer's name")),
    request_body = InstallerRender,
    responses((status = 200, body = InstallerRendered), (status = "default", body = Problem)))]
pub(crate) async fn render(
    State(app): State<Arc<App>>,
    ApiPath(name): ApiPath<InstallerName>,
    ApiJson(request): ApiJson<InstallerRender>,
) -> Result<ApiJson<InstallerRendered>, ApiError> {
    let node = app.catalog.node(&request.node).await?;
    Ok(ApiJson(installer::render(&app, &name, &node).await?))
}

/// Has nodes run an installer at their next boot: all or none
#[utoipa::path(post, path = paths::NODES_INSTALL, tag = "installers",
    operation_id = "node_install", request_body = NodesInstall,
    responses((status = 200, body = NodesInstalling), (status = "default", body = Problem)))]
pub(crate) async fn install(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodesInstall>,
) -> Result<ApiJson<NodesInstalling>, ApiError> {
    let names = request.nodes.names();
    let running = running(&app, names.iter()).await?;
    if !request.force && !running.is_empty() {
        return Err(runs(&running));
    }
    let mut rows = Vec::new();
    for name in names {
        let row = app.catalog.node(name).await?;
        // What would go wrong at the boot is said now.
        installer::render(&app, &request.installer, &row).await?;
        rows.push(row);
    }
    let mut targets = targets(&app, &rows).await?;
    check_size(&targets, request.volume_bytes)?;
    for target in &mut targets {
        make_volume(&app, target, request.volume_bytes).await?;
    }
    let asked = app
        .catalog
        .ask_for_installer(names, &request.installer, Timestamp::now());
    asked.await?;
    app.nodes.note_change();
    Ok(ApiJson(NodesInstalling { nodes: targets }))
}

/// Has nodes run no installer
#[utoipa::path(post, path = paths::NODES_INSTALL_CANCEL, tag = "installers",
    operation_id = "node_install_cancel", request_body = NodeNames,
    responses((status = 200, body = NodesDone), (status = "default", body = Problem)))]
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeNames>,
) -> Result<ApiJson<NodesDone>, ApiError> {
    let forgotten = app.catalog.forget_installers(request.nodes.names());
    let nodes = forgotten.await?;
    app.nodes.note_change();
    Ok(ApiJson(NodesDone {
        nodes,
        running: Vec::new(),
    }))
}

/// Where an installer would find each node's disk. `made` says that it is to be made.
async fn targets(app: &Arc<App>, rows: &[NodeRow]) -> Result<Vec<InstallTarget>, ApiError> {
    let (mut targets, mut volumes) = (Vec::new(), BTreeSet::new());
    for row in rows {
        if row.state == NodeState::Held {
            let detail = format!("{} waits for approval", row.name);
            let hint = format!("`rootstock node approve {}` first", row.name);
            return Err(ApiError::new(ProblemCode::BadValue, detail).with_hint(hint));
        }
        let settings = nodes::effective(app, row, None).await?.settings;
        let target = target(app, &row.name, &settings).await?;
        if let Some(volume) = &target.volume
            && !volumes.insert(volume.clone())
        {
            let detail = format!("two of the nodes have the volume '{volume}' as their disk");
            return Err(ApiError::new(ProblemCode::BadValue, detail));
        }
        targets.push(target);
    }
    Ok(targets)
}

async fn target(
    app: &App,
    node: &NodeName,
    settings: &Settings,
) -> Result<InstallTarget, ApiError> {
    installer::check_mode(node, settings)?;
    let mut target = InstallTarget {
        node: node.clone(),
        volume: None,
        made: false,
    };
    if settings.is_iscsi() {
        let volume = orders::volume_of(node, settings)?;
        target.made = match app.catalog.volume(&volume).await {
            Ok(_) => false,
            Err(CatalogError::VolumeNotFound { .. }) if settings.volume.is_none() => true,
            Err(error) => return Err(error.into()),
        };
        target.volume = Some(volume);
    }
    Ok(target)
}

fn check_size(targets: &[InstallTarget], size: Option<u64>) -> Result<(), ApiError> {
    let Some(target) = targets.iter().find(|target| target.made) else {
        return Ok(());
    };
    if size.is_some() {
        return Ok(());
    }
    let node = &target.node;
    let detail = format!("{node} has no volume yet, and nobody says how large it is to be");
    let hint = format!("`rootstock node install {node} --installer … --size 20G`");
    Err(ApiError::new(ProblemCode::BadValue, detail).with_hint(hint))
}

async fn make_volume(
    app: &Arc<App>,
    target: &InstallTarget,
    size: Option<u64>,
) -> Result<(), ApiError> {
    let (true, Some(volume), Some(size)) = (target.made, &target.volume, size) else {
        return Ok(());
    };
    let volume: VolumeName = volume.clone();
    volumes::create_blank(app, volume, size, volumes::Kind::bootable(false)).await?;
    Ok(())
}

/// Says of nodes what an installer is to do there, or did.
pub(super) async fn describe_nodes(app: &App, described: &mut [Node]) -> Result<(), ApiError> {
    let rows = match described {
        [node] => Vec::from_iter(app.catalog.installer_run(&node.name).await?),
        _ => app.catalog.installer_runs().await?,
    };
    let rows = rows.into_iter().map(|row| (row.node.clone(), row));
    let mut rows: HashMap<NodeName, InstallerRunRow> = rows.collect();
    for node in described {
        node.installer = rows.remove(&node.name).map(describe);
    }
    Ok(())
}

fn describe(row: InstallerRunRow) -> InstallerRun {
    let state = match (&row.start, &row.ended, &row.failed) {
        (_, Some(_), None) => InstallerRunState::Done,
        (_, Some(_), Some(_)) => InstallerRunState::Failed,
        (Some(_), None, _) => InstallerRunState::Running,
        (None, None, _) => InstallerRunState::Waiting,
    };
    InstallerRun {
        installer: row.installer,
        state,
        asked: row.asked.to_string(),
        starts: row.starts,
        started: row.start.map(|start| start.at.to_string()),
        ended: row.ended.map(|at| at.to_string()),
        reason: row.failed,
    }
}
