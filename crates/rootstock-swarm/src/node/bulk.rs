//! What nobody waits for: which chunk comes next, and from whom.
//!
//! A chunk that nobody in reach holds is fetched from a head by its first owner alone;
//! all others take it from there while it still arrives, and then from one another. So
//! a head sends each chunk once to a rack, and every member's link carries about as much.

use std::sync::Arc;

use rootstock_core::{ChunkId, PeerId};

use super::{Goal, Link, Node, Payload};
use crate::bugs::{self, Bug};
use crate::node::fetch::Want;
use crate::time::{Span, Time};
use crate::wire::{CHUNK_BYTES_MAX, Class};

/// Chunks on their way at once: what the link brings in this time, within bounds.
const WINDOW: Span = Span::millis(1000);
const WINDOW_MIN: usize = 16;
const WINDOW_MAX: usize = 128;

/// Of these, the most from one peer.
const PEER_WINDOW_MAX: usize = 16;

/// From a head that has this much to do, so few.
const HEAD_QUICK: Span = Span::millis(50);
const HEAD_BUSY: Span = Span::millis(400);
const HEAD_WINDOW: usize = 4;
const HEAD_WINDOW_BUSY: usize = 2;

/// Chunks among which the rarest is chosen.
const SAMPLE: usize = 48;

/// Chunks that are looked at for owned ones in one go.
const SCAN: usize = 4096;

/// When all were looked at, they are again after this.
const SCAN_AGAIN: Span = Span::seconds(1);

/// Nothing came for so long, though something lacks: owners are asked, then heads.
const STALL: Span = Span::millis(300);

/// One such question in this time.
const STALLED_EVERY: Span = Span::millis(50);

/// Where there was no room for a chunk, there may be some after this.
const FULL_PAUSE: Span = Span::seconds(10);

/// How the filling does.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    pub(super) in_flight: usize,
    /// All that lacks is on its way.
    pub(super) is_at_end: bool,
    /// Nothing was found, and nothing changed since.
    is_dry: bool,
    is_paused: bool,
    /// There was no room for a chunk: none is fetched to be kept before this.
    full_until: Time,
    moved: Time,
    stalled: Time,
    scanned: Time,
    came: u64,
    rate: u64,
    /// The most that it was, which is forgotten slowly: who asks for less because little
    /// came gets less still.
    rate_most: u64,
}

impl Bulk {
    fn window(&self) -> usize {
        let bytes = self.rate_most.saturating_mul(WINDOW.0) / 1_000_000;
        let chunks = bytes / rootstock_core::CHUNK_BYTES;
        (chunks as usize).clamp(WINDOW_MIN, WINDOW_MAX)
    }
}

impl<P: Payload> Node<P> {
    /// Stops or resumes what nobody waits for.
    pub fn pause(&mut self, now: Time, is_paused: bool) {
        self.bulk.is_paused = is_paused;
        self.pump_anew(now);
    }

    /// A chunk was not kept, because there is no room.
    pub fn had_no_room(&mut self, now: Time, chunk: ChunkId) {
        self.bulk.full_until = now + FULL_PAUSE;
        self.lost(now, chunk);
    }

    /// Something changed that may allow more.
    pub(super) fn pump_anew(&mut self, now: Time) {
        self.bulk.is_dry = false;
        self.pump(now);
    }

    /// Asks for as much as may be on its way.
    pub(super) fn pump(&mut self, now: Time) {
        let is_paused = self.bulk.is_paused || now < self.bulk.full_until;
        let is_off = is_paused || self.mine.iter().all(|mine| mine.goal == Goal::Nothing);
        if is_off {
            return;
        }
        // Heads are kept busy, however much is asked of others: what they send next is
        // what all will live on.
        while self.lacks_any() && (self.pick_owned(now) || self.pick_for_another(now)) {}
        if self.bulk.is_dry {
            return;
        }
        let at_heads = self.links.values().filter(|link| link.is_head);
        let at_heads: usize = at_heads.map(|link| link.bulk_asks).sum();
        while self.bulk.in_flight < self.bulk.window() + at_heads {
            if !self.lacks_any() || !(self.pick_rare(now) || self.pick_stalled(now)) {
                self.bulk.is_dry = true;
                let lacks = |mine: &super::Mine| {
                    mine.goal == Goal::All && mine.taken.ones() < mine.table.len()
                };
                self.bulk.is_at_end = self.bulk.in_flight > 0 && !self.mine.iter().any(lacks);
                return;
            }
            self.bulk.is_at_end = false;
        }
    }

    fn lacks_any(&self) -> bool {
        let lacks = |mine: &super::Mine| mine.taken.ones() < mine.table.len();
        let mut filled = self.mine.iter().filter(|mine| mine.goal > Goal::Nothing);
        filled.any(lacks)
    }

