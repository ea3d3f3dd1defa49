//! The site, its store, and the operations on it.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use rootstock_api::{CollectEvent, Health, Problem, ScrubStatus, Site, StoreReport, paths};

use crate::{
    app::{App, hex},
    collector,
    http::{ApiError, auth::Caller, extract::ApiJson, progress::Progress},
    metrics::Gauge,
};

/// Whether the daemon is up
#[utoipa::path(get, path = paths::HEALTHZ, tag = "site", responses((status = 200, body = Health)), security(()))]
pub(crate) async fn healthz() -> ApiJson<Health> {
    ApiJson(Health {
        status: "ok".to_owned(),
    })
}

/// Prometheus metrics
#[utoipa::path(get, path = paths::METRICS, tag = "site", responses(
    (status = 200, body = String, content_type = "text/plain"), (status = "default", body = Problem)))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut response = app.metrics.render(&gauges(&app)).into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4"),
    );
    response
}

fn gauges(app: &App) -> Vec<Gauge> {
    let gauge = |name, help, value| Gauge {
        name,
        help,
        kind: "gauge",
        value,
    };
    let store = app.store.stats();
    vec![
        gauge("rootstock_store_chunks", "Chunks stored.", store.chunks),
        gauge("rootstock_store_raw_bytes", "Raw bytes of the chunks.", store.raw_bytes),
        gauge("rootstock_store_frame_bytes", "Bytes of their frames.", store.frame_bytes),
        gauge("rootstock_store_packs", "Packs stored.", store.packs),
        gauge("rootstock_store_pack_bytes", "Bytes of the packs.", store.pack_bytes),
        gauge("rootstock_store_unstored_bytes", "Bytes in memory until a flush.", store.unstored_bytes),
        gauge("rootstock_store_damaged_chunks", "Chunks known to be damaged.", store.damaged),
    ]
}

/// The site
#[utoipa::path(get, path = paths::SITE, tag = "site", responses(
    (status = 200, body = Site), (status = "default", body = Problem)))]
pub(crate) async fn site(State(app): State<Arc<App>>, caller: Caller) -> ApiJson<Site> {
    ApiJson(Site {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        public_key: hex(app.key.verifying_key().as_bytes()),
        started: app.started.to_string(),
        role: caller.role,
        nbd: app.nbd_addresses(),
    })
}

/// What the store holds
#[utoipa::path(get, path = paths::STORE, tag = "store", responses(
    (status = 200, body = StoreReport), (status = "default", body = Problem)))]
pub(crate) async fn store(State(app): State<Arc<App>>) -> Result<ApiJson<StoreReport>, ApiError> {
    let versions = app.catalog.all_versions().await?;
    let used_bytes = versions.iter().map(|row| row.used_bytes).sum();
    let stats = app.store.stats();
    let report = StoreReport {
        chunk_count: stats.chunks,
        raw_bytes: stats.raw_bytes,
        stored_bytes: stats.frame_bytes,
        pack_count: stats.packs,
        pack_bytes: stats.pack_bytes,
        used_bytes,
        free_bytes: free_bytes(&app),
        ..StoreReport::default()
    };
    Ok(ApiJson(report))
}

fn free_bytes(app: &App) -> Option<u64> {
    let stat = rustix::fs::statvfs(&app.config.data).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Frees what nothing needs
///
/// The answer is progress, one event a line; the last one is `done` or `failed`.
#[utoipa::path(post, path = paths::GC, tag = "store", responses(
    (status = 200, body = CollectEvent, content_type = "application/x-ndjson"),
    (status = "default", body = Problem)))]
pub(crate) async fn gc(State(app): State<Arc<App>>) -> Response {
    let (progress, response) = Progress::response();
    tokio::spawn(async move {
        // The client has been told, and so has the log.
        let _ = collector::run(&app, Some(progress)).await;
    });
    response
}

/// How far the background scrub is, and what it found
#[utoipa::path(get, path = paths::SCRUB, tag = "store", responses(
    (status = 200, body = ScrubStatus), (status = "default", body = Problem)))]
pub(crate) async fn scrub(State(app): State<Arc<App>>) -> ApiJson<ScrubStatus> {
    ApiJson(app.scrub.status())
}
