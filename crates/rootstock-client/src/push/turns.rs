//! Turns at computing: as many at a time as there are cores.
//!
//! More threads than cores take work, so that some wait for the daemon while
//! others compute. Were more of them than cores to compute at once, each would
//! lose its tables from the core's cache whenever the scheduler changes them.

use std::sync::{Condvar, Mutex, PoisonError};

/// A bounded number of turns.
pub(super) struct Turns {
    free: Mutex<usize>,
    given_back: Condvar,
}

/// A turn; it is given back when dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    /// `count` turns, of which none is taken.
    pub(super) const fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count),
            given_back: Condvar::new(),
        }
    }

    /// Waits for a turn.
    pub(super) fn take(&self) -> Turn<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .given_back
            .wait_while(free, |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.given_back.notify_one();
    }
}
