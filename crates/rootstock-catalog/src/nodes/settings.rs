//! What is set on nodes, without what they are made of.

use rootstock_core::{NodeName, ProfileName};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse},
};

/// What is set on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettingsRow {
    /// Its name.
    pub name: NodeName,
    /// The profile it inherits from.
    pub profile: Option<ProfileName>,
    /// Its settings, as JSON.
    pub settings: String,
}

impl Catalog {
    /// What is set on all nodes, by name. Inventories and cards, which are most of
    /// what [`Catalog::nodes`] reads, are left out.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn node_settings(&self) -> Result<Vec<NodeSettingsRow>, CatalogError> {
        let rows: Vec<(String, Option<String>, String)> =
            sqlx::query_as("SELECT name, profile, settings FROM node ORDER BY name")
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list what is set on nodes"))?;
        let row = |(name, profile, settings): (String, Option<String>, String)| {
            let profile = profile.as_deref();
            Ok(NodeSettingsRow {
                name: parse("node name", &name)?,
                profile: profile
                    .map(|name| parse("node's profile", name))
                    .transpose()?,
                settings,
            })
        };
        rows.into_iter().map(row).collect()
    }
}
