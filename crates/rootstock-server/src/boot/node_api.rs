//! The node service: sessions, orders, chunks and what machines tell of themselves.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    BINARY_MEDIA_TYPE, ProblemCode, SEAL_HEADER,
    boot::{
        BOOT_PACK, BootStep, CHUNKS, CONTROL, DELTAS, INVENTORY_BYTES_MAX, MANIFEST, NodeControl,
        ORDER, ORDER_SIGNATURE_HEADER, REPORT, SESSION, STEPS, STEPS_MAX, SessionCreate,
        SessionState, Steps, TRACE,
    },
    guest::GUEST_ORDER,
    local::{LOCAL_FILE, LOCAL_ORDER},
    personal::{COMMIT, COMMIT_CHUNKS, COMMIT_LACKING},
    swarm::{SWARM, SWARM_HOLDS},
};
use rootstock_catalog::{BootRow, Redeemed};
use rootstock_core::{
    ChunkId, Digest, ImageName, MacAddress, VersionNumber, VersionSelector, VersionSpec,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    control,
    decide::known_uuid,
    guests,
    listen::{Arrival, Transport},
    local, orders,
    plugins::PluginEvent,
    sessions::Session,
    staged::TOKEN_LIFE,
    told, trace_api,
    transcript::Told,
};
use crate::{
    app::{App, hex, random_id},
    http::{ApiError, ApiQuery, chain},
};

mod chunks;
mod commits;
mod records;
mod reports;
mod swarm;
mod versions;

pub(super) use versions::{allowed, readable};

/// The largest request, in bytes: steps, inventories, traces and ids of a boot pack.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// How long a machine may take to send a request that is as small.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// When a held machine asks again.
const HELD_RETRY_SECONDS: u32 = 5;

/// The longest detail of a step that is kept, in characters.
const DETAIL_CHARS_MAX: usize = 1000;

/// The routes of the node service.
pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route(SESSION, post(session))
        .route(ORDER, get(order))
        .route(MANIFEST, get(manifest))
        .route(CHUNKS, post(chunks::chunks))
        .route(BOOT_PACK, post(chunks::boot_pack))
        .route(TRACE, get(trace_api::give).post(trace_api::take))
        .route(DELTAS, post(chunks::deltas))
        .route(STEPS, post(steps))
        .route(REPORT, post(reports::report))
        .route(CONTROL, get(control))
        .route(COMMIT_LACKING, post(commits::lacking))
        .route(COMMIT_CHUNKS, post(commits::chunks))
        .route(COMMIT, post(commits::told))
        .route(SWARM, post(swarm::announce))
        .route(SWARM_HOLDS, post(swarm::holds))
        .route(LOCAL_ORDER, get(local::order))
        .route(LOCAL_FILE, get(local::give))
        .route(GUEST_ORDER, get(guests::order))
}

/// A machine with its session's secret.
pub(super) struct Machine {
    pub(super) session: Arc<Session>,
    secret: String,
    pub(super) arrival: Arrival,
}

impl FromRequestParts<Arc<App>> for Machine {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let arrival = parts.extensions.get::<Arrival>().copied();
        let secret = bearer(&parts.headers).map(str::to_owned);
        let (Some(arrival), Some(secret)) = (arrival, secret) else {
            return Err(no_session());
        };
        let session = app.boot.sessions.find(app, &secret).await?;
        let session = session.ok_or_else(no_session)?;
        if arrival.transport == Transport::Plain {
            session.shown();
        }
        if let IpAddr::V4(address) = arrival.peer.ip().to_canonical()
            && session.needs_address()
        {
            app.boot.keep(address, session.mac);
        }
        Ok(Self {
            session,
            secret,
            arrival,
        })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("bearer");
    known.then_some(secret.trim())
}

fn no_session() -> ApiError {
    ApiError::new(
        ProblemCode::Unauthorized,
        "no session was sent, or its boot is over",
    )
    .with_hint("boot the machine again")
}

/// Secrets travel only over TLS, unless the site does without.
fn private(app: &App, arrival: &Arrival) -> Result<(), ApiError> {
    if arrival.transport == Transport::Tls || app.config.boot.plain_orders {
        return Ok(());
    }
    let detail = "sessions and orders are given over HTTPS only";
    Err(ApiError::new(ProblemCode::Forbidden, detail)
        .with_hint("use HTTPS, or set boot.plain_orders where TLS is impossible"))
}

async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let bad = |detail: String| ApiError::new(ProblemCode::BadRequest, detail);
    let bytes = small(request).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        bad(format!(
            "the JSON document is not what this path takes: {error}"
        ))
    })
}

