//! The routes, and the OpenAPI document made from them.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use rootstock_api::{Problem, ProblemCode, TEXT_BYTES_MAX, paths};
use utoipa::openapi::{
    InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{ApiError, auth};
use crate::app::App;

mod admin;
mod chunks;
mod images;
mod imports;
mod installers;
mod node_health;
mod node_personal;
mod node_power;
mod node_replace;
mod nodes;
mod profiles;
mod rollouts;
mod tokens;
mod versions;
mod volumes;

pub(crate) use versions::lease;

/// The API's OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> OpenApi {
    describe(api().split_for_parts().1)
}

/// All routes, behind authorization, counted, with problems for what is missing.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (router, _) = api().split_for_parts();
    router
        .route(paths::OPENAPI, get(document))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            auth::authorize,
        ))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(admin::healthz))
        .routes(routes!(admin::metrics))
        .routes(routes!(admin::site))
        .routes(routes!(admin::store))
        .routes(routes!(admin::boot_doctor))
        .routes(routes!(admin::boot_site))
        .routes(routes!(admin::nfs))
        .routes(routes!(admin::gc))
        .routes(routes!(admin::scrub, admin::scrub_start))
        .routes(routes!(admin::recipes))
        .routes(routes!(images::list))
        .routes(routes!(images::show, images::delete))
        .routes(routes!(images::history))
        .routes(routes!(images::nfs))
        .routes(routes!(images::tag, images::untag))
        .routes(routes!(images::tag_rollback))
        .routes(routes!(versions::show, versions::delete))
        .routes(routes!(versions::manifest))
        .routes(routes!(versions::verify))
        .routes(routes!(versions::diff))
        .routes(routes!(imports::list, imports::create))
        .routes(routes!(imports::show, imports::abort))
        .routes(routes!(imports::lacking))
        .routes(routes!(imports::chunks))
        .routes(routes!(imports::commit))
        .routes(routes!(chunks::fetch))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::show, volumes::delete))
        .routes(routes!(volumes::resize))
        .routes(routes!(volumes::reset))
        .routes(routes!(volumes::snapshot))
        .routes(routes!(volumes::commit))
        .routes(routes!(versions::share))
        .routes(routes!(versions::unshare))
        .routes(routes!(volumes::share))
        .routes(routes!(volumes::unshare))
        .routes(routes!(nodes::list, nodes::create, nodes::set))
        .routes(routes!(nodes::watch))
        .routes(routes!(nodes::export))
        .routes(routes!(nodes::import))
        .routes(routes!(nodes::approve))
        .routes(routes!(nodes::delete))
        .routes(routes!(nodes::rollback))
        .routes(routes!(node_replace::replace))
        .routes(routes!(node_health::retry))
        .routes(routes!(node_health::reinstall))
        .routes(routes!(
            node_personal::commit,
            node_personal::show,
            node_personal::abort
        ))
        .routes(routes!(node_personal::reset))
        .routes(routes!(node_power::reboot))
        .routes(routes!(node_power::wake))
        .routes(routes!(installers::list))
        .routes(routes!(installers::show))
        .routes(routes!(installers::render))
        .routes(routes!(installers::install))
        .routes(routes!(installers::cancel))
        .routes(routes!(nodes::show))
        .routes(routes!(nodes::boots))
        .routes(routes!(profiles::list, profiles::create))
        .routes(routes!(profiles::show, profiles::set, profiles::delete))
        .routes(routes!(profiles::rollback))
        .routes(routes!(rollouts::list, rollouts::start))
        .routes(routes!(rollouts::show))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::abort))
        .routes(routes!(admin::exports))
        .routes(routes!(admin::clients))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
}

fn describe(generated: OpenApi) -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token; over the Unix socket none is needed."))
        .build();
    let mut components = generated.components.unwrap_or_default();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    let info = InfoBuilder::new()
        .title("Rootstock")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The HTTP API of the Rootstock daemon. Every error is a problem document (RFC 9457).",
        ))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .paths(generated.paths)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("token", [""; 0])]))
        .build()
}

async fn document() -> Response {
    match openapi().to_json() {
        Ok(json) => {
            let mut response = json.into_response();
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            response
        }
        Err(error) => ApiError::internal("describe the API", &error).into_response(),
    }
}

async fn no_such_path(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new(
        ProblemCode::NoSuchPath,
        format!("there is no path '{}'", path.escape_debug()),
    )
    .with_hint("/openapi.json lists the paths")
    .into()
}

async fn no_such_method(request: Request) -> ApiError {
    let detail = format!(
        "{} does not have the method {}",
        request.uri().path(),
        request.method()
    );
    Problem::new(ProblemCode::MethodNotAllowed, detail)
        .with_hint("/openapi.json lists the methods")
        .into()
}

/// Counts requests by route: by template, so that names cannot make new ones.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    let method = known.into_iter().find(|known| *known == method.as_str());
    app.metrics.request(
        method.unwrap_or("other"),
        route,
        response.status().as_u16(),
        began.elapsed(),
    );
    response
}

/// A name in a body that breaks the rules.
fn bad_name(error: impl std::error::Error) -> ApiError {
    ApiError::new(ProblemCode::BadName, error.to_string())
}

/// A binary body that breaks them.
fn bad_body(error: impl std::error::Error) -> ApiError {
    ApiError::new(ProblemCode::BadRequest, error.to_string())
        .with_hint("/openapi.json describes the body")
}

/// Refuses free text that is too long or has control characters in it.
fn check_text(what: &str, text: &str) -> Result<(), ApiError> {
    if text.len() > TEXT_BYTES_MAX {
        let detail = format!(
            "the {what} has {} bytes, and the limit is {TEXT_BYTES_MAX}",
            text.len()
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail));
    }
    if text.chars().any(|c| c.is_control() && c != '\n') {
        let detail = format!("the {what} has control characters in it");
        return Err(ApiError::new(ProblemCode::BadValue, detail));
    }
    Ok(())
}
