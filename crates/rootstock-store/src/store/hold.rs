//! Holding off the collection's steps while a version is committed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::ChunkStore;

/// While it lives no chunk is removed, and no collection begins.
///
/// To commit: take a hold, ask [`ChunkStore::contains`] for every chunk, write
/// the version into the catalog, drop the hold. A chunk that was said to be
/// present then survives a collection that began before, even though its mark
/// knows nothing of the new version; one that begins later marks it. Short:
/// collections wait for it. A thread must not take a second one and then begin
/// a collection or sweep.
#[must_use = "chunks are held only while it lives"]
pub struct Hold {
    store: ChunkStore,
}

impl ChunkStore {
    /// Takes a hold; waits for a removal that is under way (microseconds).
    pub fn hold(&self) -> Hold {
        self.inner.gate.enter();
        Hold {
            store: self.clone(),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.inner.gate.leave();
    }
}

/// Many holders, or one remover.
#[derive(Default)]
pub(super) struct Gate {
    holders: Mutex<usize>,
    left: Condvar,
}

impl Gate {
    fn enter(&self) {
        *self.lock() += 1;
    }

    fn leave(&self) {
        *self.lock() -= 1;
        self.left.notify_all();
    }

    /// Waits until nobody holds; nobody can until the guard is dropped.
    pub(super) fn close(&self) -> MutexGuard<'_, usize> {
        let mut holders = self.lock();
        while *holders > 0 {
            holders = self
                .left
                .wait(holders)
                .unwrap_or_else(PoisonError::into_inner);
        }
        holders
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
