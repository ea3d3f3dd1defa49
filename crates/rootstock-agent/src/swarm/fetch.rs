//! Chunks from others first, and over HTTP when those have them not, or not in time.

use std::iter;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rootstock_core::ChunkId;
use rootstock_peer::Member;
use rootstock_swarm::Class;

use super::Swarm;
use super::store::{Came, Found};
use crate::remote::{Answer, Fetch, ServiceFetch};
use crate::service::CallError;

/// How long somebody who waits for a chunk waits for the swarm alone.
const USER_LIMIT: Duration = Duration::from_secs(2);

/// How long what nobody waits for does.
const AHEAD_LIMIT: Duration = Duration::from_secs(30);

/// The swarm, and the site's servers behind it.
pub(crate) struct SwarmFetch {
    /// The others.
    pub(crate) swarm: Arc<Swarm>,
    /// The servers.
    pub(crate) service: ServiceFetch,
}

/// Chunks that somebody waits for. They are wanted no more when this is dropped.
pub(super) struct Coming {
    swarm: Arc<Swarm>,
    /// It may be told to end meanwhile.
    member: Weak<Member>,
    class: Class,
    number: u64,
    sender: Sender<Came>,
    came: Receiver<Came>,
    left: Vec<ChunkId>,
}

impl Coming {
    /// Nobody is waited for when nobody is there to be asked.
    pub(super) fn new(swarm: &Arc<Swarm>, class: Class) -> Option<Self> {
        let (sender, came) = channel();
        Some(Self {
            swarm: Arc::clone(swarm),
            member: Arc::downgrade(&swarm.reached()?),
            class,
            number: swarm.store.waiter(),
            sender,
            came,
            left: Vec::new(),
        })
    }

    /// How many are waited for.
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    /// Asks for one, unless it is here.
    pub(super) fn ask(&mut self, chunk: ChunkId) -> Option<Found> {
        let store = &self.swarm.store;
        // What it holds for others is its own, too.
        let own = store.own(chunk);
        if own.is_none() {
            store.wait(self.number, chunk, &self.sender);
            self.left.push(chunk);
            if let Some(member) = self.member.upgrade() {
                member.want(chunk, self.class);
            }
        }
        own
    }

    fn unwant(&self, chunk: ChunkId) {
        if let Some(member) = self.member.upgrade() {
            member.unwant(chunk);
        }
    }

    /// The next one that comes before that moment; nothing when none does.
    pub(super) fn next(&mut self, until: Instant) -> Option<Found> {
        while !self.left.is_empty() {
            let wait = until.saturating_duration_since(Instant::now());
            let (chunk, one) = self.came.recv_timeout(wait).ok()?;
            self.left.retain(|id| *id != chunk);
            match one {
                Some(found) => return Some(found),
                None => self.unwant(chunk),
            }
        }
        None
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        for chunk in self.swarm.store.give_up(self.number, &self.left) {
            self.unwant(chunk);
        }
    }
}

impl SwarmFetch {
    /// Those of these chunks that come in time.
    fn found(&self, ids: &[ChunkId], class: Class, limit: Duration) -> Vec<Found> {
        let Some(mut coming) = Coming::new(&self.swarm, class) else {
            return Vec::new();
        };
        let until = Instant::now() + limit;
        let mut found: Vec<Found> = ids.iter().filter_map(|id| coming.ask(*id)).collect();
        found.extend(iter::from_fn(|| coming.next(until)));
        found
    }
}

impl Fetch for SwarmFetch {
    fn fetch(&self, server: usize, ids: &[ChunkId], class: Class) -> Result<Answer, CallError> {
        let limit = if class.is_urgent() {
            USER_LIMIT
        } else {
            AHEAD_LIMIT
        };
        let found = self.found(ids, class, limit);
        if found.is_empty() {
            return self.service.fetch(server, ids, class);
        }
        let found = found.into_iter().map(|(frame, raw)| (frame, raw.into()));
        Ok(Answer::Checked(found.collect()))
    }

    fn servers(&self) -> usize {
        self.service.servers()
    }

    fn fill(&self, may: bool) -> Option<u64> {
        self.swarm.fill(may)
    }
}
