//! Chunks from others first, and over HTTP when those have them not, or not in time.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rootstock_core::ChunkId;
use rootstock_image::frame::Frame;
use rootstock_swarm::Class;

use super::Swarm;
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

impl Swarm {
    /// Those of these chunks that come in time, each checked.
    pub(super) fn fetch(
        &self,
        ids: &[ChunkId],
        class: Class,
        limit: Duration,
    ) -> Vec<(Frame, Vec<u8>)> {
        let Some(member) = self.reached() else {
            return Vec::new();
        };
        // What it holds for others is its own, too.
        let mut found: Vec<(Frame, Vec<u8>)> =
            ids.iter().filter_map(|id| self.store.own(*id)).collect();
        let mut left = ids.to_vec();
        left.retain(|id| found.iter().all(|(frame, _)| frame.chunk != *id));
        if left.is_empty() {
            return found;
        }
        let (sender, came) = channel();
        let number = self.store.wait(&left, &sender);
        drop(sender);
        for id in &left {
            member.want(*id, class);
        }
        let until = Instant::now() + limit;
        while !left.is_empty() {
            let wait = until.saturating_duration_since(Instant::now());
            let Ok((chunk, one)) = came.recv_timeout(wait) else {
                break;
            };
            left.retain(|id| *id != chunk);
            if one.is_none() {
                member.unwant(chunk);
            }
            found.extend(one);
        }
        for chunk in self.store.give_up(number, &left) {
            member.unwant(chunk);
        }
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
        let found = self.swarm.fetch(ids, class, limit);
        if found.is_empty() {
            return self.service.fetch(server, ids, class);
        }
        Ok(Answer::Checked(found))
    }

    fn servers(&self) -> usize {
        self.service.servers()
    }

    fn fill(&self, may: bool) -> Option<u64> {
        self.swarm.fill(may)
    }
}
