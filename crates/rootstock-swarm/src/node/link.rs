//! A connection: what its other end holds, and what is asked over it.

use std::collections::{BTreeMap, VecDeque};

use rootstock_core::{ChunkId, Digest, PeerId};

use super::{Body, Node, Payload};
use crate::bits::Bits;
use crate::holdings::TABLE_CHUNKS_MAX;
use crate::time::{Span, Time};
use crate::wire::{Class, Message};

/// What a peer is taken to send a second, until it did.
const RATE_FIRST: u64 = 20_000_000;

/// The most versions of which a peer says what it holds.
const SLOTS_MAX: usize = 8;

/// The most bits of all those together: a peer's word takes no more memory than that.
const BITS_MAX: usize = 1 << 24;

/// The most numbers that wait to be said; then all is said anew.
const NEWS_MAX: usize = 1 << 16;

/// How long a peer that did badly is asked last; it doubles.
const AVOID_FIRST: Span = Span::seconds(1);
const AVOID_DOUBLINGS_MAX: u32 = 6;

/// One connection.
pub(super) struct Link<P> {
    pub(super) is_up: bool,
    pub(super) is_ready: bool,
    pub(super) is_head: bool,
    /// Whether it sends others anything.
    pub(super) serves: bool,
    pub(super) rack: String,
    /// When something came.
    pub(super) heard: Time,
    /// When a part of a chunk came.
    pub(super) moved: Time,
    /// When it had room.
    pub(super) pulled: Time,
    /// When it was of use.
    pub(super) used: Time,
    /// What is said before all else.
    pub(super) control: VecDeque<Message<P>>,
    /// By the sender's slots.
    pub(super) slots: BTreeMap<u8, Slot>,
    /// What is asked over it, by the number of the question.
    pub(super) asks: BTreeMap<u32, Ask<P>>,
    /// Those of them that nobody waits for.
    pub(super) bulk_asks: usize,
    next_request: u32,
    /// Numbers that are to be said, by slot and whether they are held now.
    pub(super) news: BTreeMap<(u8, bool), Vec<u32>>,
    delay: Span,
    /// Asked since it told its delay.
    asked_since: u32,
    /// Others were sent there since it told its delay.
    pub(super) sent_there: u32,
    /// Bytes a second, while it sends.
    pub(super) rate: u64,
    /// Between a question that is waited for and the begin of its answer.
    pub(super) begin_delay: Span,
    pub(super) strikes: u32,
    avoided_until: Time,
}

/// A version of which the other end holds something.
pub(super) struct Slot {
    pub(super) version: Digest,
    pub(super) held: Bits,
}

/// A question.
pub(super) struct Ask<P> {
    pub(super) chunk: ChunkId,
    pub(super) class: Class,
    pub(super) request: u32,
    pub(super) at: Time,
    /// When bytes came last.
    pub(super) moved: Time,
    pub(super) begun: Option<Time>,
    pub(super) body: Option<Body<P>>,
    /// How many times too slow it was found.
    pub(super) late_times: u64,
}

impl<P> Link<P> {
    pub(super) fn new(now: Time) -> Self {
        Self {
            is_up: false,
            is_ready: false,
            is_head: false,
            serves: true,
            rack: String::new(),
            heard: now,
            moved: now,
            pulled: now,
            used: now,
            control: VecDeque::new(),
            slots: BTreeMap::new(),
            asks: BTreeMap::new(),
            bulk_asks: 0,
            next_request: 1,
            news: BTreeMap::new(),
            delay: Span::default(),
            asked_since: 0,
            sent_there: 0,
            rate: RATE_FIRST,
            begin_delay: Span::millis(20),
            strikes: 0,
            avoided_until: Time::default(),
        }
    }

    pub(super) fn came_up(&mut self, now: Time, rack: &str, is_head: bool) {
        self.is_up = true;
        self.is_head = is_head;
        rack.clone_into(&mut self.rack);
        (self.heard, self.moved) = (now, now);
        (self.pulled, self.used) = (now, now);
        for ask in self.asks.values_mut() {
            (ask.at, ask.moved) = (now, now);
        }
    }

    pub(super) fn told_delay(&mut self, delay_ms: u32) {
        self.delay = Span::millis(u64::from(delay_ms));
        self.asked_since = 0;
        self.sent_there = 0;
    }

    /// What it said it takes to begin. It says so anew when that is much else.
    pub(super) fn told(&self) -> Span {
        self.delay
    }

