//! What personal nodes wrote: made a version, or dropped.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use rootstock_api::{
    NodeCommit, NodeNames, NodesDone, Problem, ProblemCode, VolumeCommit, boot::NodeMode, paths,
};
use rootstock_core::NodeName;

use crate::{
    app::App,
    boot::{commits, orders},
    http::{
        ApiError,
        auth::Caller,
        extract::{ApiJson, ApiPath},
    },
    nodes, volumes,
};

/// Has what a node wrote made a new version
///
/// A node whose writes are on its own disk sends what changed while it runs on: ask
/// with GET how far it is. One whose writes are in a volume is done at once.
#[utoipa::path(post, path = paths::NODE_COMMIT, tag = "nodes", operation_id = "node_commit",
    params(("node" = String, Path, description = "The node's name")),
    request_body = VolumeCommit,
    responses((status = 202, body = NodeCommit), (status = "default", body = Problem)))]
pub(crate) async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(node): ApiPath<NodeName>,
    ApiJson(request): ApiJson<VolumeCommit>,
) -> Result<(StatusCode, ApiJson<NodeCommit>), ApiError> {
    super::check_text("message", request.message.as_deref().unwrap_or_default())?;
    let begun = commits::begin(&app, &node, request, caller.actor).await?;
    Ok((StatusCode::ACCEPTED, ApiJson(begun)))
}

/// How far the last commit of a node is
#[utoipa::path(get, path = paths::NODE_COMMIT, tag = "nodes", operation_id = "node_commit_show",
    params(("node" = String, Path, description = "The node's name")),
    responses((status = 200, body = NodeCommit), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(node): ApiPath<NodeName>,
) -> Result<ApiJson<NodeCommit>, ApiError> {
    app.catalog.node(&node).await?;
    let shown = app.boot.commits.show(&node).ok_or_else(|| {
        let detail = format!("nobody asked for what {node} wrote since this daemon was started");
        ApiError::new(ProblemCode::BadValue, detail)
            .with_hint(format!("`rootstock node commit {node} IMAGE` asks for it"))
    })?;
    Ok(ApiJson(shown))
}

/// Gives a commit up
#[utoipa::path(delete, path = paths::NODE_COMMIT, tag = "nodes", operation_id = "node_commit_abort",
    params(("node" = String, Path, description = "The node's name")),
    responses((status = 200, body = NodeCommit), (status = "default", body = Problem)))]
pub(crate) async fn abort(
    State(app): State<Arc<App>>,
    ApiPath(node): ApiPath<NodeName>,
) -> Result<ApiJson<NodeCommit>, ApiError> {
    app.catalog.node(&node).await?;
    commits::abort(&app, &node).map(ApiJson)
}

/// Has personal nodes drop what they wrote: at their next boot, or at once in a volume
/// that is not in use
#[utoipa::path(post, path = paths::NODES_RESET, tag = "nodes", operation_id = "node_reset",
    request_body = NodeNames,
    responses((status = 200, body = NodesDone), (status = "default", body = Problem)))]
pub(crate) async fn reset(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeNames>,
) -> Result<ApiJson<NodesDone>, ApiError> {
    let (mut in_volumes, mut on_disks) = (Vec::new(), Vec::new());
    let profiles = nodes::Profiles::read(&app).await?;
    for name in request.nodes.names() {
        let row = app.catalog.node(name).await?;
        let network = nodes::network_of(&app, &row)?;
        let settings = profiles.of_node(&row, network.as_ref())?.settings;
        if settings.has_volume() {
            in_volumes.push((name.clone(), orders::volume_of(name, &settings)?));
        } else if settings.mode == Some(NodeMode::Personal) {
            on_disks.push(name.clone());
        } else {
            let mode = settings.mode.unwrap_or_default();
            let detail = format!("{name} is {mode}: every boot is fresh already");
            return Err(ApiError::new(ProblemCode::BadValue, detail)
                .with_hint("name nodes alone whose mode is personal"));
        }
    }
    let mut nodes = Vec::new();
    for (name, volume) in in_volumes {
        match volumes::reset(&app, &volume).await {
            // One that never booted has none.
            Err(error) if error.0.code == ProblemCode::VolumeNotFound => {}
            done => done?,
        }
        nodes.push(name);
    }
    nodes.extend(app.catalog.reset_personal(&on_disks).await?);
    nodes.sort_unstable();
    Ok(ApiJson(NodesDone {
        nodes,
        running: Vec::new(),
    }))
}
