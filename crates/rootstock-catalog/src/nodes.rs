//! Nodes: machines that are known by their network cards or their UUID.

use std::{collections::BTreeMap, net::Ipv4Addr};

use jiff::Timestamp;
use rootstock_core::{
    HostList, MacAddress, NodeName, ProfileName, VersionNumber, VersionSelector, VersionSpec,
};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
};

mod rows;
mod settings;

pub(crate) use rows::find;
use rows::{free, free_name, held_room, insert, known, room, secret, update};
pub use settings::NodeSettingsRow;

/// The most nodes of a site.
pub const NODES_MAX: u32 = 100_000;

/// The most nodes that wait for approval: anybody on the wire can invent one.
pub const HELD_MAX: u32 = 1000;

/// The most network cards of a node.
pub const MACS_PER_NODE_MAX: u32 = 32;

/// Whether a node may boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It was found on the wire, and waits until an administrator approves it.
    Held,
    /// It may.
    Ready,
}

impl NodeState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Ready => "ready",
        }
    }

    fn parse(text: &str) -> Result<Self, CatalogError> {
        match text {
            "held" => Ok(Self::Held),
            "ready" => Ok(Self::Ready),
            _ => Err(CatalogError::Corrupt {
                column: "node state",
                value: text.to_owned(),
            }),
        }
    }
}

/// A node to be added by an administrator.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its name.
    pub name: NodeName,
    /// The profile it inherits from.
    pub profile: Option<ProfileName>,
    /// Its network cards.
    pub macs: Vec<MacAddress>,
    /// Its SMBIOS UUID, in lower case.
    pub uuid: Option<String>,
    /// The address that is its own.
    pub address: Option<Ipv4Addr>,
    /// Its settings, as JSON.
    pub settings: String,
    /// The image that its settings name.
    pub image: Option<VersionSpec>,
}

impl NewNode {
    fn to_row(&self, before: Option<&NodeRow>, now: Timestamp) -> NodeRow {
        NodeRow {
            name: self.name.clone(),
            profile: self.profile.clone(),
            state: before.map_or(NodeState::Ready, |row| row.state),
            macs: self.macs.clone(),
            uuid: self.uuid.clone(),
            address: self.address,
            settings: self.settings.clone(),
            image: self.image.clone(),
            inventory: before.and_then(|row| row.inventory.clone()),
            created: before.map_or(now, |row| row.created),
            approved: before.map_or(Some(now), |row| row.approved),
            seen: before.and_then(|row| row.seen),
        }
    }
}

/// A machine that was found on the wire.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    /// The names it may get: the first that is free.
    pub names: &'a HostList,
    /// Its network cards.
    pub macs: Vec<MacAddress>,
    /// Its SMBIOS UUID, in lower case.
    pub uuid: Option<String>,
    /// The profile it is to inherit from.
    pub profile: Option<ProfileName>,
    /// Whether it may boot.
    pub state: NodeState,
    /// What it is made of, as JSON.
    pub inventory: Option<String>,
}

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// There is a new node.
    New(NodeRow),
    /// The machine was known already, perhaps since another daemon was quicker.
    Known(NodeRow),
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub name: NodeName,
    /// The profile it inherits from.
    pub profile: Option<ProfileName>,
    /// Whether it may boot.
    pub state: NodeState,
    /// Its network cards, in order.
    pub macs: Vec<MacAddress>,
    /// Its SMBIOS UUID, in lower case.
    pub uuid: Option<String>,
    /// The address that is its own.
    pub address: Option<Ipv4Addr>,
    /// Its settings, as JSON.
    pub settings: String,
    /// The image that its settings name.
    pub image: Option<VersionSpec>,
    /// What it is made of, as JSON.
    pub inventory: Option<String>,
    /// When it was added or found.
    pub created: Timestamp,
    /// When it was approved.
    pub approved: Option<Timestamp>,
    /// When it was last heard of.
    pub seen: Option<Timestamp>,
}

/// A node before and after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeChange {
    /// What it was.
    pub before: NodeRow,
    /// What it is, or would be.
    pub after: NodeRow,
}

/// Whether a change is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Everything is checked, nothing is changed.
    DryRun,
    /// It is kept.
    Keep,
}

/// Columns that name an image: image, version, tag.
pub(crate) type ImageColumns = (Option<String>, Option<i64>, Option<String>);

