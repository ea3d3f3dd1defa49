//! Boots: the token of each, good once, the session it is given in for, and the
//! steps of the way.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use rootstock_core::{Digest, ImageName, NodeName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog, NodeState,
    error::{CatalogError, failed, parse, time, unsigned},
    schema::Tx,
};

/// How many boots of a node are kept: the newest.
pub const BOOTS_PER_NODE_MAX: u32 = 50;

/// How many steps of a boot are kept: the first.
pub const STEPS_PER_BOOT_MAX: u32 = 512;

/// A token, which is good once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewToken {
    /// The digest of the token, which nobody keeps.
    pub digest: Digest,
    /// Who may give it in: the address that fetched the script.
    pub source: IpAddr,
    /// Until when.
    pub expires: Timestamp,
}

/// A boot that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBoot {
    /// Its id, used by no other.
    pub id: String,
    /// The node that boots.
    pub node: NodeName,
    /// Its token, when there is one yet.
    pub token: Option<NewToken>,
}

/// What became of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redeemed {
    /// The session is open. The node's earlier boots are over.
    Open(BootRow),
    /// The node waits for approval; the token is not used up.
    Held(BootRow),
    /// There is no such token.
    Unknown,
    /// It was given in before.
    Used(BootRow),
    /// Its time is over.
    Expired(BootRow),
    /// It came from another address than the script went to.
    Foreign(BootRow),
}

/// A boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootRow {
    /// Its id.
    pub id: String,
    /// The node.
    pub node: NodeName,
    /// When it began.
    pub started: Timestamp,
    /// Where its script went to.
    pub source: Option<IpAddr>,
    /// When its token was given in.
    pub redeemed: Option<Timestamp>,
    /// What it was told to run, as JSON.
    pub order: Option<String>,
    /// The version it runs.
    pub image: Option<(ImageName, VersionNumber)>,
    /// When it was over.
    pub ended: Option<Timestamp>,
}

/// A step of a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// Which.
    pub step: String,
    /// When the server learned of it.
    pub time: Timestamp,
    /// How long the machine's kernel had been running then.
    pub uptime_ms: Option<u64>,
    /// Bytes moved up to here.
    pub bytes: u64,
    /// More.
    pub detail: String,
}

#[derive(sqlx::FromRow)]
struct Columns {
    id: String,
    node: String,
    started_ms: i64,
    source: Option<String>,
    token_used_ms: Option<i64>,
    boot_order: Option<String>,
    image: Option<String>,
    version: Option<i64>,
    ended_ms: Option<i64>,
}

impl TryFrom<Columns> for BootRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let optional = |ms: Option<i64>| ms.map(|ms| time("boot's time", ms)).transpose();
        let source = row.source.as_deref();
        let image = match (&row.image, row.version) {
            (Some(image), Some(number)) => Some((
                parse("boot's image", image)?,
                VersionNumber(unsigned("boot's version", number)?),
            )),
            _ => None,
        };
        Ok(Self {
            node: parse("boot's node", &row.node)?,
            started: time("boot's time", row.started_ms)?,
            source: source
                .map(|text| parse("boot's source", text))
                .transpose()?,
            redeemed: optional(row.token_used_ms)?,
            order: row.boot_order,
            image,
            ended: optional(row.ended_ms)?,
            id: row.id,
        })
    }
}

/// The columns of a [`BootRow`], and where to find it.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, node, started_ms, source, token_used_ms, boot_order, image, version, \
             ended_ms FROM boot ",
            $rest
        )
    };
}

