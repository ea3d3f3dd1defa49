//! Why a call of the API failed.

use rootstock_api::{Problem, ProblemCode};

use crate::Endpoint;

/// Why a call of the API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no daemon answers at {endpoint}")]
    Connect {
        /// Where it was looked for.
        endpoint: Endpoint,
        /// Why.
        #[source]
        cause: reqwest::Error,
    },
    /// The connection was lost before the answer was whole.
    #[error("the connection to the daemon at {endpoint} was lost")]
    Lost {
        /// Where the daemon was.
        endpoint: Endpoint,
        /// Why.
        #[source]
        cause: reqwest::Error,
    },
    /// The daemon refused.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// An answer that no daemon gives: something else listens there.
    #[error("what answers at {endpoint} is not a Rootstock daemon, or a much newer one: {what}")]
    NotTheApi {
        /// Where it was asked.
        endpoint: Endpoint,
        /// What was wrong with the answer.
        what: String,
    },
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {what}")]
    Tls {
        /// Why.
        what: String,
    },
    /// The client could not be made.
    #[error("the client cannot start")]
    Start(#[source] std::io::Error),
}

impl ClientError {
    /// The problem's code, if the daemon gave one.
    #[must_use]
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// Whether it may pass by itself: the daemon is away, stops, or has too much to
    /// do.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Lost { .. })
            || self.code() == Some(ProblemCode::Unavailable)
    }

    /// What the daemon says is to be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => problem.hint.as_deref(),
            _ => None,
        }
    }
}
