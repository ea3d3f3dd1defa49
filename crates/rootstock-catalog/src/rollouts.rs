//! Rollouts: a version on its way to many nodes, and how far each of them is.

use jiff::Timestamp;
use rootstock_core::{NodeName, ProfileName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
};

/// How many rollouts are kept after the newest one began, when they are over.
pub const ROLLOUTS_ENDED_MAX: u32 = 100;

/// The most rollouts that are not over.
pub const ROLLOUTS_OPEN_MAX: u32 = 64;

/// Words of a column, both ways.
macro_rules! words {
    ($name:ident, $column:literal, $($variant:ident = $word:literal,)+) => {
        impl $name {
            /// Its name in documents and in the catalog.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            fn parse(text: &str) -> Result<Self, CatalogError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(CatalogError::Corrupt { column: $column, value: text.to_owned() }),
                }
            }
        }
    };
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutState {
    /// It goes on, or waits for its time.
    Open,
    /// An administrator halted it.
    Paused,
    /// It halted itself.
    Stopped,
    /// All nodes have the version, or get it with their next boot, or failed.
    Done,
    /// An administrator ended it.
    Aborted,
}

words!(
    RolloutState,
    "rollout's state",
    Open = "open",
    Paused = "paused",
    Stopped = "stopped",
    Done = "done",
    Aborted = "aborted",
);

impl RolloutState {
    /// Whether nothing happens any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

/// When machines that have the version are started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutReboot {
    /// As soon as nobody is logged in.
    Idle,
    /// At once.
    Now,
    /// By whoever uses them.
    No,
}

words!(
    RolloutReboot,
    "rollout's reboot",
    Idle = "idle",
    Now = "now",
    No = "no",
);

/// How far a rollout is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutNodeState {
    /// Nothing was done yet.
    Waiting,
    /// The version is assigned to it.
    Assigned,
    /// It was told to start anew.
    Restarting,
    /// It was off, and was woken.
    Waking,
    /// It came up with the version.
    Good,
    /// It did not.
    Failed,
    /// It gets the version with its next boot; nobody waits for that.
    Later,
    /// It is not the rollout's any more.
    Left,
}

words!(
    RolloutNodeState,
    "rollout's node's state",
    Waiting = "waiting",
    Assigned = "assigned",
    Restarting = "restarting",
    Waking = "waking",
    Good = "good",
    Failed = "failed",
    Later = "later",
    Left = "left",
);

/// How a rollout goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolloutTerms {
    /// Nodes that must be good before all others.
    pub canary_count: u32,
    /// Nodes that are under way at once.
    pub batch_count: u32,
    /// Failures that do not halt it.
    pub failures_max: u32,
    /// When machines are started anew.
    pub reboot: RolloutReboot,
    /// Whether machines that are off are woken.
    pub wake: bool,
}

/// A rollout to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRollout {
    /// The version, by its number.
    pub version: VersionSpec,
    /// The profile that its nodes inherit from.
    pub profile: Option<ProfileName>,
    /// How it goes about it.
    pub terms: RolloutTerms,
    /// Who began it.
    pub actor: String,
    /// It does nothing before.
    pub starts: Timestamp,
    /// Its nodes in order, and the image that is set on each itself.
    pub nodes: Vec<(NodeName, Option<VersionSpec>)>,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRow {
    /// Its number.
    pub id: u64,
    /// The version.
    pub version: VersionSpec,
    /// The profile that its nodes inherit from.
    pub profile: Option<ProfileName>,
    /// How it goes about it.
    pub terms: RolloutTerms,
    /// Who began it.
    pub actor: String,
    /// It does nothing before.
    pub starts: Timestamp,
    /// When it was begun.
    pub created: Timestamp,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// How far it is.
    pub state: RolloutState,
    /// Why it is there, for people.
    pub reason: Option<String>,
    /// Failures that the administrator has seen.
    pub failures_forgiven: u32,
}

/// A node of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutNodeRow {
    /// The node.
    pub node: NodeName,
    /// The image that was set on it itself.
    pub before: Option<VersionSpec>,
    /// How far it is.
    pub state: RolloutNodeState,
    /// Since when.
    pub since: Timestamp,
    /// More, for people.
    pub detail: String,
}

#[derive(sqlx::FromRow)]
struct Columns {
    id: i64,
    image: String,
    version: i64,
    profile: Option<String>,
    canary_count: i64,
    batch_count: i64,
    failures_max: i64,
    reboot: String,
    wake: bool,
    actor: String,
    starts_ms: i64,
    created_ms: i64,
    ended_ms: Option<i64>,
    state: String,
    reason: Option<String>,
    failures_forgiven: i64,
}

