//! The HTTP API's client, and the import and export pipelines on it.
//!
//! Calls block: the pipelines run on threads that read, hash and compress. A
//! [`Client`] may be used from many threads, but not from an async task.

mod calls;
mod endpoint;
mod error;
mod facts;
mod http;
pub mod pull;
pub mod push;

pub use endpoint::{Endpoint, EndpointError};
pub use error::ClientError;
pub use facts::facts;
pub use http::{AWAY_SECONDS_MAX, Client, ClientOptions};
