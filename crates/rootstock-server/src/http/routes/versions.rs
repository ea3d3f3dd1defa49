//! Versions: what they are, their manifests, and what lies between them.

use std::{collections::HashSet, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use rootstock_api::{
    BINARY_MEDIA_TYPE, DiffReport, HolderKind, ImageFacts, Problem, SEAL_HEADER, ShareEnd,
    ShareSet, SharedTarget, VERSION_HEADER, VerifyEvent, VersionDetail, paths,
};
use rootstock_catalog::{Shareable, VersionRow};
use rootstock_core::{ChunkId, ImageName, VersionSelector, VersionSpec};
use serde::Deserialize;

use super::images::summary;
use crate::{
    app::App,
    boot::swarm,
    http::{
        ApiError,
        auth::Caller,
        extract::{ApiJson, ApiPath, ApiQuery, Selector},
        progress::Progress,
    },
    leases::{Key, Lease},
    recipes, sizes, targets, traces, verify,
};

/// Finds a version and keeps it until the lease is dropped.
pub(crate) async fn lease(
    app: &App,
    spec: &VersionSpec,
    kind: HolderKind,
    name: &str,
) -> Result<(VersionRow, Lease), ApiError> {
    let row = app.catalog.resolve(spec).await?;
    let lease = app
        .leases
        .take(Key::Version(row.image.clone(), row.number), kind, name)?;
    // It may have gone between the two steps; now it cannot.
    let row = app.catalog.resolve(&row.spec()).await?;
    Ok((row, lease))
}

/// A version in full
#[utoipa::path(get, path = paths::VERSION, tag = "versions", operation_id = "version_show",
    params(("image" = String, Path, description = "The image's name"),
        ("version" = String, Path, description = "A number, `latest` or `@tag`")),
    responses((status = 200, body = VersionDetail), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath((image, selector)): ApiPath<(ImageName, Selector)>,
) -> Result<ApiJson<VersionDetail>, ApiError> {
    let spec = VersionSpec {
        image,
        selector: selector.0,
    };
    let (row, _lease) = lease(&app, &spec, HolderKind::Operation, "show").await?;
    let tags = app.catalog.image(&row.image).await?.tags;
    let volumes = app.catalog.volumes().await?;
    let volumes: Vec<_> = volumes
        .into_iter()
        .filter(|volume| volume.base() == row.spec())
        .map(|volume| volume.name.to_string())
        .collect();
    let others: HashSet<_> = app
        .catalog
        .all_versions()
        .await?
        .into_iter()
        .filter(|other| other.spec() != row.spec())
        .map(|other| other.manifest)
        .collect();
    let recipes = app.catalog.recipes().await?;
    let recipes = recipes.iter().filter(|recipe| recipe.to == row.spec());
    let recipes = recipes.map(recipes::summary).collect();
    let manifest = row.manifest;
    let size = app
        .blocking(move |app| sizes::weigh(&app.store, manifest, &others))
        .await?;
    let mut facts: ImageFacts = serde_json::from_str(&row.facts)
        .map_err(|error| ApiError::internal("read what is on the disk", &error))?;
    let stages = app.first_stages.get().cloned();
    facts.boot = app
        .blocking(move |_| Ok(stages.map(|stages| stages.facts(manifest))))
        .await?;
    let boot_set = traces::boot_set(&app, &row).await?;
    let live_copies = swarm::live_copies(&app, manifest).await?;
    let disk = Shareable::Version(row.image.clone(), row.number);
    Ok(ApiJson(VersionDetail {
        boot_set,
        live_copies,
        summary: summary(&row, &tags),
        image: row.image,
        manifest,
        seal: row.seal,
        source: row.source,
        parent: row.parent,
        size,
        facts,
        volumes,
        target: targets::target_name(&app, &disk),
        shares: targets::shares(&app, &disk).await?,
        recipes,
    }))
}

/// Shares a version with an iSCSI initiator, to be read; secrets are shown this once
#[utoipa::path(post, path = paths::VERSION_SHARE, tag = "versions", operation_id = "version_share",
    params(("image" = String, Path, description = "The image's name"),
        ("version" = String, Path, description = "A number, `latest` or `@tag`")),
    request_body = ShareSet,
    responses((status = 200, body = SharedTarget), (status = "default", body = Problem)))]
pub(crate) async fn share(
    State(app): State<Arc<App>>,
    ApiPath((image, selector)): ApiPath<(ImageName, Selector)>,
    ApiJson(request): ApiJson<ShareSet>,
) -> Result<ApiJson<SharedTarget>, ApiError> {
    let row = find(&app, image, selector).await?;
    let disk = Shareable::Version(row.image, row.number);
    Ok(ApiJson(targets::share(&app, disk, request).await?))
}

/// Ends such a share, and the sessions that there are
#[utoipa::path(post, path = paths::VERSION_UNSHARE, tag = "versions",
    operation_id = "version_unshare",
    params(("image" = String, Path, description = "The image's name"),
        ("version" = String, Path, description = "A number, `latest` or `@tag`")),
    request_body = ShareEnd,
    responses((status = 200, body = VersionDetail), (status = "default", body = Problem)))]
