//! Fetching chunks.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use rootstock_api::{
    BINARY_MEDIA_TYPE, Problem, Record, paths,
    record::{FETCH_MAX, decode_ids},
};
use rootstock_store::StoredFrame;

use crate::{
    app::App,
    http::{ApiError, body::Binary},
};

/// Fetches chunks by id
///
/// The body is up to 64 ids of 32 bytes; the answer is their records, in the same
/// order and the form in which imports send them. When one is missing or damaged
/// none is sent.
#[utoipa::path(post, path = paths::CHUNKS_FETCH, tag = "chunks", operation_id = "chunk_fetch",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = Problem)))]
pub(crate) async fn fetch(State(app): State<Arc<App>>, body: Binary) -> Result<Response, ApiError> {
    let ids = decode_ids(&body.bytes, FETCH_MAX).map_err(super::bad_body)?;
    drop(body);
    let parts = app
        .blocking(move |app| {
            let mut parts = Vec::with_capacity(2 * ids.len());
            for id in ids {
                let frame = app.store.frame(id)?;
                parts.push(head(id, &frame));
                parts.push(frame.bytes);
            }
            Ok(parts)
        })
        .await?;
    let len_bytes: usize = parts.iter().map(Bytes::len).sum();
    app.metrics
        .chunks_served(parts.len() as u64 / 2, len_bytes as u64);
    let parts = parts.into_iter().map(Ok::<_, std::convert::Infallible>);
    let mut response = Body::from_stream(stream::iter(parts)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(BINARY_MEDIA_TYPE),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len_bytes));
    Ok(response)
}

fn head(chunk: rootstock_core::ChunkId, frame: &StoredFrame) -> Bytes {
    let record = Record {
        chunk,
        raw_bytes: frame.raw_bytes,
        codec: frame.codec.to_byte(),
        frame: &frame.bytes,
    };
    Bytes::copy_from_slice(&record.header())
}
