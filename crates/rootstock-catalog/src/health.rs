//! Boot health: what became of boots, and which versions a node came up with.

use std::time::Duration;

use jiff::Timestamp;
use rootstock_core::{ImageName, NodeName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
};

/// How long boots have whose order is older than limits.
const LIMIT_MS: i64 = 600_000;

/// What is known of a boot that is to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFacts {
    /// Its id.
    pub boot: String,
    /// The node.
    pub node: NodeName,
    /// The version it was told to run.
    pub version: VersionSpec,
    /// How long it has to come up.
    pub limit: Duration,
    /// Whether it was judged to have failed; it may come up late.
    pub has_failed: bool,
    /// When its system was up.
    pub up: Option<Timestamp>,
    /// What the machine said when it failed.
    pub failed: Option<String>,
    /// When the version's first stage had been sent to it.
    pub sent: Option<Timestamp>,
    /// When its token was given in.
    pub redeemed: Option<Timestamp>,
    /// Whether it waited for approval.
    pub was_held: bool,
    /// Whether the node began another boot.
    pub is_followed: bool,
}

/// What became of a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The system was up.
    Good {
        /// When.
        up: Timestamp,
    },
    /// It was not, and why.
    Failed {
        /// For people.
        reason: String,
    },
    /// The version had no chance to run.
    Void,
}

/// What became of a version on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionHealthRow {
    /// The node.
    pub node: NodeName,
    /// The version.
    pub version: VersionSpec,
    /// When the node last came up with it.
    pub good: Option<Timestamp>,
    /// Its last failed boot, when it never came up: when, and why.
    pub failed: Option<(Timestamp, String)>,
}

#[derive(sqlx::FromRow)]
struct FactColumns {
    id: String,
    node: String,
    image: String,
    version: i64,
    limit_ms: Option<i64>,
    has_failed: bool,
    up_ms: Option<i64>,
    failed: Option<String>,
    sent_ms: Option<i64>,
    token_used_ms: Option<i64>,
    was_held: bool,
    is_followed: bool,
}

impl TryFrom<FactColumns> for BootFacts {
    type Error = CatalogError;

    fn try_from(row: FactColumns) -> Result<Self, CatalogError> {
        let optional = |ms: Option<i64>| ms.map(|ms| time("step's time", ms)).transpose();
        let limit_ms = row.limit_ms.unwrap_or(LIMIT_MS);
        Ok(Self {
            node: parse("boot's node", &row.node)?,
            version: spec(&row.image, row.version)?,
            limit: Duration::from_millis(unsigned("boot's limit", limit_ms)?),
            has_failed: row.has_failed,
            up: optional(row.up_ms)?,
            failed: row.failed,
            sent: optional(row.sent_ms)?,
            redeemed: optional(row.token_used_ms)?,
            was_held: row.was_held,
            is_followed: row.is_followed,
            boot: row.id,
        })
    }
}

#[derive(sqlx::FromRow)]
struct HealthColumns {
    node: String,
    image: String,
    version: i64,
    good_ms: Option<i64>,
    failed_ms: Option<i64>,
    reason: Option<String>,
}

impl TryFrom<HealthColumns> for VersionHealthRow {
    type Error = CatalogError;

    fn try_from(row: HealthColumns) -> Result<Self, CatalogError> {
        let good = row.good_ms.map(|ms| time("version's good boot", ms));
        let failed = row.failed_ms.filter(|_| row.good_ms.is_none());
        let failed = failed.map(|ms| time("version's failed boot", ms));
        Ok(Self {
            node: parse("node name", &row.node)?,
            version: spec(&row.image, row.version)?,
            good: good.transpose()?,
            failed: failed
                .transpose()?
                .map(|time| (time, row.reason.unwrap_or_default())),
        })
    }
}

fn spec(image: &str, version: i64) -> Result<VersionSpec, CatalogError> {
    Ok(VersionSpec {
        image: parse("boot's image", image)?,
        selector: VersionSelector::Number(VersionNumber(unsigned("boot's version", version)?)),
    })
}

