//! Versions: how they come, how they are found, and when they may go.

use jiff::Timestamp;
use rootstock_core::{Digest, ImageName, TagName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog, Holder,
    error::{CatalogError, failed, parse, time, unsigned},
    images::{Event, point_tag, record, require},
    schema::Tx,
};

/// The most versions of all images together.
pub const VERSIONS_MAX: u32 = 1_000_000;

/// A version to be added.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// The image that gets it; made when it does not exist.
    pub image: ImageName,
    /// Its manifest.
    pub manifest: Digest,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of the disk that are not zero, by chunks.
    pub used_bytes: u64,
    /// Chunks that were new to the store.
    pub added_chunks: u64,
    /// Bytes of their frames.
    pub added_bytes: u64,
    /// The version it was made from, when that is not the image's newest.
    pub parent: Option<VersionSpec>,
    /// What it was made from.
    pub source: String,
    /// What its author said.
    pub message: Option<String>,
    /// What is on the disk, as JSON.
    pub facts: String,
    /// A tag to point at it.
    pub tag: Option<TagName>,
    /// What happened: `imported` or `committed`.
    pub event: &'static str,
    /// Who did it.
    pub actor: String,
    /// The import that becomes this version, and ends with it.
    pub import: Option<String>,
}

/// A version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// Its image.
    pub image: ImageName,
    /// Its number.
    pub number: VersionNumber,
    /// Its manifest.
    pub manifest: Digest,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of the disk that are not zero, by chunks.
    pub used_bytes: u64,
    /// Chunks that were new to the store.
    pub added_chunks: u64,
    /// Bytes of their frames.
    pub added_bytes: u64,
    /// The version it was made from.
    pub parent: Option<VersionSpec>,
    /// What it was made from.
    pub source: String,
    /// What its author said.
    pub message: Option<String>,
    /// The site's signature, in hex.
    pub seal: String,
    /// What is on the disk, as JSON.
    pub facts: String,
    /// When it was committed.
    pub created: Timestamp,
}

impl VersionRow {
    /// The version as one writes it: `lab:3`.
    #[must_use]
    pub fn spec(&self) -> VersionSpec {
        VersionSpec {
            image: self.image.clone(),
            selector: VersionSelector::Number(self.number),
        }
    }
}

/// What [`Catalog::add_version`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedVersion {
    /// There is a new version.
    Created(VersionRow),
    /// The image's newest version has the same manifest.
    Unchanged(VersionRow),
}

#[derive(sqlx::FromRow)]
struct Columns {
    image: String,
    number: i64,
    manifest: String,
    disk_bytes: i64,
    used_bytes: i64,
    added_chunks: i64,
    added_bytes: i64,
    parent: Option<String>,
    source: String,
    message: Option<String>,
    seal: String,
    facts: String,
    created_ms: i64,
}

impl TryFrom<Columns> for VersionRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let parent = row.parent.map(|text| parse("parent", &text)).transpose()?;
        Ok(Self {
            image: parse("image name", &row.image)?,
            number: VersionNumber(unsigned("version number", row.number)?),
            manifest: parse("manifest id", &row.manifest)?,
            disk_bytes: unsigned("disk size", row.disk_bytes)?,
            used_bytes: unsigned("used size", row.used_bytes)?,
            added_chunks: unsigned("added chunks", row.added_chunks)?,
            added_bytes: unsigned("added bytes", row.added_bytes)?,
            parent,
            source: row.source,
            message: row.message,
            seal: row.seal,
            facts: row.facts,
            created: time("version's time", row.created_ms)?,
        })
    }
}

