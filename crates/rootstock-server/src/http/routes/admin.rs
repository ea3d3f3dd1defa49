//! The site, its store, and the operations on it.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use rootstock_api::{
    Client, ClientList, CollectEvent, Export, ExportList, Health, HolderKind, NfsState, NfsWanted,
    Problem, ProblemCode, RecipeList, ScrubStatus, Site, StoreReport, boot::SiteFile,
    doctor::BootDoctor, paths,
};

use crate::{
    app::{App, hex},
    boot, collector, exports,
    http::{ApiError, auth::Caller, extract::ApiJson, progress::Progress},
    iscsi,
    metrics::Gauge,
    nbd::NbdHandle,
    recipes,
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
    let mut text = app.metrics.render(&gauges(&app));
    app.boot.transcripts.render(&mut text);
    app.boot.render_reports(&mut text);
    let mut response = text.into_response();
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
    let cache = app.volumes.cache.stats();
    let mut gauges = vec![
        gauge(
            "rootstock_cache_used_bytes",
            "Bytes of decompressed chunks in memory.",
            cache.used_bytes,
        ),
        gauge(
            "rootstock_cache_capacity_bytes",
            "The most that they may take.",
            cache.capacity_bytes,
        ),
        Gauge {
            kind: "counter",
            ..gauge(
                "rootstock_cache_hits_total",
                "Reads that found their chunk in memory.",
                cache.hits,
            )
        },
        Gauge {
            kind: "counter",
            ..gauge(
                "rootstock_cache_misses_total",
                "Reads that did not.",
                cache.misses,
            )
        },
        gauge("rootstock_store_chunks", "Chunks stored.", store.chunks),
        gauge(
            "rootstock_store_raw_bytes",
            "Raw bytes of the chunks.",
            store.raw_bytes,
        ),
        gauge(
            "rootstock_store_frame_bytes",
            "Bytes of their frames.",
            store.frame_bytes,
        ),
        gauge("rootstock_store_packs", "Packs stored.", store.packs),
        gauge(
            "rootstock_store_pack_bytes",
            "Bytes of the packs.",
            store.pack_bytes,
        ),
        gauge(
            "rootstock_store_unstored_bytes",
            "Bytes in memory until a flush.",
            store.unstored_bytes,
        ),
        gauge(
            "rootstock_store_damaged_chunks",
            "Chunks known to be damaged.",
            store.damaged,
        ),
    ];
    let counter = |name, help, value| Gauge {
        kind: "counter",
        ..gauge(name, help, value)
    };
    if let Some(nbd) = app.nbd().handle.as_ref().map(NbdHandle::stats) {
        gauges.extend([
            gauge(
                "rootstock_nbd_connections",
                "NBD connections.",
                nbd.connections,
            ),
            counter(
                "rootstock_nbd_connections_total",
                "NBD connections accepted.",
                nbd.connections_total,
            ),
            counter(
                "rootstock_nbd_connections_refused_total",
                "NBD connections for which there was no room.",
                nbd.connections_refused_total,
            ),
            counter(
                "rootstock_nbd_requests_total",
                "NBD requests served.",
                nbd.requests_total,
            ),
            counter(
                "rootstock_nbd_read_bytes_total",
                "Bytes read over NBD.",
                nbd.read_bytes_total,
            ),
            counter(
                "rootstock_nbd_written_bytes_total",
                "Bytes written over NBD.",
                nbd.written_bytes_total,
            ),
            counter(
                "rootstock_nbd_errors_total",
                "NBD requests answered with an error.",
                nbd.errors_total,
            ),
        ]);
    }
    if let Some(iscsi) = app.iscsi().handle.as_ref().map(iscsi::Handle::stats) {
        gauges.extend([
            gauge(
                "rootstock_iscsi_sessions",
                "iSCSI sessions, those that log in among them.",
                iscsi.sessions,
            ),
            counter(
                "rootstock_iscsi_connections_total",
                "iSCSI connections accepted.",
                iscsi.connections_total,
            ),
            counter(
                "rootstock_iscsi_connections_refused_total",
                "iSCSI connections for which there was no room.",
                iscsi.refused_total,
            ),
            counter(
                "rootstock_iscsi_logins_failed_total",
                "iSCSI logins that failed.",
                iscsi.logins_failed_total,
            ),
            counter(
                "rootstock_iscsi_commands_total",
                "SCSI commands carried out.",
                iscsi.commands_total,
            ),
            counter(
                "rootstock_iscsi_read_bytes_total",
                "Bytes read over iSCSI.",
                iscsi.read_bytes_total,
            ),
            counter(
                "rootstock_iscsi_written_bytes_total",
                "Bytes written over iSCSI.",
                iscsi.written_bytes_total,
            ),
        ]);
    }
    gauges
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
        nbd: app.nbd().addresses.clone(),
        iscsi: app.iscsi().addresses(),
    })
}

/// What the boot services have and lack
#[utoipa::path(get, path = paths::BOOT_DOCTOR, tag = "site", operation_id = "boot_doctor",
    responses((status = 200, body = BootDoctor), (status = "default", body = Problem)))]