impl Catalog {
    /// Begins a boot, and forgets the oldest ones of the node beyond
    /// [`BOOTS_PER_NODE_MAX`], but never one that runs a version.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn begin_boot(&self, new: &NewBoot, now: Timestamp) -> Result<(), CatalogError> {
        let doing = "begin a boot";
        let mut tx = self.begin(doing).await?;
        crate::nodes::find(&mut tx, &new.node).await?;
        sqlx::query("INSERT INTO boot (id, node, started_ms) VALUES ($1, $2, $3)")
            .bind(new.id.as_str())
            .bind(new.node.as_str())
            .bind(now.as_millisecond())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if let Some(token) = &new.token {
            set_token(&mut tx, &new.id, token).await?;
        }
        sqlx::query(
            "DELETE FROM boot WHERE node = $1 AND (image IS NULL OR ended_ms IS NOT NULL) \
             AND id IN (SELECT id FROM boot WHERE node = $1 \
             ORDER BY started_ms DESC, id DESC LIMIT 1000 OFFSET $2)",
        )
        .bind(new.node.as_str())
        .bind(i64::from(BOOTS_PER_NODE_MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }

    /// Gives a boot a token, in the place of one that was not given in yet: a
    /// script may be fetched again. A boot that was judged is no more.
    ///
    /// # Errors
    /// [`CatalogError::BootNotFound`] also when the token was given in already.
    pub async fn arm_boot(&self, boot: &str, token: &NewToken) -> Result<(), CatalogError> {
        let doing = "give a boot its token";
        let mut tx = self.begin(doing).await?;
        set_token(&mut tx, boot, token).await?;
        tx.commit().await.map_err(failed(doing))
    }

    /// Gives a token in for a session, once. What comes of it is judged and done
    /// in one transaction; a held node's token stays good until `held_until` at least.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn redeem_token(
        &self,
        token: Digest,
        source: IpAddr,
        session: Digest,
        now: Timestamp,
        held_until: Timestamp,
    ) -> Result<Redeemed, CatalogError> {
        let doing = "give a boot token in";
        let mut tx = self.begin(doing).await?;
        let Some((row, expires)) = by_token(&mut tx, token).await? else {
            return Ok(Redeemed::Unknown);
        };
        if row.source != Some(source) {
            return Ok(Redeemed::Foreign(row));
        }
        if row.redeemed.is_some() {
            return Ok(Redeemed::Used(row));
        }
        if expires <= now || row.ended.is_some() {
            return Ok(Redeemed::Expired(row));
        }
        let node = crate::nodes::find(&mut tx, &row.node).await?;
        if node.state == NodeState::Held {
            sqlx::query("UPDATE boot SET token_expires_ms = $2 WHERE id = $1")
                .bind(row.id.as_str())
                .bind(held_until.max(expires).as_millisecond())
                .execute(&mut *tx)
                .await
                .map_err(failed(doing))?;
            tx.commit().await.map_err(failed(doing))?;
            return Ok(Redeemed::Held(row));
        }
        sqlx::query("UPDATE boot SET token_used_ms = $2, session = $3 WHERE id = $1")
            .bind(row.id.as_str())
            .bind(now.as_millisecond())
            .bind(session.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        // A machine runs one system: what it ran before is over.
        sqlx::query(
            "UPDATE boot SET ended_ms = $3 WHERE node = $1 AND id <> $2 AND ended_ms IS NULL",
        )
        .bind(row.node.as_str())
        .bind(row.id.as_str())
        .bind(now.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))?;
        Ok(Redeemed::Open(BootRow {
            redeemed: Some(now),
            ..row
        }))
    }

