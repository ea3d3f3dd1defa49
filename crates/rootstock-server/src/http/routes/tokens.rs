//! Tokens.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use jiff::Timestamp;
use rootstock_api::{Problem, Token, TokenCreate, TokenCreated, TokenList, TokenRole, paths};
use rootstock_catalog::{Role, TokenRow};
use rootstock_core::{Digest, TagName};

use crate::{
    app::{App, hex},
    http::{
        ApiError, TOKEN_PREFIX,
        extract::{ApiJson, ApiPath},
    },
};

/// All tokens, revoked ones too
#[utoipa::path(get, path = paths::TOKENS, tag = "tokens", operation_id = "token_list", responses(
    (status = 200, body = TokenList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<TokenList>, ApiError> {
    let rows = app.catalog.tokens().await?;
    Ok(ApiJson(TokenList {
        tokens: rows.into_iter().map(describe).collect(),
    }))
}

/// Makes a token; the secret is shown this once
#[utoipa::path(post, path = paths::TOKENS, tag = "tokens", operation_id = "token_create",
    request_body = TokenCreate,
    responses((status = 201, body = TokenCreated), (status = "default", body = Problem)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<TokenCreate>,
) -> Result<(StatusCode, ApiJson<TokenCreated>), ApiError> {
    // Tokens are named by the rules that tags have.
    request.name.parse::<TagName>().map_err(super::bad_name)?;
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal("draw a secret", &error))?;
    let secret = format!("{TOKEN_PREFIX}{}", hex(&bytes));
    let role = match request.role {
        TokenRole::Reader => Role::Reader,
        TokenRole::Admin => Role::Admin,
    };
    let digest = Digest::of(secret.as_bytes());
    app.catalog
        .add_token(&request.name, digest, role, Timestamp::now())
        .await?;
    tracing::info!(
        token = request.name,
        role = request.role.as_str(),
        "token created"
    );
    let created = TokenCreated {
        name: request.name,
        role: request.role,
        secret,
    };
    Ok((StatusCode::CREATED, ApiJson(created)))
}

/// Revokes a token
#[utoipa::path(delete, path = paths::TOKEN, tag = "tokens", operation_id = "token_revoke",
    params(("token" = String, Path, description = "The token's name")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<Arc<App>>,
    ApiPath(token): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    app.catalog.revoke_token(&token, Timestamp::now()).await?;
    tracing::info!(token, "token revoked");
    Ok(StatusCode::NO_CONTENT)
}

fn describe(row: TokenRow) -> Token {
    Token {
        name: row.name,
        role: match row.role {
            Role::Reader => TokenRole::Reader,
            Role::Admin => TokenRole::Admin,
        },
        created: row.created.to_string(),
        last_used: row.last_used.map(|time| time.to_string()),
        revoked: row.revoked.map(|time| time.to_string()),
    }
}
