//! Images, their tags and their history.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use rootstock_api::{
    HistoryEntry, HistoryEvent, HistoryList, ImageDetail, ImageList, ImageSummary, NfsSet, Problem,
    Tag, TagSet, TagTarget, VersionSummary, paths,
};
use rootstock_catalog::{HistoryRow, TagRow, VersionRow};
use rootstock_core::{ImageName, TagName};

use crate::{
    app::App,
    http::{
        ApiError,
        auth::Caller,
        extract::{ApiJson, ApiPath},
    },
    leases::Key,
};

/// All images
#[utoipa::path(get, path = paths::IMAGES, tag = "images", operation_id = "image_list", responses(
    (status = 200, body = ImageList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<ImageList>, ApiError> {
    let rows = app.catalog.images().await?;
    let versions = app.catalog.all_versions().await?;
    let images = rows.into_iter().map(|row| {
        let latest = versions.iter().rfind(|version| version.image == row.name);
        ImageSummary {
            latest: latest.map(|version| summary(version, &row.tags)),
            name: row.name,
            version_count: row.version_count,
            tags: row.tags.iter().map(tag_of).collect(),
            created: row.created.to_string(),
        }
    });
    Ok(ApiJson(ImageList {
        images: images.collect(),
    }))
}

/// An image with its versions
#[utoipa::path(get, path = paths::IMAGE, tag = "images", operation_id = "image_show",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 200, body = ImageDetail), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(image): ApiPath<ImageName>,
) -> Result<ApiJson<ImageDetail>, ApiError> {
    let row = app.catalog.image(&image).await?;
    let versions = app.catalog.versions(&image).await?;
    Ok(ApiJson(ImageDetail {
        name: row.name,
        created: row.created.to_string(),
        nfs: row.nfs,
        tags: row.tags.iter().map(tag_of).collect(),
        versions: versions
            .iter()
            .map(|version| summary(version, &row.tags))
            .collect(),
    }))
}

/// Deletes an image: all its versions and tags
#[utoipa::path(delete, path = paths::IMAGE, tag = "images", operation_id = "image_delete",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(image): ApiPath<ImageName>,
) -> Result<StatusCode, ApiError> {
    let versions = app.catalog.versions(&image).await?;
    let close = |version: &VersionRow| {
        let key = Key::Version(version.image.clone(), version.number);
        app.leases.close(key)
    };
    let closed = versions.iter().map(close).collect::<Result<Vec<_>, _>>()?;
    let now = Timestamp::now();
    app.catalog.delete_image(&image, &caller.actor, now).await?;
    app.nodes.note_version_change();
    drop(closed);
    Ok(StatusCode::NO_CONTENT)
}

/// What happened to an image
#[utoipa::path(get, path = paths::IMAGE_HISTORY, tag = "images", operation_id = "image_history",
    params(("image" = String, Path, description = "The image's name")),
    responses((status = 200, body = HistoryList), (status = "default", body = Problem)))]
pub(crate) async fn history(
    State(app): State<Arc<App>>,
    ApiPath(image): ApiPath<ImageName>,
) -> Result<ApiJson<HistoryList>, ApiError> {
    let rows = app.catalog.history(&image).await?;
    Ok(ApiJson(HistoryList {
        entries: rows.into_iter().map(entry).collect(),
    }))
}

/// Says whether versions of an image may be roots over NFS
#[utoipa::path(put, path = paths::IMAGE_NFS, tag = "images", operation_id = "image_nfs",
    params(("image" = String, Path, description = "The image's name")),
    request_body = NfsSet,
    responses((status = 200, body = NfsSet), (status = "default", body = Problem)))]
pub(crate) async fn nfs(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(image): ApiPath<ImageName>,
    ApiJson(set): ApiJson<NfsSet>,
) -> Result<ApiJson<NfsSet>, ApiError> {
    let now = Timestamp::now();
    app.catalog
        .set_nfs(&image, set.allowed, &caller.actor, now)
        .await?;
    Ok(ApiJson(set))
}

/// Points a tag at a version
#[utoipa::path(put, path = paths::IMAGE_TAG, tag = "images", operation_id = "image_tag",
    params(("image" = String, Path, description = "The image's name"),
        ("tag" = String, Path, description = "The tag's name")),
    request_body = TagTarget,
    responses((status = 200, body = TagSet), (status = "default", body = Problem)))]
pub(crate) async fn tag(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath((image, tag)): ApiPath<(ImageName, TagName)>,
    ApiJson(target): ApiJson<TagTarget>,
) -> Result<ApiJson<TagSet>, ApiError> {
    let selector = paths::parse_selector(&target.version).map_err(super::bad_name)?;
    let (row, before) = app
        .catalog
        .set_tag(&image, &tag, &selector, &caller.actor, Timestamp::now())
        .await?;
    app.nodes.note_version_change();
    Ok(ApiJson(TagSet {
        version: row.number,
        before,
    }))
}

/// Points a tag at the version that it pointed at before
#[utoipa::path(post, path = paths::IMAGE_TAG_ROLLBACK, tag = "images",
    operation_id = "image_tag_rollback",
    params(("image" = String, Path, description = "The image's name"),
        ("tag" = String, Path, description = "The tag's name")),
    responses((status = 200, body = TagSet), (status = "default", body = Problem)))]
pub(crate) async fn tag_rollback(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath((image, tag)): ApiPath<(ImageName, TagName)>,
) -> Result<ApiJson<TagSet>, ApiError> {
    let now = Timestamp::now();
    let back = app.catalog.roll_tag_back(&image, &tag, &caller.actor, now);
    let (row, before) = back.await?;
    app.nodes.note_version_change();
    Ok(ApiJson(TagSet {
        version: row.number,
        before: Some(before),
    }))
}

/// Takes a tag away
#[utoipa::path(delete, path = paths::IMAGE_TAG, tag = "images", operation_id = "image_untag",
    params(("image" = String, Path, description = "The image's name"),
        ("tag" = String, Path, description = "The tag's name")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn untag(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath((image, tag)): ApiPath<(ImageName, TagName)>,
) -> Result<StatusCode, ApiError> {
    app.catalog
        .remove_tag(&image, &tag, &caller.actor, Timestamp::now())
        .await?;
    app.nodes.note_version_change();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn summary(row: &VersionRow, tags: &[TagRow]) -> VersionSummary {
    let tags = tags.iter().filter(|tag| tag.version == row.number);
    VersionSummary {
        version: row.number,
        created: row.created.to_string(),
        disk_bytes: row.disk_bytes,
        used_bytes: row.used_bytes,
        added_bytes: row.added_bytes,
        message: row.message.clone(),
        tags: tags.map(|tag| tag.name.clone()).collect(),
    }
}

fn tag_of(row: &TagRow) -> Tag {
    Tag {
        name: row.name.clone(),
        version: row.version,
    }
}

fn entry(row: HistoryRow) -> HistoryEntry {
    HistoryEntry {
        time: row.time.to_string(),
        event: match row.event.as_str() {
            "imported" => HistoryEvent::Imported,
            "committed" => HistoryEvent::Committed,
            "tagged" => HistoryEvent::Tagged,
            "untagged" => HistoryEvent::Untagged,
            "deleted" => HistoryEvent::Deleted,
            "nfs-set" => HistoryEvent::NfsSet,
            _ => HistoryEvent::Unknown,
        },
        version: row.version,
        tag: row.tag,
        detail: row.detail,
        actor: row.actor,
    }
}