pub(crate) fn image_columns(spec: Option<&VersionSpec>) -> ImageColumns {
    let Some(spec) = spec else {
        return (None, None, None);
    };
    let (version, tag) = match &spec.selector {
        VersionSelector::Latest => (None, None),
        VersionSelector::Number(number) => (Some(i64::from(number.0)), None),
        VersionSelector::Tag(tag) => (None, Some(tag.to_string())),
    };
    (Some(spec.image.to_string()), version, tag)
}

pub(crate) fn image_spec(columns: ImageColumns) -> Result<Option<VersionSpec>, CatalogError> {
    let (Some(image), version, tag) = columns else {
        return Ok(None);
    };
    let selector = match (version, tag) {
        (Some(number), _) => {
            VersionSelector::Number(VersionNumber(unsigned("settings' version", number)?))
        }
        (None, Some(tag)) => VersionSelector::Tag(parse("settings' tag", &tag)?),
        (None, None) => VersionSelector::Latest,
    };
    Ok(Some(VersionSpec {
        image: parse("settings' image", &image)?,
        selector,
    }))
}

#[derive(sqlx::FromRow)]
struct Columns {
    name: String,
    profile: Option<String>,
    state: String,
    uuid: Option<String>,
    address: Option<String>,
    settings: String,
    image: Option<String>,
    version: Option<i64>,
    tag: Option<String>,
    inventory: Option<String>,
    created_ms: i64,
    approved_ms: Option<i64>,
    seen_ms: Option<i64>,
}

impl Columns {
    fn into_row(self, macs: Vec<MacAddress>) -> Result<NodeRow, CatalogError> {
        let optional = |ms: Option<i64>| ms.map(|ms| time("node's time", ms)).transpose();
        let profile = self.profile.as_deref();
        let address = self.address.as_deref();
        Ok(NodeRow {
            name: parse("node name", &self.name)?,
            profile: profile
                .map(|name| parse("node's profile", name))
                .transpose()?,
            state: NodeState::parse(&self.state)?,
            macs,
            uuid: self.uuid,
            address: address
                .map(|text| parse("node's address", text))
                .transpose()?,
            settings: self.settings,
            image: image_spec((self.image, self.version, self.tag))?,
            inventory: self.inventory,
            created: time("node's time", self.created_ms)?,
            approved: optional(self.approved_ms)?,
            seen: optional(self.seen_ms)?,
        })
    }
}

