//! The rows of nodes and their cards, within a transaction.

use std::collections::HashSet;

use jiff::Timestamp;
use rootstock_core::{HostList, MacAddress, NodeName, ProfileName};

use super::{Columns, HELD_MAX, MACS_PER_NODE_MAX, NODES_MAX, NodeRow, image_columns};
use crate::{
    error::{CatalogError, failed, parse, unsigned},
    schema::Tx,
};

/// A node within a transaction.
pub(crate) async fn find(tx: &mut Tx, node: &NodeName) -> Result<NodeRow, CatalogError> {
    let doing = "find a node";
    let row: Option<Columns> = sqlx::query_as("SELECT * FROM node WHERE name = $1")
        .bind(node.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed(doing))?;
    let row = row.ok_or_else(|| CatalogError::NodeNotFound { node: node.clone() })?;
    let macs: Vec<(String,)> =
        sqlx::query_as("SELECT mac FROM node_mac WHERE node = $1 ORDER BY mac")
            .bind(node.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let macs = macs.iter().map(|(mac,)| parse("node's MAC address", mac));
    row.into_row(macs.collect::<Result<_, _>>()?)
}

/// The node that has one of these cards, or else this UUID.
pub(super) async fn known(
    tx: &mut Tx,
    macs: &[MacAddress],
    uuid: Option<&str>,
) -> Result<Option<NodeRow>, CatalogError> {
    for mac in macs {
        if let Some(owner) = owner(tx, *mac).await? {
            return find(tx, &owner).await.map(Some);
        }
    }
    let Some(uuid) = uuid else { return Ok(None) };
    match holder_of(tx, "SELECT name FROM node WHERE uuid = $1", uuid).await? {
        Some(owner) => find(tx, &owner).await.map(Some),
        None => Ok(None),
    }
}

async fn owner(tx: &mut Tx, mac: MacAddress) -> Result<Option<NodeName>, CatalogError> {
    let query = "SELECT node FROM node_mac WHERE mac = $1";
    holder_of(tx, query, &mac.to_string()).await
}

async fn holder_of(
    tx: &mut Tx,
    query: &'static str,
    value: &str,
) -> Result<Option<NodeName>, CatalogError> {
    let row: Option<(String,)> = sqlx::query_as(query)
        .bind(value)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("find a node"))?;
    row.map(|(name,)| parse("node name", &name)).transpose()
}

pub(super) async fn secret(tx: &mut Tx, node: &NodeName) -> Result<Option<String>, CatalogError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT secret FROM node_secret WHERE node = $1")
        .bind(node.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read a node's secret"))?;
    Ok(row.map(|(secret,)| secret))
}

async fn count(tx: &mut Tx, query: &'static str) -> Result<u32, CatalogError> {
    let (count,): (i64,) = sqlx::query_as(query)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("count the nodes"))?;
    unsigned("number of nodes", count)
}

pub(super) async fn room(tx: &mut Tx, more: usize) -> Result<(), CatalogError> {
    let there = count(tx, "SELECT count(*) FROM node").await?;
    if there as usize + more > NODES_MAX as usize {
        return Err(CatalogError::Full {
            what: "nodes",
            max: NODES_MAX,
        });
    }
    Ok(())
}

pub(super) async fn held_room(tx: &mut Tx) -> Result<(), CatalogError> {
    if count(tx, "SELECT count(*) FROM node WHERE state = 'held'").await? >= HELD_MAX {
        return Err(CatalogError::Full {
            what: "nodes that wait for approval",
            max: HELD_MAX,
        });
    }
    Ok(())
}

pub(super) async fn free_name(tx: &mut Tx, names: &HostList) -> Result<NodeName, CatalogError> {
    let taken: Vec<(String,)> = sqlx::query_as("SELECT name FROM node")
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("find a free name"))?;
    let taken: HashSet<&str> = taken.iter().map(|(name,)| name.as_str()).collect();
    let mut names_in_order = names.names().iter();
    let free = names_in_order.find(|name| !taken.contains(name.as_str()));
    free.cloned().ok_or_else(|| CatalogError::NoNameLeft {
        pattern: names.to_string(),
        count: names.len(),
    })
}

