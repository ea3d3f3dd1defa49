//! How each network card's firmware was booted the last time that it worked.

use jiff::Timestamp;
use rootstock_core::MacAddress;

use crate::{
    Catalog,
    error::{CatalogError, failed},
};

/// The most cards that are remembered; then the oldest are forgotten.
pub const STRATEGIES_MAX: u32 = 100_000;

impl Catalog {
    /// Remembers what worked for a card.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn remember_strategy(
        &self,
        mac: MacAddress,
        worked: &str,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let doing = "remember a boot strategy";
        let mut tx = self.begin(doing).await?;
        sqlx::query(
            "INSERT INTO strategy (mac, worked, time_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (mac) DO UPDATE SET worked = excluded.worked, time_ms = excluded.time_ms",
        )
        .bind(mac.to_string())
        .bind(worked)
        .bind(now.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        sqlx::query(
            "DELETE FROM strategy WHERE mac IN \
             (SELECT mac FROM strategy ORDER BY time_ms DESC, mac LIMIT 1000 OFFSET $1)",
        )
        .bind(i64::from(STRATEGIES_MAX))
        .execute(&mut *tx)
        .await
        .map_err(failed(doing))?;
        tx.commit().await.map_err(failed(doing))
    }

    /// What worked for a card.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn strategy(&self, mac: MacAddress) -> Result<Option<String>, CatalogError> {
        let row: Option<(String,)> = sqlx::query_as("SELECT worked FROM strategy WHERE mac = $1")
            .bind(mac.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("look a boot strategy up"))?;
        Ok(row.map(|(worked,)| worked))
    }
}
