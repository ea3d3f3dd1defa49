//! Imports.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    BINARY_MEDIA_TYPE, Import, ImportCommit, ImportCommitted, ImportCreate, ImportList,
    ImportReceipt, Problem, ProblemCode, paths,
    record::{IDS_MAX, decode_ids},
};
use rootstock_catalog::{ImportRow, NewImport};
use rootstock_core::units::DISK_BYTES_MAX;

use crate::{
    app::{App, random_id},
    http::{
        ApiError,
        auth::Caller,
        body::Binary,
        extract::{ApiJson, ApiPath},
    },
    imports::{self, Words},
};

/// Open imports
#[utoipa::path(get, path = paths::IMPORTS, tag = "imports", operation_id = "import_list", responses(
    (status = 200, body = ImportList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<ImportList>, ApiError> {
    let rows = app.catalog.imports().await?;
    let imports = rows.into_iter().map(|row| describe(&app, row)).collect();
    Ok(ApiJson(ImportList { imports }))
}

/// Opens an import
#[utoipa::path(post, path = paths::IMPORTS, tag = "imports", operation_id = "import_create",
    request_body = ImportCreate,
    responses((status = 201, body = Import), (status = "default", body = Problem)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<ImportCreate>,
) -> Result<(StatusCode, ApiJson<Import>), ApiError> {
    if !(1..=DISK_BYTES_MAX).contains(&request.disk_bytes) {
        let detail = format!(
            "a disk of {} bytes is out of bounds: 1 to {DISK_BYTES_MAX}",
            request.disk_bytes
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail));
    }
    super::check_text("source", &request.source)?;
    let new = NewImport {
        id: random_id()?,
        image: request.image,
        disk_bytes: request.disk_bytes,
        source: request.source,
    };
    let row = app.catalog.open_import(&new, Timestamp::now()).await?;
    tracing::info!(import = row.id, image = %row.image, "import opened");
    Ok((StatusCode::CREATED, ApiJson(describe(&app, row))))
}

/// An open import
#[utoipa::path(get, path = paths::IMPORT, tag = "imports", operation_id = "import_show",
    params(("import" = String, Path, description = "The import's id")),
    responses((status = 200, body = Import), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(import): ApiPath<String>,
) -> Result<ApiJson<Import>, ApiError> {
    let row = app.catalog.import(&import).await?;
    Ok(ApiJson(describe(&app, row)))
}

/// Ends an import without a version
#[utoipa::path(delete, path = paths::IMPORT, tag = "imports", operation_id = "import_abort",
    params(("import" = String, Path, description = "The import's id")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn abort(
    State(app): State<Arc<App>>,
    ApiPath(import): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    app.catalog.abort_import(&import).await?;
    app.imports.end(&import);
    Ok(StatusCode::NO_CONTENT)
}

/// Which of these chunks the store lacks
///
/// The body is up to 4,096 ids of 32 bytes. The answer has a bit for each, least
/// significant first: set, it is to be sent. The others stay while the import is
/// open.
#[utoipa::path(post, path = paths::IMPORT_LACKING, tag = "imports", operation_id = "import_lacking",
    params(("import" = String, Path, description = "The import's id")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = Problem)))]
pub(crate) async fn lacking(
    State(app): State<Arc<App>>,
    ApiPath(import): ApiPath<String>,
    body: Binary,
) -> Result<Response, ApiError> {
    let ids = decode_ids(&body.bytes, IDS_MAX).map_err(super::bad_body)?;
    drop(body);
    let bitmap = imports::lacking(&app, &import, ids).await?;
    let mut response = bitmap.into_bytes().into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(BINARY_MEDIA_TYPE),
    );
    Ok(response)
}

/// Takes chunks
///
/// The body is up to 16 MiB of records: chunk id (32 bytes), raw bytes (u32,
/// little endian), frame bytes (u32), codec (0 raw, 1 zstd), three zero bytes,
/// frame. Records before a refused one are kept.
#[utoipa::path(post, path = paths::IMPORT_CHUNKS, tag = "imports", operation_id = "import_chunks",
    params(("import" = String, Path, description = "The import's id")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ImportReceipt), (status = "default", body = Problem)))]
pub(crate) async fn chunks(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(import): ApiPath<String>,
    body: Binary,
) -> Result<ApiJson<ImportReceipt>, ApiError> {
    let bytes = body.bytes.clone();
    let receipt = imports::store_chunks(&app, &import, bytes, caller.origin).await?;
    app.imports.keep_body_memory(body.bytes);
    Ok(ApiJson(receipt))
}

/// Makes the import a version
///
/// When the image's newest version has the same manifest the outcome is
/// `unchanged`, and the import ends all the same. When chunks are missing the
/// import stays open, and the problem names the first 64 of them.
#[utoipa::path(post, path = paths::IMPORT_COMMIT, tag = "imports", operation_id = "import_commit",
    params(("import" = String, Path, description = "The import's id")),
    request_body = ImportCommit,
    responses((status = 200, body = ImportCommitted), (status = "default", body = Problem)))]
pub(crate) async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiPath(import): ApiPath<String>,
    ApiJson(request): ApiJson<ImportCommit>,
) -> Result<ApiJson<ImportCommitted>, ApiError> {
    super::check_text("message", request.message.as_deref().unwrap_or_default())?;
    let words = Words {
        tag: request.tag,
        message: request.message,
        parent: None,
        event: "imported",
        facts: Some(request.facts),
    };
    let manifest = request.manifest;
    let committed = imports::commit(&app, &import, manifest, words, caller.actor).await?;
    Ok(ApiJson(committed))
}

fn describe(app: &App, row: ImportRow) -> Import {
    let idle = SignedDuration::from_hours(24 * i64::from(app.config.store.import_idle_days));
    let expires = row.active.checked_add(idle).unwrap_or(Timestamp::MAX);
    let added = app.imports.added(&row.id);
    Import {
        id: row.id,
        image: row.image,
        disk_bytes: row.disk_bytes,
        source: row.source,
        created: row.created.to_string(),
        active: row.active.to_string(),
        expires: expires.to_string(),
        added_chunk_count: row.added_chunks + added.chunks,
        added_bytes: row.added_bytes + added.bytes,
    }
}