pub(super) async fn insert(tx: &mut Tx, row: &NodeRow) -> Result<NodeRow, CatalogError> {
    check(tx, row, None).await?;
    let (image, version, tag) = image_columns(row.image.as_ref());
    let added = sqlx::query(
        "INSERT INTO node (name, profile, state, uuid, address, settings, image, version, tag, \
         inventory, created_ms, approved_ms, seen_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(row.name.as_str())
    .bind(row.profile.as_ref().map(ProfileName::as_str))
    .bind(row.state.as_str())
    .bind(row.uuid.as_deref())
    .bind(row.address.map(|address| address.to_string()))
    .bind(row.settings.as_str())
    .bind(image)
    .bind(version)
    .bind(tag)
    .bind(row.inventory.as_deref())
    .bind(row.created.as_millisecond())
    .bind(row.approved.map(Timestamp::as_millisecond))
    .bind(row.seen.map(Timestamp::as_millisecond))
    .execute(&mut **tx)
    .await
    .map_err(failed("add a node"))?;
    if added.rows_affected() == 0 {
        return Err(CatalogError::Exists {
            what: "node",
            name: row.name.to_string(),
        });
    }
    add_macs(tx, row).await?;
    find(tx, &row.name).await
}

pub(super) async fn update(
    tx: &mut Tx,
    before: &NodeRow,
    after: &NodeRow,
) -> Result<(), CatalogError> {
    let doing = "change a node";
    check(tx, after, Some(before)).await?;
    crate::assignments::of_node(tx, before, after).await?;
    let (image, version, tag) = image_columns(after.image.as_ref());
    sqlx::query(
        "UPDATE node SET profile = $2, state = $3, uuid = $4, address = $5, settings = $6, \
         image = $7, version = $8, tag = $9 WHERE name = $1",
    )
    .bind(before.name.as_str())
    .bind(after.profile.as_ref().map(ProfileName::as_str))
    .bind(after.state.as_str())
    .bind(after.uuid.as_deref())
    .bind(after.address.map(|address| address.to_string()))
    .bind(after.settings.as_str())
    .bind(image)
    .bind(version)
    .bind(tag)
    .execute(&mut **tx)
    .await
    .map_err(failed(doing))?;
    if before.macs != after.macs {
        sqlx::query("DELETE FROM node_mac WHERE node = $1")
            .bind(before.name.as_str())
            .execute(&mut **tx)
            .await
            .map_err(failed(doing))?;
        add_macs(tx, after).await?;
    }
    Ok(())
}

/// Takes from a node what only one node can have.
pub(super) async fn free(tx: &mut Tx, node: &NodeName) -> Result<(), CatalogError> {
    let doing = "free a node's cards";
    sqlx::query("DELETE FROM node_mac WHERE node = $1")
        .bind(node.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed(doing))?;
    sqlx::query("UPDATE node SET uuid = NULL, address = NULL WHERE name = $1")
        .bind(node.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed(doing))?;
    Ok(())
}

async fn add_macs(tx: &mut Tx, row: &NodeRow) -> Result<(), CatalogError> {
    for mac in &row.macs {
        sqlx::query(
            "INSERT INTO node_mac (mac, node) VALUES ($1, $2) ON CONFLICT (mac) DO NOTHING",
        )
        .bind(mac.to_string())
        .bind(row.name.as_str())
        .execute(&mut **tx)
        .await
        .map_err(failed("add a node's card"))?;
    }
    Ok(())
}

/// What a row names must be there, and what is to be its own nobody else's.
async fn check(tx: &mut Tx, row: &NodeRow, before: Option<&NodeRow>) -> Result<(), CatalogError> {
    if row.macs.len() > MACS_PER_NODE_MAX as usize {
        return Err(CatalogError::Full {
            what: "network cards of one node",
            max: MACS_PER_NODE_MAX,
        });
    }
    let is_other = |owner: &NodeName| *owner != row.name || before.is_none();
    for mac in &row.macs {
        if let Some(node) = owner(tx, *mac).await?.filter(is_other) {
            return Err(CatalogError::MacTaken { mac: *mac, node });
        }
    }
    let address = row.address.map(|address| address.to_string());
    for (what, query, value) in [
        (
            "UUID",
            "SELECT name FROM node WHERE uuid = $1",
            row.uuid.as_ref(),
        ),
        (
            "address",
            "SELECT name FROM node WHERE address = $1",
            address.as_ref(),
        ),
    ] {
        let Some(value) = value else { continue };
        if let Some(node) = holder_of(tx, query, value).await?.filter(is_other) {
            let value = value.clone();
            return Err(CatalogError::Taken { what, value, node });
        }
    }
    if let Some(profile) = &row.profile {
        crate::profiles::require(tx, profile).await?;
    }
    match &row.image {
        Some(image) if before.is_none_or(|before| before.image != row.image) => {
            crate::versions::resolve(tx, image).await.map(|_| ())
        }
        _ => Ok(()),
    }
}
