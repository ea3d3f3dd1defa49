//! Imports that are open, and the packs they rely on.

use jiff::Timestamp;
use rootstock_core::ImageName;

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
    schema::Tx,
};

/// The most imports open at once.
pub const IMPORTS_MAX: u32 = 1000;

/// An import to be opened.
#[derive(Debug, Clone)]
pub struct NewImport {
    /// Its id.
    pub id: String,
    /// The image that gets the version.
    pub image: ImageName,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// What it is made from.
    pub source: String,
}

/// An open import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRow {
    /// Its id.
    pub id: String,
    /// The image that gets the version.
    pub image: ImageName,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// What it is made from.
    pub source: String,
    /// Chunks that were new to the store.
    pub added_chunks: u64,
    /// Bytes of their frames.
    pub added_bytes: u64,
    /// When it was opened.
    pub created: Timestamp,
    /// When something last came for it.
    pub active: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    id: String,
    image: String,
    disk_bytes: i64,
    source: String,
    added_chunks: i64,
    added_bytes: i64,
    created_ms: i64,
    active_ms: i64,
}

impl TryFrom<Columns> for ImportRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        Ok(Self {
            id: row.id,
            image: parse("image name", &row.image)?,
            disk_bytes: unsigned("disk size", row.disk_bytes)?,
            source: row.source,
            added_chunks: unsigned("added chunks", row.added_chunks)?,
            added_bytes: unsigned("added bytes", row.added_bytes)?,
            created: time("import's creation", row.created_ms)?,
            active: time("import's activity", row.active_ms)?,
        })
    }
}

impl Catalog {
    /// Opens an import.
    ///
    /// # Errors
    /// [`CatalogError::Full`].
    pub async fn open_import(
        &self,
        new: &NewImport,
        now: Timestamp,
    ) -> Result<ImportRow, CatalogError> {
        let doing = "open an import";
        let mut tx = self.begin(doing).await?;
        let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM import")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if count >= i64::from(IMPORTS_MAX) {
            return Err(CatalogError::Full {
                what: "open imports",
                max: IMPORTS_MAX,
            });
        }
        let row: Columns = sqlx::query_as(
            "INSERT INTO import (id, image, disk_bytes, source, added_chunks, added_bytes, \
             created_ms, active_ms) VALUES ($1, $2, $3, $4, 0, 0, $5, $5) RETURNING *",
        )
        .bind(new.id.as_str())
        .bind(new.image.as_str())
        .bind(new.disk_bytes.cast_signed())
        .bind(new.source.as_str())
        .bind(now.as_millisecond())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))?;
        row.try_into()
    }

    /// Open imports, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn imports(&self) -> Result<Vec<ImportRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM import ORDER BY created_ms, id")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the imports"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// One open import.
    ///
    /// # Errors
    /// [`CatalogError::ImportNotFound`].
    pub async fn import(&self, import: &str) -> Result<ImportRow, CatalogError> {
        let row: Option<Columns> = sqlx::query_as("SELECT * FROM import WHERE id = $1")
            .bind(import)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find an import"))?;
        row.ok_or_else(|| not_found(import))?.try_into()
    }

    /// Pins packs for an import, durably when it returns. Packs that are pinned
    /// already stay so.
    ///
    /// # Errors
    /// [`CatalogError::ImportNotFound`].
    pub async fn pin(&self, import: &str, packs: &[String]) -> Result<(), CatalogError> {
        let doing = "pin packs";
        let mut tx = self.begin(doing).await?;
        require(&mut tx, import).await?;
        for pack in packs {
            sqlx::query(
                "INSERT INTO import_pin (import, pack) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            )
            .bind(import)
            .bind(pack.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// The packs that open imports rely on.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn pins(&self) -> Result<Vec<String>, CatalogError> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT DISTINCT pack FROM import_pin")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read the pins"))?;
        Ok(rows.into_iter().map(|(pack,)| pack).collect())
    }

    /// Records that something came for an import.
    ///
    /// # Errors
    /// [`CatalogError::ImportNotFound`].
    pub async fn touch_import(
        &self,
        import: &str,
        added_chunks: u64,
        added_bytes: u64,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let done = sqlx::query(
            "UPDATE import SET added_chunks = added_chunks + $2, added_bytes = added_bytes + $3, \
             active_ms = $4 WHERE id = $1",
        )
        .bind(import)
        .bind(added_chunks.cast_signed())
        .bind(added_bytes.cast_signed())
        .bind(now.as_millisecond())
        .execute(&self.pool)
        .await
        .map_err(failed("touch an import"))?;
        if done.rows_affected() == 0 {
            return Err(not_found(import));
        }
        Ok(())
    }

    /// Ends an import without a version: its pins go.
    ///
    /// # Errors
    /// [`CatalogError::ImportNotFound`].
    pub async fn abort_import(&self, import: &str) -> Result<(), CatalogError> {
        let mut tx = self.begin("abort an import").await?;
        remove(&mut tx, import).await?;
        tx.commit().await.map_err(failed("abort an import"))
    }

    /// Ends the imports for which nothing came since `idle_since`; answers them.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn expire_imports(&self, idle_since: Timestamp) -> Result<Vec<String>, CatalogError> {
        let rows: Vec<(String,)> =
            sqlx::query_as("DELETE FROM import WHERE active_ms < $1 RETURNING id")
                .bind(idle_since.as_millisecond())
                .fetch_all(&self.pool)
                .await
                .map_err(failed("expire imports"))?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }
}

fn not_found(import: &str) -> CatalogError {
    CatalogError::ImportNotFound {
        import: import.chars().take(64).collect(),
    }
}

async fn require(tx: &mut Tx, import: &str) -> Result<(), CatalogError> {
    let found: Option<(i64,)> = sqlx::query_as("SELECT disk_bytes FROM import WHERE id = $1")
        .bind(import)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("find an import"))?;
    found.map(|_| ()).ok_or_else(|| not_found(import))
}

/// Ends an import within a transaction.
pub(crate) async fn remove(tx: &mut Tx, import: &str) -> Result<(), CatalogError> {
    let done = sqlx::query("DELETE FROM import WHERE id = $1")
        .bind(import)
        .execute(&mut **tx)
        .await
        .map_err(failed("end an import"))?;
    if done.rows_affected() == 0 {
        return Err(not_found(import));
    }
    Ok(())
}