impl TryFrom<Columns> for RolloutRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let profile = row.profile.as_deref();
        Ok(Self {
            id: unsigned("rollout's number", row.id)?,
            version: VersionSpec {
                image: parse("rollout's image", &row.image)?,
                selector: VersionSelector::Number(VersionNumber(unsigned(
                    "rollout's version",
                    row.version,
                )?)),
            },
            profile: profile
                .map(|name| parse("rollout's profile", name))
                .transpose()?,
            terms: RolloutTerms {
                canary_count: unsigned("rollout's canaries", row.canary_count)?,
                batch_count: unsigned("rollout's batch", row.batch_count)?,
                failures_max: unsigned("rollout's failures", row.failures_max)?,
                reboot: RolloutReboot::parse(&row.reboot)?,
                wake: row.wake,
            },
            actor: row.actor,
            starts: time("rollout's start", row.starts_ms)?,
            created: time("rollout's time", row.created_ms)?,
            ended: row
                .ended_ms
                .map(|ms| time("rollout's end", ms))
                .transpose()?,
            state: RolloutState::parse(&row.state)?,
            reason: row.reason,
            failures_forgiven: unsigned("rollout's failures", row.failures_forgiven)?,
        })
    }
}

#[derive(sqlx::FromRow)]
struct NodeColumns {
    node: String,
    before: Option<String>,
    state: String,
    since_ms: i64,
    detail: String,
}

impl TryFrom<NodeColumns> for RolloutNodeRow {
    type Error = CatalogError;

    fn try_from(row: NodeColumns) -> Result<Self, CatalogError> {
        let before = row.before.as_deref();
        Ok(Self {
            node: parse("rollout's node", &row.node)?,
            before: before
                .map(|text| parse("rollout's image before", text))
                .transpose()?,
            state: RolloutNodeState::parse(&row.state)?,
            since: time("rollout's node's time", row.since_ms)?,
            detail: row.detail,
        })
    }
}