impl Catalog {
    /// Adds a version: number, tag, history, and the end of its import, in one
    /// transaction. `seal` signs the number that the version gets. When the
    /// image's newest version has the same manifest nothing is added, but the tag
    /// is set and the import ends.
    ///
    /// # Errors
    /// [`CatalogError::ImportNotFound`] when the import has ended meanwhile.
    pub async fn add_version(
        &self,
        new: NewVersion,
        now: Timestamp,
        seal: impl FnOnce(VersionNumber) -> String + Send,
    ) -> Result<AddedVersion, CatalogError> {
        let mut tx = self.begin("add a version").await?;
        if let Some(import) = &new.import {
            crate::imports::remove(&mut tx, import).await?;
        }
        let newest = newest(&mut tx, &new.image).await?;
        let added = match newest {
            Some(newest) if newest.manifest == new.manifest => AddedVersion::Unchanged(newest),
            newest => AddedVersion::Created(insert(&mut tx, &new, newest, now, seal).await?),
        };
        if let Some(tag) = &new.tag {
            let (AddedVersion::Created(row) | AddedVersion::Unchanged(row)) = &added;
            point_tag(&mut tx, &new.image, tag, row.number, &new.actor, now).await?;
        }
        tx.commit().await.map_err(failed("commit a version"))?;
        Ok(added)
    }

    /// The versions of an image, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn versions(&self, image: &ImageName) -> Result<Vec<VersionRow>, CatalogError> {
        let rows: Vec<Columns> =
            sqlx::query_as("SELECT * FROM version WHERE image = $1 ORDER BY number")
                .bind(image.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list versions"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// All versions of all images, by image and number.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn all_versions(&self) -> Result<Vec<VersionRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM version ORDER BY image, number")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list all versions"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The version that is meant.
    ///
    /// # Errors
    /// When there is no such image, version or tag.
    pub async fn resolve(&self, spec: &VersionSpec) -> Result<VersionRow, CatalogError> {
        let mut tx = self.pool.begin().await.map_err(failed("find a version"))?;
        resolve(&mut tx, spec).await
    }

    /// Deletes a version.
    ///
    /// # Errors
    /// [`CatalogError::InUse`] when a tag, a volume, a node or a profile needs it.
    pub async fn delete_version(
        &self,
        image: &ImageName,
        number: VersionNumber,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let mut tx = self.begin("delete a version").await?;
        let spec = VersionSpec {
            image: image.clone(),
            selector: VersionSelector::Number(number),
        };
        resolve(&mut tx, &spec).await?;
        delete(&mut tx, image, number, actor, now).await?;
        tx.commit().await.map_err(failed("delete a version"))
    }

    /// Deletes an image: its tags and all its versions. Its history and the
    /// numbers it has used are kept.
    ///
    /// # Errors
    /// [`CatalogError::InUse`] when a volume or a running node needs one of the
    /// versions, [`CatalogError::ImageInUse`] when the settings of a node or of a
    /// profile name the image.
    pub async fn delete_image(
        &self,
        image: &ImageName,
        actor: &str,
        now: Timestamp,
    ) -> Result<Vec<VersionNumber>, CatalogError> {
        let doing = "delete an image";
        let mut tx = self.begin(doing).await?;
        require(&mut tx, image).await?;
        let holders = namers(&mut tx, image, None).await?;
        if !holders.is_empty() {
            return Err(CatalogError::ImageInUse {
                image: image.clone(),
                holders,
            });
        }
        sqlx::query("DELETE FROM tag WHERE image = $1")
            .bind(image.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        let numbers: Vec<(i64,)> =
            sqlx::query_as("SELECT number FROM version WHERE image = $1 ORDER BY number")
                .bind(image.as_str())
                .fetch_all(&mut *tx)
                .await
                .map_err(failed(doing))?;
        let mut deleted = Vec::with_capacity(numbers.len());
        for (number,) in numbers {
            let number = VersionNumber(unsigned("version number", number)?);
            delete(&mut tx, image, number, actor, now).await?;
            deleted.push(number);
        }
        sqlx::query("UPDATE image SET deleted = 1, nfs = 0 WHERE name = $1")
            .bind(image.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))?;
        Ok(deleted)
    }
}

