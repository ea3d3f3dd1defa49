//! Volumes: their rows, with a state so that a crash between steps is settled.

use jiff::Timestamp;
use rootstock_core::{ImageName, VersionNumber, VersionSelector, VersionSpec, VolumeName};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
};

/// The most volumes of a site.
pub const VOLUMES_MAX: u32 = 100_000;

/// How far a volume's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// The row is there, the files may not be: undone at start.
    Creating,
    /// It can be used.
    Ready,
    /// The files are going: finished at start.
    Deleting,
}

impl VolumeState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }

    fn parse(text: &str) -> Result<Self, CatalogError> {
        match text {
            "creating" => Ok(Self::Creating),
            "ready" => Ok(Self::Ready),
            "deleting" => Ok(Self::Deleting),
            _ => Err(CatalogError::Corrupt {
                column: "volume state",
                value: text.to_owned(),
            }),
        }
    }
}

/// A volume to be added.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its name.
    pub name: VolumeName,
    /// The image it is a clone of.
    pub image: ImageName,
    /// The version it is a clone of.
    pub version: VersionNumber,
    /// Its size.
    pub size_bytes: u64,
    /// Whether its writes are dropped when its last client leaves.
    pub ephemeral: bool,
    /// The logical blocks of its disk over iSCSI.
    pub block_bytes: u32,
    /// The directory of its files, used by no other volume before or after.
    pub directory: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its name.
    pub name: VolumeName,
    /// The image it is a clone of.
    pub image: ImageName,
    /// The version it is a clone of.
    pub version: VersionNumber,
    /// Its size.
    pub size_bytes: u64,
    /// Whether its writes are dropped when its last client leaves.
    pub ephemeral: bool,
    /// The logical blocks of its disk over iSCSI.
    pub block_bytes: u32,
    /// The target that it is a disk of, unless it has one of its own.
    pub target: Option<VolumeName>,
    /// Its number there.
    pub lun: u16,
    /// How far its files are.
    pub state: VolumeState,
    /// The directory of its files.
    pub directory: String,
    /// When it was made.
    pub created: Timestamp,
}

impl VolumeRow {
    /// The version it is a clone of.
    #[must_use]
    pub fn base(&self) -> VersionSpec {
        VersionSpec {
            image: self.image.clone(),
            selector: VersionSelector::Number(self.version),
        }
    }
}

#[derive(sqlx::FromRow)]
struct Columns {
    name: String,
    image: String,
    version: i64,
    size_bytes: i64,
    ephemeral: i64,
    block_bytes: i64,
    target: Option<String>,
    lun: i64,
    state: String,
    directory: String,
    created_ms: i64,
}

/// A target's name has the form of a volume's.
pub(crate) fn target(text: Option<&str>) -> Result<Option<VolumeName>, CatalogError> {
    text.map(|text| parse("volume's target", text)).transpose()
}

impl TryFrom<Columns> for VolumeRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        Ok(Self {
            name: parse("volume name", &row.name)?,
            image: parse("image name", &row.image)?,
            version: VersionNumber(unsigned("volume's version", row.version)?),
            size_bytes: unsigned("volume size", row.size_bytes)?,
            ephemeral: row.ephemeral != 0,
            block_bytes: unsigned("volume's blocks", row.block_bytes)?,
            target: target(row.target.as_deref())?,
            lun: unsigned("volume's number in its target", row.lun)?,
            state: VolumeState::parse(&row.state)?,
            directory: row.directory,
            created: time("volume's time", row.created_ms)?,
        })
    }
}