    /// How long a chunk would take to begin here, as far as is known.
    pub(super) fn cost(&self, now: Time, class: Class) -> Span {
        let told = self.told();
        let queue = if class.is_urgent() { Span(0) } else { told };
        let own = Span::of(u64::from(self.asked_since) << 18, self.rate);
        let avoided = self.avoided_until.since(now);
        Span(queue.0 + own.0.min(5_000_000) + 10 * avoided.0)
    }

    /// Notes that it did badly, once for all that it is asked at that time.
    pub(super) fn strike(&mut self, now: Time) {
        if self.is_avoided(now) {
            return;
        }
        let doublings = self.strikes.min(AVOID_DOUBLINGS_MAX);
        self.avoided_until = now + Span(AVOID_FIRST.0 << doublings);
        self.strikes += 1;
    }

    /// Whether it did badly of late.
    pub(super) fn is_avoided(&self, now: Time) -> bool {
        self.avoided_until > now
    }

    /// Notes that it did well.
    pub(super) fn did_well(&mut self, now: Time, bytes: u32, took: Span) {
        self.used = now;
        self.strikes = self.strikes.saturating_sub(1);
        self.asked_since = self.asked_since.saturating_sub(1);
        // What came in one go says nothing about a rate.
        if took.0 > 100 {
            let rate = u64::from(bytes) * 1_000_000 / took.0;
            self.rate = (self.rate * 3 + rate) / 4;
        }
    }

    /// The number of the next question.
    pub(super) fn ask(&mut self, now: Time, chunk: ChunkId, class: Class) -> u32 {
        let request = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        self.asked_since += 1;
        self.used = now;
        self.bulk_asks += usize::from(class == Class::Bulk);
        let ask = Ask {
            chunk,
            class,
            request,
            at: now,
            moved: now,
            begun: None,
            body: None,
            late_times: 0,
        };
        self.asks.insert(request, ask);
        request
    }

    pub(super) fn take_ask(&mut self, request: u32) -> Option<Ask<P>> {
        let ask = self.asks.remove(&request)?;
        self.bulk_asks -= usize::from(ask.class == Class::Bulk);
        Some(ask)
    }
}

impl<P: Payload> Node<P> {
    /// What is held here is said to a new peer.
    pub(super) fn introduce(&mut self, peer: PeerId) {
        if !self.config.serves {
            // Nobody is to ask it.
            return;
        }
        let all: Vec<Message<P>> = (0..self.mine.len())
            .flat_map(|slot| self.mine[slot].said(slot as u8))
            .collect();
        if let Some(link) = self.links.get_mut(&peer) {
            link.news.clear();
            link.control.extend(all);
        }
    }

    pub(super) fn told_version(
        &mut self,
        peer: PeerId,
        slot: u8,
        version: Digest,
        chunks: u32,
    ) -> bool {
        let table = self.mine.iter().find(|mine| mine.is(version));
        if table.is_some_and(|mine| mine.table.len() != chunks as usize) {
            return false;
        }
        self.empty_slot(peer, slot);
        let Some(link) = self.links.get_mut(&peer) else {
            return true;
        };
        let others = link.slots.values().map(|slot| slot.held.len());
        let bits = others.sum::<usize>() + chunks as usize;
        if link.slots.len() >= SLOTS_MAX || bits > BITS_MAX.min(TABLE_CHUNKS_MAX) {
            return false;
        }
        let held = Bits::new(chunks as usize);
        link.slots.insert(slot, Slot { version, held });
        true
    }

    pub(super) fn told_held(&mut self, peer: PeerId, slot: u8, first: u32, bits: &[u8]) -> bool {
        let mut added = Vec::new();
        let Some(held) = self.slot(peer, slot) else {
            return false;
        };
        held.held
            .set_bytes(first as usize, bits, |at| added.push(at));
        let version = held.version;
        self.count(peer, version, &added, true);
        true
    }

    pub(super) fn told_gained(&mut self, peer: PeerId, slot: u8, numbers: &[u32]) -> bool {
        let Some(held) = self.slot(peer, slot) else {
            return false;
        };
        let numbers = numbers.iter().map(|at| *at as usize);
        let added: Vec<usize> = numbers.filter(|at| held.held.set(*at)).collect();
        let version = held.version;
        self.count(peer, version, &added, true);
        true
    }

    pub(super) fn told_lost(&mut self, peer: PeerId, slot: u8, numbers: &[u32]) -> bool {
        let Some(held) = self.slot(peer, slot) else {
            return false;
        };
        let numbers = numbers.iter().map(|at| *at as usize);
        let removed: Vec<usize> = numbers.filter(|at| held.held.clear(*at)).collect();
        let version = held.version;
        self.count(peer, version, &removed, false);
        true
    }

