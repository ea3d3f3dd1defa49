//! Tokens: a name, a role, and the digest of a secret that nobody keeps.

use jiff::Timestamp;
use rootstock_core::Digest;

use crate::{
    Catalog,
    error::{CatalogError, failed, time},
};

/// The most tokens of a site, revoked ones included.
pub const TOKENS_MAX: u32 = 10_000;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything that only reads.
    Reader,
    /// Everything.
    Admin,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Admin => "admin",
        }
    }

    fn parse(text: &str) -> Result<Self, CatalogError> {
        match text {
            "reader" => Ok(Self::Reader),
            "admin" => Ok(Self::Admin),
            _ => Err(CatalogError::Corrupt {
                column: "token role",
                value: text.to_owned(),
            }),
        }
    }
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last used.
    pub last_used: Option<Timestamp>,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Columns {
    name: String,
    role: String,
    created_ms: i64,
    last_used_ms: Option<i64>,
    revoked_ms: Option<i64>,
}

impl TryFrom<Columns> for TokenRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let optional = |ms: Option<i64>| ms.map(|ms| time("token's time", ms)).transpose();
        Ok(Self {
            name: row.name,
            role: Role::parse(&row.role)?,
            created: time("token's creation", row.created_ms)?,
            last_used: optional(row.last_used_ms)?,
            revoked: optional(row.revoked_ms)?,
        })
    }
}

impl Catalog {
    /// Adds a token, given the digest of its secret.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`CatalogError::Full`].
    pub async fn add_token(
        &self,
        name: &str,
        digest: Digest,
        role: Role,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "add a token";
        let mut tx = self.begin(doing).await?;
        let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM token")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if count >= i64::from(TOKENS_MAX) {
            return Err(CatalogError::Full {
                what: "tokens",
                max: TOKENS_MAX,
            });
        }
        let added = sqlx::query(
            "INSERT INTO token (name, digest, role, created_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(digest.to_string())
        .bind(role.as_str())
        .bind(now.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        if added.rows_affected() == 0 {
            return Err(CatalogError::Exists {
                what: "token",
                name: name.to_owned(),
            });
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// All tokens, revoked ones too, by name.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT name, role, created_ms, last_used_ms, revoked_ms FROM token ORDER BY name",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the tokens"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The token whose secret has this digest, unless it was revoked.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn token_of(&self, digest: Digest) -> Result<Option<TokenRow>, CatalogError> {
        let row: Option<Columns> = sqlx::query_as(
            "SELECT name, role, created_ms, last_used_ms, revoked_ms FROM token \
             WHERE digest = $1 AND revoked_ms IS NULL",
        )
        .bind(digest.to_string())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look a token up"))?;
        row.map(TryInto::try_into).transpose()
    }

    /// Records that a token was used.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn token_used(&self, name: &str, now: Timestamp) -> Result<(), CatalogError> {
        sqlx::query("UPDATE token SET last_used_ms = $2 WHERE name = $1")
            .bind(name)
            .bind(now.as_millisecond())
            .execute(&self.pool)
            .await
            .map_err(failed("record a token's use"))?;
        Ok(())
    }

    /// Revokes a token. Its name stays taken, so that history stays true.
    ///
    /// # Errors
    /// [`CatalogError::TokenNotFound`] also when it was revoked before.
    pub async fn revoke_token(&self, name: &str, now: Timestamp) -> Result<(), CatalogError> {
        let done =
            sqlx::query("UPDATE token SET revoked_ms = $2 WHERE name = $1 AND revoked_ms IS NULL")
                .bind(name)
                .bind(now.as_millisecond())
                .execute(&self.pool)
                .await
                .map_err(failed("revoke a token"))?;
        if done.rows_affected() == 0 {
            return Err(CatalogError::TokenNotFound {
                token: name.chars().take(64).collect(),
            });
        }
        Ok(())
    }
}
