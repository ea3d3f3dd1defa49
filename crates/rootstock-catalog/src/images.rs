//! Images, their tags and their history.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rootstock_core::{ImageName, TagName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog, VersionRow,
    error::{CatalogError, failed, parse, time, unsigned},
    schema::Tx,
    versions::namers,
};

/// How many events of an image are kept.
const HISTORY_MAX: i64 = 10_000;

/// How many events of an image are listed: the newest.
pub const HISTORY_LIST_MAX: u32 = 1000;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Its name.
    pub name: ImageName,
    /// When it was made.
    pub created: Timestamp,
    /// Its tags, by name.
    pub tags: Vec<TagRow>,
    /// How many versions it has.
    pub version_count: u32,
    /// Whether its versions may be roots over NFS.
    pub nfs: bool,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRow {
    /// Its name.
    pub name: TagName,
    /// The version it points at.
    pub version: VersionNumber,
}

/// Something that happened to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// When.
    pub time: Timestamp,
    /// What: `imported`, `committed`, `tagged`, `untagged`, `deleted`.
    pub event: String,
    /// The version it was about.
    pub version: Option<VersionNumber>,
    /// The tag it was about.
    pub tag: Option<TagName>,
    /// More.
    pub detail: String,
    /// Who.
    pub actor: String,
}

type TagColumns = (String, String, i64);

type HistoryColumns = (i64, String, Option<i64>, Option<String>, String, String);