    /// What a peer held is not to be had from it any more.
    pub(super) fn forget_holdings(&mut self, link: &Link<P>) {
        if link.is_head {
            return;
        }
        for slot in link.slots.values() {
            let all = slot.held.without(&Bits::new(0), 0, usize::MAX);
            if let Some(mine) = self.mine.iter_mut().find(|mine| mine.is(slot.version)) {
                mine.count(&all, false);
            }
        }
    }

    /// Whether a peer said that it holds a chunk; a head holds all.
    pub(super) fn holds(&self, peer: PeerId, chunk: ChunkId) -> bool {
        let Some(link) = self.links.get(&peer).filter(|link| link.is_up) else {
            return false;
        };
        let in_slot = |slot: &Slot| {
            let mine = self.mine.iter().find(|mine| mine.is(slot.version));
            let at = mine.and_then(|mine| mine.table.find(chunk));
            at.is_some_and(|at| slot.held.has(at))
        };
        link.is_head || link.slots.values().any(in_slot)
    }

    /// A peer does not have a chunk, whatever it said.
    pub(super) fn lacks(&mut self, peer: PeerId, chunk: ChunkId) {
        let slots = self.links.get(&peer).map(|link| &link.slots);
        let found = slots.into_iter().flatten().filter_map(|(slot, held)| {
            let mine = self.mine.iter().find(|mine| mine.is(held.version))?;
            Some((*slot, mine.table.find(chunk)? as u32))
        });
        let found: Vec<(u8, u32)> = found.collect();
        for (slot, at) in found {
            self.told_lost(peer, slot, &[at]);
        }
    }

    fn slot(&mut self, peer: PeerId, slot: u8) -> Option<&mut Slot> {
        self.links.get_mut(&peer)?.slots.get_mut(&slot)
    }

    fn empty_slot(&mut self, peer: PeerId, slot: u8) {
        let link = self.links.get_mut(&peer);
        let Some(old) = link.and_then(|link| link.slots.remove(&slot)) else {
            return;
        };
        let all = old.held.without(&Bits::new(0), 0, usize::MAX);
        self.count(peer, old.version, &all, false);
    }

    /// Heads hold everything, and do not make a chunk less rare.
    fn count(&mut self, peer: PeerId, version: Digest, numbers: &[usize], more: bool) {
        if self.links.get(&peer).is_some_and(|link| link.is_head) {
            return;
        }
        if let Some(slot) = self.mine.iter().position(|mine| mine.is(version)) {
            self.mine[slot].count(numbers, more);
            if more {
                self.heard_of_held(slot, numbers);
            }
        }
    }

    /// Notes for all peers that a chunk is held now, or is not any more. It goes with
    /// the next message, or the next tick.
    pub(super) fn tell_all(&mut self, chunk: ChunkId, is_held: bool) {
        if !self.config.serves {
            return;
        }
        let places = self.mine.iter().enumerate().filter_map(|(slot, mine)| {
            let at = mine.table.find(chunk)?;
            Some((slot as u8, at as u32))
        });
        let places: Vec<(u8, u32)> = places.collect();
        for link in self.links.values_mut().filter(|link| link.is_up) {
            for (slot, at) in &places {
                let news = link.news.entry((*slot, is_held)).or_default();
                // The newest word on a chunk is the one that counts.
                news.push(*at);
                if let Some(other) = link.news.get_mut(&(*slot, !is_held)) {
                    other.retain(|number| number != at);
                }
            }
        }
        let all: Vec<PeerId> = self.links.keys().copied().collect();
        for peer in all {
            let link = self.links.get(&peer);
            let news = link.map_or(0, |link| link.news.values().map(Vec::len).sum());
            if news > NEWS_MAX {
                self.introduce(peer);
            }
        }
    }

    /// What is to be said of chunks that came and went.
    pub(super) fn news(&mut self, peer: PeerId) -> Option<Message<P>> {
        let link = self.links.get_mut(&peer)?;
        let ((slot, is_held), mut numbers) = link.news.pop_first()?;
        if numbers.len() > crate::wire::NUMBERS_MAX {
            let rest = numbers.split_off(crate::wire::NUMBERS_MAX);
            link.news.insert((slot, is_held), rest);
        }
        Some(if is_held {
            Message::Gained { slot, numbers }
        } else {
            Message::Lost { slot, numbers }
        })
    }
}
