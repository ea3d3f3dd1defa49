//! Request bodies, bounded in size, in number and in patience.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use rootstock_api::{BINARY_MEDIA_TYPE, ProblemCode, record::RECORDS_BYTES_MAX};
use tokio::sync::OwnedSemaphorePermit;

use super::{ApiError, STOPPING_IDLE};
use crate::{app::App, stop::Stop};

/// How long a client may pause within a body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A binary body of up to [`RECORDS_BYTES_MAX`], with its place among the bodies
/// that are in memory at once.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) bytes: Bytes,
    pub(crate) _place: OwnedSemaphorePermit,
}

impl FromRequest<Arc<App>> for Binary {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        if !is_of_type(request.headers(), BINARY_MEDIA_TYPE) {
            return Err(
                ApiError::new(ProblemCode::UnsupportedMediaType, "this path takes bytes")
                    .with_hint("send them with content-type: application/octet-stream"),
            );
        }
        // Before the wait: what is too large needs no place.
        let announced = refuse_long(&request, RECORDS_BYTES_MAX)?;
        let places = Arc::clone(&app.body_places);
        let place = places.acquire_owned().await.map_err(|_| stopping())?;
        let memory = app.imports.body_memory(announced);
        let bytes = read_into(request, RECORDS_BYTES_MAX, memory).await?;
        Ok(Self {
            bytes,
            _place: place,
        })
    }
}

/// Whether the body says that it is of this media type, whatever its parameters.
pub(crate) fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case(wanted)
}

/// Reads a body of at most `bytes_max`.
///
/// When the daemon stops, a body that goes on coming is still taken; one whose
/// sender rests is not waited for.
pub(crate) async fn read(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    read_into(request, bytes_max, BytesMut::new()).await
}

/// The same into memory that is there already, which is empty.
async fn read_into(
    request: Request,
    bytes_max: usize,
    mut bytes: BytesMut,
) -> Result<Bytes, ApiError> {
    let announced = refuse_long(&request, bytes_max)?;
    let mut stop = request.extensions().get::<Stop>().cloned();
    let mut stream = request.into_body().into_data_stream();
    bytes.reserve(announced);
    loop {
        let part = tokio::time::timeout(IDLE_TIMEOUT, stream.next());
        let part = tokio::select! {
            part = part => part,
            () = rested_at_stop(stop.as_mut()) => return Err(stopping()),
        };
        match part {
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Ok(part))) if bytes.len() + part.len() > bytes_max => {
                return Err(too_large(bytes_max));
            }
            Ok(Some(Ok(part))) => bytes.extend_from_slice(&part),
            Ok(Some(Err(_))) => {
                return Err(ApiError::new(
                    ProblemCode::BadRequest,
                    "the request's body broke off",
                ));
            }
            Err(_) => {
                return Err(ApiError::new(
                    ProblemCode::BadRequest,
                    format!("nothing of the body came for {} s", IDLE_TIMEOUT.as_secs()),
                ));
            }
        }
    }
}

/// Returns when the daemon has been stopping for [`STOPPING_IDLE`].
async fn rested_at_stop(stop: Option<&mut Stop>) {
    match stop {
        Some(stop) => {
            stop.wait().await;
            tokio::time::sleep(STOPPING_IDLE).await;
        }
        None => std::future::pending().await,
    }
}

/// The announced length, which is 0 when there is none.
fn refuse_long(request: &Request, bytes_max: usize) -> Result<usize, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let length = length.unwrap_or(0);
    match usize::try_from(length) {
        Ok(length) if length <= bytes_max => Ok(length),
        _ => Err(too_large(bytes_max)),
    }
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::new(
        ProblemCode::TooLarge,
        format!("the body is larger than {bytes_max} bytes, the limit of this path"),
    )
    .with_hint("send it in parts")
}

pub(crate) fn stopping() -> ApiError {
    ApiError::new(ProblemCode::Unavailable, "the daemon is stopping")
        .with_hint("try again when it has started")
}
