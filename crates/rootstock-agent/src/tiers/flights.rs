//! Chunks on their way: whoever asks first fetches, the others wait for that one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rootstock_core::ChunkId;

/// All chunks on their way. Its readers bound it: each leads a handful.
#[derive(Default)]
pub(crate) struct Flights {
    table: Mutex<HashMap<ChunkId, Arc<Landing>>>,
}

/// What who asks for a chunk is to do.
pub(crate) enum Join<'a> {
    /// Fetch it.
    Lead(Flight<'a>),
    /// Wait for who does.
    Follow(Arc<Landing>),
}

/// The promise to fetch a chunk. Dropped, it is given up, and who waits asks itself.
pub(crate) struct Flight<'a> {
    flights: &'a Flights,
    chunk: ChunkId,
    landing: Arc<Landing>,
}

/// Where those wait who do not fetch.
#[derive(Default)]
pub(crate) struct Landing {
    state: Mutex<State>,
    landed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    OnItsWay,
    Landed(Bytes),
    GivenUp,
}

impl Flights {
    /// Joins in fetching a chunk.
    pub(crate) fn join(&self, chunk: ChunkId) -> Join<'_> {
        match self.lock().entry(chunk) {
            Entry::Occupied(entry) => Join::Follow(Arc::clone(entry.get())),
            Entry::Vacant(entry) => {
                let landing = Arc::clone(entry.insert(Arc::default()));
                Join::Lead(Flight {
                    flights: self,
                    chunk,
                    landing,
                })
            }
        }
    }

    /// Promises to fetch a chunk, unless somebody else does.
    pub(crate) fn lead(&self, chunk: ChunkId) -> Option<Flight<'_>> {
        match self.join(chunk) {
            Join::Lead(flight) => Some(flight),
            Join::Follow(_) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, Arc<Landing>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight<'_> {
    /// Which chunk.
    pub(crate) fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// Gives the chunk to all who wait, and who ask before this is dropped.
    pub(crate) fn land(&self, raw: Bytes) {
        self.landing.set(State::Landed(raw));
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.chunk);
        self.landing.set(State::GivenUp);
    }
}

impl Landing {
    /// The chunk, if it comes within `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Bytes> {
        let state = self.lock();
        let waiting = self
            .landed
            .wait_timeout_while(state, limit, |state| matches!(state, State::OnItsWay));
        let (state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Landed(raw) => Some(raw.clone()),
            State::OnItsWay | State::GivenUp => None,
        }
    }

    fn set(&self, to: State) {
        let mut state = self.lock();
        if matches!(*state, State::OnItsWay) {
            *state = to;
            self.landed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_fetches_and_all_get_it() {
        let flights = Flights::default();
        let chunk = ChunkId::of(b"chunk");
        let Join::Lead(flight) = flights.join(chunk) else {
            panic!("nobody else fetches");
        };
        assert_eq!(flight.chunk(), chunk);
        assert!(flights.lead(chunk).is_none());
        assert!(flights.lead(ChunkId::of(b"other")).is_some());
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..4)
                .map(|_| {
                    let Join::Follow(landing) = flights.join(chunk) else {
                        panic!("it is on its way");
                    };
                    scope.spawn(move || landing.wait(LONG))
                })
                .collect();
            flight.land(Bytes::from_static(b"chunk"));
            let Join::Follow(landing) = flights.join(chunk) else {
                panic!("it has landed");
            };
            assert_eq!(landing.wait(LONG).expect("landed"), "chunk");
            for waiting in waiting {
                assert_eq!(waiting.join().expect("ends").expect("landed"), "chunk");
            }
        });
        drop(flight);
        assert!(flights.lead(chunk).is_some(), "it is over");
    }

    #[test]
    fn who_waits_in_vain_is_told() {
        let flights = Flights::default();
        let chunk = ChunkId::of(b"chunk");
        let flight = flights.lead(chunk).expect("nobody else");
        let Join::Follow(landing) = flights.join(chunk) else {
            panic!("it is on its way");
        };
        assert_eq!(landing.wait(Duration::from_millis(1)), None);
        drop(flight);
        assert_eq!(landing.wait(LONG), None);
    }
}
