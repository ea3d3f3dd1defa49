//! Shares: who may use a volume or a version over iSCSI, and what initiators reserved of it.

use jiff::Timestamp;
use rootstock_core::{ImageName, VersionNumber, VolumeName};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
    schema::Tx,
    volumes::target,
};

/// The most initiators of one volume or version.
pub const SHARES_PER_DISK_MAX: u32 = 64;

/// What can be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shareable {
    /// A volume, to be written to.
    Volume(VolumeName),
    /// A version, to be read.
    Version(ImageName, VersionNumber),
}

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
    /// What is shared.
    pub disk: Shareable,
    /// The target that a volume is a disk of, unless it has one of its own.
    pub target: Option<VolumeName>,
    /// Its number there.
    pub lun: u16,
    /// The initiator's iSCSI name, in lower case.
    pub initiator: String,
    /// The network that it must come from, if from one.
    pub addresses: Option<String>,
    /// What it has to know, if anything.
    pub secret: Option<Secret>,
    /// What the target proves to know when it is asked.
    pub mutual_secret: Option<Secret>,
    /// Where it is sent instead, as `HOST:PORT`.
    pub redirect: Option<String>,
    /// When it was made.
    pub created: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    initiator: String,
    addresses: Option<String>,
    secret: Option<String>,
    mutual_secret: Option<String>,
    redirect: Option<String>,
    created_ms: i64,
}

#[derive(sqlx::FromRow)]
struct VolumeColumns {
    volume: String,
    target: Option<String>,
    lun: i64,
    #[sqlx(flatten)]
    rest: Columns,
}

#[derive(sqlx::FromRow)]
struct VersionColumns {
    image: String,
    version: i64,
    #[sqlx(flatten)]
    rest: Columns,
}

impl Columns {
    fn of(self, disk: Shareable) -> Result<ShareRow, CatalogError> {
        Ok(ShareRow {
            disk,
            target: None,
            lun: 0,
            initiator: self.initiator,
            addresses: self.addresses,
            secret: self.secret.map(Secret),
            mutual_secret: self.mutual_secret.map(Secret),
            redirect: self.redirect,
            created: time("share's time", self.created_ms)?,
        })
    }
}

impl TryFrom<VolumeColumns> for ShareRow {
    type Error = CatalogError;

    fn try_from(row: VolumeColumns) -> Result<Self, CatalogError> {
        let volume = parse("share's volume", &row.volume)?;
        Ok(Self {
            target: target(row.target.as_deref())?,
            lun: unsigned("share's number", row.lun)?,
            ..row.rest.of(Shareable::Volume(volume))?
        })
    }
}

impl TryFrom<VersionColumns> for ShareRow {
    type Error = CatalogError;

    fn try_from(row: VersionColumns) -> Result<Self, CatalogError> {
        let image = parse("share's image", &row.image)?;
        let number = VersionNumber(unsigned("share's version", row.version)?);
        row.rest.of(Shareable::Version(image, number))
    }
}

impl Catalog {
    /// Shares a volume or a version with an initiator, or changes how.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`], [`CatalogError::VersionNotFound`],
    /// [`CatalogError::Full`].
    pub async fn set_share(&self, share: &ShareRow) -> Result<(), CatalogError> {
        let doing = "share a disk";
        let mut tx = self.begin(doing).await?;
        check_room(&mut tx, share).await?;
        let statement = match &share.disk {
            Shareable::Volume(_) => {
                "INSERT INTO volume_share (initiator, addresses, secret, mutual_secret, \
                 created_ms, redirect, volume) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (volume, initiator) \
                 DO UPDATE SET addresses = $2, secret = $3, mutual_secret = $4, \
                 created_ms = $5, redirect = $6"
            }
            Shareable::Version(..) => {
                "INSERT INTO version_share (initiator, addresses, secret, mutual_secret, \
                 created_ms, redirect, image, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                 ON CONFLICT (image, version, initiator) \
                 DO UPDATE SET addresses = $2, secret = $3, mutual_secret = $4, \
                 created_ms = $5, redirect = $6"
            }
        };
        let query = sqlx::query(statement)
            .bind(share.initiator.as_str())
            .bind(share.addresses.as_deref())
            .bind(share.secret.as_ref().map(Secret::reveal))
            .bind(share.mutual_secret.as_ref().map(Secret::reveal))
            .bind(share.created.as_millisecond())
            .bind(share.redirect.as_deref());
        let query = match &share.disk {
            Shareable::Volume(volume) => query.bind(volume.as_str()),
            Shareable::Version(image, number) => {
                query.bind(image.as_str()).bind(i64::from(number.0))
            }
        };
        query.execute(&mut *tx).await.map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }

