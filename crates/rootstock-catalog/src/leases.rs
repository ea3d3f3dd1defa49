//! DHCP leases: an address is one client's until its time is over.
//!
//! A client is told by its card's address alone: firmware, iPXE and the system of
//! one machine send different client identifiers, and cloned machines send the
//! same one.

use std::{collections::HashSet, net::Ipv4Addr};

use jiff::Timestamp;
use rootstock_core::{MacAddress, NodeName};
use sqlx::SqliteExecutor;

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time},
};

/// How far a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Its client may use the address until it expires.
    Bound,
    /// Its client gave it back: it gets it again when nobody else did.
    Released,
    /// Its client found it used by somebody else: nobody gets it until it expires.
    Declined,
}

impl LeaseState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Released => "released",
            Self::Declined => "declined",
        }
    }

    fn parse(text: &str) -> Result<Self, CatalogError> {
        match text {
            "bound" => Ok(Self::Bound),
            "released" => Ok(Self::Released),
            "declined" => Ok(Self::Declined),
            _ => Err(CatalogError::Corrupt {
                column: "lease state",
                value: text.to_owned(),
            }),
        }
    }
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The address.
    pub address: Ipv4Addr,
    /// The client's card.
    pub mac: MacAddress,
    /// The client identifier it sent, in hex; empty without one.
    pub client_id: String,
    /// The host name it sent.
    pub host_name: Option<String>,
    /// The node it is.
    pub node: Option<NodeName>,
    /// The network it is in.
    pub network: String,
    /// How far it is.
    pub state: LeaseState,
    /// When it was given or last renewed.
    pub started: Timestamp,
    /// When it is over.
    pub expires: Timestamp,
}

/// An address that somebody else has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address {address} is another client's")]
pub struct Taken {
    /// The address.
    pub address: Ipv4Addr,
}

#[derive(sqlx::FromRow)]
struct Columns {
    address: String,
    mac: String,
    client_id: String,
    host_name: Option<String>,
    node: Option<String>,
    network: String,
    state: String,
    started_ms: i64,
    expires_ms: i64,
}

impl TryFrom<Columns> for LeaseRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let node = row.node.as_deref();
        Ok(Self {
            address: parse("lease's address", &row.address)?,
            mac: parse("lease's MAC address", &row.mac)?,
            client_id: row.client_id,
            host_name: row.host_name,
            node: node.map(|node| parse("lease's node", node)).transpose()?,
            network: row.network,
            state: LeaseState::parse(&row.state)?,
            started: time("lease's start", row.started_ms)?,
            expires: time("lease's end", row.expires_ms)?,
        })
    }
}

/// Takes each address of a JSON array of leases when it is free, over, or this card's
/// own, and when no node has it reserved that does not have this card. Answers with
/// those that were taken.
///
/// A lease is never made shorter for its client: one daemon may be late with a
/// renewal that another has gone past, and the client believes in the longer one.
///
/// One statement for all of them: every statement is a trip to the database's thread
/// and back, which for a lease costs more than the lease itself. No address may be in
/// it twice, since the answer could not tell them apart. `WHERE true` parts the select
/// from `ON CONFLICT` (SQLite, "Parsing Ambiguity" of UPSERT).
const COMMIT: &str = "INSERT INTO lease \
    (address, mac, client_id, host_name, node, network, state, started_ms, expires_ms) \
    SELECT new.value ->> 0, new.value ->> 1, new.value ->> 2, new.value ->> 3, new.value ->> 4, \
        new.value ->> 5, new.value ->> 6, new.value ->> 7, new.value ->> 8 \
    FROM json_each($1) AS new \
    WHERE true AND NOT EXISTS (SELECT 1 FROM node n WHERE n.address = new.value ->> 0 AND NOT EXISTS \
        (SELECT 1 FROM node_mac m WHERE m.node = n.name AND m.mac = new.value ->> 1)) \
    ON CONFLICT (address) DO UPDATE SET mac = excluded.mac, client_id = excluded.client_id, \
        host_name = excluded.host_name, node = excluded.node, network = excluded.network, \
        state = excluded.state, \
        started_ms = CASE WHEN lease.mac = excluded.mac AND lease.state = 'bound' \
            THEN max(lease.started_ms, excluded.started_ms) ELSE excluded.started_ms END, \
        expires_ms = CASE WHEN lease.mac = excluded.mac AND lease.state = 'bound' \
            THEN max(lease.expires_ms, excluded.expires_ms) ELSE excluded.expires_ms END \
    WHERE lease.expires_ms <= excluded.started_ms \
        OR (lease.mac = excluded.mac AND lease.state <> 'declined') \
    RETURNING address";

