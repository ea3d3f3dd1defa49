//! How fast what nobody waits for may go: what the settings say, for all who fetch
//! ahead.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rootstock_api::boot::FillOrder;

/// Threads that fetch: one's chunks travel while the other's are decompressed.
pub(crate) const FETCHERS: usize = 2;
/// So long after a read that was waited for, the next one is likely.
pub(crate) const CALM: Duration = Duration::from_millis(250);
/// Between looks while there is nothing to do.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What holds now, and who waits for it to change.
pub(crate) struct Pace {
    order: Mutex<FillOrder>,
    changed: Condvar,
}

impl Pace {
    /// As `order` says, until it is told otherwise.
    pub(crate) fn new(order: FillOrder) -> Self {
        Self {
            order: Mutex::new(order),
            changed: Condvar::new(),
        }
    }

    /// What holds from now on.
    pub(crate) fn set(&self, order: FillOrder) {
        *self.lock() = order;
        self.changed.notify_all();
    }

    /// Waits while nothing may be fetched; then the most it may take, in Mbit/s.
    pub(crate) fn allowed(&self) -> Option<u32> {
        let paused = |order: &mut FillOrder| order.paused.is_some();
        let waited = self.changed.wait_while(self.lock(), paused);
        waited.unwrap_or_else(PoisonError::into_inner).mbit_max
    }

    /// Why nothing may be fetched now.
    pub(crate) fn paused(&self) -> Option<String> {
        self.lock().paused.clone()
    }

    /// Waits until these bytes, of one of [`FETCHERS`], have taken their time.
    pub(crate) fn hold(&self, mbit_max: Option<u32>, bytes: u64, began: Instant) {
        let Some(mbit_max) = mbit_max.filter(|mbit| *mbit > 0) else {
            return;
        };
        let per_second = f64::from(mbit_max) * 125_000.0 / FETCHERS as f64;
        let due = Duration::from_secs_f64(bytes as f64 / per_second);
        if let Some(rest) = due.checked_sub(began.elapsed()) {
            let unchanged = self.changed.wait_timeout(self.lock(), rest);
            drop(unchanged);
        }
    }

    fn lock(&self) -> MutexGuard<'_, FillOrder> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
