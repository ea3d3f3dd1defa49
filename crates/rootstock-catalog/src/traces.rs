//! What boots of a version read first, by class of hardware. A trace is bytes here.

use jiff::Timestamp;
use rootstock_core::{ImageName, VersionNumber, VersionSpec};

use crate::{
    Catalog, VersionRow,
    error::{CatalogError, failed, parse, unsigned},
    schema::Tx,
};

/// The most classes of hardware that a version has traces of, beside that of all
/// together.
pub const TRACE_CLASSES_MAX: usize = 32;

/// The boots of a class that are kept to be merged.
pub const TRACE_BOOTS_MAX: u32 = 8;

/// The longest name of a class, in bytes.
pub const TRACE_CLASS_BYTES_MAX: usize = 128;

/// The name of the class of all hardware together.
pub const TRACE_CLASS_ALL: &str = "";

/// The trace of a version on a class of hardware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRow {
    /// The class; [`TRACE_CLASS_ALL`] is all together.
    pub hardware: String,
    /// How many boots it was learnt from.
    pub boots: u64,
    /// The version that it was carried over from, while there were no boots.
    pub source: Option<VersionSpec>,
    /// The trace.
    pub trace: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct Columns {
    hardware: String,
    boots: i64,
    source: Option<String>,
    trace: Vec<u8>,
}

impl TryFrom<Columns> for TraceRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let source = row.source.map(|text| parse("trace's source", &text));
        Ok(Self {
            hardware: row.hardware,
            boots: unsigned("count of boots", row.boots)?,
            source: source.transpose()?,
            trace: row.trace,
        })
    }
}

impl Catalog {
    /// The traces of a version, by class; all together first.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn traces(
        &self,
        image: &ImageName,
        number: VersionNumber,
    ) -> Result<Vec<TraceRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT hardware, boots, source, trace FROM trace \
             WHERE image = $1 AND version = $2 ORDER BY hardware",
        )
        .bind(image.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list a version's traces"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The trace of a class, or of all together where the class has none.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn trace(
        &self,
        image: &ImageName,
        number: VersionNumber,
        hardware: &str,
    ) -> Result<Option<TraceRow>, CatalogError> {
        let row: Option<Columns> = sqlx::query_as(
            "SELECT hardware, boots, source, trace FROM trace \
             WHERE image = $1 AND version = $2 AND hardware IN ($3, $4) \
             ORDER BY hardware DESC LIMIT 1",
        )
        .bind(image.as_str())
        .bind(i64::from(number.0))
        .bind(hardware)
        .bind(TRACE_CLASS_ALL)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look a trace up"))?;
        row.map(TryInto::try_into).transpose()
    }

    /// The boots of a class that are kept, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn trace_boots(
        &self,
        image: &ImageName,
        number: VersionNumber,
        hardware: &str,
    ) -> Result<Vec<Vec<u8>>, CatalogError> {
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(
            "SELECT trace FROM trace_boot \
             WHERE image = $1 AND version = $2 AND hardware = $3 ORDER BY number",
        )
        .bind(image.as_str())
        .bind(i64::from(number.0))
        .bind(hardware)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the boots of a trace"))?;
        Ok(rows.into_iter().map(|(trace,)| trace).collect())
    }

    /// Puts a version's traces in the place of those of the same classes, and adds
    /// a boot to a class that is among them; its oldest boots go.
    ///
    /// # Errors
    /// [`CatalogError::Database`], also when the version is gone.
    pub async fn put_traces(
        &self,
        image: &ImageName,
        number: VersionNumber,
        rows: &[TraceRow],
        boot: Option<(&str, &[u8])>,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "keep a trace";
        let mut tx = self.begin(doing).await?;
        for row in rows {
            put(&mut tx, image, number, row, now).await?;
        }
        if let Some((hardware, trace)) = boot {
            add_boot(&mut tx, image, number, hardware, trace).await?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// The versions that have no trace and whose parent has one.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn versions_to_trace(&self) -> Result<Vec<VersionRow>, CatalogError> {
        let doing = "find versions without a trace";
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT v.image, v.number FROM version v WHERE v.parent IS NOT NULL \
             AND NOT EXISTS \
                 (SELECT 1 FROM trace t WHERE t.image = v.image AND t.version = v.number) \
             AND EXISTS \
                 (SELECT 1 FROM trace p WHERE p.image || ':' || p.version = v.parent) \
             ORDER BY v.created_ms, v.image, v.number",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed(doing))?;
        let mut versions = Vec::with_capacity(rows.len());
        for (image, number) in rows {
            let spec = parse("version", &format!("{image}:{number}"))?;
            match self.resolve(&spec).await {
                Ok(row) => versions.push(row),
                // It went between the two statements.
                Err(CatalogError::VersionNotFound { .. } | CatalogError::ImageNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(versions)
    }
}

async fn put(
    tx: &mut Tx,
    image: &ImageName,
    number: VersionNumber,
    row: &TraceRow,
    now: Timestamp,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO trace (image, version, hardware, boots, source, trace, changed_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (image, version, hardware) \
         DO UPDATE SET boots = excluded.boots, source = excluded.source, \
         trace = excluded.trace, changed_ms = excluded.changed_ms",
    )
    .bind(image.as_str())
    .bind(i64::from(number.0))
    .bind(row.hardware.as_str())
    .bind(row.boots.cast_signed())
    .bind(row.source.as_ref().map(ToString::to_string))
    .bind(row.trace.as_slice())
    .bind(now.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(failed("keep a trace"))?;
    Ok(())
}

async fn add_boot(
    tx: &mut Tx,
    image: &ImageName,
    number: VersionNumber,
    hardware: &str,
    trace: &[u8],
) -> Result<(), CatalogError> {
    let doing = "keep a boot's trace";
    sqlx::query(
        "INSERT INTO trace_boot (image, version, hardware, number, trace) \
         SELECT $1, $2, $3, coalesce(max(number), 0) + 1, $4 FROM trace_boot \
         WHERE image = $1 AND version = $2 AND hardware = $3",
    )
    .bind(image.as_str())
    .bind(i64::from(number.0))
    .bind(hardware)
    .bind(trace)
    .execute(&mut **tx)
    .await
    .map_err(failed(doing))?;
    sqlx::query(
        "DELETE FROM trace_boot WHERE image = $1 AND version = $2 AND hardware = $3 \
         AND number <= (SELECT max(number) - $4 FROM trace_boot \
         WHERE image = $1 AND version = $2 AND hardware = $3)",
    )
    .bind(image.as_str())
    .bind(i64::from(number.0))
    .bind(hardware)
    .bind(i64::from(TRACE_BOOTS_MAX))
    .execute(&mut **tx)
    .await
    .map_err(failed(doing))?;
    Ok(())
}
