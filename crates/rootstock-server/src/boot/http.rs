//! HTTP for firmware: nothing here redirects, compresses or is sent in chunks.

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};

use super::{
    body,
    files::{self, Asked, Missing, Via},
    installer,
    listen::{Arrival, Transport},
    node_api,
};
use crate::app::App;

/// All of the boot service: boot files and the node service.
pub(crate) fn router(app: Arc<App>) -> Router {
    node_api::router()
        .fallback(file)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn file(
    State(app): State<Arc<App>>,
    Extension(arrival): Extension<Arrival>,
    request: Request,
) -> Response {
    if !is_allowed(request.method(), request.uri().path()) {
        return method_not_allowed().await;
    }
    let port = match arrival.transport {
        Transport::Plain => arrival.local.port(),
        // What a script fetches, firmware fetches without TLS.
        Transport::Tls => app.config.boot.http_port,
    };
    let asked = Asked {
        name: request.uri().path(),
        query: request.uri().query(),
        peer: arrival.peer.ip().to_canonical(),
        local: arrival.local.ip().to_canonical(),
        via: Via::Http(port),
    };
    match files::find(&app, asked).await {
        Ok(found) => body::respond(
            request.method(),
            request.headers(),
            found.content,
            found.media_type,
            found.on_sent,
        ),
        Err(Missing::Nothing) => plain(StatusCode::NOT_FOUND, "there is no such boot file\n"),
        Err(Missing::Refused) => plain(
            StatusCode::FORBIDDEN,
            "these boot files are another machine's\n",
        ),
        Err(Missing::Otherwise(why)) => (StatusCode::CONFLICT, format!("{why}\n")).into_response(),
    }
}

/// Boot files are only read; installers that call home also do it with a POST, of whose
/// body nothing is needed.
fn is_allowed(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => true,
        Method::POST => installer::CALLS.iter().any(|call| {
            let token = path.strip_prefix(installer::PATH);
            token.is_some_and(|rest| rest.strip_suffix(call).is_some_and(|r| r.ends_with('/')))
        }),
        _ => false,
    }
}

async fn method_not_allowed() -> Response {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "boot files are only read\n");
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}
