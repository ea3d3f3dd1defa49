//! What a machine wrote, on its way to the store.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequest as _, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use rootstock_api::{
    BINARY_MEDIA_TYPE, ImportReceipt, ProblemCode,
    personal::CommitTold,
    record::{IDS_MAX, decode_ids},
};
use serde::Deserialize;

use super::{Machine, json, private, small};
use crate::{
    app::App,
    boot::commits,
    http::{ApiError, ApiQuery, Binary},
};

/// How long a machine may take to send chunks, 4 MiB as its agent sends them, and to
/// wait for its place among all bodies.
const BODY_LIMIT: Duration = Duration::from_secs(60);

/// Which commit.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    commit: String,
}

pub(super) async fn lacking(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(Which { commit }): ApiQuery<Which>,
    request: Request,
) -> Result<Response, ApiError> {
    private(&app, &machine.arrival)?;
    let body = small(request).await?;
    let ids = decode_ids(&body, IDS_MAX)
        .map_err(|error| ApiError::new(ProblemCode::BadRequest, error.to_string()))?;
    let bitmap = commits::lacking(&app, &machine.session, &commit, ids).await?;
    let headers = [(header::CONTENT_TYPE, BINARY_MEDIA_TYPE)];
    Ok((headers, bitmap.into_bytes()).into_response())
}

pub(super) async fn chunks(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(Which { commit }): ApiQuery<Which>,
    request: Request,
) -> Result<Json<ImportReceipt>, ApiError> {
    private(&app, &machine.arrival)?;
    // No machine takes a place among the bodies that has nothing to send.
    let _place = commits::place(&app, &machine.session, &commit)?;
    let body = tokio::time::timeout(BODY_LIMIT, Binary::from_request(request, &app)).await;
    let body = body.map_err(|_| {
        let detail = format!("the chunks did not come within {} s", BODY_LIMIT.as_secs());
        ApiError::new(ProblemCode::BadRequest, detail)
    })??;
    let receipt = commits::chunks(&app, &machine.session, &commit, body.bytes.clone()).await?;
    app.imports.keep_body_memory(body.bytes);
    Ok(Json(receipt))
}

pub(super) async fn told(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(Which { commit }): ApiQuery<Which>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    private(&app, &machine.arrival)?;
    let told: CommitTold = json(request).await?;
    commits::told(&app, &machine.session, &commit, told).await?;
    Ok(StatusCode::NO_CONTENT)
}
