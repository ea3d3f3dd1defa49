//! Many members on a simulated network, with a simulated clock: the same [`Node`] that
//! runs on machines, and checks that know nothing of how it decides.
//!
//! A run follows from its [`Scenario`] alone: the same seed gives the same trace. The
//! network is one of queues: what a member sends leaves its link one message after the
//! other, those of its connections in turn; after the way's latency it waits for the
//! other end's link in the same way. A connection holds a bounded number of bytes on
//! their way, as a socket's buffers do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rootstock_core::{ChunkId, Digest, PeerId};

use crate::bits::Bits;
use crate::holdings::Table;
use crate::node::{Goal, Node};
use crate::rng::Rng;
use crate::time::{Span, Time};

mod check;
mod net;
mod plan;
mod run;
#[cfg(test)]
mod tests;
mod work;

pub use check::{Broken, Outcome};
use net::Net;
pub use plan::{Begin, Forecast, Plan, Stage, WHOLE};

/// A rate in bytes a second.
pub type Rate = u64;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What all choices follow from.
    pub seed: u64,
    /// Machines in each rack.
    pub racks: Vec<usize>,
    /// How many heads there are.
    pub heads: usize,
    /// Chunks of the version.
    pub chunks: usize,
    /// Bytes of a chunk on the wire.
    pub wire_bytes: u32,
    /// What a head's link carries, each way.
    pub head_rate: Rate,
    /// What a machine's link carries, each way.
    pub node_rate: Rate,
    /// From one end to the other, within a rack; twice that between racks.
    pub latency: Span,
    /// Owners of a chunk in each rack.
    pub copies: usize,
    /// The last machine starts so long after the first.
    pub stagger: Span,
    /// What machines do.
    pub work: Work,
    /// Chunks that machines hold when they start: the first ones.
    pub holds: usize,
    /// Machines that ask and give nothing: the first so many.
    pub abstain: usize,
    /// Another version comes meanwhile.
    pub change: Option<Change>,
    /// What goes wrong, and when.
    pub faults: Vec<(Time, Fault)>,
    /// When the run is given up.
    pub limit: Time,
}

/// What machines do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// All of the version is fetched.
    Fill,
    /// So many chunks are read in order, ahead of a boot; what a machine owns is kept.
    Boot {
        /// Chunks of the boot.
        chunks: usize,
        /// Of these, how many are asked for at once.
        ahead: usize,
    },
    /// So many chunks are read ahead of a boot, a handful after the other, and kept.
    Storm {
        /// Chunks of the boot.
        chunks: usize,
        /// Of these, how many are asked for at once.
        handful: usize,
        /// What follows.
        then: Then,
    },
}

/// What a machine does when its boot was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing more.
    Stay,
    /// The rest of the version is fetched.
    Fill,
}

/// Another version, which all machines fetch from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When the first machine hears of it; the last one second later.
    pub at: Time,
    /// How many of its chunks are new: the last ones. As many of the older one's are not
    /// in it.
    pub fresh: usize,
}

/// What goes wrong. Machines are numbered from 0, heads too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A machine is gone.
    Kill(usize),
    /// A head is gone.
    KillHead(usize),
    /// A head is there again, and knows nothing.
    StartHead(usize),
    /// A machine sends wrong bytes from now on.
    Lie(usize),
    /// A machine takes questions and sends no answer.
    Mute(usize),
    /// A machine sends a thousandth of what its link carries.
    Drip(usize),
    /// The connection of two machines breaks.
    Cut(usize, usize),
    /// Machines of this rack and the rest of the world do not hear each other.
    Part(usize),
    /// They do again.
    Join(usize),
}

impl Default for Scenario {
    /// A rack of eight, and a head with a link like theirs.
    fn default() -> Self {
        Self {
            seed: 1,
            racks: vec![8],
            heads: 1,
            chunks: 256,
            wire_bytes: 256 << 10,
            head_rate: 12_500_000,
            node_rate: 12_500_000,
            latency: Span(200),
            copies: 2,
            stagger: Span::millis(50),
            work: Work::Fill,
            holds: 0,
            abstain: 0,
            change: None,
            faults: Vec::new(),
            limit: Time(600_000_000),
        }
    }
}