    /// Somebody holds these now, which may allow more.
    pub(super) fn heard_of_held(&mut self, slot: usize, numbers: &[usize]) {
        let mine = &self.mine[slot];
        self.bulk.is_dry &= numbers.iter().all(|at| mine.taken.has(*at));
    }

    /// Counts what came, once a tick.
    pub(super) fn tend_bulk(&mut self, now: Time, since: Span) {
        let total = self.counters.from_heads + self.counters.from_peers;
        let rate = (total - self.bulk.came) * 1_000_000 / since.0;
        self.bulk.rate = (self.bulk.rate * 15 + rate) / 16;
        let most = self.bulk.rate_most;
        self.bulk.rate_most = self.bulk.rate.max(most - most / 512);
        if total > self.bulk.came {
            self.bulk.moved = now;
        }
        self.bulk.came = total;
        self.bulk.is_dry = false;
    }

    /// Whether a chunk is fetched because all of a version is.
    pub(super) fn is_filled(&self, chunk: ChunkId) -> bool {
        let lacks = |mine: &super::Mine| {
            let at = mine.table.find(chunk);
            mine.goal == Goal::All && at.is_some_and(|at| !mine.held.has(at))
        };
        self.mine.iter().any(lacks)
    }

    /// The next chunk that this member owns and nobody holds, from a head.
    fn pick_owned(&mut self, now: Time) -> bool {
        let Some(head) = self.free_head(now) else {
            return false;
        };
        let is_rescanned = now.since(self.bulk.scanned) > SCAN_AGAIN;
        let mut left = SCAN;
        for slot in 0..self.mine.len() {
            let mine = &mut self.mine[slot];
            if mine.goal == Goal::Nothing {
                continue;
            }
            if mine.cursor >= mine.table.len() && is_rescanned {
                (mine.cursor, mine.back) = (0, mine.table.len());
                self.bulk.scanned = now;
            }
            let table = Arc::clone(&mine.table);
            let (start, mut offset) = (mine.start, mine.cursor);
            while offset < table.len() && left > 0 {
                let at = (start + offset) % table.len();
                let mine = &self.mine[slot];
                if !mine.taken.has(at) && mine.holders[at] == 0 {
                    left -= 1;
                    let chunk = table.chunks()[at];
                    let first = self.owners_of(chunk).first().copied();
                    // Where nobody gives anything each fetches for itself.
                    let is_first = first.is_none_or(|first| first == self.config.id);
                    if is_first || bugs::made(Bug::OwnsAll) {
                        self.mine[slot].cursor = offset + 1;
                        self.fetch_bulk(now, chunk, head);
                        return true;
                    }
                }
                offset += 1;
            }
            self.mine[slot].cursor = offset;
        }
        false
    }

    /// When all that it owns is here: a chunk whose first owner has not come to it, by
    /// its second, from the other end. What one slow owner alone had left would go to all
    /// others over its one link.
    fn pick_for_another(&mut self, now: Time) -> bool {
        let wanted = |mine: &&super::Mine| mine.goal > Goal::Nothing;
        let mut all = self.mine.iter().filter(wanted);
        if !all.all(|mine| mine.cursor >= mine.table.len()) {
            return false;
        }
        // While its own share is on its way, so is that of others.
        let free = self.free_head(now);
        let Some(head) = free.filter(|head| self.links[head].bulk_asks == 0) else {
            return false;
        };
        let mut left = SCAN;
        for slot in 0..self.mine.len() {
            if self.mine[slot].goal == Goal::Nothing {
                continue;
            }
            let table = Arc::clone(&self.mine[slot].table);
            let mut at = self.mine[slot].back;
            while at > 0 && left > 0 {
                at -= 1;
                let mine = &self.mine[slot];
                if !mine.taken.has(at) && mine.holders[at] == 0 {
                    left -= 1;
                    let chunk = table.chunks()[at];
                    if self.owners_of(chunk).get(1) == Some(&self.config.id) {
                        self.mine[slot].back = at;
                        self.fetch_bulk(now, chunk, head);
                        return true;
                    }
                }
            }
            self.mine[slot].back = at;
        }
        false
    }

    /// A head that may be asked for more.
    fn free_head(&self, now: Time) -> Option<PeerId> {
        let window = |delay: Span| {
            if delay < HEAD_QUICK {
                (self.bulk.window() / 2).max(HEAD_WINDOW)
            } else if delay < HEAD_BUSY {
                HEAD_WINDOW
            } else {
                HEAD_WINDOW_BUSY
            }
        };
        let heads = self
            .links
            .iter()
            .filter(|(_, link)| link.is_up && link.is_head);
        let free =
            heads.filter(|(_, link)| link.bulk_asks < window(link.told()) && !link.is_avoided(now));
        let least = free.min_by_key(|(_, link)| (link.cost(now, Class::Bulk), link.bulk_asks));
        least.map(|(peer, _)| *peer)
    }