impl Catalog {
    /// Adds nodes, all or none of them. They may boot at once.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`CatalogError::MacTaken`], [`CatalogError::Taken`],
    /// [`CatalogError::ProfileNotFound`], [`CatalogError::Full`], or when there is
    /// no such image.
    pub async fn add_nodes(&self, new: &[NewNode], now: Timestamp) -> Result<(), CatalogError> {
        let doing = "add a node";
        let mut tx = self.begin(doing).await?;
        room(&mut tx, new.len()).await?;
        for node in new {
            let row = node.to_row(None, now);
            insert(&mut tx, &row).await?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// Adds one node.
    ///
    /// # Errors
    /// As [`Catalog::add_nodes`].
    pub async fn add_node(&self, new: &NewNode, now: Timestamp) -> Result<(), CatalogError> {
        self.add_nodes(std::slice::from_ref(new), now).await
    }

    /// Adds nodes, and makes those that are there already what is given, all or
    /// none of them. Answers what each was and is, or would be.
    ///
    /// # Errors
    /// As [`Catalog::add_nodes`].
    pub async fn put_nodes(
        &self,
        new: &[NewNode],
        pass: Pass,
        now: Timestamp,
    ) -> Result<Vec<(Option<NodeRow>, NodeRow)>, CatalogError> {
        let doing = "put nodes";
        let mut tx = self.begin(doing).await?;
        let mut before = Vec::with_capacity(new.len());
        for node in new {
            let row = match find(&mut tx, &node.name).await {
                Ok(row) => Some(row),
                Err(CatalogError::NodeNotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            if row.is_some() {
                // Nodes of one list may swap what is theirs.
                free(&mut tx, &node.name).await?;
            }
            before.push(row);
        }
        room(&mut tx, before.iter().filter(|row| row.is_none()).count()).await?;
        let mut done = Vec::with_capacity(new.len());
        for (node, before) in new.iter().zip(before) {
            let row = node.to_row(before.as_ref(), now);
            let after = match &before {
                Some(before) => {
                    let freed = NodeRow {
                        macs: Vec::new(),
                        ..before.clone()
                    };
                    update(&mut tx, &freed, &row).await?;
                    find(&mut tx, &row.name).await?
                }
                None => insert(&mut tx, &row).await?,
            };
            done.push((before, after));
        }
        if pass == Pass::Keep {
            tx.commit().await.map_err(failed(doing))?;
        }
        Ok(done)
    }

    /// Gives a machine that was found on the wire the first free name, unless one
    /// of its cards, or its UUID, is a node's already. One transaction: two
    /// daemons make one node of it, and give no name twice.
    ///
    /// # Errors
    /// [`CatalogError::NoNameLeft`], [`CatalogError::Full`].
    pub async fn register_node(
        &self,
        new: Registration<'_>,
        now: Timestamp,
    ) -> Result<Registered, CatalogError> {
        let doing = "register a node";
        let mut tx = self.begin(doing).await?;
        if let Some(known) = known(&mut tx, &new.macs, new.uuid.as_deref()).await? {
            return Ok(Registered::Known(known));
        }
        room(&mut tx, 1).await?;
        if new.state == NodeState::Held {
            held_room(&mut tx).await?;
        }
        let row = NodeRow {
            name: free_name(&mut tx, new.names).await?,
            profile: new.profile,
            state: new.state,
            macs: new.macs,
            uuid: new.uuid,
            address: None,
            settings: "{}".to_owned(),
            image: None,
            inventory: new.inventory,
            created: now,
            approved: (new.state == NodeState::Ready).then_some(now),
            seen: Some(now),
        };
        let row = insert(&mut tx, &row).await?;
        tx.commit().await.map_err(failed(doing))?;
        Ok(Registered::New(row))
    }

    /// All nodes, by name.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, CatalogError> {
        let doing = "list the nodes";
        let mut tx = self.pool.begin().await.map_err(failed(doing))?;
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM node ORDER BY name")
            .fetch_all(&mut *tx)
            .await
            .map_err(failed(doing))?;
        let macs: Vec<(String, String)> =
            sqlx::query_as("SELECT node, mac FROM node_mac ORDER BY node, mac")
                .fetch_all(&mut *tx)
                .await
                .map_err(failed(doing))?;
        let mut by_node: BTreeMap<String, Vec<MacAddress>> = BTreeMap::new();
        for (node, mac) in macs {
            let mac = parse("node's MAC address", &mac)?;
            by_node.entry(node).or_default().push(mac);
        }
        let row = |row: Columns| {
            let macs = by_node.remove(&row.name).unwrap_or_default();
            row.into_row(macs)
        };
        rows.into_iter().map(row).collect()
    }

    /// One node.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn node(&self, node: &NodeName) -> Result<NodeRow, CatalogError> {
        let mut tx = self.pool.begin().await.map_err(failed("find a node"))?;
        find(&mut tx, node).await
    }

    /// The node that has this card.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn node_by_mac(&self, mac: MacAddress) -> Result<Option<NodeRow>, CatalogError> {
        let mut tx = self.pool.begin().await.map_err(failed("find a node"))?;
        known(&mut tx, &[mac], None).await
    }

    /// The node that has this SMBIOS UUID (in lower case).
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn node_by_uuid(&self, uuid: &str) -> Result<Option<NodeRow>, CatalogError> {
        let mut tx = self.pool.begin().await.map_err(failed("find a node"))?;
        known(&mut tx, &[], Some(uuid)).await
    }

    /// Changes nodes, all or none of them. `edit` sees each as it is; what it may
    /// change is all but the name, the inventory and the times.
    ///
    /// # Errors
    /// As [`Catalog::add_nodes`], and [`CatalogError::NodeNotFound`].
    pub async fn update_nodes(
        &self,
        names: &[NodeName],
        pass: Pass,
        mut edit: impl FnMut(&mut NodeRow) + Send,
    ) -> Result<Vec<NodeChange>, CatalogError> {
        let doing = "change a node";
        let mut tx = self.begin(doing).await?;
        let mut changes = Vec::with_capacity(names.len());
        for name in names {
            let before = find(&mut tx, name).await?;
            let mut after = before.clone();
            edit(&mut after);
            if after != before {
                update(&mut tx, &before, &after).await?;
            }
            changes.push(NodeChange { before, after });
        }
        if pass == Pass::Keep {
            tx.commit().await.map_err(failed(doing))?;
        }
        Ok(changes)
    }

    /// Lets nodes boot that were held, all or none of them. Answers those that
    /// were; a node that may boot already stays as it is.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn approve_nodes(
        &self,
        names: &[NodeName],
        now: Timestamp,
    ) -> Result<Vec<NodeRow>, CatalogError> {
        let doing = "approve a node";
        let mut tx = self.begin(doing).await?;
        let mut approved = Vec::new();
        for name in names {
            let row = find(&mut tx, name).await?;
            if row.state == NodeState::Ready {
                continue;
            }
            sqlx::query("UPDATE node SET state = $2, approved_ms = $3 WHERE name = $1")
                .bind(name.as_str())
                .bind(NodeState::Ready.as_str())
                .bind(now.as_millisecond())
                .execute(&mut *tx)
                .await
                .map_err(failed(doing))?;
            approved.push(NodeRow {
                state: NodeState::Ready,
                approved: Some(now),
                ..row
            });
        }
        tx.commit().await.map_err(failed(doing))?;
        Ok(approved)
    }

