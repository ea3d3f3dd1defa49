//! Chunks for machines: a few that are asked for, a boot pack, or what a new version takes.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use rootstock_api::{
    ProblemCode,
    boot::{FETCH_IDS_MAX, PACK_IDS_MAX},
    record::decode_ids,
};
use rootstock_catalog::VersionRow;
use rootstock_core::{ChunkId, VersionSpec};
use serde::Deserialize;

use super::{Machine, records::Answer, small, versions};
use crate::{
    app::App,
    http::{ApiError, ApiQuery},
    recipes::{self, Index},
};

/// Chunks of the version that the machine runs, and of no other.
pub(super) async fn chunks(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<Response, ApiError> {
    let ids = fetch_ids(request, FETCH_IDS_MAX).await?;
    let version = machine.session.version.clone();
    send(app, &machine, version, ids, None).await
}

/// The same for all that a boot will read.
pub(super) async fn boot_pack(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<Response, ApiError> {
    let ids = fetch_ids(request, PACK_IDS_MAX).await?;
    let version = machine.session.version.clone();
    send(app, &machine, version, ids, None).await
}

/// Two versions, by number: `lab:2`.
#[derive(Debug, Deserialize)]
pub(super) struct Pair {
    from: Option<VersionSpec>,
    to: Option<VersionSpec>,
}

/// Chunks of the version that the machine runs or is to run next, as deltas where
/// there are some.
pub(super) async fn deltas(
    State(app): State<Arc<App>>,
    machine: Machine,
    ApiQuery(pair): ApiQuery<Pair>,
    request: Request,
) -> Result<Response, ApiError> {
    let ids = fetch_ids(request, FETCH_IDS_MAX).await?;
    let to = match &pair.to {
        Some(spec) => versions::readable(&app, &machine, spec).await?,
        None => machine.session.version.clone(),
    };
    let from = match &pair.from {
        Some(spec) => recipes::version_if_any(&app, spec).await?,
        None => None,
    };
    let recipe = match &from {
        Some(from) => recipes::find(&app, from, &to).await?,
        None => None,
    };
    // What others hold it could only guess.
    if let Some(from) = from.filter(|from| from.manifest == machine.session.version.manifest)
        && recipe.is_none()
    {
        recipes::miss(&app, &from, &to);
    }
    send(app, &machine, to, ids, recipe).await
}

async fn fetch_ids(request: Request, ids_max: usize) -> Result<Vec<ChunkId>, ApiError> {
    let body = small(request).await?;
    decode_ids(&body, ids_max)
        .map_err(|error| ApiError::new(ProblemCode::BadRequest, error.to_string()))
}

/// Sends chunks of one version, if all of them are its.
async fn send(
    app: Arc<App>,
    machine: &Machine,
    version: VersionRow,
    ids: Vec<ChunkId>,
    recipe: Option<Arc<Index>>,
) -> Result<Response, ApiError> {
    let session = Arc::clone(&machine.session);
    let peer = machine.arrival.peer.ip().to_canonical();
    let answer = app
        .blocking(move |app| {
            if let Some(foreign) = versions::foreign(app, &session, &version, &ids)? {
                let note = format!("refused {peer}: it asked for chunks of another version");
                app.boot.transcripts.note(&session.boot, note);
                let spec = version.spec();
                let detail = format!("chunk {foreign} is none of {spec}");
                return Err(ApiError::new(ProblemCode::Forbidden, detail));
            }
            Answer::of(app, &ids, recipe.as_deref())
        })
        .await?;
    Ok(answer.send(app))
}