pub(crate) async fn unshare(
    State(app): State<Arc<App>>,
    ApiPath((image, selector)): ApiPath<(ImageName, Selector)>,
    ApiJson(request): ApiJson<ShareEnd>,
) -> Result<ApiJson<VersionDetail>, ApiError> {
    let row = find(&app, image, selector).await?;
    let disk = Shareable::Version(row.image.clone(), row.number);
    targets::unshare(&app, &disk, &request.initiator).await?;
    let number = Selector(VersionSelector::Number(row.number));
    show(State(app), ApiPath((row.image, number))).await
}

/// The version that this is now: a share does not follow a tag.
async fn find(app: &App, image: ImageName, selector: Selector) -> Result<VersionRow, ApiError> {
    let spec = VersionSpec {
        image,
        selector: selector.0,
    };
    Ok(app.catalog.resolve(&spec).await?)
}

/// Deletes a version
#[utoipa::path(delete, path = paths::VERSION, tag = "versions", operation_id = "version_delete",
    params(("image" = String, Path, description = "The image's name"),
        ("version" = String, Path, description = "A number, `latest` or `@tag`")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath((image, selector)): ApiPath<(ImageName, Selector)>,
) -> Result<StatusCode, ApiError> {
    let spec = VersionSpec {
        image,
        selector: selector.0,
    };
    let row = app.catalog.resolve(&spec).await?;
    let key = Key::Version(row.image.clone(), row.number);
    let closed = app.leases.close(key)?;
    app.catalog
        .delete_version(&row.image, row.number, &caller.actor, Timestamp::now())
        .await?;
    app.nodes.note_version_change();
    drop(closed);
    tracing::info!(image = %row.image, version = row.number.0, "version deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// A version's root document
///
/// Its seal is in the header `rootstock-seal`, in hex, its number in
/// `rootstock-version`.
#[utoipa::path(get, path = paths::MANIFEST, tag = "versions", operation_id = "version_manifest",
    params(("image" = String, Path, description = "The image's name"),
        ("version" = String, Path, description = "A number, `latest` or `@tag`")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream",
        headers(("rootstock-seal" = String), ("rootstock-version" = u32))),
        (status = "default", body = Problem)))]
pub(crate) async fn manifest(
    State(app): State<Arc<App>>,
    ApiPath((image, selector)): ApiPath<(ImageName, Selector)>,
) -> Result<Response, ApiError> {
    let spec = VersionSpec {
        image,
        selector: selector.0,
    };
    let row = app.catalog.resolve(&spec).await?;
    let id = ChunkId(row.manifest);
    let bytes = app.blocking(move |app| Ok(app.store.read(id)?)).await?;
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(BINARY_MEDIA_TYPE),
    );
    let seal = HeaderValue::from_str(&row.seal)
        .map_err(|error| ApiError::internal("send a seal", &error))?;
    headers.insert(SEAL_HEADER, seal);
    headers.insert(VERSION_HEADER, HeaderValue::from(row.number.0));
    Ok((headers, bytes).into_response())
}

/// Reads a version again
///
/// The answer is progress, one event a line; the last one is `done` or `failed`.
#[utoipa::path(post, path = paths::VERIFY, tag = "versions", operation_id = "version_verify",
    params(("image" = String, Path, description = "The image's name"),
        ("version" = String, Path, description = "A number, `latest` or `@tag`")),
    responses((status = 200, body = VerifyEvent, content_type = "application/x-ndjson"),
        (status = "default", body = Problem)))]
pub(crate) async fn verify(
    State(app): State<Arc<App>>,
    ApiPath((image, selector)): ApiPath<(ImageName, Selector)>,
) -> Result<Response, ApiError> {
    let spec = VersionSpec {
        image,
        selector: selector.0,
    };
    let (row, lease) = lease(&app, &spec, HolderKind::Operation, "verify").await?;
    let (progress, response) = Progress::response();
    app.spawn_verification(move |app| verify::run(app, &row, &progress, lease))?;
    Ok(response)
}

/// Two versions: `lab`, `lab:3` or `lab@production`.
#[derive(Debug, Deserialize)]
pub(crate) struct Pair {
    from: VersionSpec,
    to: VersionSpec,
}

/// What a holder of one version must fetch for another
#[utoipa::path(get, path = paths::DIFF, tag = "versions", operation_id = "version_diff",
    params(("from" = String, Query, description = "The version that is there: `lab:1`"),
        ("to" = String, Query, description = "The version that is wanted: `lab:2`")),
    responses((status = 200, body = DiffReport), (status = "default", body = Problem)))]
pub(crate) async fn diff(
    State(app): State<Arc<App>>,
    ApiQuery(pair): ApiQuery<Pair>,
) -> Result<ApiJson<DiffReport>, ApiError> {
    let (from, from_lease) = lease(&app, &pair.from, HolderKind::Operation, "diff").await?;
    let (to, to_lease) = lease(&app, &pair.to, HolderKind::Operation, "diff").await?;
    let recipe = recipes::find(&app, &from, &to).await?;
    let report = app
        .blocking(move |app| sizes::compare(&app.store, &from, &to, recipe.as_deref()))
        .await?;
    drop((from_lease, to_lease));
    Ok(ApiJson(report))
}