impl Catalog {
    /// All images, by name.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn images(&self) -> Result<Vec<ImageRow>, CatalogError> {
        let doing = "list the images";
        let rows: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "SELECT i.name, i.created_ms, (SELECT count(*) FROM version v WHERE v.image = i.name), \
             i.nfs FROM image i WHERE i.deleted = 0 ORDER BY i.name",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed(doing))?;
        let tags: Vec<TagColumns> =
            sqlx::query_as("SELECT image, name, version FROM tag ORDER BY image, name")
                .fetch_all(&self.pool)
                .await
                .map_err(failed(doing))?;
        let mut by_image: BTreeMap<String, Vec<TagRow>> = BTreeMap::new();
        for (image, name, version) in tags {
            by_image
                .entry(image)
                .or_default()
                .push(tag_row(&name, version)?);
        }
        let row = |(name, created_ms, count, nfs): (String, i64, i64, i64)| {
            Ok(ImageRow {
                tags: by_image.remove(&name).unwrap_or_default(),
                name: parse("image name", &name)?,
                created: time("image creation", created_ms)?,
                version_count: unsigned("version count", count)?,
                nfs: nfs != 0,
            })
        };
        rows.into_iter().map(row).collect()
    }

    /// One image.
    ///
    /// # Errors
    /// [`CatalogError::ImageNotFound`].
    pub async fn image(&self, image: &ImageName) -> Result<ImageRow, CatalogError> {
        let images = self.images().await?;
        let found = images.into_iter().find(|row| row.name == *image);
        found.ok_or_else(|| CatalogError::ImageNotFound {
            image: image.clone(),
        })
    }

    /// Points a tag at a version. Answers the version and the one before it.
    ///
    /// # Errors
    /// When there is no such image or version.
    pub async fn set_tag(
        &self,
        image: &ImageName,
        tag: &TagName,
        selector: &VersionSelector,
        actor: &str,
        now: Timestamp,
    ) -> Result<(VersionRow, Option<VersionNumber>), CatalogError> {
        let mut tx = self.begin("set a tag").await?;
        let spec = VersionSpec {
            image: image.clone(),
            selector: selector.clone(),
        };
        let version = crate::versions::resolve(&mut tx, &spec).await?;
        let before = point_tag(&mut tx, image, tag, version.number, actor, now).await?;
        tx.commit().await.map_err(failed("set a tag"))?;
        Ok((version, before))
    }

    /// Lets versions of an image be roots over NFS, or not any more.
    ///
    /// # Errors
    /// [`CatalogError::ImageNotFound`].
    pub async fn set_nfs(
        &self,
        image: &ImageName,
        allowed: bool,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "say whether an image may be exported over NFS";
        let mut tx = self.begin(doing).await?;
        require(&mut tx, image).await?;
        let changed = sqlx::query("UPDATE image SET nfs = $2 WHERE name = $1 AND nfs <> $2")
            .bind(image.as_str())
            .bind(i64::from(allowed))
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if changed.rows_affected() > 0 {
            let event = Event {
                event: "nfs-set",
                version: None,
                tag: None,
                detail: if allowed { "yes" } else { "no" },
            };
            record(&mut tx, image, event, actor, now).await?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// Points a tag at the version that it pointed at before. Answers the version and
    /// the one that it leaves. To go back twice is to be where one was.
    ///
    /// # Errors
    /// [`CatalogError::TagNotFound`], [`CatalogError::NothingBefore`], and
    /// [`CatalogError::VersionNotFound`] when that version is gone.
    pub async fn roll_tag_back(
        &self,
        image: &ImageName,
        tag: &TagName,
        actor: &str,
        now: Timestamp,
    ) -> Result<(VersionRow, VersionNumber), CatalogError> {
        let doing = "find what a tag pointed at before";
        let mut tx = self.begin(doing).await?;
        let spec = |selector| VersionSpec {
            image: image.clone(),
            selector,
        };
        let tagged = spec(VersionSelector::Tag(tag.clone()));
        let present = crate::versions::resolve(&mut tx, &tagged).await?.number;
        let before: Option<(i64,)> = sqlx::query_as(
            "SELECT version FROM history WHERE image = $1 AND tag = $2 AND event = 'tagged' \
             AND version <> $3 ORDER BY id DESC LIMIT 1",
        )
        .bind(image.as_str())
        .bind(tag.as_str())
        .bind(i64::from(present.0))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(doing))?;
        let (before,) = before.ok_or_else(|| CatalogError::NothingBefore {
            what: "tag",
            name: format!("{image}@{tag}"),
        })?;
        let before = VersionNumber(unsigned("history's version", before)?);
        let before = spec(VersionSelector::Number(before));
        let version = crate::versions::resolve(&mut tx, &before).await?;
        point_tag(&mut tx, image, tag, version.number, actor, now).await?;
        tx.commit().await.map_err(failed(doing))?;
        Ok((version, present))
    }

    /// Takes a tag away. Answers the version it pointed at.
    ///
    /// # Errors
    /// [`CatalogError::ImageNotFound`], [`CatalogError::TagNotFound`],
    /// [`CatalogError::TagInUse`] when nodes or profiles are to run what it points at.
    pub async fn remove_tag(
        &self,
        image: &ImageName,
        tag: &TagName,
        actor: &str,
        now: Timestamp,
    ) -> Result<VersionNumber, CatalogError> {
        let doing = "remove a tag";
        let mut tx = self.begin(doing).await?;
        require(&mut tx, image).await?;
        let removed: Option<(i64,)> =
            sqlx::query_as("DELETE FROM tag WHERE image = $1 AND name = $2 RETURNING version")
                .bind(image.as_str())
                .bind(tag.as_str())
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed(doing))?;
        let Some((version,)) = removed else {
            return Err(CatalogError::TagNotFound {
                image: image.clone(),
                tag: tag.clone(),
            });
        };
        let holders = namers(&mut tx, image, Some(tag)).await?;
        if !holders.is_empty() {
            return Err(CatalogError::TagInUse {
                image: image.clone(),
                tag: tag.clone(),
                holders,
            });
        }
        let version = VersionNumber(unsigned("tag's version", version)?);
        let event = Event {
            event: "untagged",
            version: Some(version),
            tag: Some(tag),
            detail: "",
        };
        record(&mut tx, image, event, actor, now).await?;
        tx.commit().await.map_err(failed(doing))?;
        Ok(version)
    }

    /// What happened to an image, oldest first: the newest [`HISTORY_LIST_MAX`].
    /// It is kept when the image is deleted.
    ///
    /// # Errors
    /// [`CatalogError::ImageNotFound`] when there never was such an image.
    pub async fn history(&self, image: &ImageName) -> Result<Vec<HistoryRow>, CatalogError> {
        let mut rows: Vec<HistoryColumns> = sqlx::query_as(
            "SELECT time_ms, event, version, tag, detail, actor FROM history \
             WHERE image = $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(image.as_str())
        .bind(i64::from(HISTORY_LIST_MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read the history"))?;
        if rows.is_empty() {
            self.image(image).await?;
        }
        rows.reverse();
        rows.into_iter().map(history_row).collect()
    }
}

fn tag_row(name: &str, version: i64) -> Result<TagRow, CatalogError> {
    Ok(TagRow {
        name: parse("tag", name)?,
        version: VersionNumber(unsigned("tag's version", version)?),
    })
}

fn history_row(
    (time_ms, event, version, tag, detail, actor): HistoryColumns,
) -> Result<HistoryRow, CatalogError> {
    let number = version.map(|version| unsigned("history's version", version));
    Ok(HistoryRow {
        time: time("history's time", time_ms)?,
        event,
        version: number.transpose()?.map(VersionNumber),
        tag: tag.map(|tag| parse("history's tag", &tag)).transpose()?,
        detail,
        actor,
    })
}

/// Fails when there is no such image.
pub(crate) async fn require(tx: &mut Tx, image: &ImageName) -> Result<(), CatalogError> {
    let found: Option<(i64,)> =
        sqlx::query_as("SELECT next_version FROM image WHERE name = $1 AND deleted = 0")
            .bind(image.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed("find an image"))?;
    found
        .map(|_| ())
        .ok_or_else(|| CatalogError::ImageNotFound {
            image: image.clone(),
        })
}

/// Points a tag at a version that exists, with its event.
pub(crate) async fn point_tag(
    tx: &mut Tx,
    image: &ImageName,
    tag: &TagName,
    version: VersionNumber,
    actor: &str,
    now: Timestamp,
) -> Result<Option<VersionNumber>, CatalogError> {
    let doing = "set a tag";
    let before: Option<(i64,)> =
        sqlx::query_as("SELECT version FROM tag WHERE image = $1 AND name = $2")
            .bind(image.as_str())
            .bind(tag.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let before = before.map(|(number,)| unsigned("tag's version", number));
    let before = before.transpose()?.map(VersionNumber);
    if before == Some(version) {
        return Ok(before);
    }
    sqlx::query(
        "INSERT INTO tag (image, name, version) VALUES ($1, $2, $3) \
         ON CONFLICT (image, name) DO UPDATE SET version = excluded.version",
    )
    .bind(image.as_str())
    .bind(tag.as_str())
    .bind(i64::from(version.0))
    .execute(&mut **tx)
    .await
    .map_err(failed(doing))?;
    let detail = before.map_or_else(String::new, |before| format!("was at version {before}"));
    let event = Event {
        event: "tagged",
        version: Some(version),
        tag: Some(tag),
        detail: &detail,
    };
    record(tx, image, event, actor, now).await?;
    Ok(before)
}

/// An event to be recorded.
pub(crate) struct Event<'a> {
    pub(crate) event: &'static str,
    pub(crate) version: Option<VersionNumber>,
    pub(crate) tag: Option<&'a TagName>,
    pub(crate) detail: &'a str,
}

/// Appends to an image's history, and drops what is beyond [`HISTORY_MAX`].
pub(crate) async fn record(
    tx: &mut Tx,
    image: &ImageName,
    event: Event<'_>,
    actor: &str,
    now: Timestamp,
) -> Result<(), CatalogError> {
    let doing = "record an event";
    sqlx::query(
        "INSERT INTO history (image, time_ms, event, version, tag, detail, actor) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(image.as_str())
    .bind(now.as_millisecond())
    .bind(event.event)
    .bind(event.version.map(|version| i64::from(version.0)))
    .bind(event.tag.map(TagName::as_str))
    .bind(event.detail)
    .bind(actor)
    .execute(&mut **tx)
    .await
    .map_err(failed(doing))?;
    sqlx::query(
        "DELETE FROM history WHERE image = $1 AND id <= \
         (SELECT id FROM history WHERE image = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(image.as_str())
    .bind(HISTORY_MAX)
    .execute(&mut **tx)
    .await
    .map_err(failed(doing))?;
    Ok(())
}
