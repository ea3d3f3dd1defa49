//! What is checked, and what came of it.

use rootstock_core::PeerId;

use super::World;
use crate::time::{Span, Time};

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// When.
    pub at: Time,
    /// Which, and by whom.
    pub what: String,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// When each machine had all it wanted.
    pub done: Vec<Option<Time>>,
    /// Bytes that left each head.
    pub head_bytes: Vec<u64>,
    /// Bytes that left each machine.
    pub node_bytes: Vec<u64>,
    /// The most often that a chunk was sent whole by heads to one rack.
    pub sends_most: u32,
    /// Bytes that came for nothing.
    pub wasted: u64,
    /// Questions that were asked again beside the first.
    pub hedged: u64,
    /// Members that were found to lie.
    pub liars: u64,
    /// The longest that somebody waited for a chunk of a boot.
    pub read_worst: Span,
    /// Messages.
    pub messages: u64,
    /// A digest of all messages in order.
    pub trace: u64,
    /// Rules that were broken.
    pub broken: Vec<Broken>,
    /// Which machines were there to the end.
    pub alive: Vec<bool>,
    /// When it ended.
    pub ended: Time,
}

impl Outcome {
    /// When the last machine that is there had all.
    #[must_use]
    pub fn last(&self) -> Option<Time> {
        let alive = self
            .done
            .iter()
            .zip(&self.alive)
            .filter(|(_, alive)| **alive);
        let done: Option<Vec<Time>> = alive.map(|(done, _)| *done).collect();
        done?.into_iter().max()
    }

    /// How many machines had all.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.done.iter().flatten().count()
    }
}

/// What a member may have in memory at most: chunks wanted, chunks, questions.
const SIZES_MAX: (usize, usize, usize) = (1024, 1024, 16_384);

impl World<'_> {
    pub(super) fn check_sizes(&mut self, at: usize) {
        let sizes = self.hosts[at].node.sizes();
        if sizes.0 > SIZES_MAX.0 || sizes.1 > SIZES_MAX.1 || sizes.2 > SIZES_MAX.2 {
            self.broke(format!("host {at} has {sizes:?} in memory"));
        }
    }

    /// Everybody in a rack takes the same members for owners: those who are there.
    pub(super) fn check_racks(&mut self) {
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            let alike = self
                .hosts
                .iter()
                .filter(|other| !other.is_head && other.is_alive && other.rack == host.rack);
            let mut rack: Vec<PeerId> = alike.map(|other| other.id).collect();
            rack.sort_unstable();
            if !host.is_head && host.is_alive && host.node.rack() != rack {
                let seen = host.node.rack().len();
                self.broke(format!("host {at} sees {seen} owners of {}", rack.len()));
            }
        }
    }

    pub(super) fn broke(&mut self, what: String) {
        let at = self.now;
        if self.broken.len() < 100 {
            self.broken.push(Broken { at, what });
        }
    }

    pub(super) fn outcome(self) -> Outcome {
        let heads = self.hosts.iter().filter(|host| host.is_head).count();
        let counters = || self.hosts.iter().map(|host| host.node.counters());
        let nodes = &self.hosts[heads..];
        Outcome {
            done: nodes.iter().map(|host| host.done).collect(),
            alive: nodes.iter().map(|host| host.is_alive).collect(),
            head_bytes: self.net.sent[..heads].to_vec(),
            node_bytes: self.net.sent[heads..].to_vec(),
            sends_most: self.sends.values().copied().max().unwrap_or_default(),
            wasted: counters().map(|counters| counters.wasted).sum(),
            hedged: counters().map(|counters| counters.hedged).sum(),
            liars: counters().map(|counters| counters.liars).sum(),
            read_worst: self.reads_worst,
            messages: self.net.messages,
            trace: self.net.trace,
            broken: self.broken,
            ended: self.now,
        }
    }
}
