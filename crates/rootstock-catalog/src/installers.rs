//! Installers: which of them is to run on which node, and how that went.

use std::net::IpAddr;

use jiff::Timestamp;
use rootstock_core::{Digest, InstallerName, NodeName};

use crate::{
    Catalog,
    error::{CatalogError, failed, parse, time, unsigned},
};

/// What an installer is to do on a node, or did last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallerRunRow {
    /// The node.
    pub node: NodeName,
    /// The installer.
    pub installer: InstallerName,
    /// When somebody asked for it.
    pub asked: Timestamp,
    /// How often it was started.
    pub starts: u32,
    /// Its last start.
    pub start: Option<InstallerStart>,
    /// When it was done or given up.
    pub ended: Option<Timestamp>,
    /// Why it was given up.
    pub failed: Option<String>,
}

/// A start of an installer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallerStart {
    /// The digest of the secret that it got.
    pub token: Digest,
    /// The address that it was given to.
    pub source: IpAddr,
    /// The boot.
    pub boot: String,
    /// When.
    pub at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    node: String,
    installer: String,
    asked_ms: i64,
    starts: i64,
    token: Option<String>,
    source: Option<String>,
    boot: Option<String>,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    failed: Option<String>,
}

impl TryFrom<Columns> for InstallerRunRow {
    type Error = CatalogError;

    fn try_from(row: Columns) -> Result<Self, CatalogError> {
        let start = match (row.token, row.source, row.boot, row.started_ms) {
            (Some(token), Some(source), Some(boot), Some(at)) => Some(InstallerStart {
                token: parse("installer's token", &token)?,
                source: parse("installer's source", &source)?,
                boot,
                at: time("installer's start", at)?,
            }),
            _ => None,
        };
        let ended = row.ended_ms.map(|at| time("installer's end", at));
        Ok(Self {
            node: parse("installer's node", &row.node)?,
            installer: parse("installer", &row.installer)?,
            asked: time("installer's time", row.asked_ms)?,
            starts: unsigned("installer's starts", row.starts)?,
            start,
            ended: ended.transpose()?,
            failed: row.failed,
        })
    }
}

/// The statement that reads rows, with what comes after it.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT node, installer, asked_ms, starts, token, source, boot, started_ms, \
             ended_ms, failed FROM installer_run ",
            $rest
        )
    };
}

impl Catalog {
    /// Asks for an installer on these nodes: all or none. What one did there before is
    /// forgotten.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`].
    pub async fn ask_for_installer(
        &self,
        nodes: &[NodeName],
        installer: &InstallerName,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "ask for an installer";
        let mut tx = self.begin(doing).await?;
        for node in nodes {
            crate::nodes::find(&mut tx, node).await?;
            sqlx::query(
                "INSERT INTO installer_run (node, installer, asked_ms) VALUES ($1, $2, $3) \
                 ON CONFLICT (node) DO UPDATE SET installer = $2, asked_ms = $3, starts = 0, \
                 token = NULL, source = NULL, boot = NULL, started_ms = NULL, \
                 ended_ms = NULL, failed = NULL",
            )
            .bind(node.as_str())
            .bind(installer.as_str())
            .bind(now.as_millisecond())
            .execute(&mut *tx)
            .await
            .map_err(failed(doing))?;
        }
        tx.commit().await.map_err(failed(doing))
    }

    /// Has no installer run on these nodes. Answers those where one was to.
    ///
    /// # Errors
    /// [`CatalogError::NodeNotFound`], when nothing is changed.
    pub async fn forget_installers(
        &self,
        nodes: &[NodeName],
    ) -> Result<Vec<NodeName>, CatalogError> {
        let statement = "DELETE FROM installer_run WHERE node = $1";
        self.for_each_node("forget an installer", statement, nodes)
            .await
    }