impl Catalog {
    /// Begins a rollout, and answers its number. A node is in one at a time.
    ///
    /// # Errors
    /// [`CatalogError::InRollout`], [`CatalogError::Full`], or when there is no such
    /// version or node.
    pub async fn add_rollout(&self, new: &NewRollout, now: Timestamp) -> Result<u64, CatalogError> {
        let doing = "begin a rollout";
        let mut tx = self.begin(doing).await?;
        let row = crate::versions::resolve(&mut tx, &new.version).await?;
        let (open,): (i64,) = sqlx::query_as("SELECT count(*) FROM rollout WHERE ended_ms IS NULL")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if open >= i64::from(ROLLOUTS_OPEN_MAX) {
            return Err(CatalogError::Full {
                what: "open rollouts",
                max: ROLLOUTS_OPEN_MAX,
            });
        }
        let (id,): (i64,) = sqlx::query_as(
            "INSERT INTO rollout (id, image, version, profile, canary_count, batch_count, \
             failures_max, reboot, wake, actor, starts_ms, created_ms, state, failures_forgiven) \
             SELECT COALESCE(max(id), 0) + 1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
             'open', 0 FROM rollout RETURNING id",
        )
        .bind(row.image.as_str())
        .bind(i64::from(row.number.0))
        .bind(new.profile.as_ref().map(ProfileName::as_str))
        .bind(i64::from(new.terms.canary_count))
        .bind(i64::from(new.terms.batch_count))
        .bind(i64::from(new.terms.failures_max))
        .bind(new.terms.reboot.as_str())
        .bind(new.terms.wake)
        .bind(new.actor.as_str())
        .bind(new.starts.as_millisecond())
        .bind(now.as_millisecond())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(doing))?;
        for (seq, (node, before)) in new.nodes.iter().enumerate() {
            crate::nodes::find(&mut tx, node).await?;
            let other: Option<(i64,)> = sqlx::query_as(
                "SELECT r.id FROM rollout_node n JOIN rollout r ON r.id = n.rollout \
                 WHERE n.node = $1 AND r.ended_ms IS NULL LIMIT 1",
            )
            .bind(node.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(doing))?;
            if let Some((other,)) = other {
                return Err(CatalogError::InRollout {
                    node: node.clone(),
                    rollout: unsigned("rollout's number", other)?,
                });
            }
            sqlx::query(
                "INSERT INTO rollout_node (rollout, node, seq, before, state, since_ms, detail) \
                 VALUES ($1, $2, $3, $4, 'waiting', $5, '')",
            )
            .bind(id)
            .bind(node.as_str())
            .bind(seq as i64)
            .bind(before.as_ref().map(ToString::to_string))
            .bind(now.as_millisecond())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        }
        sqlx::query(
            "DELETE FROM rollout WHERE ended_ms IS NOT NULL \
             AND id <= (SELECT max(id) FROM rollout) - $1",
        )
        .bind(i64::from(ROLLOUTS_ENDED_MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))?;
        unsigned("rollout's number", id)
    }

    /// All rollouts, the newest first.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn rollouts(&self) -> Result<Vec<RolloutRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM rollout ORDER BY id DESC")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the rollouts"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// A rollout, and its nodes in order.
    ///
    /// # Errors
    /// [`CatalogError::RolloutNotFound`].
    pub async fn rollout(
        &self,
        id: u64,
    ) -> Result<(RolloutRow, Vec<RolloutNodeRow>), CatalogError> {
        let doing = "read a rollout";
        let mut tx = self.pool.begin().await.map_err(failed(doing))?;
        let row: Option<Columns> = sqlx::query_as("SELECT * FROM rollout WHERE id = $1")
            .bind(id as i64)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(doing))?;
        let row = row.ok_or(CatalogError::RolloutNotFound { rollout: id })?;
        let nodes: Vec<NodeColumns> = sqlx::query_as(
            "SELECT node, before, state, since_ms, detail FROM rollout_node \
             WHERE rollout = $1 ORDER BY seq",
        )
        .bind(id as i64)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(doing))?;
        let nodes: Result<_, _> = nodes.into_iter().map(TryInto::try_into).collect();
        Ok((row.try_into()?, nodes?))
    }

    /// How many nodes of each rollout are in each state.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn rollout_counts(&self) -> Result<Vec<(u64, RolloutNodeState, u64)>, CatalogError> {
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT rollout, state, count(*) FROM rollout_node GROUP BY rollout, state",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("count the nodes of rollouts"))?;
        let row = |(id, state, count): (i64, String, i64)| {
            Ok((
                unsigned("rollout's number", id)?,
                RolloutNodeState::parse(&state)?,
                unsigned("rollout's nodes", count)?,
            ))
        };
        rows.into_iter().map(row).collect()
    }

    /// Brings a rollout that is not over to another state. To be over is for good.
    ///
    /// # Errors
    /// [`CatalogError::RolloutNotFound`], [`CatalogError::RolloutOver`].
    pub async fn set_rollout_state(
        &self,
        id: u64,
        state: RolloutState,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "change a rollout";
        let done = sqlx::query(
            "UPDATE rollout SET state = $2, reason = $3, ended_ms = $4 \
             WHERE id = $1 AND ended_ms IS NULL",
        )
        .bind(id as i64)
        .bind(state.as_str())
        .bind(reason)
        .bind(state.is_over().then_some(now.as_millisecond()))
        .execute(&self.pool)
        .await
        .map_err(failed(doing))?;
        if done.rows_affected() == 1 {
            return Ok(());
        }
        let (row, _) = self.rollout(id).await?;
        Err(CatalogError::RolloutOver {
            rollout: id,
            state: row.state.as_str(),
        })
    }

    /// Has a rollout go on that was paused or stopped. What failed so far does not
    /// stop it again.
    ///
    /// # Errors
    /// As [`Catalog::set_rollout_state`].
    pub async fn resume_rollout(&self, id: u64, now: Timestamp) -> Result<(), CatalogError> {
        self.set_rollout_state(id, RolloutState::Open, None, now)
            .await?;
        sqlx::query(
            "UPDATE rollout SET failures_forgiven = (SELECT count(*) FROM rollout_node \
             WHERE rollout = $1 AND state = 'failed') WHERE id = $1",
        )
        .bind(id as i64)
        .execute(&self.pool)
        .await
        .map_err(failed("have a rollout go on"))?;
        Ok(())
    }

    /// Records how far a node is. One that is in the state keeps its time there.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn set_rollout_node(
        &self,
        id: u64,
        node: &NodeName,
        state: RolloutNodeState,
        detail: &str,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "UPDATE rollout_node SET \
             since_ms = CASE WHEN state = $3 THEN since_ms ELSE $5 END, \
             state = $3, detail = $4 WHERE rollout = $1 AND node = $2",
        )
        .bind(id as i64)
        .bind(node.as_str())
        .bind(state.as_str())
        .bind(detail)
        .bind(now.as_millisecond())
        .execute(&self.pool)
        .await
        .map_err(failed("record how far a node of a rollout is"))?;
        Ok(())
    }
}