pub(super) async fn small(request: Request) -> Result<Bytes, ApiError> {
    let bad = |detail: &str| ApiError::new(ProblemCode::BadRequest, detail);
    let read = axum::body::to_bytes(request.into_body(), REQUEST_BYTES_MAX);
    match tokio::time::timeout(REQUEST_TIMEOUT, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(bad("the request broke off, or has more than 256 KiB")),
        Err(_) => Err(bad("the request did not come within 30 s")),
    }
}

async fn session(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    request: Request,
) -> Result<Json<SessionState>, ApiError> {
    private(&app, &arrival)?;
    let create: SessionCreate = json(request).await?;
    let mac: MacAddress = create
        .mac
        .parse()
        .map_err(|error: rootstock_core::MacError| {
            ApiError::new(ProblemCode::BadValue, error.to_string())
        })?;
    let now = Timestamp::now();
    let life = SignedDuration::try_from(TOKEN_LIFE).unwrap_or_default();
    let peer = arrival.peer.ip().to_canonical();
    let secret = format!("{}{}", random_id()?, random_id()?);
    let redeemed = app
        .catalog
        .redeem_token(
            Digest::of(create.token.as_bytes()),
            peer,
            Digest::of(secret.as_bytes()),
            now,
            now + life,
        )
        .await?;
    match redeemed {
        Redeemed::Open(row) => open(&app, row, &create, mac, peer, secret).await,
        Redeemed::Held(row) => held(&app, row, &create, mac).await,
        Redeemed::Unknown => Err(refused(&app, peer, mac, None, "is not known")),
        Redeemed::Used(row) => Err(refused(&app, peer, mac, Some(&row), "was used before")),
        Redeemed::Expired(row) => Err(refused(&app, peer, mac, Some(&row), "is too old")),
        Redeemed::Foreign(row) => {
            let reason = "was given to another address";
            Err(refused(&app, peer, mac, Some(&row), reason))
        }
    }
}

fn refused(
    app: &App,
    peer: IpAddr,
    mac: MacAddress,
    row: Option<&BootRow>,
    reason: &'static str,
) -> ApiError {
    if let Some(row) = row {
        let detail = format!("refused {peer} ({mac}): the boot token {reason}");
        app.boot.transcripts.note(&row.id, detail);
    }
    tracing::warn!(
        %peer,
        %mac,
        node = row.map(|row| tracing::field::display(&row.node)),
        boot = row.map(|row| row.id.as_str()),
        reason,
        "boot token refused"
    );
    ApiError::new(ProblemCode::Forbidden, format!("the boot token {reason}"))
        .with_hint("boot the machine again: each boot has a token of its own")
}

async fn open(
    app: &Arc<App>,
    row: BootRow,
    create: &SessionCreate,
    mac: MacAddress,
    peer: IpAddr,
    secret: String,
) -> Result<Json<SessionState>, ApiError> {
    let node = app.catalog.node(&row.node).await?;
    let same_uuid = create.uuid.as_deref().and_then(known_uuid) == node.uuid && node.uuid.is_some();
    if !node.macs.contains(&mac) && !same_uuid {
        app.catalog.end_boot(&row.id, Timestamp::now()).await?;
        return Err(refused(app, peer, mac, Some(&row), "is another machine's"));
    }
    app.boot.sessions.forget(&row.node);
    inventory(app, &row, create).await;
    if app.boot.transcripts.mac_of(&row.id).is_none() {
        app.boot.transcripts.adopt(mac, &row.node, &row.id);
    }
    let at = app.boot.transcripts.mac_of(&row.id).unwrap_or(mac);
    let detail = format!("rootstock-agent {}", plain(&create.release));
    app.boot
        .transcripts
        .step(at, Told::new(BootStep::Session, detail));
    Ok(Json(SessionState::Open {
        session: secret,
        node: row.node.to_string(),
    }))
}

async fn held(
    app: &Arc<App>,
    row: BootRow,
    create: &SessionCreate,
    mac: MacAddress,
) -> Result<Json<SessionState>, ApiError> {
    inventory(app, &row, create).await;
    app.boot
        .transcripts
        .step(mac, Told::new(BootStep::Held, ""));
    Ok(Json(SessionState::Held {
        message: format!(
            "This machine ({mac}) waits as {0}. Let it boot with: rootstock node approve {0}",
            row.node
        ),
        retry_seconds: HELD_RETRY_SECONDS,
    }))
}

