//! Installations: what nodes have on disks of their own, and boot by themselves.

use jiff::Timestamp;
use rootstock_core::{ImageName, NodeName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
};

/// What a node has installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallationRow {
    /// The node.
    pub node: NodeName,
    /// The version.
    pub version: VersionSpec,
    /// The disk, as the machine named it.
    pub device: String,
    /// When it was complete.
    pub at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    node: String,
    image: String,
    version: i64,
    device: String,
    at_ms: i64,
}

impl TryFrom<Columns> for InstallationRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let number = unsigned("installation's version", row.version)?;
        Ok(Self {
            node: parse("installation's node", &row.node)?,
            version: VersionSpec {
                image: parse("installation's image", &row.image)?,
                selector: VersionSelector::Number(VersionNumber(number)),
            },
            device: row.device,
            at: time("installation's time", row.at_ms)?,
        })
    }
}

impl InstallationRow {
    /// Whether it is of this version.
    #[must_use]
    pub fn is_of(&self, image: &ImageName, number: VersionNumber) -> bool {
        self.version.image == *image && self.version.selector == VersionSelector::Number(number)
    }
}

impl Catalog {
    /// Records that a version is laid out on a node's disk in this boot: what was there
    /// counts no more.
    ///
    /// # Errors
    /// [`CatalogError::Database`], also when there is no such node or version.
    pub async fn begin_installation(
        &self,
        node: &NodeName,
        (image, number): (&ImageName, VersionNumber),
        boot: &str,
        device: &str,
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "INSERT INTO installation (node, image, version, boot, device) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (node) DO UPDATE SET \
             image = excluded.image, version = excluded.version, boot = excluded.boot, \
             device = excluded.device, at_ms = NULL",
        )
        .bind(node.as_str())
        .bind(image.as_str())
        .bind(i64::from(number.0))
        .bind(boot)
        .bind(device)
        .execute(&self.pool)
        .await
        .map_err(failed("record that an installation begins"))?;
        Ok(())
    }

    /// Records that what is laid out in this boot is whole. Answers whether that is
    /// news: it may be known, or have been forgotten meanwhile.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn finish_installation(
        &self,
        node: &NodeName,
        boot: &str,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query(
            "UPDATE installation SET at_ms = $3 WHERE node = $1 AND boot = $2 AND at_ms IS NULL",
        )
        .bind(node.as_str())
        .bind(boot)
        .bind(now.as_millisecond())
        .execute(&self.pool)
        .await
        .map_err(failed("record an installation"))?;
        Ok(done.rows_affected() > 0)
    }

    /// What a node has installed.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn installation(
        &self,
        node: &NodeName,
    ) -> Result<Option<InstallationRow>, CatalogError> {
        let row: Option<Columns> = sqlx::query_as(
            "SELECT node, image, version, device, at_ms FROM installation \
             WHERE node = $1 AND at_ms IS NOT NULL",
        )
        .bind(node.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look for an installation"))?;
        row.map(TryInto::try_into).transpose()
    }

    /// The same of all nodes, by node.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn installations(&self) -> Result<Vec<InstallationRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT node, image, version, device, at_ms FROM installation \
             WHERE at_ms IS NOT NULL ORDER BY node",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the installations"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Forgets what these nodes have installed. Answers those that had something.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`], when nothing is forgotten.
    pub async fn forget_installations(
        &self,
        nodes: &[NodeName],
    ) -> Result<Vec<NodeName>, CatalogError> {
        let statement = "DELETE FROM installation WHERE node = $1";
        self.for_each_node("forget an installation", statement, nodes)
            .await
    }
}