    /// Ends a share; false when there was none.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn remove_share(
        &self,
        disk: &Shareable,
        initiator: &str,
    ) -> Result<bool, CatalogError> {
        let query = match disk {
            Shareable::Volume(volume) => {
                sqlx::query("DELETE FROM volume_share WHERE initiator = $1 AND volume = $2")
                    .bind(initiator)
                    .bind(volume.as_str())
            }
            Shareable::Version(image, number) => sqlx::query(
                "DELETE FROM version_share WHERE initiator = $1 AND image = $2 AND version = $3",
            )
            .bind(initiator)
            .bind(image.as_str())
            .bind(i64::from(number.0)),
        };
        let done = query
            .execute(&self.pool)
            .await
            .map_err(failed("end a share"))?;
        Ok(done.rows_affected() > 0)
    }

    /// The shares of a volume or a version, by initiator.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn shares_of(&self, disk: &Shareable) -> Result<Vec<ShareRow>, CatalogError> {
        let failed = failed("list a disk's shares");
        match disk {
            Shareable::Volume(volume) => {
                let rows: Vec<VolumeColumns> = sqlx::query_as(
                    "SELECT volume_share.*, target, lun FROM volume_share \
                     JOIN volume ON volume.name = volume WHERE volume = $1 ORDER BY initiator",
                )
                .bind(volume.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
                rows.into_iter().map(TryInto::try_into).collect()
            }
            Shareable::Version(image, number) => {
                let rows: Vec<VersionColumns> = sqlx::query_as(
                    "SELECT * FROM version_share WHERE image = $1 AND version = $2 \
                     ORDER BY initiator",
                )
                .bind(image.as_str())
                .bind(i64::from(number.0))
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
                rows.into_iter().map(TryInto::try_into).collect()
            }
        }
    }

    /// What an initiator may use: volumes by name, then versions.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn shares_with(&self, initiator: &str) -> Result<Vec<ShareRow>, CatalogError> {
        let doing = "list an initiator's shares";
        let volumes: Vec<VolumeColumns> = sqlx::query_as(
            "SELECT volume_share.*, target, lun FROM volume_share \
             JOIN volume ON volume.name = volume \
             WHERE initiator = $1 AND state = 'ready' ORDER BY volume",
        )
        .bind(initiator)
        .fetch_all(&self.pool)
        .await
        .map_err(failed(doing))?;
        let versions: Vec<VersionColumns> = sqlx::query_as(
            "SELECT * FROM version_share WHERE initiator = $1 ORDER BY image, version",
        )
        .bind(initiator)
        .fetch_all(&self.pool)
        .await
        .map_err(failed(doing))?;
        let volumes = volumes.into_iter().map(TryInto::try_into);
        let versions = versions.into_iter().map(TryInto::try_into);
        volumes.chain(versions).collect()
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

/// Whether what is shared is there, and has room for another initiator.
async fn check_room(tx: &mut Tx, share: &ShareRow) -> Result<(), CatalogError> {
    let doing = "share a disk";
    let query = match &share.disk {
        Shareable::Volume(volume) => sqlx::query_as(
            "SELECT (SELECT count(*) FROM volume WHERE name = $2 AND state = 'ready'), \
             (SELECT count(*) FROM volume_share WHERE volume = $2 AND initiator <> $1)",
        )
        .bind(share.initiator.as_str())
        .bind(volume.as_str()),
        Shareable::Version(image, number) => sqlx::query_as(
            "SELECT (SELECT count(*) FROM version WHERE image = $2 AND number = $3), \
             (SELECT count(*) FROM version_share WHERE image = $2 AND version = $3 \
             AND initiator <> $1)",
        )
        .bind(share.initiator.as_str())
        .bind(image.as_str())
        .bind(i64::from(number.0)),
    };
    let (disks, others): (i64, i64) = query.fetch_one(&mut **tx).await.map_err(failed(doing))?;
    if disks == 0 {
        return Err(not_found(&share.disk));
    }
    if others >= i64::from(SHARES_PER_DISK_MAX) {
        return Err(CatalogError::Full {
            what: "initiators of this disk",
            max: SHARES_PER_DISK_MAX,
        });
    }
    Ok(())
}

fn not_found(disk: &Shareable) -> CatalogError {
    match disk.clone() {
        Shareable::Volume(volume) => CatalogError::VolumeNotFound { volume },
        Shareable::Version(image, version) => CatalogError::VersionNotFound { image, version },
    }
}