pub(crate) async fn boot_doctor(
    State(app): State<Arc<App>>,
) -> Result<ApiJson<BootDoctor>, ApiError> {
    let report = app.blocking(|app| Ok(boot::doctor::look(app))).await?;
    Ok(ApiJson(report))
}

/// Takes what a head exports over NFS, and answers what it is to export
#[utoipa::path(post, path = paths::NFS, tag = "site", operation_id = "nfs",
    request_body = NfsState,
    responses((status = 200, body = NfsWanted), (status = "default", body = Problem)))]
pub(crate) async fn nfs(
    State(app): State<Arc<App>>,
    ApiJson(state): ApiJson<NfsState>,
) -> Result<ApiJson<NfsWanted>, ApiError> {
    Ok(ApiJson(boot::nfs::exchange(&app, state).await?))
}

/// What a machine needs to know of the site, when it does not boot from it
#[utoipa::path(get, path = paths::BOOT_SITE, tag = "site", operation_id = "boot_site",
    responses((status = 200, body = SiteFile), (status = "default", body = Problem)))]
pub(crate) async fn boot_site(State(app): State<Arc<App>>) -> Result<ApiJson<SiteFile>, ApiError> {
    let stages = app.first_stages.get().ok_or_else(|| {
        ApiError::new(ProblemCode::Unavailable, "the boot services are off here")
            .with_hint("start the daemon with --boot auto, or set boot.interfaces")
    })?;
    Ok(ApiJson(stages.site_file()))
}

/// What the store holds
#[utoipa::path(get, path = paths::STORE, tag = "store", responses(
    (status = 200, body = StoreReport), (status = "default", body = Problem)))]
pub(crate) async fn store(State(app): State<Arc<App>>) -> Result<ApiJson<StoreReport>, ApiError> {
    let versions = app.catalog.all_versions().await?;
    let used_bytes = versions.iter().map(|row| row.used_bytes).sum();
    let stats = app.store.stats();
    let cache = app.volumes.cache.stats();
    let report = StoreReport {
        chunk_count: stats.chunks,
        raw_bytes: stats.raw_bytes,
        stored_bytes: stats.frame_bytes,
        pack_count: stats.packs,
        pack_bytes: stats.pack_bytes,
        used_bytes,
        free_bytes: free_bytes(&app),
        cache_bytes: cache.used_bytes,
        cache_bytes_max: cache.capacity_bytes,
        cache_hit_count: cache.hits,
        cache_miss_count: cache.misses,
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

/// Begins a pass of the scrub, unless one is under way
///
/// A daemon whose pace is 0 scrubs only when it is asked, as fast as its disk.
#[utoipa::path(post, path = paths::SCRUB, tag = "store", responses(
    (status = 202, body = ScrubStatus), (status = "default", body = Problem)))]
pub(crate) async fn scrub_start(State(app): State<Arc<App>>) -> (StatusCode, ApiJson<ScrubStatus>) {
    let status = app.scrub.start(app.store.packs().len());
    (StatusCode::ACCEPTED, ApiJson(status))
}

/// Recipes, and the making of them
#[utoipa::path(get, path = paths::RECIPES, tag = "store", operation_id = "recipe_list",
    responses((status = 200, body = RecipeList), (status = "default", body = Problem)))]
pub(crate) async fn recipes(State(app): State<Arc<App>>) -> Result<ApiJson<RecipeList>, ApiError> {
    Ok(ApiJson(recipes::list(&app).await?))
}

/// What can be opened over NBD
#[utoipa::path(get, path = paths::EXPORTS, tag = "exports", operation_id = "export_list", responses(
    (status = 200, body = ExportList), (status = "default", body = Problem)))]
pub(crate) async fn exports(State(app): State<Arc<App>>) -> Result<ApiJson<ExportList>, ApiError> {
    let clients = clients_of(&app);
    let count = |name: &str| {
        clients
            .iter()
            .filter(|client| client.export == name)
            .count() as u64
    };
    let mut list = Vec::new();
    for row in app.catalog.volumes().await? {
        let name = exports::volume_name(&row.name);
        list.push(Export {
            size_bytes: app.volumes.measure(&row).0,
            read_only: false,
            client_count: count(&name),
            name,
        });
    }
    for row in app.catalog.all_versions().await? {
        let name = format!("image/{}", row.spec());
        list.push(Export {
            size_bytes: row.disk_bytes,
            read_only: true,
            client_count: count(&name),
            name,
        });
    }
    list.truncate(exports::LIST_MAX);
    Ok(ApiJson(ExportList { exports: list }))
}

/// Who has what open over NBD
#[utoipa::path(get, path = paths::CLIENTS, tag = "exports", operation_id = "client_list", responses(
    (status = 200, body = ClientList), (status = "default", body = Problem)))]
pub(crate) async fn clients(State(app): State<Arc<App>>) -> ApiJson<ClientList> {
    ApiJson(ClientList {
        clients: clients_of(&app),
    })
}

fn clients_of(app: &App) -> Vec<Client> {
    let all = app.leases.all().into_iter();
    let clients = all.filter(|(_, held)| held.holder.kind == HolderKind::Client);
    clients
        .map(|(key, held)| Client {
            address: held.holder.name,
            export: exports::export_of(&key),
            since: held.since.to_string(),
        })
        .collect()
}
