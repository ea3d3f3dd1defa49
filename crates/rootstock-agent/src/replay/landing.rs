//! Chunks that a stream brings: those on their way, and those that came before they were asked for.
//!
//! A guest that asks for a chunk which the stream is about to bring waits for
//! that, and not for a request of its own. What comes early stays here until it
//! is asked for, and when there is no room the stream waits: the cache is no
//! place for it, because what the guest has not read yet would be the first to go.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_store::ReadError;
use rootstock_volume::ChunkSource;

use super::ChunkSink;

/// A chunk is about to come when so many or fewer come before it: 16 MiB at most,
/// some tenths of a second on 100 Mbit/s.
const NEAR_CHUNKS: usize = 64;

/// The longest wait for a chunk that is about to come.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A chunk that came so far before what the guest asked for last is not waited
/// for any more: this boot does without it.
const SLACK_CHUNKS: usize = 128;

/// What a stream brings.
#[derive(Debug)]
pub(crate) struct Landing {
    bytes_max: u64,
    wait_max: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is still to come, by its place in the stream.
    coming: HashMap<ChunkId, usize>,
    /// The place of what comes next.
    next: usize,
    parked: HashMap<ChunkId, Parked>,
    /// Parked chunks as they came; some of them are gone.
    order: VecDeque<ChunkId>,
    parked_bytes: u64,
    /// What was fetched by a request while it was on its way.
    fetched: HashSet<ChunkId>,
    waiting: usize,
    /// The furthest place that was asked for, of what came or was about to.
    furthest: usize,
    is_over: bool,
}

#[derive(Debug)]
struct Parked {
    place: usize,
    raw: Bytes,
}

impl Landing {
    /// Room for `bytes_max` of chunks that nobody has asked for yet.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            wait_max: WAIT_MAX,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A stream begins that brings these, in this order.
    pub(crate) fn expect(&self, ids: &[ChunkId]) {
        let mut state = self.lock();
        state.coming = ids.iter().copied().zip(0..).collect();
        state.next = 0;
        state.furthest = 0;
        for parked in state.parked.values_mut() {
            parked.place = 0;
        }
    }

    /// A chunk has come, and whoever took it has it.
    pub(crate) fn landed(&self, chunk: ChunkId) {
        let mut state = self.lock();
        if let Some(place) = state.coming.remove(&chunk) {
            state.next = place + 1;
        }
        self.changed.notify_all();
    }

    /// Nothing comes any more.
    pub(crate) fn stream_ended(&self) {
        self.lock().coming.clear();
        self.changed.notify_all();
    }

    /// The boot is over: what it has not asked for by now is let go.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        *state = State {
            is_over: true,
            waiting: state.waiting,
            ..State::default()
        };
        self.changed.notify_all();
    }

    /// Whether the boot is over.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// A chunk that came, which is the caller's from now on.
    fn take(&self, chunk: ChunkId) -> Option<Bytes> {
        let mut state = self.lock();
        let parked = state.parked.remove(&chunk)?;
        state.parked_bytes -= parked.raw.len() as u64;
        state.furthest = state.furthest.max(parked.place);
        self.changed.notify_all();
        Some(parked.raw)
    }

    /// Waits for a chunk that is about to come; false when it did not, or is not.
    fn wait(&self, chunk: ChunkId) -> bool {
        let mut state = self.lock();
        let Some(&place) = state.coming.get(&chunk) else {
            return false;
        };
        let end = Instant::now() + self.wait_max;
        state.waiting += 1;
        self.changed.notify_all();
        let mut has_come = false;
        if place < state.next + NEAR_CHUNKS {
            state.furthest = state.furthest.max(place);
            state = self.wait_until(state, end, chunk);
            has_come = !state.coming.contains_key(&chunk);
        }
        state.waiting -= 1;
        if !has_come {
            state.fetched.insert(chunk);
        }
        has_come
    }

    fn wait_until<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        end: Instant,
        chunk: ChunkId,
    ) -> MutexGuard<'a, State> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !state.coming.contains_key(&chunk) {
                return state;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets chunks go that the guest has gone past, until there is room.
    fn make_room(&mut self, len: u64, bytes_max: u64) {
        while self.parked_bytes + len > bytes_max {
            let Some(oldest) = self.order.front() else {
                return;
            };
            match self.parked.get(oldest) {
                Some(parked) if parked.place + SLACK_CHUNKS >= self.furthest => return,
                Some(parked) => {
                    self.parked_bytes -= parked.raw.len() as u64;
                    self.parked.remove(oldest);
                }
                None => {}
            }
            self.order.pop_front();
        }
    }
}

