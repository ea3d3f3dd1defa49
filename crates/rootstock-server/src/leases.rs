//! Leases: what is in use now, and therefore stays as it is.
//!
//! Tags and volumes hold versions by rows in the catalog; a lease is what
//! vanishes with the process: a client's connection, an operation under way.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use rootstock_api::{Holder, HolderKind, Problem, ProblemCode};
use rootstock_core::{ImageName, VersionNumber, VolumeName};

use crate::http::ApiError;

/// What can be in use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// A version.
    Version(ImageName, VersionNumber),
    /// A volume.
    Volume(VolumeName),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(image, version) => write!(f, "version {image}:{version}"),
            Self::Volume(volume) => write!(f, "volume {volume}"),
        }
    }
}

/// A use of something.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    pub(crate) holder: Holder,
    pub(crate) since: Timestamp,
}

/// All leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeMap<Key, BTreeMap<u64, Use>>,
    closed: HashSet<Key>,
}

/// Keeps something as it is while it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Arc<Leases>,
    key: Key,
    number: u64,
}

/// Keeps leases from being taken while it lives.
#[derive(Debug)]
pub(crate) struct Closed {
    leases: Arc<Leases>,
    key: Key,
}

impl Leases {
    /// Takes a lease, unless the thing is being changed or deleted.
    pub(crate) fn take(
        self: &Arc<Self>,
        key: Key,
        kind: HolderKind,
        name: &str,
    ) -> Result<Lease, ApiError> {
        let mut state = self.state();
        if state.closed.contains(&key) {
            return Err(busy(&key));
        }
        state.next += 1;
        let number = state.next;
        let holder = Holder {
            kind,
            name: name.to_owned(),
        };
        let since = Timestamp::now();
        let held = state.held.entry(key.clone()).or_default();
        held.insert(number, Use { holder, since });
        drop(state);
        Ok(Lease {
            leases: Arc::clone(self),
            key,
            number,
        })
    }

    /// Closes something that nobody has a lease on.
    pub(crate) fn close(self: &Arc<Self>, key: Key) -> Result<Closed, ApiError> {
        let mut state = self.state();
        if let Some(uses) = state.held.get(&key) {
            let mut holders: Vec<_> = uses.values().map(|held| held.holder.clone()).collect();
            holders.sort();
            holders.dedup();
            let names: Vec<_> = holders.iter().map(ToString::to_string).collect();
            let detail = format!("{key} is in use by {}", names.join(", "));
            return Err(Problem::new(ProblemCode::InUse, detail)
                .with_hint("disconnect the clients first")
                .with_holders(holders)
                .into());
        }
        if !state.closed.insert(key.clone()) {
            return Err(busy(&key));
        }
        drop(state);
        Ok(Closed {
            leases: Arc::clone(self),
            key,
        })
    }

    /// Everything that is in use, with its uses.
    pub(crate) fn all(&self) -> Vec<(Key, Use)> {
        let state = self.state();
        let each = |(key, uses): (&Key, &BTreeMap<u64, Use>)| {
            let key = key.clone();
            uses.values()
                .map(move |held| (key.clone(), held.clone()))
                .collect::<Vec<_>>()
        };
        state.held.iter().flat_map(each).collect()
    }

    /// The uses of one thing.
    pub(crate) fn of(&self, key: &Key) -> Vec<Use> {
        let state = self.state();
        let uses = state.held.get(key);
        uses.map_or_else(Vec::new, |uses| uses.values().cloned().collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn busy(key: &Key) -> ApiError {
    ApiError::new(
        ProblemCode::Busy,
        format!("{key} is being changed or deleted"),
    )
    .with_hint("try again in a moment")
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        if let Some(uses) = state.held.get_mut(&self.key) {
            uses.remove(&self.number);
            if uses.is_empty() {
                state.held.remove(&self.key);
            }
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.leases.state().closed.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_leased_is_not_closed_and_the_other_way_round() {
        let leases = Arc::new(Leases::default());
        let key = || Key::Version("lab".parse().expect("a name"), VersionNumber(1));
        let take = || leases.take(key(), HolderKind::Client, "10.0.0.7:4711");
        let (first, second) = (take().expect("takes"), take().expect("takes"));
        let problem = leases.close(key()).expect_err("is in use").0;
        assert_eq!(problem.code, ProblemCode::InUse);
        assert_eq!(
            problem.detail,
            "version lab:1 is in use by client 10.0.0.7:4711"
        );
        drop(first);
        assert!(leases.close(key()).is_err());
        drop(second);
        assert!(leases.all().is_empty());
        let closed = leases.close(key()).expect("is free");
        assert_eq!(take().expect_err("is closed").0.code, ProblemCode::Busy);
        assert!(leases.close(key()).is_err());
        drop(closed);
        take().expect("is open again");
    }
}
