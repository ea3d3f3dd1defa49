//! Who asks: whoever may open the Unix socket, or the bearer of a token.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use jiff::{SignedDuration, Timestamp};
use rootstock_api::{ProblemCode, TokenRole, paths};
use rootstock_catalog::Role;
use rootstock_core::Digest;
use rootstock_store::Origin;
use tokio::net::UnixStream;

use super::ApiError;
use crate::app::App;

/// What tokens begin with, so that a leaked one is recognised in a scan.
pub(crate) const TOKEN_PREFIX: &str = "rst_";

/// How old a token's recorded last use may be: each use is not worth a write.
const LAST_USED_MINUTES: i64 = 1;

/// How a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over a Unix socket; the file system let it in.
    Local,
    /// Over a Unix socket, by root or by the user that the daemon runs as: who
    /// could write its files as well.
    SameUser,
    /// Over TLS.
    Remote,
}

impl Peer {
    /// Who connected to a Unix socket.
    pub(crate) fn of_unix(stream: &UnixStream) -> Self {
        let own = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own || peer.uid() == 0 => Self::SameUser,
            _ => Self::Local,
        }
    }
}

/// Who makes a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// What they may do.
    pub(crate) role: TokenRole,
    /// How history names them.
    pub(crate) actor: String,
    /// Whether their frames are what they say.
    pub(crate) origin: Origin,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(unauthorized)
    }
}

/// Lets a request through when its caller may make it.
pub(crate) async fn authorize(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    if is_open(request.uri().path()) {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>().copied();
    let peer = peer.unwrap_or(Peer::Remote);
    let secret = bearer(&request).map(str::to_owned);
    let caller = match identify(&app, peer, secret).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    if caller.role < needed(request.method(), request.uri().path()) {
        let detail = format!(
            "token '{}' may read, and this changes something",
            caller.actor
        );
        return ApiError::new(ProblemCode::Forbidden, detail)
            .with_hint("use a token with the role admin")
            .into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// What needs no token: it tells nothing of the site.
fn is_open(path: &str) -> bool {
    path == paths::HEALTHZ || path == paths::OPENAPI
}

fn needed(method: &Method, path: &str) -> TokenRole {
    // Fetching reads; it is a POST because of its list of ids.
    if method.is_safe() && path != paths::TOKENS || path == paths::CHUNKS_FETCH {
        TokenRole::Reader
    } else {
        TokenRole::Admin
    }
}

async fn identify(app: &App, peer: Peer, secret: Option<String>) -> Result<Caller, ApiError> {
    let origin = match peer {
        Peer::SameUser => Origin::SameUser,
        Peer::Local | Peer::Remote => Origin::Foreign,
    };
    if peer != Peer::Remote {
        return Ok(Caller {
            role: TokenRole::Admin,
            actor: "local".to_owned(),
            origin,
        });
    }
    let secret = secret.ok_or_else(unauthorized)?;
    // The digest is looked up, not the secret: how long that takes says nothing
    // of any other token.
    let token = app.catalog.token_of(Digest::of(secret.as_bytes())).await?;
    let token = token.ok_or_else(unauthorized)?;
    let now = Timestamp::now();
    let fresh = SignedDuration::from_mins(LAST_USED_MINUTES);
    if token
        .last_used
        .is_none_or(|used| now.duration_since(used) > fresh)
    {
        app.catalog.token_used(&token.name, now).await?;
    }
    Ok(Caller {
        role: match token.role {
            Role::Reader => TokenRole::Reader,
            Role::Admin => TokenRole::Admin,
        },
        actor: token.name,
        origin,
    })
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    let secret = secret.trim();
    let known = scheme.eq_ignore_ascii_case("bearer") && secret.starts_with(TOKEN_PREFIX);
    known.then_some(secret)
}

fn unauthorized() -> ApiError {
    ApiError::new(
        ProblemCode::Unauthorized,
        "no token was sent, or none that is known here",
    )
    .with_hint("make one with `rootstock token create` on the server")
}
