//! A boot pack out of the swarm: the chunks of a boot in their order, from whoever has
//! them.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use rootstock_api::record::Record;
use rootstock_core::ChunkId;
use rootstock_swarm::Class;

use super::Swarm;
use crate::replay::{Packs, ServicePacks};
use crate::service::CallError;
use crate::stats::Stats;

/// How long a boot waits for others to be there, before it takes its pack from a head.
const LINK_LIMIT: Duration = Duration::from_millis(1500);

/// Chunks that are asked for at once.
const AHEAD: usize = 32;

/// How long such a handful may take; what did not come is asked for again.
const HANDFUL_LIMIT: Duration = Duration::from_secs(5);

/// The swarm, and heads where there is none.
pub(crate) struct SwarmPacks {
    /// The others.
    pub(crate) swarm: Arc<Swarm>,
    /// The servers.
    pub(crate) service: ServicePacks,
    /// Counts what those send over HTTP.
    pub(crate) stats: Arc<Stats>,
}

impl Packs for SwarmPacks {
    fn trace(&self) -> Result<Option<Vec<u8>>, CallError> {
        self.service.trace()
    }

    fn pack(&self, ids: &[ChunkId]) -> Result<Box<dyn Read>, CallError> {
        if !self.swarm.wait_until_linked(LINK_LIMIT) {
            return Ok(Box::new(OverHttp {
                body: self.service.pack(ids)?,
                stats: Arc::clone(&self.stats),
            }));
        }
        Ok(Box::new(Stream {
            swarm: Arc::clone(&self.swarm),
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
    swarm: Arc<Swarm>,
    left: VecDeque<ChunkId>,
    bytes: VecDeque<u8>,
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.bytes.is_empty() && !self.left.is_empty() {
            let count = self.left.len().min(AHEAD);
            let ids: Vec<ChunkId> = self.left.drain(..count).collect();
            let mut found = self.swarm.fetch(&ids, Class::Boot, HANDFUL_LIMIT);
            // About as the boot reads them.
            found.sort_by_key(|(frame, _)| ids.iter().position(|id| *id == frame.chunk));
            let mut records = Vec::new();
            for (frame, _) in found {
                Record {
                    chunk: frame.chunk,
                    raw_bytes: frame.raw_bytes,
                    codec: frame.codec.to_byte(),
                    frame: &frame.bytes,
                }
                .write(&mut records);
            }
            self.bytes.extend(records);
        }
        self.bytes.read(out)
    }
}