impl Catalog {
    /// Gives leases, each or not, in one transaction: when this returns, those
    /// that were given are durable. Two daemons on one catalog never both give
    /// one address. A lease's `started` is the time it is judged at.
    ///
    /// # Errors
    /// [`CatalogError::Database`]: none was given.
    pub async fn lease_commit_many(
        &self,
        leases: &[LeaseRow],
    ) -> Result<Vec<Result<(), Taken>>, CatalogError> {
        let groups = without_repeats(leases);
        if let [group] = groups[..] {
            // A statement alone is a transaction of its own, without the two trips to
            // the database's thread that begin one and end it.
            return take(&self.pool, group).await;
        }
        let mut tx = self.begin(DOING).await?;
        let mut answers = Vec::with_capacity(leases.len());
        for group in groups {
            answers.append(&mut take(&mut *tx, group).await?);
        }
        tx.commit().await.map_err(failed(DOING))?;
        Ok(answers)
    }

    /// All leases, also those that are over.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn leases(&self) -> Result<Vec<LeaseRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM lease ORDER BY address")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the leases"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// A client gives its address back. Answers whether it had it: what it was given since
    /// then, perhaps by another head, it keeps.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn lease_release(
        &self,
        address: Ipv4Addr,
        mac: MacAddress,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query(
            "UPDATE lease SET state = 'released', expires_ms = $3 \
             WHERE address = $1 AND mac = $2 AND state = 'bound' AND started_ms < $3",
        )
        .bind(address.to_string())
        .bind(mac.to_string())
        .bind(now.as_millisecond())
        .execute(&self.pool)
        .await
        .map_err(failed("release a lease"))?;
        Ok(done.rows_affected() > 0)
    }

    /// A client, or a probe of our own, found somebody else on the address: nobody
    /// gets it until `until`. Answers whether the client had it.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn lease_decline(
        &self,
        address: Ipv4Addr,
        mac: MacAddress,
        until: Timestamp,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query(
            "UPDATE lease SET state = 'declined', expires_ms = $3 WHERE address = $1 AND mac = $2",
        )
        .bind(address.to_string())
        .bind(mac.to_string())
        .bind(until.as_millisecond())
        .execute(&self.pool)
        .await
        .map_err(failed("decline a lease"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Forgets leases that were over before a time. Answers how many.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn leases_expire(&self, before: Timestamp) -> Result<u64, CatalogError> {
        let done = sqlx::query("DELETE FROM lease WHERE expires_ms < $1")
            .bind(before.as_millisecond())
            .execute(&self.pool)
            .await
            .map_err(failed("forget old leases"))?;
        Ok(done.rows_affected())
    }
}

const DOING: &str = "commit leases";

/// Takes the addresses of a group without repeats, by one statement.
async fn take(
    executor: impl SqliteExecutor<'_>,
    group: &[LeaseRow],
) -> Result<Vec<Result<(), Taken>>, CatalogError> {
    let given: Vec<String> = sqlx::query_scalar(COMMIT)
        .bind(as_json(group))
        .fetch_all(executor)
        .await
        .map_err(failed(DOING))?;
    let given: HashSet<String> = given.into_iter().collect();
    let answers = group.iter().map(|lease| {
        let address = lease.address;
        let is_given = given.contains(&address.to_string());
        is_given.then_some(()).ok_or(Taken { address })
    });
    Ok(answers.collect())
}

/// The leases in their order, cut before every address that the same piece already has.
fn without_repeats(mut leases: &[LeaseRow]) -> Vec<&[LeaseRow]> {
    let mut groups = Vec::new();
    while !leases.is_empty() {
        let mut seen = HashSet::new();
        let end = leases.iter().position(|lease| !seen.insert(lease.address));
        let (group, rest) = leases.split_at(end.unwrap_or(leases.len()));
        groups.push(group);
        leases = rest;
    }
    groups
}

/// What [`COMMIT`] reads.
fn as_json(leases: &[LeaseRow]) -> String {
    let rows = leases.iter().map(|lease| {
        serde_json::json!([
            lease.address.to_string(),
            lease.mac.to_string(),
            lease.client_id,
            lease.host_name,
            lease.node.as_ref().map(NodeName::as_str),
            lease.network,
            lease.state.as_str(),
            lease.started.as_millisecond(),
            lease.expires.as_millisecond(),
        ])
    });
    serde_json::Value::from_iter(rows).to_string()
}
