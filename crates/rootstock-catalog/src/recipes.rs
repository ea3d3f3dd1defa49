//! Recipes: which there are, and which are still to be made.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use rootstock_core::{Digest, ImageName, VersionNumber, VersionSelector, VersionSpec};

use crate::{
    Catalog, VersionRow,
    error::{CatalogError, failed, parse, time, unsigned},
    versions::resolve,
};

/// The newest versions of each image that get recipes: older ones are what
/// machines come from, hardly ever where they go.
pub const RECIPE_VERSIONS_MAX: usize = 4;

/// A recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeRow {
    /// The version whose chunks it makes, by number.
    pub to: VersionSpec,
    /// The version whose blocks it takes, by number.
    pub from: VersionSpec,
    /// The chunk id of its root document.
    pub root: Digest,
    /// How many chunks it makes.
    pub delta_count: u64,
    /// Bytes of their deltas.
    pub delta_bytes: u64,
    /// Bytes of their frames.
    pub frame_bytes: u64,
    /// What all of it takes in the store.
    pub stored_bytes: u64,
    /// When it was made.
    pub created: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    image: String,
    version: i64,
    from_image: String,
    from_version: i64,
    root: String,
    delta_count: i64,
    delta_bytes: i64,
    frame_bytes: i64,
    stored_bytes: i64,
    created_ms: i64,
}

impl TryFrom<Columns> for RecipeRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        Ok(Self {
            to: spec(&row.image, row.version)?,
            from: spec(&row.from_image, row.from_version)?,
            root: parse("recipe's root", &row.root)?,
            delta_count: unsigned("recipe's deltas", row.delta_count)?,
            delta_bytes: unsigned("recipe's bytes", row.delta_bytes)?,
            frame_bytes: unsigned("frames of a recipe", row.frame_bytes)?,
            stored_bytes: unsigned("size of a recipe", row.stored_bytes)?,
            created: time("recipe's time", row.created_ms)?,
        })
    }
}

fn spec(image: &str, number: i64) -> Result<VersionSpec, CatalogError> {
    Ok(VersionSpec {
        image: parse("image name", image)?,
        selector: VersionSelector::Number(VersionNumber(unsigned("version number", number)?)),
    })
}

/// A version and its number, for statements.
fn place(row: &VersionRow) -> (&str, i64) {
    (row.image.as_str(), i64::from(row.number.0))
}

impl Catalog {
    /// Adds a recipe of `from`'s blocks for `to`, or puts it in the place of an
    /// earlier one. `new` says what it is; its versions are those of the rows.
    ///
    /// # Errors
    /// When one of the two versions was deleted meanwhile.
    pub async fn add_recipe(&self, new: &RecipeRow) -> Result<(), CatalogError> {
        let doing = "add a recipe";
        let mut tx = self.begin(doing).await?;
        let (from, to) = (
            resolve(&mut tx, &new.from).await?,
            resolve(&mut tx, &new.to).await?,
        );
        sqlx::query(
            "INSERT INTO recipe (image, version, from_image, from_version, root, delta_count, \
             delta_bytes, frame_bytes, stored_bytes, created_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (image, version, from_image, from_version) DO UPDATE SET \
             root = excluded.root, delta_count = excluded.delta_count, \
             delta_bytes = excluded.delta_bytes, frame_bytes = excluded.frame_bytes, \
             stored_bytes = excluded.stored_bytes, created_ms = excluded.created_ms",
        )
        .bind(place(&to).0)
        .bind(place(&to).1)
        .bind(place(&from).0)
        .bind(place(&from).1)
        .bind(new.root.to_string())
        .bind(new.delta_count.cast_signed())
        .bind(new.delta_bytes.cast_signed())
        .bind(new.frame_bytes.cast_signed())
        .bind(new.stored_bytes.cast_signed())
        .bind(new.created.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }

    /// The recipe of one version's blocks for another, if there is one.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn recipe(
        &self,
        from: (&ImageName, VersionNumber),
        to: (&ImageName, VersionNumber),
    ) -> Result<Option<RecipeRow>, CatalogError> {
        let row: Option<Columns> = sqlx::query_as(
            "SELECT * FROM recipe WHERE image = $1 AND version = $2 \
             AND from_image = $3 AND from_version = $4",
        )
        .bind(to.0.as_str())
        .bind(i64::from(to.1.0))
        .bind(from.0.as_str())
        .bind(i64::from(from.1.0))
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find a recipe"))?;
        row.map(TryInto::try_into).transpose()
    }

    /// All recipes, by the versions they make.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn recipes(&self) -> Result<Vec<RecipeRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT * FROM recipe ORDER BY image, version, from_image, from_version",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list recipes"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Forgets a recipe, which is then made anew.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn remove_recipe(&self, root: Digest) -> Result<(), CatalogError> {
        sqlx::query("DELETE FROM recipe WHERE root = $1")
            .bind(root.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("remove a recipe"))?;
        Ok(())
    }

    /// The pairs of versions, from and to, that are to have a recipe and have none,
    /// newest first: each of an image's [`RECIPE_VERSIONS_MAX`] newest versions from
    /// the one before it, and from the one it was made from.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn recipes_wanted(&self) -> Result<Vec<(VersionRow, VersionRow)>, CatalogError> {
        let versions = self.all_versions().await?;
        let made = self.recipes().await?;
        let made: HashSet<_> = made.into_iter().map(|row| (row.from, row.to)).collect();
        let mut wanted = pairs(&versions);
        wanted.retain(|(from, to)| !made.contains(&(from.spec(), to.spec())));
        wanted.sort_by_key(|(_, to)| std::cmp::Reverse((to.created, to.number)));
        Ok(wanted)
    }
}

/// The pairs that are to have a recipe; `versions` are by image and number.
fn pairs(versions: &[VersionRow]) -> Vec<(VersionRow, VersionRow)> {
    let by_spec: HashMap<_, _> = versions.iter().map(|row| (row.spec(), row)).collect();
    let mut pairs = Vec::new();
    for image in versions.chunk_by(|a, b| a.image == b.image) {
        let newest = image.len().saturating_sub(RECIPE_VERSIONS_MAX);
        for (index, to) in image.iter().enumerate().skip(newest) {
            let before = index.checked_sub(1).map(|at| &image[at]);
            let parent = to.parent.as_ref();
            let parent = parent.and_then(|spec| by_spec.get(spec).copied());
            let parent = parent.filter(|parent| Some(*parent) != before);
            for from in before.into_iter().chain(parent) {
                if from.manifest != to.manifest {
                    pairs.push((from.clone(), to.clone()));
                }
            }
        }
    }
    pairs
}