/// The columns of [`BootFacts`]. What the machine itself says has its uptime; a
/// failure without one is the server's guess.
macro_rules! facts {
    ($rest:literal) => {
        concat!(
            "SELECT b.id, b.node, b.image, b.version, b.limit_ms, \
             b.verdict IS NOT NULL AS has_failed, b.token_used_ms, \
             (SELECT min(s.time_ms) FROM boot_step s WHERE s.boot = b.id AND s.step = 'up') \
             AS up_ms, \
             (SELECT s.detail FROM boot_step s WHERE s.boot = b.id AND s.step = 'failed' \
             AND s.uptime_ms IS NOT NULL ORDER BY s.seq LIMIT 1) AS failed, \
             (SELECT min(s.time_ms) FROM boot_step s WHERE s.boot = b.id \
             AND s.step = 'initrd-served') AS sent_ms, \
             EXISTS (SELECT 1 FROM boot_step s WHERE s.boot = b.id AND s.step = 'held') \
             AS was_held, \
             EXISTS (SELECT 1 FROM boot n WHERE n.node = b.node AND n.image IS NOT NULL \
             AND (n.started_ms > b.started_ms OR (n.started_ms = b.started_ms AND n.id > b.id))) \
             AS is_followed \
             FROM boot b WHERE b.image IS NOT NULL AND (b.verdict IS NULL \
             OR (b.verdict = 'failed' AND b.ended_ms IS NULL)) ",
            $rest
        )
    };
}

impl Catalog {
    /// The boots that are not judged yet, and those that failed and may come up
    /// late; of all nodes, or of one.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn boots_to_judge(
        &self,
        node: Option<&NodeName>,
    ) -> Result<Vec<BootFacts>, CatalogError> {
        let query = match node {
            Some(node) => sqlx::query_as(facts!("AND b.node = $1 ORDER BY b.started_ms, b.id"))
                .bind(node.as_str()),
            None => sqlx::query_as(facts!("ORDER BY b.started_ms, b.id")),
        };
        let rows: Vec<FactColumns> = query
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the boots to judge"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Records what became of a boot, and with it of its version on the node. A
    /// version that is gone has no health; one that was good stays so.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn judge_boot(
        &self,
        boot: &str,
        verdict: &Verdict,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "judge a boot";
        let (word, good_ms, failed_ms, reason) = match verdict {
            Verdict::Good { up } => ("good", Some(up.as_millisecond()), None, None),
            Verdict::Failed { reason } => {
                let at = Some(now.as_millisecond());
                ("failed", None, at, Some(reason.as_str()))
            }
            Verdict::Void => ("void", None, None, None),
        };
        let mut tx = self.begin(doing).await?;
        sqlx::query("UPDATE boot SET verdict = $2 WHERE id = $1")
            .bind(boot)
            .bind(word)
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if *verdict != Verdict::Void {
            sqlx::query(
                "INSERT INTO node_version (node, image, version, good_ms, failed_ms, reason) \
                 SELECT b.node, b.image, b.version, $2, $3, $4 FROM boot b \
                 JOIN version v ON v.image = b.image AND v.number = b.version WHERE b.id = $1 \
                 ON CONFLICT (node, image, version) DO UPDATE SET \
                 good_ms = COALESCE(excluded.good_ms, node_version.good_ms), \
                 failed_ms = excluded.failed_ms, reason = excluded.reason",
            )
            .bind(boot)
            .bind(good_ms)
            .bind(failed_ms)
            .bind(reason)
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// What became of versions on a node, what it came up with last first.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn version_health(
        &self,
        node: &NodeName,
    ) -> Result<Vec<VersionHealthRow>, CatalogError> {
        let rows: Vec<HealthColumns> = sqlx::query_as(
            "SELECT * FROM node_version WHERE node = $1 \
             ORDER BY COALESCE(good_ms, 0) DESC, image, version DESC",
        )
        .bind(node.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read what versions did on a node"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The same of all nodes, by node.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn all_version_health(&self) -> Result<Vec<VersionHealthRow>, CatalogError> {
        let rows: Vec<HealthColumns> = sqlx::query_as(
            "SELECT * FROM node_version \
             ORDER BY node, COALESCE(good_ms, 0) DESC, image, version DESC",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read what versions did on nodes"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Forgets which versions failed on these nodes, so that they are tried again.
    /// Answers the nodes where one had.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`], when nothing is forgotten.
    pub async fn forget_failures(&self, nodes: &[NodeName]) -> Result<Vec<NodeName>, CatalogError> {
        let statement = "DELETE FROM node_version WHERE node = $1 AND good_ms IS NULL";
        self.for_each_node("forget what failed on a node", statement, nodes)
            .await
    }
}

impl VersionHealthRow {
    /// The version's image and number.
    #[must_use]
    pub fn is_of(&self, image: &ImageName, number: VersionNumber) -> bool {
        self.version.image == *image && self.version.selector == VersionSelector::Number(number)
    }
}