pub(crate) async fn resolve(tx: &mut Tx, spec: &VersionSpec) -> Result<VersionRow, CatalogError> {
    let image = &spec.image;
    require(tx, image).await?;
    let number = match &spec.selector {
        VersionSelector::Number(number) => *number,
        VersionSelector::Latest => {
            return newest(tx, image)
                .await?
                .ok_or_else(|| CatalogError::NoVersions {
                    image: image.clone(),
                });
        }
        VersionSelector::Tag(tag) => {
            let row: Option<(i64,)> =
                sqlx::query_as("SELECT version FROM tag WHERE image = $1 AND name = $2")
                    .bind(image.as_str())
                    .bind(tag.as_str())
                    .fetch_optional(&mut **tx)
                    .await
                    .map_err(failed("find a tag"))?;
            let (number,) = row.ok_or_else(|| CatalogError::TagNotFound {
                image: image.clone(),
                tag: tag.clone(),
            })?;
            VersionNumber(unsigned("tag's version", number)?)
        }
    };
    let row: Option<Columns> =
        sqlx::query_as("SELECT * FROM version WHERE image = $1 AND number = $2")
            .bind(image.as_str())
            .bind(i64::from(number.0))
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed("find a version"))?;
    let row = row.ok_or_else(|| CatalogError::VersionNotFound {
        image: image.clone(),
        version: number,
    })?;
    row.try_into()
}

async fn newest(tx: &mut Tx, image: &ImageName) -> Result<Option<VersionRow>, CatalogError> {
    let row: Option<Columns> =
        sqlx::query_as("SELECT * FROM version WHERE image = $1 ORDER BY number DESC LIMIT 1")
            .bind(image.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed("find the newest version"))?;
    row.map(TryInto::try_into).transpose()
}

/// Takes the image's next number, making or reviving the image.
async fn next_number(
    tx: &mut Tx,
    image: &ImageName,
    now: Timestamp,
) -> Result<VersionNumber, CatalogError> {
    let (number,): (i64,) = sqlx::query_as(
        "INSERT INTO image (name, next_version, deleted, created_ms) VALUES ($1, 2, 0, $2) \
         ON CONFLICT (name) DO UPDATE SET next_version = image.next_version + 1, deleted = 0 \
         RETURNING next_version - 1",
    )
    .bind(image.as_str())
    .bind(now.as_millisecond())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed("number a version"))?;
    Ok(VersionNumber(unsigned("version number", number)?))
}

async fn insert(
    tx: &mut Tx,
    new: &NewVersion,
    newest: Option<VersionRow>,
    now: Timestamp,
    seal: impl FnOnce(VersionNumber) -> String + Send,
) -> Result<VersionRow, CatalogError> {
    let doing = "insert a version";
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM version")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed(doing))?;
    if count >= i64::from(VERSIONS_MAX) {
        return Err(CatalogError::Full {
            what: "versions",
            max: VERSIONS_MAX,
        });
    }
    let number = next_number(tx, &new.image, now).await?;
    let parent = new.parent.clone().or_else(|| newest.map(|row| row.spec()));
    let row: Columns = sqlx::query_as(
        "INSERT INTO version (image, number, manifest, disk_bytes, used_bytes, added_chunks, \
         added_bytes, parent, source, message, seal, facts, created_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *",
    )
    .bind(new.image.as_str())
    .bind(i64::from(number.0))
    .bind(new.manifest.to_string())
    .bind(new.disk_bytes.cast_signed())
    .bind(new.used_bytes.cast_signed())
    .bind(new.added_chunks.cast_signed())
    .bind(new.added_bytes.cast_signed())
    .bind(parent.map(|spec| spec.to_string()))
    .bind(new.source.as_str())
    .bind(new.message.as_deref())
    .bind(seal(number))
    .bind(new.facts.as_str())
    .bind(now.as_millisecond())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed(doing))?;
    let event = Event {
        event: new.event,
        version: Some(number),
        tag: None,
        detail: &new.source,
    };
    record(tx, &new.image, event, &new.actor, now).await?;
    row.try_into()
}

async fn delete(
    tx: &mut Tx,
    image: &ImageName,
    number: VersionNumber,
    actor: &str,
    now: Timestamp,
) -> Result<(), CatalogError> {
    let holders = holders(tx, image, number).await?;
    if !holders.is_empty() {
        return Err(CatalogError::InUse {
            image: image.clone(),
            version: number,
            holders,
        });
    }
    sqlx::query("DELETE FROM version WHERE image = $1 AND number = $2")
        .bind(image.as_str())
        .bind(i64::from(number.0))
        .execute(&mut **tx)
        .await
        .map_err(failed("delete a version"))?;
    let event = Event {
        event: "deleted",
        version: Some(number),
        tag: None,
        detail: "",
    };
    record(tx, image, event, actor, now).await
}

