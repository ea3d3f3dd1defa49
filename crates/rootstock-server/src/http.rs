//! The HTTP API: routes, who may use them, and what goes wrong on the way.

mod auth;
mod body;
mod error;
mod extract;
mod listen;
mod progress;
mod routes;

pub(crate) use error::ApiError;
pub(crate) use listen::{ApiServer, ListenError};
pub use routes::openapi;
