//! Orders to start anew: each is of one boot, and over with it.

use std::collections::HashMap;

use rootstock_core::NodeName;

use crate::{
    Catalog,
    error::{CatalogError, failed},
};

/// How a machine is to start anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootKind {
    /// By its own init.
    Orderly,
    /// By its own init, once nobody is logged in.
    Idle,
    /// By the kernel, when its init does not do it in time.
    Forced,
}

impl RebootKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Orderly => "orderly",
            Self::Idle => "idle",
            Self::Forced => "forced",
        }
    }

    fn parse(text: &str) -> Result<Self, CatalogError> {
        match text {
            "orderly" => Ok(Self::Orderly),
            "idle" => Ok(Self::Idle),
            "forced" => Ok(Self::Forced),
            _ => Err(CatalogError::Corrupt {
                column: "boot's reboot",
                value: text.to_owned(),
            }),
        }
    }
}

impl Catalog {
    /// Orders the machines of these nodes to start anew, those that have a session.
    /// Answers their nodes.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`], when none is ordered to.
    pub async fn order_reboots(
        &self,
        nodes: &[NodeName],
        kind: RebootKind,
    ) -> Result<Vec<NodeName>, CatalogError> {
        let doing = "order machines to start anew";
        let mut tx = self.begin(doing).await?;
        let mut ordered = Vec::with_capacity(nodes.len());
        for node in nodes {
            crate::nodes::find(&mut tx, node).await?;
            let done = sqlx::query(
                "UPDATE boot SET reboot = $2 WHERE node = $1 AND ended_ms IS NULL \
                 AND token_used_ms IS NOT NULL",
            )
            .bind(node.as_str())
            .bind(kind.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
            if done.rows_affected() > 0 {
                ordered.push(node.clone());
            }
        }
        tx.commit().await.map_err(failed(doing))?;
        Ok(ordered)
    }

    /// Takes back that the machines of these nodes are to start anew. One that began
    /// to goes on with it.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn withdraw_reboots(&self, nodes: &[NodeName]) -> Result<(), CatalogError> {
        for node in nodes {
            sqlx::query("UPDATE boot SET reboot = NULL WHERE node = $1 AND ended_ms IS NULL")
                .bind(node.as_str())
                .execute(&self.pool)
                .await
                .map_err(failed("take back that a machine is to start anew"))?;
        }
        Ok(())
    }

    /// The boots that are to end with a start anew.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn reboots(&self) -> Result<HashMap<String, RebootKind>, CatalogError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT id, reboot FROM boot WHERE reboot IS NOT NULL AND ended_ms IS NULL",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the machines that are to start anew"))?;
        let row = |(boot, kind): (String, String)| Ok((boot, RebootKind::parse(&kind)?));
        rows.into_iter().map(row).collect()
    }
}