/// Records what a machine is made of. A boot does not fail for it.
async fn inventory(app: &App, row: &BootRow, create: &SessionCreate) {
    let text = serde_json::to_string(&create.inventory).unwrap_or_default();
    if text.len() > INVENTORY_BYTES_MAX {
        tracing::warn!(node = %row.node, bytes = text.len(), "inventory too large");
        return;
    }
    let now = Timestamp::now();
    let kept = app.catalog.set_inventory(&row.node, &text, now).await;
    if let Err(error) = kept {
        tracing::warn!(node = %row.node, error = chain(&error), "inventory not kept");
    }
}

async fn order(State(app): State<Arc<App>>, machine: Machine) -> Result<Response, ApiError> {
    private(&app, &machine.arrival)?;
    let session = &machine.session;
    // Whoever heard the secret must not get the machine's keys with it.
    let was_shown = session.was_shown.load(std::sync::atomic::Ordering::Relaxed);
    if was_shown && !app.config.boot.plain_orders {
        let detail = "this session was used without TLS already: it gets no order any more";
        return Err(
            ApiError::new(ProblemCode::Forbidden, detail).with_hint("boot the machine again")
        );
    }
    let peer = machine.arrival.peer.ip().to_canonical();
    let local = machine.arrival.local.ip().to_canonical();
    let made = orders::make(&app, session, &machine.secret, peer, local).await;
    let order = made.inspect_err(|error| {
        let detail = format!("no order: {}", error.0);
        app.boot
            .transcripts
            .step(session.mac, Told::new(BootStep::Failed, detail));
    })?;
    let bytes = orders::encode(&order)?;
    let signature = hex(&app.key.sign(&bytes).to_bytes());
    let signature = HeaderValue::try_from(signature)
        .map_err(|error| ApiError::internal("send a signature", &error))?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(HeaderName::from_static(ORDER_SIGNATURE_HEADER), signature);
    Ok(response)
}

/// The manifest of a version.
#[derive(Debug, Deserialize)]
struct ManifestQuery {
    image: Option<ImageName>,
    version: Option<VersionNumber>,
}

async fn manifest(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(query): ApiQuery<ManifestQuery>,
) -> Result<Response, ApiError> {
    let version = match (query.image, query.version) {
        (Some(image), Some(version)) => {
            let selector = VersionSelector::Number(version);
            readable(&app, &machine, &VersionSpec { image, selector }).await?
        }
        (None, None) => machine.session.version.clone(),
        _ => {
            let detail = "name an image and a version, or neither";
            return Err(ApiError::new(ProblemCode::BadRequest, detail));
        }
    };
    let id = ChunkId(version.manifest);
    let bytes = app.blocking(move |app| Ok(app.store.read(id)?)).await?;
    let seal = HeaderValue::from_str(&version.seal)
        .map_err(|error| ApiError::internal("send a seal", &error))?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(BINARY_MEDIA_TYPE),
    );
    headers.insert(SEAL_HEADER, seal);
    Ok(response)
}

async fn steps(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let steps: Steps = json(request).await?;
    if steps.steps.len() > STEPS_MAX {
        let detail = format!("{} steps, and the limit is {STEPS_MAX}", steps.steps.len());
        return Err(ApiError::new(ProblemCode::TooLarge, detail));
    }
    for step in steps.steps {
        let told = Told {
            step: step.step,
            uptime_ms: Some(step.uptime_ms),
            bytes: step.bytes,
            detail: plain(&step.detail),
        };
        // Those of the server's own knowledge no machine can tell.
        let is_ours = matches!(told.step, BootStep::Held | BootStep::OwnDisk);
        if told.step < BootStep::FirstStage || is_ours {
            continue;
        }
        let is_up = told.step == BootStep::Up;
        let is_gone = told.step == BootStep::Gone;
        app.boot.transcripts.step(machine.session.mac, told);
        if is_up {
            up(&app, &machine.session).await;
        }
        if is_gone {
            machine.session.goes();
            app.boot.swarm.leave(&machine.session);
            app.boot.sessions.tell_gone(&app, &machine.session).await;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What a machine has already.
#[derive(Debug, Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn control(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(After { after }): ApiQuery<After>,
) -> Result<Json<NodeControl>, ApiError> {
    let peer = machine.arrival.peer.ip().to_canonical();
    let local = machine.arrival.local.ip().to_canonical();
    let network = app.boot.networks.of(peer, local);
    let held = control::wait(&app, &machine.session, &network, after).await;
    held.map(Json)
}

async fn up(app: &Arc<App>, session: &Session) {
    match app.catalog.node(&session.node).await {
        Ok(node) => told::later(app, PluginEvent::Up, &node),
        Err(error) => tracing::warn!(node = %session.node, error = chain(&error), "node is up"),
    }
}

/// What a machine says, fit for a log and a terminal.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(DETAIL_CHARS_MAX).map(shown).collect()
}
