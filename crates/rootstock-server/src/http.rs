//! The HTTP API: routes, who may use them, and what goes wrong on the way.

mod auth;
mod body;
mod error;
mod extract;
mod listen;
mod progress;
mod routes;

pub(crate) use auth::TOKEN_PREFIX;
pub(crate) use body::stopping;
pub(crate) use error::{ApiError, chain};
pub use listen::ListenError;
pub(crate) use listen::{ApiServer, bind_unix};
pub(crate) use progress::Progress;
pub use routes::openapi;
pub(crate) use routes::{lease, router};
