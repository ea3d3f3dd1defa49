//! Profiles: settings that nodes and other profiles inherit.

use jiff::Timestamp;
use rootstock_core::{ProfileName, VersionSpec};

use crate::{
    Catalog, Holder, Pass,
    error::{CatalogError, failed, parse, time},
    nodes::{image_columns, image_spec},
    schema::Tx,
};

/// The most profiles of a site.
pub const PROFILES_MAX: u32 = 10_000;

/// The most profiles that a node inherits through.
pub const PROFILE_DEPTH_MAX: usize = 16;

/// A profile to be added.
#[derive(Debug, Clone)]
pub struct NewProfile {
    /// Its name.
    pub name: ProfileName,
    /// The profile it inherits from.
    pub parent: Option<ProfileName>,
    /// Its settings, as JSON.
    pub settings: String,
    /// The image that its settings name.
    pub image: Option<VersionSpec>,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileRow {
    /// Its name.
    pub name: ProfileName,
    /// The profile it inherits from.
    pub parent: Option<ProfileName>,
    /// Its settings, as JSON.
    pub settings: String,
    /// The image that its settings name.
    pub image: Option<VersionSpec>,
    /// When it was made.
    pub created: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    name: String,
    parent: Option<String>,
    settings: String,
    image: Option<String>,
    version: Option<i64>,
    tag: Option<String>,
    created_ms: i64,
}

impl TryFrom<Columns> for ProfileRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let parent = row.parent.as_deref();
        Ok(Self {
            name: parse("profile name", &row.name)?,
            parent: parent
                .map(|name| parse("profile's parent", name))
                .transpose()?,
            settings: row.settings,
            image: image_spec((row.image, row.version, row.tag))?,
            created: time("profile's time", row.created_ms)?,
        })
    }
}

