//! The HTTP API: routes, who may use them, and what goes wrong on the way.

mod auth;
mod body;
mod error;
mod extract;
mod listen;
mod progress;
mod routes;
mod traffic;

use std::time::Duration;
pub(crate) use traffic::{Counted, Traffic};

pub(crate) use auth::TOKEN_PREFIX;
pub(crate) use body::{Binary, stopping};
pub(crate) use error::ApiError;
pub(crate) use extract::ApiQuery;
pub use listen::ListenError;
pub(crate) use listen::{ApiServer, bind_unix};
pub(crate) use progress::Progress;
pub(crate) use rootstock_core::chain;
pub use routes::openapi;
pub(crate) use routes::{lease, router};

/// How long a client may rest when the daemon stops: whoever sends and takes
/// nothing for so long is not waited for.
pub(crate) const STOPPING_IDLE: Duration = Duration::from_millis(500);
