//! Starting machines anew, and waking them up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::extract::State;
use rootstock_api::{NodeNames, NodeReboot, NodeState, NodesTold, Problem, paths};
use rootstock_catalog::RebootKind;
use rootstock_core::NodeName;

use crate::{
    app::App,
    boot::wake,
    http::{ApiError, extract::ApiJson},
    nodes,
};

/// Starts machines anew that run
#[utoipa::path(post, path = paths::NODES_REBOOT, tag = "nodes", operation_id = "node_reboot",
    request_body = NodeReboot,
    responses((status = 200, body = NodesTold), (status = "default", body = Problem)))]
pub(crate) async fn reboot(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeReboot>,
) -> Result<ApiJson<NodesTold>, ApiError> {
    let (run, others) = split(&app, request.nodes.names()).await?;
    let kind = match request.force {
        true => RebootKind::Forced,
        false => RebootKind::Orderly,
    };
    let nodes = app.catalog.order_reboots(&run, kind).await?;
    app.nodes.note_version_change();
    for node in &nodes {
        tracing::info!(%node, ?kind, "machine is told to start anew");
    }
    Ok(ApiJson(NodesTold { nodes, others }))
}

/// Wakes machines up that do not run, by Wake-on-LAN
#[utoipa::path(post, path = paths::NODES_WAKE, tag = "nodes", operation_id = "node_wake",
    request_body = NodeNames,
    responses((status = 200, body = NodesTold), (status = "default", body = Problem)))]
pub(crate) async fn wake(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeNames>,
) -> Result<ApiJson<NodesTold>, ApiError> {
    let (others, off) = split(&app, request.nodes.names()).await?;
    wake::wake_nodes(&app, &off).await?;
    Ok(ApiJson(NodesTold { nodes: off, others }))
}

/// Which of these nodes run, and which do not.
async fn split(app: &App, names: &[NodeName]) -> Result<(Vec<NodeName>, Vec<NodeName>), ApiError> {
    let mut running = BTreeSet::new();
    let last = app.catalog.last_boots().await?.into_iter();
    let last: BTreeMap<_, _> = last.map(|boot| (boot.0.node.clone(), boot)).collect();
    for name in names {
        let row = app.catalog.node(name).await?;
        let boot = last.get(name);
        let state = nodes::status(&row, boot, None).state;
        let has_session = boot.is_some_and(|(boot, _)| boot.redeemed.is_some());
        let is_there = boot.is_some_and(|(boot, _)| app.boot.sessions.is_alive(&boot.id));
        let runs = matches!(state, NodeState::Up | NodeState::Booting);
        if has_session && (is_there || runs) {
            running.insert(name.clone());
        }
    }
    Ok(names
        .iter()
        .cloned()
        .partition(|name| running.contains(name)))
}