impl Catalog {
    /// Adds a profile.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`CatalogError::ProfileNotFound`] for its parent,
    /// [`CatalogError::TooDeep`], [`CatalogError::Full`], or when there is no such
    /// image.
    pub async fn add_profile(&self, new: &NewProfile, now: Timestamp) -> Result<(), CatalogError> {
        let doing = "add a profile";
        let mut tx = self.begin(doing).await?;
        let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM profile")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed(doing))?;
        if count >= i64::from(PROFILES_MAX) {
            return Err(CatalogError::Full {
                what: "profiles",
                max: PROFILES_MAX,
            });
        }
        if find(&mut tx, &new.name).await?.is_some() {
            return Err(CatalogError::Exists {
                what: "profile",
                name: new.name.to_string(),
            });
        }
        check(&mut tx, &new.name, new.parent.as_ref()).await?;
        if let Some(image) = &new.image {
            crate::versions::resolve(&mut tx, image).await?;
        }
        let (image, version, tag) = image_columns(new.image.as_ref());
        sqlx::query(
            "INSERT INTO profile (name, parent, settings, image, version, tag, created_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(new.name.as_str())
        .bind(new.parent.as_ref().map(ProfileName::as_str))
        .bind(new.settings.as_str())
        .bind(image)
        .bind(version)
        .bind(tag)
        .bind(now.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }

    /// All profiles, by name.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn profiles(&self) -> Result<Vec<ProfileRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as("SELECT * FROM profile ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the profiles"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// One profile.
    ///
    /// # Errors
    /// [`CatalogError::ProfileNotFound`].
    pub async fn profile(&self, profile: &ProfileName) -> Result<ProfileRow, CatalogError> {
        let mut tx = self.pool.begin().await.map_err(failed("find a profile"))?;
        require(&mut tx, profile).await
    }

    /// Changes a profile: `edit` may change its parent, settings and image.
    /// Answers what it was and what it is, or would be.
    ///
    /// # Errors
    /// [`CatalogError::ProfileNotFound`], [`CatalogError::Cycle`],
    /// [`CatalogError::TooDeep`], or when there is no such image.
    pub async fn update_profile(
        &self,
        profile: &ProfileName,
        pass: Pass,
        edit: impl FnOnce(&mut ProfileRow) + Send,
    ) -> Result<(ProfileRow, ProfileRow), CatalogError> {
        let doing = "change a profile";
        let mut tx = self.begin(doing).await?;
        let before = require(&mut tx, profile).await?;
        let mut after = before.clone();
        edit(&mut after);
        check(&mut tx, profile, after.parent.as_ref()).await?;
        if let Some(image) = after.image.as_ref().filter(|_| after.image != before.image) {
            crate::versions::resolve(&mut tx, image).await?;
        }
        crate::assignments::of_profile(&mut tx, &before, &after).await?;
        let (image, version, tag) = image_columns(after.image.as_ref());
        sqlx::query(
            "UPDATE profile SET parent = $2, settings = $3, image = $4, version = $5, tag = $6 \
             WHERE name = $1",
        )
        .bind(profile.as_str())
        .bind(after.parent.as_ref().map(ProfileName::as_str))
        .bind(after.settings.as_str())
        .bind(image)
        .bind(version)
        .bind(tag)
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        if pass == Pass::Keep {
            tx.commit().await.map_err(failed(doing))?;
        }
        Ok((before, after))
    }

    /// Deletes a profile.
    ///
    /// # Errors
    /// [`CatalogError::ProfileNotFound`], [`CatalogError::ProfileInUse`] when a
    /// node or another profile inherits from it.
    pub async fn delete_profile(&self, profile: &ProfileName) -> Result<(), CatalogError> {
        let doing = "delete a profile";
        let mut tx = self.begin(doing).await?;
        require(&mut tx, profile).await?;
        let holders = heirs(&mut tx, profile).await?;
        if !holders.is_empty() {
            return Err(CatalogError::ProfileInUse {
                profile: profile.clone(),
                holders,
            });
        }
        sqlx::query("DELETE FROM profile WHERE name = $1")
            .bind(profile.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }
}

async fn find(tx: &mut Tx, profile: &ProfileName) -> Result<Option<ProfileRow>, CatalogError> {
    let row: Option<Columns> = sqlx::query_as("SELECT * FROM profile WHERE name = $1")
        .bind(profile.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("find a profile"))?;
    row.map(TryInto::try_into).transpose()
}

/// A profile that must be there.
pub(crate) async fn require(
    tx: &mut Tx,
    profile: &ProfileName,
) -> Result<ProfileRow, CatalogError> {
    let row = find(tx, profile).await?;
    row.ok_or_else(|| CatalogError::ProfileNotFound {
        profile: profile.clone(),
    })
}

/// Fails when a profile with this parent would inherit from itself, or it and
/// those below it through too many.
async fn check(
    tx: &mut Tx,
    profile: &ProfileName,
    parent: Option<&ProfileName>,
) -> Result<(), CatalogError> {
    let Some(first) = parent else { return Ok(()) };
    let mut above = 0;
    let mut next = Some(first.clone());
    while let Some(name) = next {
        above += 1;
        if name == *profile {
            return Err(CatalogError::Cycle {
                profile: profile.clone(),
                parent: first.clone(),
            });
        }
        if above >= PROFILE_DEPTH_MAX {
            return Err(too_deep(profile));
        }
        next = require(tx, &name).await?.parent;
    }
    if above + depth_below(tx, profile).await? > PROFILE_DEPTH_MAX {
        return Err(too_deep(profile));
    }
    Ok(())
}

fn too_deep(profile: &ProfileName) -> CatalogError {
    CatalogError::TooDeep {
        profile: profile.clone(),
        max: PROFILE_DEPTH_MAX,
    }
}

/// Profiles on the longest way from this one down to one without heirs.
async fn depth_below(tx: &mut Tx, profile: &ProfileName) -> Result<usize, CatalogError> {
    let mut level = vec![profile.to_string()];
    let mut depth = 0;
    while !level.is_empty() && depth <= PROFILE_DEPTH_MAX {
        depth += 1;
        let mut below = Vec::new();
        for name in level {
            let heirs: Vec<(String,)> =
                sqlx::query_as("SELECT name FROM profile WHERE parent = $1")
                    .bind(name)
                    .fetch_all(&mut **tx)
                    .await
                    .map_err(failed("find a profile's heirs"))?;
            below.extend(heirs.into_iter().map(|(name,)| name));
        }
        level = below;
    }
    Ok(depth)
}

async fn heirs(tx: &mut Tx, profile: &ProfileName) -> Result<Vec<Holder>, CatalogError> {
    let doing = "find a profile's heirs";
    let profiles: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM profile WHERE parent = $1 ORDER BY name")
            .bind(profile.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let nodes: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM node WHERE profile = $1 ORDER BY name")
            .bind(profile.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed(doing))?;
    let profiles = profiles.iter();
    let profiles = profiles.map(|(name,)| parse("profile name", name).map(Holder::Profile));
    let nodes = nodes.iter();
    let nodes = nodes.map(|(name,)| parse("node name", name).map(Holder::Node));
    profiles.chain(nodes).collect()
}