    /// The boot that a session is of, until it is over.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn session(&self, session: Digest) -> Result<Option<BootRow>, CatalogError> {
        let row: Option<Columns> =
            sqlx::query_as(select!("WHERE session = $1 AND ended_ms IS NULL"))
                .bind(session.to_string())
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("look a session up"))?;
        row.map(TryInto::try_into).transpose()
    }

    /// Records what a boot was told to run, and how long it has to come up. From now
    /// until it is over the version cannot be deleted.
    ///
    /// # Errors
    /// [`CatalogError::BootNotFound`] also for one that is over,
    /// [`CatalogError::VersionNotFound`].
    pub async fn set_boot_order(
        &self,
        boot: &str,
        order: &str,
        image: &ImageName,
        version: VersionNumber,
        limit: Duration,
    ) -> Result<(), CatalogError> {
        let doing = "record a boot's order";
        let mut tx = self.begin(doing).await?;
        let spec = VersionSpec {
            image: image.clone(),
            selector: VersionSelector::Number(version),
        };
        crate::versions::resolve(&mut tx, &spec).await?;
        let done = sqlx::query(
            "UPDATE boot SET boot_order = $2, image = $3, version = $4, limit_ms = $5 \
             WHERE id = $1 AND ended_ms IS NULL",
        )
        .bind(boot)
        .bind(order)
        .bind(image.as_str())
        .bind(i64::from(version.0))
        .bind(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        found(done.rows_affected(), boot)?;
        tx.commit().await.map_err(failed(doing))
    }

    /// A boot is over: its session is closed, and its version free. Answers
    /// whether it was under way.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn end_boot(&self, boot: &str, now: Timestamp) -> Result<bool, CatalogError> {
        let done = sqlx::query("UPDATE boot SET ended_ms = $2 WHERE id = $1 AND ended_ms IS NULL")
            .bind(boot)
            .bind(now.as_millisecond())
            .execute(&self.pool)
            .await
            .map_err(failed("end a boot"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Appends steps. Beyond [`STEPS_PER_BOOT_MAX`] nothing is added.
    ///
    /// # Errors
    /// [`CatalogError::BootNotFound`].
    pub async fn add_steps(&self, boot: &str, steps: &[StepRow]) -> Result<(), CatalogError> {
        let doing = "record a boot's steps";
        let mut tx = self.begin(doing).await?;
        let next: Option<(i64,)> = sqlx::query_as(
            "SELECT (SELECT count(*) FROM boot_step s WHERE s.boot = b.id) FROM boot b \
             WHERE b.id = $1",
        )
        .bind(boot)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(doing))?;
        let (next,) = next.ok_or_else(|| not_found(boot))?;
        for (seq, step) in (next..i64::from(STEPS_PER_BOOT_MAX)).zip(steps) {
            sqlx::query(
                "INSERT INTO boot_step (boot, seq, step, time_ms, uptime_ms, bytes, detail) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(boot)
            .bind(seq)
            .bind(step.step.as_str())
            .bind(step.time.as_millisecond())
            .bind(step.uptime_ms.map(u64::cast_signed))
            .bind(step.bytes.cast_signed())
            .bind(step.detail.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// A boot with its steps in order.
    ///
    /// # Errors
    /// [`CatalogError::BootNotFound`].
    pub async fn boot_transcript(
        &self,
        boot: &str,
    ) -> Result<(BootRow, Vec<StepRow>), CatalogError> {
        let doing = "read a boot";
        let row: Option<Columns> = sqlx::query_as(select!("WHERE id = $1"))
            .bind(boot)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(doing))?;
        let row = row.ok_or_else(|| not_found(boot))?;
        let steps: Vec<(String, i64, Option<i64>, i64, String)> = sqlx::query_as(
            "SELECT step, time_ms, uptime_ms, bytes, detail FROM boot_step \
             WHERE boot = $1 ORDER BY seq",
        )
        .bind(boot)
        .fetch_all(&self.pool)
        .await
        .map_err(failed(doing))?;
        let steps = steps.into_iter().map(step_row);
        Ok((row.try_into()?, steps.collect::<Result<_, _>>()?))
    }

    /// The boots of a node, newest first.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn boots_of(&self, node: &NodeName) -> Result<Vec<BootRow>, CatalogError> {
        self.node(node).await?;
        let rows: Vec<Columns> =
            sqlx::query_as(select!("WHERE node = $1 ORDER BY started_ms DESC, id DESC"))
                .bind(node.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list a node's boots"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The boots that are not over.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn open_boots(&self) -> Result<Vec<BootRow>, CatalogError> {
        let rows: Vec<Columns> =
            sqlx::query_as(select!("WHERE ended_ms IS NULL ORDER BY node, started_ms"))
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list the boots that are not over"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The newest boot of each node that ever booted, with its last step.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn last_boots(&self) -> Result<Vec<(BootRow, Option<StepRow>)>, CatalogError> {
        let doing = "list the last boots";
        let rows: Vec<Columns> = sqlx::query_as(select!(
            "b WHERE NOT EXISTS (SELECT 1 FROM boot n WHERE n.node = b.node \
             AND (n.started_ms > b.started_ms OR (n.started_ms = b.started_ms AND n.id > b.id))) \
             ORDER BY node"
        ))
        .fetch_all(&self.pool)
        .await
        .map_err(failed(doing))?;
        let mut boots = Vec::with_capacity(rows.len());
        for row in rows {
            let step: Option<(String, i64, Option<i64>, i64, String)> = sqlx::query_as(
                "SELECT step, time_ms, uptime_ms, bytes, detail FROM boot_step \
                 WHERE boot = $1 ORDER BY seq DESC LIMIT 1",
            )
            .bind(row.id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(doing))?;
            boots.push((row.try_into()?, step.map(step_row).transpose()?));
        }
        Ok(boots)
    }
}

fn step_row(
    (step, time_ms, uptime_ms, bytes, detail): (String, i64, Option<i64>, i64, String),
) -> Result<StepRow, CatalogError> {
    let uptime = uptime_ms.map(|ms| unsigned("step's uptime", ms));
    Ok(StepRow {
        step,
        time: time("step's time", time_ms)?,
        uptime_ms: uptime.transpose()?,
        bytes: unsigned("step's bytes", bytes)?,
        detail,
    })
}

async fn set_token(tx: &mut Tx, boot: &str, token: &NewToken) -> Result<(), CatalogError> {
    let done = sqlx::query(
        "UPDATE boot SET token = $2, source = $3, token_expires_ms = $4 \
         WHERE id = $1 AND token_used_ms IS NULL AND ended_ms IS NULL AND verdict IS NULL",
    )
    .bind(boot)
    .bind(token.digest.to_string())
    .bind(token.source.to_string())
    .bind(token.expires.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(failed("give a boot its token"))?;
    found(done.rows_affected(), boot)
}

async fn by_token(
    tx: &mut Tx,
    token: Digest,
) -> Result<Option<(BootRow, Timestamp)>, CatalogError> {
    let doing = "look a boot token up";
    let row: Option<Columns> = sqlx::query_as(select!("WHERE token = $1"))
        .bind(token.to_string())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let (expires_ms,): (Option<i64>,) =
        sqlx::query_as("SELECT token_expires_ms FROM boot WHERE id = $1")
            .bind(row.id.as_str())
            .fetch_one(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let expires = time("token's end", expires_ms.unwrap_or_default())?;
    Ok(Some((row.try_into()?, expires)))
}

fn found(rows_affected: u64, boot: &str) -> Result<(), CatalogError> {
    if rows_affected == 0 {
        return Err(not_found(boot));
    }
    Ok(())
}

fn not_found(boot: &str) -> CatalogError {
    CatalogError::BootNotFound {
        boot: boot.chars().take(64).collect(),
    }
}