    /// Deletes nodes with their boots and secrets, all or none of them. Answers
    /// what they were.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn delete_nodes(&self, names: &[NodeName]) -> Result<Vec<NodeRow>, CatalogError> {
        let doing = "delete a node";
        let mut tx = self.begin(doing).await?;
        let mut deleted = Vec::with_capacity(names.len());
        for name in names {
            deleted.push(find(&mut tx, name).await?);
            sqlx::query("DELETE FROM node WHERE name = $1")
                .bind(name.as_str())
                .execute(&mut *tx)
                .await
                .map_err(failed(doing))?;
        }
        tx.commit().await.map_err(failed(doing))?;
        Ok(deleted)
    }

    /// Runs a statement for each of these nodes, all or none of them. Answers those
    /// where it changed something.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`], when nothing is changed.
    pub(crate) async fn for_each_node(
        &self,
        doing: &'static str,
        statement: &'static str,
        nodes: &[NodeName],
    ) -> Result<Vec<NodeName>, CatalogError> {
        let mut tx = self.begin(doing).await?;
        let mut changed = Vec::new();
        for node in nodes {
            find(&mut tx, node).await?;
            let done = sqlx::query(statement)
                .bind(node.as_str())
                .execute(&mut *tx)
                .await
                .map_err(failed(doing))?;
            if done.rows_affected() > 0 {
                changed.push(node.clone());
            }
        }
        tx.commit().await.map_err(failed(doing))?;
        Ok(changed)
    }

    /// Records that a node was heard of. One that is not there is no error.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn touch_node(&self, node: &NodeName, now: Timestamp) -> Result<(), CatalogError> {
        sqlx::query("UPDATE node SET seen_ms = $2 WHERE name = $1")
            .bind(node.as_str())
            .bind(now.as_millisecond())
            .execute(&self.pool)
            .await
            .map_err(failed("record that a node was heard of"))?;
        Ok(())
    }

    /// Records what a node is made of, as JSON.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn set_inventory(
        &self,
        node: &NodeName,
        inventory: &str,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let done = sqlx::query("UPDATE node SET inventory = $2, seen_ms = $3 WHERE name = $1")
            .bind(node.as_str())
            .bind(inventory)
            .bind(now.as_millisecond())
            .execute(&self.pool)
            .await
            .map_err(failed("record an inventory"))?;
        if done.rows_affected() == 0 {
            return Err(CatalogError::NodeNotFound { node: node.clone() });
        }
        Ok(())
    }

    /// A node's secret, as it was kept first: `fresh` becomes it when there is
    /// none yet.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn node_secret(
        &self,
        node: &NodeName,
        fresh: impl FnOnce() -> String + Send,
        now: Timestamp,
    ) -> Result<String, CatalogError> {
        let doing = "keep a node's secret";
        if let Some(secret) =
            secret(&mut self.pool.begin().await.map_err(failed(doing))?, node).await?
        {
            return Ok(secret);
        }
        // Made outside the transaction: keys take their time.
        let fresh = fresh();
        let mut tx = self.begin(doing).await?;
        find(&mut tx, node).await?;
        if let Some(secret) = secret(&mut tx, node).await? {
            return Ok(secret);
        }
        sqlx::query("INSERT INTO node_secret (node, secret, created_ms) VALUES ($1, $2, $3)")
            .bind(node.as_str())
            .bind(fresh.as_str())
            .bind(now.as_millisecond())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))?;
        Ok(fresh)
    }
}
