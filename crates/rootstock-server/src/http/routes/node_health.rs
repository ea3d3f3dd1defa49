//! Versions that nodes do not come up with, and those that they have installed.

use std::{collections::HashMap, sync::Arc};

use axum::extract::State;
use rootstock_api::{Node, NodeNames, NodesDone, Problem, paths};

use crate::{
    app::App,
    boot::{health, installs},
    http::{ApiError, extract::ApiJson},
    recipes,
};

/// Lets nodes try versions again that failed there
#[utoipa::path(post, path = paths::NODES_RETRY, tag = "nodes", operation_id = "node_retry",
    request_body = NodeNames,
    responses((status = 200, body = NodesDone), (status = "default", body = Problem)))]
pub(crate) async fn retry(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeNames>,
) -> Result<ApiJson<NodesDone>, ApiError> {
    let nodes = app.catalog.forget_failures(request.nodes.names()).await?;
    app.nodes.note_change();
    Ok(ApiJson(NodesDone {
        nodes,
        running: Vec::new(),
    }))
}

/// Has nodes lay their image out on their disk anew, at their next boot
#[utoipa::path(post, path = paths::NODES_REINSTALL, tag = "nodes",
    operation_id = "node_reinstall", request_body = NodeNames,
    responses((status = 200, body = NodesDone), (status = "default", body = Problem)))]
pub(crate) async fn reinstall(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeNames>,
) -> Result<ApiJson<NodesDone>, ApiError> {
    let nodes = app.catalog.forget_installations(request.nodes.names());
    let nodes = nodes.await?;
    app.nodes.note_change();
    Ok(ApiJson(NodesDone {
        nodes,
        running: Vec::new(),
    }))
}

/// Says of nodes which version they do not come up with, and which they have installed.
pub(super) async fn describe(app: &App, nodes: &mut [Node]) -> Result<(), ApiError> {
    installs::describe(app, nodes).await?;
    super::installers::describe_nodes(app, nodes).await?;
    let mut rows = match nodes {
        [node] => HashMap::from([(
            node.name.clone(),
            app.catalog.version_health(&node.name).await?,
        )]),
        _ => health::by_node(app).await?,
    };
    rows.retain(|_, rows| rows.iter().any(|row| row.failed.is_some()));
    let mut versions = HashMap::new();
    for node in nodes {
        let (Some(rows), Some(spec)) = (rows.get(&node.name), &node.effective.image) else {
            continue;
        };
        if !versions.contains_key(spec) {
            let version = recipes::version_if_any(app, spec).await?;
            versions.insert(spec.clone(), version);
        }
        if let Some(Some(assigned)) = versions.get(spec) {
            node.abandoned = health::abandoned(rows, &node.effective, assigned);
        }
    }
    Ok(())
}
