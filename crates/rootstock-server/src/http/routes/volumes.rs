//! Volumes.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use rootstock_api::{
    HolderKind, Problem, ProblemCode, Share, ShareEnd, ShareSet, SharedTarget, Volume,
    VolumeCommit, VolumeCommitted, VolumeCreate, VolumeList, VolumeResize, VolumeSnapshot, paths,
};
use rootstock_catalog::{Shareable, VolumeRow, VolumeState};
use rootstock_core::VolumeName;

use crate::{
    app::App,
    exports::volume_name,
    http::{
        ApiError,
        auth::Caller,
        extract::{ApiJson, ApiPath},
    },
    leases::Key,
    targets, volumes,
};

/// All volumes
#[utoipa::path(get, path = paths::VOLUMES, tag = "volumes", operation_id = "volume_list", responses(
    (status = 200, body = VolumeList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<VolumeList>, ApiError> {
    let rows = app.catalog.volumes().await?;
    let ready = rows
        .into_iter()
        .filter(|row| row.state == VolumeState::Ready);
    // With whom each is shared is shown by itself: there may be many.
    let volumes = ready.map(|row| describe(&app, row, Vec::new())).collect();
    Ok(ApiJson(VolumeList { volumes }))
}

/// Makes a volume
#[utoipa::path(post, path = paths::VOLUMES, tag = "volumes", operation_id = "volume_create",
    request_body = VolumeCreate,
    responses((status = 201, body = Volume), (status = "default", body = Problem)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<VolumeCreate>,
) -> Result<(StatusCode, ApiJson<Volume>), ApiError> {
    let VolumeCreate {
        name,
        from,
        size_bytes,
        ephemeral,
        block_bytes,
    } = request;
    let kind = volumes::Kind {
        ephemeral,
        block_bytes,
    };
    let row = match (from, size_bytes) {
        (Some(from), size_bytes) => volumes::create(&app, name, &from, size_bytes, kind).await?,
        (None, Some(size_bytes)) => volumes::create_blank(&app, name, size_bytes, kind).await?,
        (None, None) => {
            let detail = format!("volume '{name}' is to be an empty disk, and has no size");
            return Err(ApiError::new(ProblemCode::BadValue, detail)
                .with_hint("give `size_bytes`, or the version to clone as `from`"));
        }
    };
    Ok((
        StatusCode::CREATED,
        ApiJson(describe(&app, row, Vec::new())),
    ))
}

/// A volume
#[utoipa::path(get, path = paths::VOLUME, tag = "volumes", operation_id = "volume_show",
    params(("volume" = String, Path, description = "The volume's name")),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
) -> Result<ApiJson<Volume>, ApiError> {
    let row = app.catalog.volume(&volume).await?;
    let shares = targets::shares(&app, &Shareable::Volume(volume)).await?;
    Ok(ApiJson(describe(&app, row, shares)))
}

/// Deletes a volume that nobody has open
#[utoipa::path(delete, path = paths::VOLUME, tag = "volumes", operation_id = "volume_delete",
    params(("volume" = String, Path, description = "The volume's name")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
) -> Result<StatusCode, ApiError> {
    volumes::delete(&app, &volume).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a volume larger
#[utoipa::path(post, path = paths::VOLUME_RESIZE, tag = "volumes", operation_id = "volume_resize",
    params(("volume" = String, Path, description = "The volume's name")),
    request_body = VolumeResize,
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(crate) async fn resize(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
    ApiJson(request): ApiJson<VolumeResize>,
) -> Result<ApiJson<Volume>, ApiError> {
    volumes::resize(&app, &volume, request.size_bytes).await?;
    show(State(app), ApiPath(volume)).await
}

/// Drops what was written to a volume that nobody has open
#[utoipa::path(post, path = paths::VOLUME_RESET, tag = "volumes", operation_id = "volume_reset",
    params(("volume" = String, Path, description = "The volume's name")),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(crate) async fn reset(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
) -> Result<ApiJson<Volume>, ApiError> {
    volumes::reset(&app, &volume).await?;
    show(State(app), ApiPath(volume)).await
}

/// Copies a volume, as it is now, into a new one
#[utoipa::path(post, path = paths::VOLUME_SNAPSHOT, tag = "volumes", operation_id = "volume_snapshot",
    params(("volume" = String, Path, description = "The volume's name")),
    request_body = VolumeSnapshot,
    responses((status = 201, body = Volume), (status = "default", body = Problem)))]
pub(crate) async fn snapshot(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
    ApiJson(request): ApiJson<VolumeSnapshot>,
) -> Result<(StatusCode, ApiJson<Volume>), ApiError> {
    let row = volumes::snapshot(&app, &volume, request.name).await?;
    Ok((
        StatusCode::CREATED,
        ApiJson(describe(&app, row, Vec::new())),
    ))
}

/// Shares a volume with an iSCSI initiator; secrets are shown this once
#[utoipa::path(post, path = paths::VOLUME_SHARE, tag = "volumes", operation_id = "volume_share",
    params(("volume" = String, Path, description = "The volume's name")),
    request_body = ShareSet,
    responses((status = 200, body = SharedTarget), (status = "default", body = Problem)))]
pub(crate) async fn share(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
    ApiJson(request): ApiJson<ShareSet>,
) -> Result<ApiJson<SharedTarget>, ApiError> {
    let disk = Shareable::Volume(volume);
    Ok(ApiJson(targets::share(&app, disk, request).await?))
}

/// Ends a share, and the sessions that there are
#[utoipa::path(post, path = paths::VOLUME_UNSHARE, tag = "volumes", operation_id = "volume_unshare",
    params(("volume" = String, Path, description = "The volume's name")),
    request_body = ShareEnd,
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(crate) async fn unshare(
    State(app): State<Arc<App>>,
    ApiPath(volume): ApiPath<VolumeName>,
    ApiJson(request): ApiJson<ShareEnd>,
) -> Result<ApiJson<Volume>, ApiError> {
    app.catalog.volume(&volume).await?;
    let disk = Shareable::Volume(volume.clone());
    targets::unshare(&app, &disk, &request.initiator).await?;
    show(State(app), ApiPath(volume)).await
}

/// Makes a volume's contents a new version
#[utoipa::path(post, path = paths::VOLUME_COMMIT, tag = "volumes", operation_id = "volume_commit",
    params(("volume" = String, Path, description = "The volume's name")),
    request_body = VolumeCommit,
    responses((status = 200, body = VolumeCommitted), (status = "default", body = Problem)))]
pub(crate) async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(volume): ApiPath<VolumeName>,
    ApiJson(request): ApiJson<VolumeCommit>,
) -> Result<ApiJson<VolumeCommitted>, ApiError> {
    super::check_text("message", request.message.as_deref().unwrap_or_default())?;
    let committed = volumes::commit_volume(&app, &volume, request, caller.actor).await?;
    Ok(ApiJson(committed))
}

fn describe(app: &App, row: VolumeRow, shares: Vec<Share>) -> Volume {
    let (size_bytes, used_bytes) = app.volumes.measure(&row);
    let uses = app.leases.of(&Key::Volume(row.name.clone()));
    let clients = uses.into_iter().map(|held| held.holder);
    let clients = clients.filter(|holder| holder.kind == HolderKind::Client);
    Volume {
        base: row.base(),
        size_bytes,
        used_bytes,
        ephemeral: row.ephemeral,
        block_bytes: row.block_bytes,
        created: row.created.to_string(),
        export: volume_name(&row.name),
        clients: clients.map(|holder| holder.name).collect(),
        target: targets::volume_target(app, &row),
        lun: row.lun,
        shares,
        name: row.name,
    }
}
