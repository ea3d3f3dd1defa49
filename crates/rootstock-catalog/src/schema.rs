//! The database itself: how it is opened, and how an older one is brought up.

use std::{path::Path, time::Duration};

use sqlx::{
    Connection, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
    },
};

use crate::error::{CatalogError, OpenError, failed};

/// The newest schema that this release knows.
pub const SCHEMA_VERSION: i64 = 15;

/// How long a statement waits for another's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections to the database: SQLite has one writer and many readers.
const CONNECTIONS_MAX: u32 = 8;

/// The database behind the catalog; PostgreSQL is to be another one of these.
pub(crate) type Db = sqlx::Sqlite;

/// A transaction that writes.
pub(crate) type Tx = sqlx::Transaction<'static, Db>;

/// The catalog. Clones share it.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub(crate) pool: SqlitePool,
}

impl Catalog {
    /// Opens the catalog in this file, makes it when there is none, and brings an
    /// older one to [`SCHEMA_VERSION`].
    ///
    /// # Errors
    /// [`OpenError`]; a newer catalog is left as it is.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit must survive a power cut: WAL with NORMAL may lose the last ones.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            // On a full disk SQLite itself rolls back, the rollback that follows fails,
            // and the driver goes on to count an open transaction: such a connection
            // would refuse every transaction there is to come.
            .before_acquire(|connection, _| {
                Box::pin(async move { Ok(!connection.is_in_transaction()) })
            })
            .connect_with(options)
            .await
            .map_err(|source| OpenError::Open {
                path: path.to_owned(),
                source,
            })?;
        if let Err(source) = migrator().run(&pool).await {
            pool.close().await;
            return Err(match source {
                MigrateError::VersionMissing(found) => OpenError::Newer {
                    path: path.to_owned(),
                    found,
                    known: SCHEMA_VERSION,
                },
                source => OpenError::Migrate {
                    path: path.to_owned(),
                    known: SCHEMA_VERSION,
                    source,
                },
            });
        }
        Ok(Self { pool })
    }

    /// Waits for what is under way, and closes the database. The write-ahead log
    /// is folded into the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Begins a transaction that will write. It takes the writer's lock at once:
    /// a transaction that first reads and then writes could otherwise fail midway.
    pub(crate) async fn begin(&self, doing: &'static str) -> Result<Tx, CatalogError> {
        self.pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(doing))
    }
}

fn migrator() -> Migrator {
    Migrator::with_migrations(vec![
        migration(
            1,
            "first",
            include_str!("../migrations/sqlite/0001_first.sql"),
        ),
        migration(
            2,
            "nodes",
            include_str!("../migrations/sqlite/0002_nodes.sql"),
        ),
        migration(
            3,
            "lease indexes",
            include_str!("../migrations/sqlite/0003_lease_indexes.sql"),
        ),
        migration(
            4,
            "traces",
            include_str!("../migrations/sqlite/0004_traces.sql"),
        ),
        migration(
            5,
            "recipes",
            include_str!("../migrations/sqlite/0005_recipes.sql"),
        ),
        migration(
            6,
            "boot health",
            include_str!("../migrations/sqlite/0006_boot_health.sql"),
        ),
        migration(
            7,
            "reboots",
            include_str!("../migrations/sqlite/0007_reboots.sql"),
        ),
        migration(
            8,
            "assignments",
            include_str!("../migrations/sqlite/0008_assignments.sql"),
        ),
        migration(
            9,
            "rollouts",
            include_str!("../migrations/sqlite/0009_rollouts.sql"),
        ),
        migration(
            10,
            "installations",
            include_str!("../migrations/sqlite/0010_installations.sql"),
        ),
        migration(
            11,
            "personal",
            include_str!("../migrations/sqlite/0011_personal.sql"),
        ),
        migration(
            12,
            "iscsi",
            include_str!("../migrations/sqlite/0012_iscsi.sql"),
        ),
        migration(
            13,
            "installers",
            include_str!("../migrations/sqlite/0013_installers.sql"),
        ),
        migration(14, "nfs", include_str!("../migrations/sqlite/0014_nfs.sql")),
        migration(
            15,
            "version shares",
            include_str!("../migrations/sqlite/0015_version_shares.sql"),
        ),
    ])
}

fn migration(version: i64, description: &'static str, sql: &'static str) -> Migration {
    Migration::new(
        version,
        description.into(),
        MigrationType::Simple,
        sql.into_sql_str(),
        false,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_catalog_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("catalog.sqlite");
        let catalog = Catalog::open(&path).await.expect("opens");
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (70, 'later', 1, x'00', 0)",
        )
        .execute(&catalog.pool)
        .await
        .expect("pretends");
        catalog.close().await;
        let error = Catalog::open(&path).await.expect_err("is newer");
        let OpenError::Newer { found, known, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((*found, *known), (70, SCHEMA_VERSION));
        assert!(error.to_string().contains("start the newer release"));
    }

    #[tokio::test]
    async fn an_older_catalog_is_brought_up_with_what_it_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("catalog.sqlite");
        let mut first = migrator();
        first.migrations.to_mut().truncate(1);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true);
        let pool = SqlitePool::connect_with(options).await.expect("opens");
        first.run(&pool).await.expect("makes schema 1");
        sqlx::query("INSERT INTO image VALUES ('lab', 2, 0, 1)")
            .execute(&pool)
            .await
            .expect("is schema 1");
        assert!(
            sqlx::query("SELECT * FROM node")
                .execute(&pool)
                .await
                .is_err()
        );
        pool.close().await;
        let catalog = Catalog::open(&path).await.expect("is brought up");
        assert_eq!(catalog.images().await.expect("is kept").len(), 1);
        assert!(catalog.nodes().await.expect("has the table").is_empty());
        let applied: Vec<(i64,)> =
            sqlx::query_as("SELECT version FROM _sqlx_migrations ORDER BY version")
                .fetch_all(&catalog.pool)
                .await
                .expect("says");
        assert_eq!(applied.last(), Some(&(SCHEMA_VERSION,)));
    }

    #[tokio::test]
    async fn after_a_full_disk_it_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(&dir.path().join("catalog.sqlite"))
            .await
            .expect("opens");
        let mut tx = catalog.begin("fill the disk").await.expect("begins");
        // As SQLite does by itself when a page cannot be written.
        sqlx::query("ROLLBACK")
            .execute(&mut *tx)
            .await
            .expect("rolls back");
        drop(tx);
        for _ in 0..2 {
            let tx = catalog.begin("go on").await.expect("begins again");
            tx.commit().await.expect("is kept");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("catalog.sqlite");
        std::fs::write(&path, vec![b'x'; 8192]).expect("writes");
        let error = Catalog::open(&path).await.expect_err("is no database");
        assert!(error.to_string().contains("is it a SQLite file"), "{error}");
    }
}