    /// The rarest of what the least busy peer holds and lacks here.
    fn pick_rare(&mut self, now: Time) -> bool {
        let window = (self.bulk.window() / 4).clamp(2, PEER_WINDOW_MAX);
        let mut peers = Vec::new();
        for (peer, link) in &self.links {
            let is_free = link.is_up && !link.is_head && link.bulk_asks < window;
            // Most often there is somebody with news, and nobody else has any.
            if !is_free || link.is_avoided(now) || !self.may_give(link) {
                continue;
            }
            let is_far = link.rack != self.config.rack;
            let cost = link.cost(now, Class::Bulk).0 / 20_000;
            peers.push(((is_far, cost, link.bulk_asks, self.rng.next()), *peer));
        }
        peers.sort_unstable();
        for (_, peer) in peers {
            if let Some(chunk) = self.rarest_of(peer) {
                self.fetch_bulk(now, chunk, peer);
                return true;
            }
        }
        false
    }

    /// Whether a peer holds anything that lacks here.
    fn may_give(&self, link: &Link<P>) -> bool {
        link.slots.values().any(|slot| {
            let mine = self.mine.iter().find(|mine| mine.is(slot.version));
            mine.is_some_and(|mine| slot.held.exceeds(&mine.taken))
        })
    }

    fn rarest_of(&mut self, peer: PeerId) -> Option<ChunkId> {
        let link = self.links.get(&peer)?;
        let mut best: Option<(u16, ChunkId)> = None;
        for slot in link.slots.values() {
            let mine = self.mine.iter().find(|mine| mine.is(slot.version));
            let Some(mine) = mine.filter(|mine| mine.goal > Goal::Nothing) else {
                continue;
            };
            let start = self.rng.below(mine.table.len());
            for at in slot.held.without(&mine.taken, start, SAMPLE) {
                let chunk = mine.table.chunks()[at];
                let is_rarer = best.is_none_or(|(holders, _)| mine.holders[at] < holders);
                if is_rarer && (mine.goal == Goal::All || self.owns(chunk)) {
                    best = Some((mine.holders[at], chunk));
                }
            }
        }
        best.map(|(_, chunk)| chunk)
    }

    /// What nobody holds and its owner does not fetch by itself: the owner is asked for
    /// it, or a head when there is no other.
    fn pick_stalled(&mut self, now: Time) -> bool {
        let is_busy = self.bulk.in_flight > self.bulk.window() / 4;
        let is_early = now.since(self.bulk.stalled) < STALLED_EVERY;
        if is_busy || is_early || now.since(self.bulk.moved) < STALL {
            return false;
        }
        self.bulk.stalled = now;
        let Some(chunk) = self.some_unheld() else {
            return false;
        };
        let owners = self.owners_of(chunk);
        let me = self.config.id;
        let others = owners.into_iter().filter(|owner| *owner != me);
        for owner in others.collect::<Vec<_>>() {
            let is_avoided = self
                .links
                .get(&owner)
                .is_some_and(|link| link.is_avoided(now));
            if !is_avoided && self.connect(now, owner) {
                self.fetch_bulk(now, chunk, owner);
                return true;
            }
        }
        if let Some(head) = self.free_head(now) {
            self.fetch_bulk(now, chunk, head);
            return true;
        }
        false
    }

    fn some_unheld(&mut self) -> Option<ChunkId> {
        for slot in 0..self.mine.len() {
            let start = self.rng.below(self.mine[slot].table.len());
            let mine = &self.mine[slot];
            if mine.goal == Goal::Nothing {
                continue;
            }
            let lacking = mine
                .taken
                .lacking(&crate::bits::Bits::new(0), start, SAMPLE);
            let chunks = lacking.iter().map(|at| mine.table.chunks()[*at]);
            let mut wanted = chunks.filter(|chunk| mine.goal == Goal::All || self.owns(*chunk));
            if let Some(chunk) = wanted.next() {
                return Some(chunk);
            }
        }
        None
    }

    fn fetch_bulk(&mut self, now: Time, chunk: ChunkId, peer: PeerId) {
        self.wants
            .entry(chunk)
            .or_insert_with(|| Want::new(Class::Bulk));
        self.set_taken(chunk, true);
        self.ask(now, peer, chunk);
    }
}

/// A window is in chunks, and a chunk is no larger than any may be.
const _: () = assert!(rootstock_core::CHUNK_BYTES <= CHUNK_BYTES_MAX as u64);
