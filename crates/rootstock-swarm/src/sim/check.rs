//! What is checked, and what came of it.

use rootstock_core::PeerId;

use super::World;
use super::run::RACK_TOLD_MAX;
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
    /// When each machine had read what is ahead of its boot.
    pub ready: Vec<Option<Time>>,
    /// Bytes that left each head.
    pub head_bytes: Vec<u64>,
    /// Bytes of chunks that left heads.
    pub head_chunk_bytes: u64,
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

/// So long after the last machine started, each knows of all in its rack.
const SETTLED: Span = Span::seconds(3);

impl World<'_> {
    /// Whatever somebody who is there holds has arrived, and all agree on who owns what.
    pub(super) fn check_end(&mut self) {
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            if !host.serves && host.node.counters().sent > 0 {
                self.broke(format!("host {at} abstains, and sent something"));
            }
        }
        let settled = Time(self.scenario.stagger.0) + SETTLED;
        if self.scenario.faults.is_empty() && self.now > settled {
            self.check_racks();
        }
        if self.now <= self.scenario.limit && self.is_over() {
            return;
        }
        let machines = self
            .hosts
            .iter()
            .filter(|host| !host.is_head && host.is_alive);
        let late = machines.clone().filter(|host| host.done.is_none()).count();
        let has_head = self.hosts.iter().any(|host| host.is_head && host.is_alive);
        let holders = |number: &usize| machines.clone().any(|host| host.store.has(*number));
        let newest = self.all.len() - self.scenario.chunks..self.all.len();
        let lost = newest.filter(|number| !holders(number)).count();
        if late > 0 && (has_head || lost == 0) {
            self.broke(format!("{late} machines lack what others hold"));
        }
    }

    pub(super) fn check_sizes(&mut self, at: usize) {
        let sizes = self.hosts[at].node.sizes();
        if sizes.0 > SIZES_MAX.0 || sizes.1 > SIZES_MAX.1 || sizes.2 > SIZES_MAX.2 {
            self.broke(format!("host {at} has {sizes:?} in memory"));
        }
    }

    /// Everybody in a rack takes the same members for owners: those who are there. In one
    /// that is larger than what a head tells of they cannot know.
    fn check_racks(&mut self) {
        for rack in self.racks.clone() {
            if rack.len() > RACK_TOLD_MAX {
                continue;
            }
            let there = rack.filter(|at| self.hosts[*at].is_alive);
            let there: Vec<usize> = there.collect();
            let gives = there.iter().filter(|at| self.hosts[**at].serves);
            let mut owners: Vec<PeerId> = gives.map(|at| self.hosts[*at].id).collect();
            owners.sort_unstable();
            for at in there {
                let seen = self.hosts[at].node.rack();
                if seen != owners {
                    let (seen, of) = (seen.len(), owners.len());
                    self.broke(format!("host {at} sees {seen} owners of {of}"));
                }
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
            ready: nodes.iter().map(|host| host.ready).collect(),
            head_chunk_bytes: counters().take(heads).map(|counters| counters.sent).sum(),
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
