//! A machine that takes the place of another.

use std::{collections::BTreeSet, sync::Arc};

use axum::extract::State;
use rootstock_api::{ChangeReport, NodeReplace, Problem, ProblemCode, paths};
use rootstock_catalog::{NodeRow, NodeState, Pass};
use rootstock_core::{MacAddress, NodeName};

use super::nodes::{changed_as, running, runs};
use crate::{
    app::App,
    http::{
        ApiError,
        extract::{ApiJson, ApiPath},
    },
    nodes,
};

/// Has another machine take a node's place
#[utoipa::path(post, path = paths::NODE_REPLACE, tag = "nodes", operation_id = "node_replace",
    params(("node" = String, Path, description = "The node's name")),
    request_body = NodeReplace,
    responses((status = 200, body = ChangeReport), (status = "default", body = Problem)))]
pub(crate) async fn replace(
    State(app): State<Arc<App>>,
    ApiPath(node): ApiPath<NodeName>,
    ApiJson(request): ApiJson<NodeReplace>,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    if request.macs.is_empty() {
        return Err(ApiError::new(
            ProblemCode::BadValue,
            format!("no network card is named that is to be {node}'s"),
        ));
    }
    let uuid = request.uuid.as_deref().map(nodes::check_uuid).transpose()?;
    let running = running(&app, std::iter::once(&node)).await?;
    if !request.force && !running.is_empty() {
        return Err(runs(&running));
    }
    let found_as = found_as(&app, &node, &request.macs).await?;
    for row in app.catalog.delete_nodes(&found_as).await? {
        app.nodes.gone(&row);
    }
    let change = |row: &mut NodeRow| {
        row.macs.clone_from(&request.macs);
        row.macs.sort_unstable();
        row.macs.dedup();
        row.uuid.clone_from(&uuid);
    };
    let names = std::slice::from_ref(&node);
    let changed = app.catalog.update_nodes(names, Pass::Keep, change).await?;
    app.nodes.note_change();
    tracing::info!(%node, "another machine takes the node's place");
    changed_as(&app, &changed, Pass::Keep).await
}

/// The nodes that a machine was found as and that nobody has approved. One that somebody
/// has is another machine.
async fn found_as(
    app: &App,
    node: &NodeName,
    macs: &[MacAddress],
) -> Result<Vec<NodeName>, ApiError> {
    let mut found = BTreeSet::new();
    for mac in macs {
        match app.catalog.node_by_mac(*mac).await? {
            Some(other) if other.name == *node => {}
            Some(other) if other.state == NodeState::Held => {
                found.insert(other.name);
            }
            Some(other) => {
                let detail = format!("{mac} is a card of {}", other.name);
                return Err(
                    ApiError::new(ProblemCode::Exists, detail).with_hint(format!(
                        "`rootstock node delete {}`, if that machine is to be {node}",
                        other.name
                    )),
                );
            }
            None => {}
        }
    }
    Ok(found.into_iter().collect())
}
