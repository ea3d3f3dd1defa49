//! A boot pack out of the swarm: the chunks of a boot in their order, from whoever has
//! them.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rootstock_api::record::Record;
use rootstock_core::ChunkId;
use rootstock_swarm::Class;

use super::Swarm;
use super::fetch::Coming;
use super::store::Found;
use crate::replay::{Packs, ServicePacks};
use crate::service::CallError;
use crate::stats::Stats;

/// How long a boot waits for others to be there, before it takes its pack from a head.
const LINK_LIMIT: Duration = Duration::from_millis(1500);

/// Chunks that are asked for at once.
const AHEAD: usize = 32;

/// How long none of them may come; what did not come then is asked for again.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The swarm, and heads where there is none.
pub(crate) struct SwarmPacks {
    /// The others.
    pub(crate) swarm: Arc<Swarm>,
    /// The servers.
    pub(crate) service: ServicePacks,
    /// What boots read, where no server says so.
    pub(crate) trace: Option<Vec<u8>>,
    /// Counts what those send over HTTP.
    pub(crate) stats: Arc<Stats>,
}

impl Packs for SwarmPacks {
    fn trace(&self) -> Result<Option<Vec<u8>>, CallError> {
        match &self.trace {
            Some(trace) => Ok(Some(trace.clone()).filter(|trace| !trace.is_empty())),
            None => self.service.trace(),
        }
    }

    fn pack(&self, ids: &[ChunkId]) -> Result<Box<dyn Read>, CallError> {
        let is_linked = self.swarm.wait_until_linked(LINK_LIMIT);
        let coming = is_linked.then(|| Coming::new(&self.swarm, Class::Boot));
        let Some(coming) = coming.flatten() else {
            return Ok(Box::new(OverHttp {
                body: self.service.pack(ids)?,
                stats: Arc::clone(&self.stats),
            }));
        };
        Ok(Box::new(Stream {
            coming,
            left: ids.iter().copied().collect(),
            bytes: VecDeque::new(),
        }))
    }
}

/// A pack of a server's own.
struct OverHttp {
    body: Box<dyn Read>,
    stats: Arc<Stats>,
}

impl Read for OverHttp {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.body.read(out)?;
        self.stats.over_http(len as u64);
        Ok(len)
    }
}

/// Records of chunks, as they come.
struct Stream {
    coming: Coming,
    left: VecDeque<ChunkId>,
    bytes: VecDeque<u8>,
}

impl Stream {
    /// Asks for more, so that there is always something on the way.
    fn ask(&mut self) {
        while self.coming.len() < AHEAD
            && let Some(chunk) = self.left.pop_front()
        {
            if let Some(own) = self.coming.ask(chunk) {
                self.add(&own);
            }
        }
    }

    fn add(&mut self, (frame, _): &Found) {
        let mut record = Vec::new();
        Record {
            chunk: frame.chunk,
            raw_bytes: frame.raw_bytes,
            codec: frame.codec.to_byte(),
            frame: &frame.bytes,
        }
        .write(&mut record);
        self.bytes.extend(record);
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.ask();
        }
        if self.bytes.is_empty()
            && let Some(found) = self.coming.next(Instant::now() + SILENCE_MAX)
        {
            self.add(&found);
        }
        self.bytes.read(out)
    }
}