    /// What an installer is to do on a node, or did.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn installer_run(
        &self,
        node: &NodeName,
    ) -> Result<Option<InstallerRunRow>, CatalogError> {
        let statement = select!("WHERE node = $1");
        self.one_run(statement, node.as_str().to_owned()).await
    }

    /// The one whose installer has this secret.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn installer_run_by_token(
        &self,
        token: &Digest,
    ) -> Result<Option<InstallerRunRow>, CatalogError> {
        let statement = select!("WHERE token = $1");
        self.one_run(statement, token.to_string()).await
    }

    async fn one_run(
        &self,
        statement: &'static str,
        value: String,
    ) -> Result<Option<InstallerRunRow>, CatalogError> {
        let row: Option<Columns> = sqlx::query_as(statement)
            .bind(value)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("look for an installer's run"))?;
        row.map(TryInto::try_into).transpose()
    }

    /// Those of all nodes, by node.
    ///
    /// # Errors
    /// [`CatalogError::Database`], [`CatalogError::Corrupt`].
    pub async fn installer_runs(&self) -> Result<Vec<InstallerRunRow>, CatalogError> {
        let rows: Vec<Columns> = sqlx::query_as(select!("ORDER BY node"))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the installers' runs"))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Records a start. The same boot is the same start. Answers whether the node's
    /// installer is still to run.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn start_installer(
        &self,
        node: &NodeName,
        start: &InstallerStart,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query(
            "UPDATE installer_run SET token = $2, starts = starts + \
             CASE WHEN boot IS DISTINCT FROM $4 THEN 1 ELSE 0 END, source = $3, boot = $4, started_ms = $5 WHERE node = $1 AND ended_ms IS NULL",
        )
        .bind(node.as_str())
        .bind(start.token.to_string())
        .bind(start.source.to_string())
        .bind(start.boot.as_str())
        .bind(start.at.as_millisecond())
        .execute(&self.pool)
        .await
        .map_err(failed("record an installer's start"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Records the end of what was asked for at a time, with the reason if it is no good one.
    /// Answers whether that is news: it may have ended, or something else have been asked
    /// for meanwhile.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn end_installer(
        &self,
        run: &InstallerRunRow,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let done = sqlx::query(
            "UPDATE installer_run SET ended_ms = $4, failed = $5 WHERE node = $1 \
             AND asked_ms = $2 AND installer = $3 AND ended_ms IS NULL",
        )
        .bind(run.node.as_str())
        .bind(run.asked.as_millisecond())
        .bind(run.installer.as_str())
        .bind(now.as_millisecond())
        .bind(reason)
        .execute(&self.pool)
        .await
        .map_err(failed("record an installer's end"))?;
        Ok(done.rows_affected() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Registration, nodes::NodeState};

    async fn with_node() -> (tempfile::TempDir, Catalog, NodeName) {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&dir.path().join("catalog.sqlite"))
            .await
            .expect("opens");
        let names = "n[1-9]".parse().expect("names");
        let registration = Registration {
            names: &names,
            macs: vec!["52:54:00:00:00:01".parse().expect("a card")],
            uuid: None,
            profile: None,
            state: NodeState::Ready,
            inventory: None,
        };
        let registered = catalog.register_node(registration, at(1)).await;
        registered.expect("registers");
        (dir, catalog, "n1".parse().expect("a name"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn start(boot: &str, second: i64) -> InstallerStart {
        InstallerStart {
            token: Digest::of(format!("{boot} {second}").as_bytes()),
            source: [10, 0, 0, 7].into(),
            boot: boot.to_owned(),
            at: at(second),
        }
    }

    #[tokio::test]
    async fn a_run_is_asked_for_started_and_ended() {
        let (_dir, catalog, node) = with_node().await;
        let debian: InstallerName = "debian-12".parse().expect("a name");
        assert!(catalog.installer_run(&node).await.expect("reads").is_none());
        assert!(
            !catalog
                .start_installer(&node, &start("a", 2))
                .await
                .expect("answers")
        );
        let asked = catalog.ask_for_installer(std::slice::from_ref(&node), &debian, at(3));
        asked.await.expect("is asked for");
        for (boot, second, starts) in [("a", 4, 1), ("a", 5, 1), ("b", 6, 2)] {
            let start = start(boot, second);
            let goes = catalog.start_installer(&node, &start).await;
            assert!(goes.expect("is recorded"));
            let row = catalog.installer_run_by_token(&start.token).await;
            let row = row.expect("reads").expect("is found by its token");
            assert_eq!((row.starts, row.start), (starts, Some(start)));
        }
        let earlier = catalog.installer_run_by_token(&start("a", 5).token).await;
        assert_eq!(earlier.expect("reads"), None);
        let row = catalog.installer_run(&node).await.expect("reads");
        let row = row.expect("is there");
        for is_news in [true, false] {
            let ended = catalog.end_installer(&row, Some("no disk"), at(7)).await;
            assert_eq!(ended.expect("is recorded"), is_news);
        }
        let all = catalog.installer_runs().await.expect("lists");
        assert_eq!(all[0].ended, Some(at(7)));
        assert_eq!(all[0].failed.as_deref(), Some("no disk"));
        let goes = catalog.start_installer(&node, &start("c", 8)).await;
        assert!(!goes.expect("answers"), "it has ended");
    }

    #[tokio::test]
    async fn what_is_asked_anew_is_not_ended_by_the_run_before() {
        let (_dir, catalog, node) = with_node().await;
        let debian: InstallerName = "debian-12".parse().expect("a name");
        let nodes = std::slice::from_ref(&node);
        let asked = catalog.ask_for_installer(nodes, &debian, at(1)).await;
        asked.expect("is asked for");
        let before = catalog.installer_run(&node).await.expect("reads");
        let before = before.expect("is there");
        let asked = catalog.ask_for_installer(nodes, &debian, at(2)).await;
        asked.expect("is asked for");
        let ended = catalog.end_installer(&before, None, at(3));
        assert!(!ended.await.expect("answers"));
        let forgotten = catalog.forget_installers(nodes).await.expect("forgets");
        assert_eq!(forgotten, nodes);
        assert!(catalog.installer_run(&node).await.expect("reads").is_none());
    }
}