impl Catalog {
    /// Adds a volume in the state [`VolumeState::Creating`]. From now on its base
    /// version cannot be deleted.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`CatalogError::VersionNotFound`].
    pub async fn add_volume(&self, new: &NewVolume, now: Timestamp) -> Result<(), CatalogError> {
        let doing = "add a volume";
        let mut tx = self.begin(doing).await?;
        let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM volume")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if count >= i64::from(VOLUMES_MAX) {
            return Err(CatalogError::Full {
                what: "volumes",
                max: VOLUMES_MAX,
            });
        }
        let spec = VersionSpec {
            image: new.image.clone(),
            selector: VersionSelector::Number(new.version),
        };
        crate::versions::resolve(&mut tx, &spec).await?;
        let added = sqlx::query(
            "INSERT INTO volume (name, image, version, size_bytes, ephemeral, state, directory, \
             created_ms, block_bytes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name) DO NOTHING",
        )
        .bind(new.name.as_str())
        .bind(new.image.as_str())
        .bind(i64::from(new.version.0))
        .bind(new.size_bytes.cast_signed())
        .bind(i64::from(new.ephemeral))
        .bind(VolumeState::Creating.as_str())
        .bind(new.directory.as_str())
        .bind(now.as_millisecond())
        .bind(i64::from(new.block_bytes))
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        if added.rows_affected() == 0 {
            return Err(CatalogError::Exists {
                what: "volume",
                name: new.name.to_string(),
            });
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// All volumes, in every state, by name.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn volumes(&self) -> Result<Vec<VolumeRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM volume ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the volumes"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// A volume that can be used.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`] also for one that is being made or deleted.
    pub async fn volume(&self, volume: &VolumeName) -> Result<VolumeRow, CatalogError> {
        let row: Option<Columns> =
            sqlx::query_as("SELECT * FROM volume WHERE name = $1 AND state = $2")
                .bind(volume.as_str())
                .bind(VolumeState::Ready.as_str())
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("find a volume"))?;
        let row = row.ok_or_else(|| CatalogError::VolumeNotFound {
            volume: volume.clone(),
        })?;
        row.try_into()
    }

    /// Moves a volume to another state.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`].
    pub async fn set_volume_state(
        &self,
        volume: &VolumeName,
        state: VolumeState,
    ) -> Result<(), CatalogError> {
        let done = sqlx::query("UPDATE volume SET state = $2 WHERE name = $1")
            .bind(volume.as_str())
            .bind(state.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed("change a volume's state"))?;
        found(done.rows_affected(), volume)
    }

    /// Makes a volume a disk of this target, or gives it one of its own again.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`], [`CatalogError::Exists`] when the target has
    /// another disk of that number.
    pub async fn set_volume_target(
        &self,
        volume: &VolumeName,
        place: Option<(&VolumeName, u16)>,
    ) -> Result<(), CatalogError> {
        let doing = "change a volume's target";
        let mut tx = self.begin(doing).await?;
        let (target, lun) = place.unzip();
        let lun = lun.unwrap_or(0);
        let (taken,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM volume WHERE target = $1 AND lun = $2 AND name <> $3",
        )
        .bind(target.map(VolumeName::as_str))
        .bind(i64::from(lun))
        .bind(volume.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(doing))?;
        if taken > 0 {
            let name = target.map_or_else(String::new, |target| format!("{lun} of {target}"));
            return Err(CatalogError::Exists { what: "LUN", name });
        }
        let done = sqlx::query("UPDATE volume SET target = $2, lun = $3 WHERE name = $1")
            .bind(volume.as_str())
            .bind(target.map(VolumeName::as_str))
            .bind(i64::from(lun))
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        found(done.rows_affected(), volume)?;
        tx.commit().await.map_err(failed(doing))
    }

    /// Records a volume's new size.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`].
    pub async fn set_volume_size(
        &self,
        volume: &VolumeName,
        size_bytes: u64,
    ) -> Result<(), CatalogError> {
        let done = sqlx::query("UPDATE volume SET size_bytes = $2 WHERE name = $1")
            .bind(volume.as_str())
            .bind(size_bytes.cast_signed())
            .execute(&self.pool)
            .await
            .map_err(failed("change a volume's size"))?;
        found(done.rows_affected(), volume)
    }

    /// Removes a volume's row: its files are gone.
    ///
    /// # Errors
    /// [`CatalogError::VolumeNotFound`].
    pub async fn remove_volume(&self, volume: &VolumeName) -> Result<(), CatalogError> {
        let done = sqlx::query("DELETE FROM volume WHERE name = $1")
            .bind(volume.as_str())
            .execute(&self.pool)
            .await
            .map_err(failed("remove a volume"))?;
        found(done.rows_affected(), volume)
    }
}

fn found(rows_affected: u64, volume: &VolumeName) -> Result<(), CatalogError> {
    if rows_affected == 0 {
        return Err(CatalogError::VolumeNotFound {
            volume: volume.clone(),
        });
    }
    Ok(())
}
