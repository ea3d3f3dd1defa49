//! Request bodies, bounded in size, in number and in patience.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequest, Request},
    http::header,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use rootstock_api::{ProblemCode, record::RECORDS_BYTES_MAX};
use tokio::sync::OwnedSemaphorePermit;

use super::ApiError;
use crate::app::App;

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
        // Before the wait: what is too large needs no place.
        refuse_long(&request, RECORDS_BYTES_MAX)?;
        let places = Arc::clone(&app.body_places);
        let place = places.acquire_owned().await.map_err(|_| stopping())?;
        let bytes = read(request, RECORDS_BYTES_MAX).await?;
        Ok(Self {
            bytes,
            _place: place,
        })
    }
}

/// Reads a body of at most `bytes_max`.
pub(crate) async fn read(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    let announced = refuse_long(&request, bytes_max)?;
    let mut stream = request.into_body().into_data_stream();
    let mut bytes = BytesMut::with_capacity(announced);
    loop {
        match tokio::time::timeout(IDLE_TIMEOUT, stream.next()).await {
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
