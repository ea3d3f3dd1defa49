//! Traces between machines and the daemon: what to fetch first, and what was read.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use rootstock_api::{
    BINARY_MEDIA_TYPE, ProblemCode,
    boot::{COVERAGE_HEADER, Inventory},
};
use rootstock_image::trace::{COVERAGE_ALL_PERMILLE, Trace};

use super::{
    node_api::{Machine, small},
    sessions::Session,
};
use crate::{
    app::App,
    http::ApiError,
    traces::{self, Boot},
};

/// The trace for this machine.
pub(super) async fn give(
    State(app): State<Arc<App>>,
    machine: Machine,
) -> Result<Response, ApiError> {
    let session = &machine.session;
    let (image, number) = (&session.version.image, session.version.number);
    let hardware = hardware(&app, session).await?;
    let Some(row) = app.catalog.trace(image, number, &hardware).await? else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let mut response = row.trace.into_response();
    let binary = HeaderValue::from_static(BINARY_MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, binary);
    Ok(response)
}

/// What this machine's boot read. A boot teaches once; what it sends again is not
/// looked at.
pub(super) async fn take(
    State(app): State<Arc<App>>,
    machine: Machine,
    headers: HeaderMap,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let bad = |detail: String| ApiError::new(ProblemCode::BadRequest, detail);
    let coverage_permille = coverage(&headers).map_err(|value| {
        bad(format!(
            "{COVERAGE_HEADER} cannot be {value:?}: it is 0 to 1000"
        ))
    })?;
    let body = small(request).await?;
    let trace = Trace::decode(&body).map_err(|error| bad(error.to_string()))?;
    let session = &machine.session;
    if trace.disk_bytes() != session.version.disk_bytes {
        let (version, disk_bytes) = (session.version.spec(), trace.disk_bytes());
        return Err(bad(format!(
            "the trace is of a disk of {disk_bytes} bytes, and {version} has {}",
            session.version.disk_bytes
        )));
    }
    if !session.first_trace() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let boot = Boot {
        hardware: hardware(&app, session).await?,
        trace,
        coverage_permille,
    };
    traces::learn(&app, &session.version, boot).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The coverage that a request tells, or what it has instead.
fn coverage(headers: &HeaderMap) -> Result<Option<u16>, &HeaderValue> {
    let Some(value) = headers.get(COVERAGE_HEADER) else {
        return Ok(None);
    };
    let permille = value.to_str().ok().and_then(|text| text.parse().ok());
    let permille = permille.filter(|permille| *permille <= COVERAGE_ALL_PERMILLE);
    permille.map(Some).ok_or(value)
}

/// The class of a machine's hardware, by what it told of itself.
async fn hardware(app: &App, session: &Session) -> Result<String, ApiError> {
    let node = app.catalog.node(&session.node).await?;
    let inventory = node.inventory.as_deref().unwrap_or("{}");
    let inventory: Inventory = serde_json::from_str(inventory).unwrap_or_default();
    Ok(traces::class_of(&inventory))
}
