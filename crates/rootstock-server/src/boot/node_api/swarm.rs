//! Machines that hold chunks for others say so.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use rootstock_api::{
    ProblemCode,
    swarm::{SWARM_VERSIONS_MAX, SwarmAnnounce, SwarmAnswer},
};
use rootstock_core::Digest;
use serde::Deserialize;

use super::{Machine, json, small};
use crate::{
    app::App,
    boot::swarm,
    http::{ApiError, ApiQuery},
};

/// Nothing here is secret: certificates are public, and keys stay where they are.
pub(super) async fn announce(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<Json<SwarmAnswer>, ApiError> {
    let said: SwarmAnnounce = json(request).await?;
    let count = said.holds.len();
    if count > SWARM_VERSIONS_MAX {
        let detail = format!("{count} versions, and the limit is {SWARM_VERSIONS_MAX}");
        return Err(ApiError::new(ProblemCode::TooLarge, detail));
    }
    let answer = swarm::announce(&app, &machine, &said);
    answer.await.map(Json)
}

/// Of which version.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    version: Digest,
}

pub(super) async fn holds(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(Which { version }): ApiQuery<Which>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let bitmap = small(request).await?;
    swarm::holds(&app, &machine.session, version, bitmap.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}
