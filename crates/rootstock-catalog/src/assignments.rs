//! Assignments: what nodes and profiles had set as their image before, to go back to.

use rootstock_core::{NodeName, ProfileName, VersionSpec};

use crate::{
    Catalog, NodeChange, NodeRow, Pass, ProfileRow,
    error::{CatalogError, failed, parse},
    schema::Tx,
};

/// How many assignments of a node or profile are kept: the newest.
pub const ASSIGNMENTS_MAX: u32 = 8;

/// The statements of one of the two tables.
struct Table {
    insert: &'static str,
    trim: &'static str,
    newest: &'static str,
}

macro_rules! table {
    ($owner:literal) => {
        Table {
            insert: concat!(
                "INSERT INTO ",
                $owner,
                "_assignment (",
                $owner,
                ", seq, image) \
                 SELECT $1, COALESCE(max(seq), 0) + 1, $2 FROM ",
                $owner,
                "_assignment \
                 WHERE ",
                $owner,
                " = $1"
            ),
            trim: concat!(
                "DELETE FROM ",
                $owner,
                "_assignment WHERE ",
                $owner,
                " = $1 AND seq <= \
                 (SELECT max(seq) FROM ",
                $owner,
                "_assignment WHERE ",
                $owner,
                " = $1) - $2"
            ),
            newest: concat!(
                "SELECT image FROM ",
                $owner,
                "_assignment WHERE ",
                $owner,
                " = $1 \
                 ORDER BY seq DESC LIMIT 1"
            ),
        }
    };
}

const OF_NODES: Table = table!("node");
const OF_PROFILES: Table = table!("profile");

async fn record(
    tx: &mut Tx,
    table: &Table,
    owner: &str,
    before: Option<&VersionSpec>,
) -> Result<(), CatalogError> {
    let doing = "keep what was assigned before";
    sqlx::query(table.insert)
        .bind(owner)
        .bind(before.map(ToString::to_string))
        .execute(&mut **tx)
        .await
        .map_err(failed(doing))?;
    sqlx::query(table.trim)
        .bind(owner)
        .bind(i64::from(ASSIGNMENTS_MAX))
        .execute(&mut **tx)
        .await
        .map_err(failed(doing))?;
    Ok(())
}

/// What was set before; an image that was inherited is none.
async fn newest(
    tx: &mut Tx,
    table: &Table,
    what: &'static str,
    owner: &str,
) -> Result<Option<VersionSpec>, CatalogError> {
    let row: Option<(Option<String>,)> = sqlx::query_as(table.newest)
        .bind(owner)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("find what was assigned before"))?;
    let (image,) = row.ok_or_else(|| CatalogError::NothingBefore {
        what,
        name: owner.to_owned(),
    })?;
    image.map(|image| parse("assignment", &image)).transpose()
}

/// Keeps what a node had set before a change.
pub(crate) async fn of_node(
    tx: &mut Tx,
    before: &NodeRow,
    after: &NodeRow,
) -> Result<(), CatalogError> {
    if before.image == after.image {
        return Ok(());
    }
    record(tx, &OF_NODES, before.name.as_str(), before.image.as_ref()).await
}

/// Keeps what a profile had set before a change.
pub(crate) async fn of_profile(
    tx: &mut Tx,
    before: &ProfileRow,
    after: &ProfileRow,
) -> Result<(), CatalogError> {
    if before.image == after.image {
        return Ok(());
    }
    let owner = before.name.as_str();
    record(tx, &OF_PROFILES, owner, before.image.as_ref()).await
}

impl Catalog {
    /// Brings nodes back to the image that was set on them before, all or none of
    /// them. `edit` is given that image. To go back twice is to be where one was.
    ///
    /// # Errors
    /// [`CatalogError::NothingBefore`], and as [`Catalog::update_nodes`], also when
    /// the version is gone.
    pub async fn roll_nodes_back(
        &self,
        names: &[NodeName],
        pass: Pass,
        mut edit: impl FnMut(&mut NodeRow, Option<VersionSpec>) + Send,
    ) -> Result<Vec<NodeChange>, CatalogError> {
        let mut before = std::collections::HashMap::new();
        {
            let doing = "find what was assigned before";
            let mut tx = self.pool.begin().await.map_err(failed(doing))?;
            for name in names {
                crate::nodes::find(&mut tx, name).await?;
                let image = newest(&mut tx, &OF_NODES, "node", name.as_str()).await?;
                before.insert(name.clone(), image);
            }
        }
        self.update_nodes(names, pass, |row| {
            if let Some(image) = before.remove(&row.name) {
                edit(row, image);
            }
        })
        .await
    }

    /// Brings a profile back to the image that was set on it before.
    ///
    /// # Errors
    /// [`CatalogError::NothingBefore`], and as [`Catalog::update_profile`].
    pub async fn roll_profile_back(
        &self,
        profile: &ProfileName,
        pass: Pass,
        edit: impl FnOnce(&mut ProfileRow, Option<VersionSpec>) + Send,
    ) -> Result<(ProfileRow, ProfileRow), CatalogError> {
        let image = {
            let doing = "find what was assigned before";
            let mut tx = self.pool.begin().await.map_err(failed(doing))?;
            crate::profiles::require(&mut tx, profile).await?;
            newest(&mut tx, &OF_PROFILES, "profile", profile.as_str()).await?
        };
        self.update_profile(profile, pass, |row| edit(row, image))
            .await
    }
}
