//! Personal nodes: when what they wrote to their own disk was dropped.

use rootstock_core::NodeName;

use crate::{
    Catalog,
    error::{CatalogError, failed, unsigned},
};

impl Catalog {
    /// The number of the last time that an administrator had a node drop what it wrote.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn personal_resets(&self, node: &NodeName) -> Result<u32, CatalogError> {
        let resets: Option<i64> = sqlx::query_scalar("SELECT resets FROM personal WHERE node = $1")
            .bind(node.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("look for what a node is to drop"))?;
        unsigned("count of a node's resets", resets.unwrap_or(0))
    }

    /// Has nodes drop what they wrote, at their next boot. The number is the time in
    /// seconds, or one more than the last: a node that was deleted and added again, or
    /// a catalog from yesterday, gives none that was there before.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`], when nothing is dropped.
    pub async fn reset_personal(&self, nodes: &[NodeName]) -> Result<Vec<NodeName>, CatalogError> {
        let statement = "INSERT INTO personal (node, resets) VALUES ($1, unixepoch()) \
                         ON CONFLICT (node) DO UPDATE SET resets = max(resets + 1, unixepoch())";
        self.for_each_node("have a node drop what it wrote", statement, nodes)
            .await
    }
}
