//! Shares: who may use a volume over iSCSI, and what initiators reserved of it.

use jiff::Timestamp;
use rootstock_core::VolumeName;

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time},
};

/// The most initiators of one volume.
pub const SHARES_PER_VOLUME_MAX: u32 = 64;

/// A secret that is never shown: not in logs, not in listings.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, to compute with.
    #[must_use]
    pub const fn reveal(&self) -> &str {
        self.0.as_str()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareRow {
    /// The volume.
    pub volume: VolumeName,
    /// The initiator's iSCSI name, in lower case.
    pub initiator: String,
    /// The network that it must come from, if from one.
    pub addresses: Option<String>,
    /// What it has to know, if anything.
    pub secret: Option<Secret>,
    /// What the target proves to know when it is asked.
    pub mutual_secret: Option<Secret>,
    /// When it was made.
    pub created: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    volume: String,
    initiator: String,
    addresses: Option<String>,
    secret: Option<String>,
    mutual_secret: Option<String>,
    created_ms: i64,
}

impl TryFrom<Columns> for ShareRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        Ok(Self {
            volume: parse("share's volume", &row.volume)?,
            initiator: row.initiator,
            addresses: row.addresses,
            secret: row.secret.map(Secret),
            mutual_secret: row.mutual_secret.map(Secret),
            created: time("share's time", row.created_ms)?,
        })
    }
}

impl Catalog {
    /// Shares a volume with an initiator, or changes how.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`], [`CatalogError::Full`].
    pub async fn set_share(&self, share: &ShareRow) -> Result<(), CatalogError> {
        let doing = "share a volume";
        let mut tx = self.begin(doing).await?;
        let (volumes, others): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM volume WHERE name = $1 AND state = 'ready'), \
             (SELECT count(*) FROM volume_share WHERE volume = $1 AND initiator <> $2)",
        )
        .bind(share.volume.as_str())
        .bind(share.initiator.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(doing))?;
        if volumes == 0 {
            return Err(CatalogError::VolumeNotFound {
                volume: share.volume.clone(),
            });
        }
        if others >= i64::from(SHARES_PER_VOLUME_MAX) {
            return Err(CatalogError::Full {
                what: "initiators of this volume",
                max: SHARES_PER_VOLUME_MAX,
            });
        }
        sqlx::query(
            "INSERT INTO volume_share (volume, initiator, addresses, secret, mutual_secret, \
             created_ms) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (volume, initiator) \
             DO UPDATE SET addresses = $3, secret = $4, mutual_secret = $5, created_ms = $6",
        )
        .bind(share.volume.as_str())
        .bind(share.initiator.as_str())
        .bind(share.addresses.as_deref())
        .bind(share.secret.as_ref().map(Secret::reveal))
        .bind(share.mutual_secret.as_ref().map(Secret::reveal))
        .bind(share.created.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }

    /// Ends a share; false when there was none.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn remove_share(
        &self,
        volume: &VolumeName,
        initiator: &str,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query("DELETE FROM volume_share WHERE volume = $1 AND initiator = $2")
            .bind(volume.as_str())
            .bind(initiator)
            .execute(&self.pool)
            .await
            .map_err(failed("end a share"))?;
        Ok(done.rows_affected() > 0)
    }

    /// A volume's shares, by initiator.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn shares_of(&self, volume: &VolumeName) -> Result<Vec<ShareRow>, CatalogError> {
        let rows: Vec<Columns> =
            sqlx::query_as("SELECT * FROM volume_share WHERE volume = $1 ORDER BY initiator")
                .bind(volume.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list a volume's shares"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// What an initiator may use, by volume.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn shares_with(&self, initiator: &str) -> Result<Vec<ShareRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT volume_share.* FROM volume_share JOIN volume ON volume.name = volume \
             WHERE initiator = $1 AND state = 'ready' ORDER BY volume",
        )
        .bind(initiator)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list an initiator's shares"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// What initiators reserved of a volume, if anything.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn reservations(&self, volume: &VolumeName) -> Result<Option<String>, CatalogError> {
        let row: Option<(String,)> =
            sqlx::query_as("SELECT state FROM volume_reservation WHERE volume = $1")
                .bind(volume.as_str())
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("read a volume's reservations"))?;
        Ok(row.map(|(state,)| state))
    }

    /// Keeps what initiators reserved of a volume.
    ///
    /// # Errors
    /// [`CatalogError::Database`], also when there is no such volume.
    pub async fn set_reservations(
        &self,
        volume: &VolumeName,
        state: &str,
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "INSERT INTO volume_reservation (volume, state) VALUES ($1, $2) \
             ON CONFLICT (volume) DO UPDATE SET state = $2",
        )
        .bind(volume.as_str())
        .bind(state)
        .execute(&self.pool)
        .await
        .map_err(failed("keep a volume's reservations"))?;
        Ok(())
    }
}
