//! Chunks for machines: a few that are asked for, or a boot pack as one stream.

use std::{io, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use rootstock_api::{
    BINARY_MEDIA_TYPE, ProblemCode, Record,
    boot::{FETCH_IDS_MAX, PACK_IDS_MAX},
    record::{RECORD_HEADER_BYTES, decode_ids},
};
use rootstock_core::ChunkId;

use super::node_api::{Machine, small};
use crate::{app::App, http::ApiError};

/// Chunks that are read together.
const CHUNKS_AT_ONCE: usize = 4;

/// Reads that are under way, or done and waiting for the network: a machine that
/// takes its chunks slowly holds these and no more.
const READS_AHEAD: usize = 2;

/// Chunks of the version that the machine runs, and of no other. Frames go out as
/// the packs have them.
pub(super) async fn chunks(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, &machine, request, FETCH_IDS_MAX).await
}

/// The same for all that a boot will read: it is sent as it is read.
pub(super) async fn boot_pack(
    State(app): State<Arc<App>>,
    machine: Machine,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, &machine, request, PACK_IDS_MAX).await
}

async fn answer(
    app: Arc<App>,
    machine: &Machine,
    request: Request,
    ids_max: usize,
) -> Result<Response, ApiError> {
    let body = small(request).await?;
    let ids = decode_ids(&body, ids_max)
        .map_err(|error| ApiError::new(ProblemCode::BadRequest, error.to_string()))?;
    let (ids, len_bytes) = allowed(&app, machine, ids).await?;
    app.metrics.chunks_served(ids.len() as u64, len_bytes);
    let mut response = Body::from_stream(records(app, &ids)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(BINARY_MEDIA_TYPE),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len_bytes));
    Ok(response)
}

/// These ids if the machine may have all of them, and the length of their records.
async fn allowed(
    app: &Arc<App>,
    machine: &Machine,
    ids: Vec<ChunkId>,
) -> Result<(Vec<ChunkId>, u64), ApiError> {
    let session = Arc::clone(&machine.session);
    let peer = machine.arrival.peer.ip().to_canonical();
    app.blocking(move |app| {
        let mut len_bytes = 0;
        for id in &ids {
            if !session.has(&app.store, *id)? {
                let version = session.version.spec();
                let note = format!("refused {peer}: it asked for chunks of another version");
                app.boot.transcripts.note(&session.boot, note);
                let detail = format!("chunk {id} is none of {version}, which this boot runs");
                return Err(ApiError::new(ProblemCode::Forbidden, detail));
            }
            let frame = app.store.frame_bytes(*id).ok_or_else(|| {
                ApiError::new(ProblemCode::ChunkNotFound, format!("chunk {id} is lost"))
            })?;
            len_bytes += RECORD_HEADER_BYTES as u64 + u64::from(frame);
        }
        Ok((ids, len_bytes))
    })
    .await
}

/// The records in the order of the ids.
fn records(app: Arc<App>, ids: &[ChunkId]) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let batches: Vec<Vec<ChunkId>> = ids.chunks(CHUNKS_AT_ONCE).map(<[_]>::to_vec).collect();
    stream::iter(batches)
        .map(move |batch| {
            let app = Arc::clone(&app);
            async move { read(&app, batch).await }
        })
        .buffered(READS_AHEAD)
        .flat_map(stream::iter)
}

async fn read(app: &Arc<App>, batch: Vec<ChunkId>) -> Vec<io::Result<Bytes>> {
    let read = app.blocking(move |app| {
        let mut parts = Vec::with_capacity(2 * batch.len());
        for id in batch {
            let frame = app.store.frame(id)?;
            let record = Record {
                chunk: id,
                raw_bytes: frame.raw_bytes,
                codec: frame.codec.to_byte(),
                frame: &frame.bytes,
            };
            parts.push(Ok(Bytes::copy_from_slice(&record.header())));
            parts.push(Ok(frame.bytes));
        }
        Ok(parts)
    });
    // The head has gone out: all that is left is to break off.
    read.await.unwrap_or_else(|error| {
        tracing::error!(detail = error.0.detail, "chunks of a node not read");
        vec![Err(io::Error::other("a chunk cannot be read"))]
    })
}