impl ChunkSink for Landing {
    fn offer(&self, chunk: ChunkId, raw: Bytes) {
        let len = raw.len() as u64;
        let mut state = self.lock();
        loop {
            state.make_room(len, self.bytes_max);
            let fits = state.parked_bytes + len <= self.bytes_max;
            // Whoever waits may wait for what comes after this.
            if fits || state.is_over || state.waiting > 0 {
                break;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_over || state.fetched.contains(&chunk) {
            return;
        }
        let place = state.coming.get(&chunk).copied().unwrap_or(state.next);
        let parked = Parked { place, raw };
        if state.parked.insert(chunk, parked).is_none() {
            state.parked_bytes += len;
            state.order.push_back(chunk);
        }
    }

    fn has(&self, chunk: ChunkId) -> bool {
        let state = self.lock();
        state.parked.contains_key(&chunk) || state.fetched.contains(&chunk)
    }
}

/// A source below a cache, with what a stream brings before it.
pub(crate) struct Landed<S> {
    /// Where all other chunks come from.
    pub(crate) source: S,
    /// What the stream brings.
    pub(crate) landing: Arc<Landing>,
}

impl<S: ChunkSource> ChunkSource for Landed<S> {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        let come = self.landing.take(chunk).or_else(|| {
            let has_come = self.landing.wait(chunk);
            has_come.then(|| self.landing.take(chunk)).flatten()
        });
        match come {
            Some(raw) => Ok(raw),
            // Another sink may have it: then it is in the source by now.
            None => self.source.read(chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn chunks(count: u64) -> Vec<(ChunkId, Bytes)> {
        let raw = |number: u64| Bytes::from(number.to_le_bytes().to_vec());
        let chunk = |number| (ChunkId::of(&raw(number)), raw(number));
        (0..count).map(chunk).collect()
    }

    fn ids(chunks: &[(ChunkId, Bytes)]) -> Vec<ChunkId> {
        chunks.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn what_came_is_handed_out_once() {
        let landing = Landing::new(1 << 20);
        let chunks = chunks(2);
        landing.expect(&ids(&chunks));
        let (id, raw) = chunks[0].clone();
        landing.offer(id, raw.clone());
        landing.landed(id);
        assert!(landing.has(id));
        assert_eq!(landing.take(id), Some(raw));
        assert_eq!(landing.take(id), None);
    }

    #[test]
    fn a_reader_waits_for_what_is_near_and_not_for_what_is_far() {
        let mut landing = Landing::new(1 << 20);
        landing.wait_max = Duration::from_secs(600);
        let chunks = chunks(NEAR_CHUNKS as u64 + 2);
        landing.expect(&ids(&chunks));
        let (far, raw) = chunks[NEAR_CHUNKS + 1].clone();
        assert!(!landing.wait(far));
        // It was fetched otherwise: the stream's is not kept.
        landing.offer(far, raw);
        assert_eq!(landing.take(far), None);
        thread::scope(|scope| {
            let near = chunks[1].clone();
            let landing = &landing;
            let waiting = scope.spawn(move || (landing.wait(near.0), landing.take(near.0)));
            for (id, raw) in &chunks[..2] {
                landing.offer(*id, raw.clone());
                landing.landed(*id);
            }
            let got = waiting.join().expect("no panic");
            assert!(got == (true, Some(chunks[1].1.clone())) || got.1.is_some());
        });
        // The stream's end ends a wait.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| landing.wait(chunks[5].0));
            while landing.lock().waiting == 0 && !waiting.is_finished() {
                thread::yield_now();
            }
            landing.stream_ended();
            waiting.join().expect("no panic");
        });
        assert!(!landing.wait(ChunkId::of(b"another")));
    }

    #[test]
    fn a_wait_has_a_bound() {
        let mut landing = Landing::new(1 << 20);
        landing.wait_max = Duration::from_millis(5);
        let chunks = chunks(1);
        landing.expect(&ids(&chunks));
        assert!(!landing.wait(chunks[0].0));
    }

    #[test]
    fn the_stream_waits_for_room_until_chunks_are_taken_or_the_boot_is_over() {
        let landing = Landing::new(16);
        let chunks = chunks(4);
        landing.expect(&ids(&chunks));
        thread::scope(|scope| {
            let stream = scope.spawn(|| {
                for (id, raw) in &chunks {
                    landing.offer(*id, raw.clone());
                    landing.landed(*id);
                }
            });
            while landing.lock().next < 2 {
                thread::yield_now();
            }
            assert!(landing.lock().parked_bytes <= 16);
            assert!(landing.take(chunks[0].0).is_some());
            while landing.lock().next < 3 {
                thread::yield_now();
            }
            assert!(!stream.is_finished());
            landing.end();
            stream.join().expect("no panic");
        });
        assert!(landing.is_over() && landing.lock().parked.is_empty());
    }

    #[test]
    fn what_the_guest_has_gone_past_makes_room() {
        let chunks = chunks(SLACK_CHUNKS as u64 + 10);
        let landing = Landing::new(8 * chunks.len() as u64 - 8);
        landing.expect(&ids(&chunks));
        let (last, rest) = chunks.split_last().expect("are some");
        for (id, raw) in rest {
            landing.offer(*id, raw.clone());
            landing.landed(*id);
        }
        let (id, _) = &rest[rest.len() - 1];
        assert!(landing.take(*id).is_some());
        landing.offer(*id, rest[0].1.clone());
        // The oldest goes, and this need not wait.
        landing.offer(last.0, last.1.clone());
        assert!(landing.has(last.0) && !landing.has(chunks[0].0));
    }
}
