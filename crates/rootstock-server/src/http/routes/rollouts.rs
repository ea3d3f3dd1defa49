//! Rollouts.

use std::sync::Arc;

use axum::extract::State;
use rootstock_api::{Problem, RolloutDetail, RolloutList, RolloutStart, RolloutStarted, paths};

use crate::{
    app::App,
    http::{
        ApiError,
        auth::Caller,
        extract::{ApiJson, ApiPath},
    },
    rollouts,
};

/// All rollouts that are not over, and the last that are
#[utoipa::path(get, path = paths::ROLLOUTS, tag = "rollouts", operation_id = "rollout_list",
    responses((status = 200, body = RolloutList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<RolloutList>, ApiError> {
    let rollouts = rollouts::list(&app).await?;
    Ok(ApiJson(RolloutList { rollouts }))
}

/// Begins a rollout, or works out what it would do
#[utoipa::path(post, path = paths::ROLLOUTS, tag = "rollouts", operation_id = "rollout_start",
    request_body = RolloutStart,
    responses((status = 200, body = RolloutStarted), (status = "default", body = Problem)))]
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<RolloutStart>,
) -> Result<ApiJson<RolloutStarted>, ApiError> {
    let started = rollouts::start(&app, &request, &caller.actor).await?;
    Ok(ApiJson(started))
}

/// A rollout and its nodes
#[utoipa::path(get, path = paths::ROLLOUT, tag = "rollouts", operation_id = "rollout_show",
    params(("rollout" = u64, Path, description = "its number")),
    responses((status = 200, body = RolloutDetail), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(rollout): ApiPath<u64>,
) -> Result<ApiJson<RolloutDetail>, ApiError> {
    Ok(ApiJson(rollouts::detail(&app, rollout).await?))
}

/// Halts a rollout
#[utoipa::path(post, path = paths::ROLLOUT_PAUSE, tag = "rollouts",
    operation_id = "rollout_pause",
    params(("rollout" = u64, Path, description = "its number")),
    responses((status = 200, body = RolloutDetail), (status = "default", body = Problem)))]
pub(crate) async fn pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(rollout): ApiPath<u64>,
) -> Result<ApiJson<RolloutDetail>, ApiError> {
    rollouts::pause(&app, rollout, &caller.actor).await?;
    Ok(ApiJson(rollouts::detail(&app, rollout).await?))
}

/// Has a rollout go on that was paused or stopped
#[utoipa::path(post, path = paths::ROLLOUT_RESUME, tag = "rollouts",
    operation_id = "rollout_resume",
    params(("rollout" = u64, Path, description = "its number")),
    responses((status = 200, body = RolloutDetail), (status = "default", body = Problem)))]
pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    ApiPath(rollout): ApiPath<u64>,
) -> Result<ApiJson<RolloutDetail>, ApiError> {
    rollouts::resume(&app, rollout).await?;
    Ok(ApiJson(rollouts::detail(&app, rollout).await?))
}

/// Ends a rollout, and puts nodes back that did not come up with the version
#[utoipa::path(post, path = paths::ROLLOUT_ABORT, tag = "rollouts",
    operation_id = "rollout_abort",
    params(("rollout" = u64, Path, description = "its number")),
    responses((status = 200, body = RolloutDetail), (status = "default", body = Problem)))]
pub(crate) async fn abort(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(rollout): ApiPath<u64>,
) -> Result<ApiJson<RolloutDetail>, ApiError> {
    rollouts::abort(&app, rollout, &caller.actor).await?;
    Ok(ApiJson(rollouts::detail(&app, rollout).await?))
}