impl Scenario {
    /// How many machines there are.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.racks.iter().sum()
    }

    /// The time in which nobody can have it done, for as many as there are.
    #[must_use]
    pub fn bound(&self) -> Span {
        let chunks = self.work_chunks();
        let bytes = chunks as u64 * u64::from(self.wire_bytes);
        let heads = self.head_rate * self.heads as u64;
        bound(bytes, self.nodes() as u64, heads, self.node_rate)
    }

    /// Chunks that each machine fetches.
    fn work_chunks(&self) -> usize {
        match self.work {
            Work::Fill
            | Work::Storm {
                then: Then::Fill, ..
            } => self.chunks.saturating_sub(self.holds),
            Work::Boot { chunks, .. } | Work::Storm { chunks, .. } => chunks,
        }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(&self) -> Outcome {
        self.run_watched(&mut |_, _| {})
    }

    /// Runs it to its end, and says now and then how many chunks machines have got, and
    /// of how many.
    #[must_use]
    pub fn run_watched(&self, watch: &mut dyn FnMut(u64, u64)) -> Outcome {
        let mut world = World::new(self);
        world.run(watch);
        world.outcome()
    }

    /// The versions, the one that comes later last, and of how many chunks all are.
    fn tables(&self) -> (Vec<Arc<Table>>, usize) {
        let chunk = |number: usize| ChunkId::of(&(number as u64).to_le_bytes());
        let table = |name: &str, first: usize| {
            let chunks = (first..first + self.chunks).map(chunk);
            Table::new(Digest::of(name.as_bytes()), chunks)
        };
        let fresh = self.change.map(|change| change.fresh.min(self.chunks));
        let mut tables = vec![table("simulated", 0)];
        tables.extend(fresh.map(|fresh| table("simulated, changed", fresh)));
        (tables, self.chunks + fresh.unwrap_or_default())
    }
}

/// The time in which nobody can have sent `bytes` to each of `nodes`: what the heads
/// carry, what a machine does, and what all links that send do together (Kumar and Ross,
/// HotWeb 2006).
#[must_use]
pub fn bound(bytes: u64, nodes: u64, heads: Rate, node: Rate) -> Span {
    let sent = u128::from(bytes) * u128::from(nodes) * 1_000_000;
    let all = u128::from(heads) + u128::from(nodes) * u128::from(node);
    let together = Span(u64::try_from(sent / all.max(1)).unwrap_or(u64::MAX));
    Span::of(bytes, heads)
        .max(Span::of(bytes, node))
        .max(together)
}

/// A machine or a head.
struct Host {
    node: Node<net::Fake>,
    id: PeerId,
    rack: usize,
    is_head: bool,
    serves: bool,
    is_alive: bool,
    lies: bool,
    is_mute: bool,
    is_parted: bool,
    /// Chunks that it has, by number.
    store: Bits,
    /// The next chunk of its boot.
    next_read: usize,
    /// Chunks of its boot that it waits for, and when it asked.
    reading: BTreeMap<usize, Time>,
    read: usize,
    /// Which of the versions it fetches.
    version: usize,
    /// Chunks of it that are not here.
    lacks: usize,
    ready: Option<Time>,
    done: Option<Time>,
}

/// Everything.
struct World<'a> {
    scenario: &'a Scenario,
    /// The versions, and all their chunks: a version's first is that of its number.
    tables: Vec<Arc<Table>>,
    all: Arc<Table>,
    hosts: Vec<Host>,
    by_id: BTreeMap<PeerId, usize>,
    net: Net,
    now: Time,
    /// Machines of each rack, by their numbers.
    racks: Vec<Range<usize>>,
    /// Hosts that are not there yet, and machines that have not heard of the change.
    coming: usize,
    /// Machines that are there and lack something.
    late: usize,
    /// When the last thing goes wrong.
    faults_end: Option<Time>,
    /// Chunks that machines have got.
    got: u64,
    broken: Vec<Broken>,
    /// How often a chunk left a head, by rack and number.
    sends: BTreeMap<(usize, usize), u32>,
    reads_worst: Span,
    rng: Rng,
}

/// How machines fill, and who fetches what.
fn goal_of(work: Work) -> Goal {
    match work {
        Work::Fill | Work::Storm { .. } => Goal::All,
        Work::Boot { .. } => Goal::Owned,
    }
}