async fn holders(
    tx: &mut Tx,
    image: &ImageName,
    number: VersionNumber,
) -> Result<Vec<Holder>, CatalogError> {
    let doing = "find what needs a version";
    let tags: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM tag WHERE image = $1 AND version = $2 ORDER BY name")
            .bind(image.as_str())
            .bind(i64::from(number.0))
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let volumes: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM volume WHERE image = $1 AND version = $2 ORDER BY name")
            .bind(image.as_str())
            .bind(i64::from(number.0))
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let profiles: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM profile WHERE image = $1 AND version = $2 ORDER BY name")
            .bind(image.as_str())
            .bind(i64::from(number.0))
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(doing))?;
    // Named by the node's settings, run by it now, or what it falls back to: the last
    // that it came up with.
    let nodes: Vec<(String,)> = sqlx::query_as(
        "SELECT name FROM node WHERE image = $1 AND version = $2 \
         UNION SELECT node FROM boot WHERE image = $1 AND version = $2 AND ended_ms IS NULL \
         UNION SELECT node FROM node_version g WHERE image = $1 AND version = $2 \
         AND good_ms IS NOT NULL AND NOT EXISTS (SELECT 1 FROM node_version n \
         WHERE n.node = g.node AND n.good_ms > g.good_ms) \
         ORDER BY 1",
    )
    .bind(image.as_str())
    .bind(i64::from(number.0))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed(doing))?;
    let mut holders = Vec::with_capacity(tags.len() + volumes.len());
    for (tag,) in tags {
        holders.push(Holder::Tag(parse("tag", &tag)?));
    }
    for (volume,) in volumes {
        holders.push(Holder::Volume(parse("volume name", &volume)?));
    }
    for (profile,) in profiles {
        holders.push(Holder::Profile(parse("profile name", &profile)?));
    }
    for (node,) in nodes {
        holders.push(Holder::Node(parse("node name", &node)?));
    }
    let rollouts: Vec<(i64,)> = sqlx::query_as(
        "SELECT id FROM rollout WHERE image = $1 AND version = $2 AND ended_ms IS NULL ORDER BY id",
    )
    .bind(image.as_str())
    .bind(i64::from(number.0))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed(doing))?;
    for (rollout,) in rollouts {
        holders.push(Holder::Rollout(unsigned("rollout's number", rollout)?));
    }
    let initiators: Vec<(String,)> = sqlx::query_as(
        "SELECT initiator FROM version_share WHERE image = $1 AND version = $2 ORDER BY 1",
    )
    .bind(image.as_str())
    .bind(i64::from(number.0))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed(doing))?;
    let initiators = initiators.into_iter();
    holders.extend(initiators.map(|(initiator,)| Holder::Initiator(initiator)));
    Ok(holders)
}

/// The nodes and profiles whose settings name an image: by this tag, or in any way.
pub(crate) async fn namers(
    tx: &mut Tx,
    image: &ImageName,
    tag: Option<&TagName>,
) -> Result<Vec<Holder>, CatalogError> {
    let doing = "find what names an image";
    let spec = tag.map(|tag| format!("{image}@{tag}"));
    let rows: Vec<(bool, String)> = sqlx::query_as(
        "SELECT false AS is_node, name FROM profile \
         WHERE image = $1 AND ($2 IS NULL OR settings ->> 'image' = $2) \
         UNION ALL SELECT true, name FROM node \
         WHERE image = $1 AND ($2 IS NULL OR settings ->> 'image' = $2) ORDER BY 1, 2",
    )
    .bind(image.as_str())
    .bind(spec)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed(doing))?;
    let holders = rows.iter().map(|(is_node, name)| match is_node {
        true => parse("node name", name).map(Holder::Node),
        false => parse("profile name", name).map(Holder::Profile),
    });
    holders.collect()
}
