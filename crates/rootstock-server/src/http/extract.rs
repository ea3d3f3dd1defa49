//! What handlers take: paths, queries and JSON, with problems instead of plain text.

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        path::ErrorKind,
        rejection::{PathRejection, QueryRejection},
    },
    http::request::Parts,
    response::{IntoResponse, Response},
};
use rootstock_api::{JSON_BYTES_MAX, ProblemCode, paths};
use rootstock_core::VersionSelector;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use super::{ApiError, body};

/// A JSON body, in and out.
#[derive(Debug)]
pub(crate) struct ApiJson<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !body::is_of_type(request.headers(), "application/json") {
            return Err(ApiError::new(
                ProblemCode::UnsupportedMediaType,
                "this path takes a JSON document",
            )
            .with_hint("send it with content-type: application/json"));
        }
        let bytes = body::read(request, JSON_BYTES_MAX).await?;
        let value = serde_json::from_slice(&bytes).map_err(|error| {
            let detail = format!("the JSON document is not what this path takes: {error}");
            ApiError::new(ProblemCode::BadRequest, detail).with_hint("/openapi.json describes it")
        })?;
        Ok(Self(value))
    }
}

impl<T: Serialize> IntoResponse for ApiJson<T> {
    fn into_response(self) -> Response {
        Json(self.0).into_response()
    }
}

/// The parameters of a path.
#[derive(Debug)]
pub(crate) struct ApiPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                let detail = match error.kind() {
                    ErrorKind::DeserializeError { message, .. } | ErrorKind::Message(message) => {
                        message.clone()
                    }
                    _ => error.body_text(),
                };
                Err(ApiError::new(ProblemCode::BadName, detail))
            }
            Err(error) => Err(ApiError::internal("read a path", &error)),
        }
    }
}

/// The query of a request.
#[derive(Debug)]
pub(crate) struct ApiQuery<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(ApiError::new(ProblemCode::BadRequest, error.body_text())
                    .with_hint("/openapi.json describes it"))
            }
            Err(error) => Err(ApiError::internal("read a query", &error)),
        }
    }
}

/// A version in a path: a number, `latest` or `@tag`.
#[derive(Debug)]
pub(crate) struct Selector(pub(crate) VersionSelector);

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let selector = paths::parse_selector(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(selector))
    }
}
