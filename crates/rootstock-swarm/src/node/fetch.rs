//! Chunks that are wanted: whom to ask, and whom when that takes too long.

use rootstock_core::{ChunkId, PeerId};

use super::{Action, Body, Leaving, Node, Payload};
use crate::bugs::{self, Bug};
use crate::node::link::Ask;
use crate::time::{Span, Time};
use crate::wire::{Class, Message, Refusal};

/// Questions for one chunk at once.
const ASKS_MAX: usize = 2;

/// Chunks that are wanted at once.
const WANTS_MAX: usize = 4096;

/// When nobody is left to be asked, all are asked again after this.
const AGAIN: Span = Span::millis(250);

/// What is farther away is asked when what is near would take longer by this.
const FAR_COST: Span = Span::millis(150);
/// What a head is asked for by who does not own the chunk: its owners are asked first,
/// unless they have that much to do.
const HEAD_COST: Span = Span::millis(250);
/// What nobody waits for is not taken from heads beside its owners.
const LAST_COST: Span = Span::seconds(3600);
/// Who owns a chunk that somebody waits for asks a head, unless somebody near has it.
const NEAR_COST: Span = Span::millis(10);
/// An owner that is asked for what it lacks has to fetch it.
const OWNER_COST: Span = Span::millis(2);
/// It takes that much to connect.
const CONNECT_COST: Span = Span::millis(20);

/// Who waits for a chunk's first byte waits for at least so long before another is asked.
const BEGIN_MIN: Span = Span::millis(80);
const BEGIN_BOOT: Span = Span::millis(600);
const BEGIN_BULK: Span = Span::seconds(2);

/// Who sent nothing at all for so long is not busy but gone.
const QUIET: Span = Span::seconds(1);

/// A question that has taken so many times as long as it should is given up.
const OVER: u64 = 8;

/// An answer that has begun brings its bytes at this rate at least.
const RATE_MIN_USER: u64 = 1 << 20;
const RATE_MIN_BULK: u64 = 128 << 10;

/// A chunk that is wanted here, or by others through this member.
pub(super) struct Want {
    pub(super) class: Class,
    /// Whether something on this machine waits for it.
    pub(super) is_local: bool,
    /// Others who wait for it: the number of their question.
    pub(super) relays: Vec<(PeerId, u32)>,
    pub(super) asks: Vec<(PeerId, u32)>,
    /// The question whose answer is passed on.
    pub(super) lead: Option<(PeerId, u32)>,
    /// Whether whoever was asked first has it, or is a head: then others may wait for it
    /// here, and nobody waits in a circle.
    pub(super) is_grounded: bool,
    tried: Vec<PeerId>,
    /// Who is said to have it.
    hint: Option<PeerId>,
    insists: bool,
    retry_at: Time,
}

impl Want {
    pub(super) fn new(class: Class) -> Self {
        Self {
            class,
            is_local: false,
            relays: Vec::new(),
            asks: Vec::new(),
            lead: None,
            is_grounded: true,
            tried: Vec::new(),
            hint: None,
            insists: false,
            retry_at: Time::default(),
        }
    }
}

impl<P: Payload> Node<P> {
    /// Wants a chunk for this machine. [`Action::Arrived`] brings it.
    pub fn want(&mut self, now: Time, chunk: ChunkId, class: Class) {
        if !self.wants.contains_key(&chunk) && self.wants.len() >= WANTS_MAX {
            self.actions.push_back(Action::NoSource { chunk });
            return;
        }
        self.set_taken(chunk, true);
        let want = self.wants.entry(chunk).or_insert_with(|| Want::new(class));
        let is_more = class > want.class || !want.is_local;
        want.is_local = true;
        want.class = want.class.max(class);
        if is_more && class.is_urgent() {
            // What nobody waited for is asked for anew, beside.
            self.dispatch(now, chunk);
        } else if self
            .wants
            .get(&chunk)
            .is_some_and(|want| want.asks.is_empty())
        {
            self.dispatch(now, chunk);
        }
    }

    /// Wants it no more.
    pub fn unwant(&mut self, now: Time, chunk: ChunkId) {
        if let Some(want) = self.wants.get_mut(&chunk) {
            want.is_local = false;
            self.settle(chunk);
            self.pump(now);
        }
    }

    /// Whether what came is the chunk that was asked for.
    pub fn checked(&mut self, now: Time, peer: PeerId, request: u32, is_right: bool) {
        let link = self.links.get_mut(&peer);
        let Some(ask) = link.and_then(|link| link.take_ask(request)) else {
            return;
        };
        let wire_bytes = ask.body.as_ref().map_or(0, |body| body.wire_bytes);
        if !is_right {
            self.counters.wasted += u64::from(wire_bytes);
            self.counters.liars += 1;
            self.ask_failed(now, peer, &ask);
            self.end(now, peer, Leaving::Lied);
            return;
        }
        if let Some(link) = self.links.get_mut(&peer) {
            let took = ask.begun.map_or(Span(0), |begun| ask.moved.since(begun));
            link.did_well(now, wire_bytes, took);
            let counter = if link.is_head {
                &mut self.counters.from_heads
            } else {
                &mut self.counters.from_peers
            };
            *counter += u64::from(wire_bytes);
        }
        self.arrived(peer, ask);
        self.pump(now);
    }

    fn arrived(&mut self, peer: PeerId, ask: Ask<P>) {
        let (chunk, request) = (ask.chunk, ask.request);
        let Some(want) = self.wants.remove(&chunk) else {
            return;
        };
        for (other, number) in want.asks {
            if (other, number) != (peer, request) {
                self.cancel(other, number);
            }
        }
        if let Some(mut body) = ask.body {
            body.is_checked = true;
            // Who was sent the begin of another answer cannot go on with this one.
            if want.lead.is_some_and(|lead| lead != (peer, request)) {
                self.break_relays(chunk);
            }
            self.bodies.insert(chunk, body);
        }
        for (relay, number) in want.relays {
            self.relay_may_go_on(relay, number);
        }
        if !self.keeps(chunk) {
            self.set_taken(chunk, false);
            self.unannounce(chunk);
            self.release(chunk);
        }
        self.start_uploads();
    }

    /// Nobody may be left who wants it.
    pub(super) fn settle(&mut self, chunk: ChunkId) {
        let is_over = |want: &Want| !want.is_local && want.relays.is_empty();
        if !self.wants.get(&chunk).is_some_and(is_over) {
            return;
        }
        // What is filled goes on; of it there is no local reader.
        let is_asked = self
            .wants
            .get(&chunk)
            .is_some_and(|want| !want.asks.is_empty());
        if is_asked && self.is_filled(chunk) {
            return;
        }
        self.give_up(chunk);
    }

    /// Wants a chunk no more; filling comes to it again.
    fn give_up(&mut self, chunk: ChunkId) {
        let Some(want) = self.wants.remove(&chunk) else {
            return;
        };
        for (peer, request) in want.asks {
            self.cancel(peer, request);
        }
        self.set_taken(chunk, false);
        self.unannounce(chunk);
    }

    /// Asks a peer, which is connected or will be.
    pub(super) fn ask(&mut self, now: Time, peer: PeerId, chunk: ChunkId) {
        let has_it = self.holds(peer, chunk);
        let Some(want) = self.wants.get_mut(&chunk) else {
            return;
        };
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let class = want.class;
        let request = link.ask(now, chunk, class);
        // What nobody waits for is not sent back to an owner that was too slow with it.
        let insists = want.insists || (class == Class::Bulk && !want.tried.is_empty());
        want.asks.push((peer, request));
        want.tried.push(peer);
        want.is_grounded &= has_it;
        link.control.push_back(Message::Ask {
            request,
            chunk,
            class,
            insists,
        });
        self.bulk.in_flight += usize::from(class == Class::Bulk);
        self.ready(peer);
    }

    /// Takes a question back.
    pub(super) fn cancel(&mut self, peer: PeerId, request: u32) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let Some(ask) = link.take_ask(request) else {
            return;
        };
        let got = ask.body.as_ref().map_or(0, |body| body.got);
        self.counters.wasted += u64::from(got);
        self.bulk.in_flight -= usize::from(ask.class == Class::Bulk);
        // One that was not sent yet need not be.
        let before = link.control.len();
        let is_it = |message: &Message<P>| matches!(message, Message::Ask { request: number, .. } if *number == request);
        link.control.retain(|message| !is_it(message));
        if link.control.len() == before {
            self.say(peer, Message::Cancel { request });
        }
    }

    /// Asks whoever promises most for a chunk that somebody waits for.
    pub(super) fn dispatch(&mut self, now: Time, chunk: ChunkId) {
        let Some(want) = self.wants.get(&chunk) else {
            return;
        };
        if want.asks.len() >= ASKS_MAX {
            return;
        }
        while let Some(peer) = self.best(now, chunk) {
            if self.connect(now, peer) {
                let want = self.wants.get(&chunk);
                let is_second = want.is_some_and(|want| !want.asks.is_empty());
                self.counters.hedged += u64::from(is_second);
                self.ask(now, peer, chunk);
                return;
            }
            // It cannot be reached by now; the next best is asked.
            if let Some(want) = self.wants.get_mut(&chunk) {
                want.tried.push(peer);
            }
        }
        let Some(want) = self.wants.get_mut(&chunk) else {
            return;
        };
        if !want.asks.is_empty() {
            // Who still is to answer may be gone: the others may be asked again.
            let asks = &want.asks;
            want.tried
                .retain(|peer| asks.iter().any(|(asked, _)| asked == peer));
            return;
        }
        // All were asked, or nobody is there.
        want.tried.clear();
        want.insists = true;
        want.retry_at = now + AGAIN;
        if want.is_local {
            self.actions.push_back(Action::NoSource { chunk });
        } else {
            self.refuse_relays(chunk);
            self.give_up(chunk);
        }
    }

    /// Who is to be asked next.
    fn best(&mut self, now: Time, chunk: ChunkId) -> Option<PeerId> {
        let want = self.wants.get(&chunk)?;
        let owners = self.owners_of(chunk);
        let owns = owners.contains(&self.config.id);
        let asked = |peer: &PeerId| {
            want.tried.contains(peer) || want.relays.iter().any(|(relay, _)| relay == peer)
        };
        if let Some(hint) = want.hint
            && !asked(&hint)
            && (self.links.contains_key(&hint) || self.members.contains_key(&hint))
        {
            return Some(hint);
        }
        let mut best: Option<(Span, u64, PeerId)> = None;
        let mut offer = |cost: Span, tie: u64, peer: PeerId| {
            let offered = (cost, tie, peer);
            best = Some(best.map_or(offered, |best| best.min(offered)));
        };
        let class = want.class;
        // All who wait for a late one would have a head send it again.
        let spares_heads = class == Class::Bulk && !owns && !want.asks.is_empty();
        let mut ties = self.rng.clone();
        for (peer, link) in self.links.iter().filter(|(peer, _)| !asked(peer)) {
            let cost = link.cost(now, class);
            // To the nearest millisecond all are equal.
            let cost = Span(cost.0 / 1000 * 1000);
            let is_far = !link.is_head && link.rack != self.config.rack;
            if link.is_head && spares_heads {
                continue;
            }
            if link.is_head && link.is_up {
                let more = match class {
                    Class::User if owns || want.insists => NEAR_COST,
                    Class::User | Class::Boot => HEAD_COST,
                    Class::Bulk if owns || want.insists => HEAD_COST,
                    // When nobody else has it.
                    Class::Bulk => LAST_COST,
                };
                offer(Span(cost.0 + more.0), ties.next(), *peer);
            } else if self.holds(*peer, chunk) {
                let more = if is_far { FAR_COST } else { Span(0) };
                offer(Span(cost.0 + more.0), ties.next(), *peer);
            }
        }
        // An owner fetches what it lacks, but not for one who does the same.
        if want.is_local && !owns {
            for (rank, peer) in owners.iter().enumerate().filter(|(_, peer)| !asked(peer)) {
                let link = self.links.get(peer);
                let up = link.filter(|link| link.is_up);
                let cost = up.map_or(CONNECT_COST, |link| link.cost(now, class));
                let more = OWNER_COST.0 + rank as u64 * 20_000;
                offer(Span(cost.0 + more), 0, *peer);
            }
        }
        self.rng.next();
        best.map(|(_, _, peer)| peer)
    }

    /// A question has no answer.
    pub(super) fn ask_failed(&mut self, now: Time, peer: PeerId, ask: &Ask<P>) {
        let chunk = ask.chunk;
        self.bulk.in_flight -= usize::from(ask.class == Class::Bulk);
        let got = ask.body.as_ref().map_or(0, |body| body.got);
        self.counters.wasted += u64::from(got);
        let Some(want) = self.wants.get_mut(&chunk) else {
            return;
        };
        want.asks
            .retain(|(other, number)| (*other, *number) != (peer, ask.request));
        if want.lead == Some((peer, ask.request)) {
            want.lead = None;
            self.break_relays(chunk);
            self.unannounce(chunk);
        }
        self.after_failure(now, chunk);
    }

    fn after_failure(&mut self, now: Time, chunk: ChunkId) {
        let Some(want) = self.wants.get(&chunk) else {
            return;
        };
        if !want.asks.is_empty() {
            return;
        }
        if want.is_local || !want.relays.is_empty() {
            self.dispatch(now, chunk);
        } else {
            self.give_up(chunk);
        }
    }

    pub(super) fn refused(
        &mut self,
        now: Time,
        peer: PeerId,
        request: u32,
        why: Refusal,
        hint: Option<PeerId>,
    ) {
        let link = self.links.get_mut(&peer);
        let Some(ask) = link.and_then(|link| link.take_ask(request)) else {
            return;
        };
        let chunk = ask.chunk;
        match why {
            Refusal::Lacking => self.lacks(peer, chunk),
            Refusal::Busy => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.strike(now);
                }
            }
            Refusal::Broken | Refusal::Elsewhere => {}
        }
        // One that did badly is no help.
        let hint = hint.filter(|hint| {
            let link = self.links.get(hint);
            !link.is_some_and(|link| link.is_avoided(now)) && !self.is_out(now, *hint)
        });
        if let Some(want) = self.wants.get_mut(&chunk) {
            want.hint = hint;
            want.insists |= why == Refusal::Elsewhere;
            // A head that sent it elsewhere may be asked again, with emphasis.
            if why == Refusal::Elsewhere {
                want.tried.retain(|tried| *tried != peer);
            }
        }
        // What nobody waits for follows a hint, too.
        let follows = why == Refusal::Elsewhere && hint.is_some();
        self.bulk.in_flight -= usize::from(ask.class == Class::Bulk);
        if let Some(want) = self.wants.get_mut(&chunk) {
            want.asks
                .retain(|(other, number)| (*other, *number) != (peer, request));
            if want.lead == Some((peer, request)) {
                want.lead = None;
                self.break_relays(chunk);
                self.unannounce(chunk);
            }
        }
        if follows {
            self.dispatch(now, chunk);
        } else {
            self.after_failure(now, chunk);
        }
    }

    /// An answer begins; whether it may.
    pub(super) fn begun(&mut self, now: Time, peer: PeerId, request: u32, body: Body<P>) -> bool {
        if !body.is_sound() {
            return false;
        }
        let Some(link) = self.links.get_mut(&peer) else {
            return true;
        };
        // One that was taken back may have begun before that was heard.
        let Some(ask) = link.asks.get_mut(&request) else {
            return true;
        };
        if ask.body.is_some() {
            return false;
        }
        ask.begun = Some(now);
        ask.moved = now;
        ask.body = Some(body);
        let (chunk, waited) = (ask.chunk, now.since(ask.at));
        if ask.class.is_urgent() {
            link.begin_delay = Span((link.begin_delay.0 * 7 + waited.0) / 8);
        }
        let keeps = self.keeps(chunk);
        let Some(want) = self.wants.get_mut(&chunk) else {
            return true;
        };
        if want.lead.is_none() {
            want.lead = Some((peer, request));
            let relays = want.relays.clone();
            for (relay, number) in relays {
                self.relay_may_go_on(relay, number);
            }
            if keeps {
                self.announce(chunk);
            }
            self.start_uploads();
        }
        true
    }

    /// Bytes of an answer came; whether they belong to it.
    pub(super) fn came(&mut self, now: Time, peer: PeerId, request: u32, data: P) -> bool {
        let len = data.len() as u64;
        let Some(link) = self.links.get_mut(&peer) else {
            return true;
        };
        let Some(ask) = link.asks.get_mut(&request) else {
            self.counters.wasted += len;
            return true;
        };
        let Some(body) = ask.body.as_mut() else {
            return false;
        };
        if !body.push(data) {
            return false;
        }
        ask.moved = now;
        link.moved = now;
        let chunk = ask.chunk;
        if body.is_complete() {
            let (codec, raw_bytes) = (body.codec, body.raw_bytes);
            let pieces = body.pieces.clone();
            // It is out of flight; what is left is to look at it.
            self.bulk.in_flight -= usize::from(ask.class == Class::Bulk);
            link.bulk_asks -= usize::from(ask.class == Class::Bulk);
            ask.class = Class::User;
            let keep = self.keeps(chunk);
            self.actions.push_back(Action::Arrived {
                chunk,
                peer,
                request,
                codec,
                raw_bytes,
                pieces,
                keep,
            });
        } else if let Some(want) = self.wants.get(&chunk)
            && want.lead == Some((peer, request))
        {
            let relays = want.relays.clone();
            for (relay, _) in relays {
                self.ready(relay);
            }
        }
        true
    }

    /// Looks for questions that take too long, and for wants that nobody was asked for.
    pub(super) fn tend_wants(&mut self, now: Time) {
        let ends = self.bulk.is_at_end;
        let mut late = Vec::new();
        for (peer, link) in &mut self.links {
            let told = link.cost(now, Class::Bulk);
            let begin = Span((link.begin_delay.0 * 4).max(BEGIN_MIN.0));
            let quiet = now.since(link.moved);
            for ask in link.asks.values_mut() {
                let times = lateness(ask, now, (told, begin, quiet), ends);
                if times >= OVER || times > ask.late_times {
                    ask.late_times = times;
                    late.push((*peer, ask.request, times >= OVER));
                }
            }
        }
        for (peer, request, is_over) in late {
            self.was_late(now, peer, request, is_over);
        }
        let idle = self.wants.iter();
        let idle = idle.filter(|(_, want)| want.asks.is_empty() && want.retry_at <= now);
        let idle: Vec<ChunkId> = idle.map(|(chunk, _)| *chunk).collect();
        for chunk in idle {
            self.dispatch(now, chunk);
        }
    }

    /// A question takes too long: another is asked beside, or in its place.
    fn was_late(&mut self, now: Time, peer: PeerId, request: u32, is_over: bool) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let Some(ask) = link.asks.get(&request) else {
            return;
        };
        let (chunk, class) = (ask.chunk, ask.class);
        let is_at_end = self.bulk.is_at_end;
        // To be asked beside another is no fault of who takes a little longer.
        if is_over || !(is_at_end || class.is_urgent()) {
            link.strike(now);
            self.mind(now, peer);
        }
        let want = self.wants.get(&chunk);
        let waits = want.is_some_and(|want| want.is_local || !want.relays.is_empty());
        if !is_over && (class.is_urgent() || waits || is_at_end) {
            // Whichever comes first is taken.
            self.dispatch(now, chunk);
            return;
        }
        let link = self.links.get_mut(&peer);
        if let Some(ask) = link.and_then(|link| link.take_ask(request)) {
            self.say(peer, Message::Cancel { request });
            self.ask_failed(now, peer, &ask);
        }
    }
}

/// How many times as long as it should a question has taken, by a peer that said how
/// long it takes, took so long to begin of late, and was quiet for so long.
fn lateness<P: Payload>(ask: &Ask<P>, now: Time, peer: (Span, Span, Span), ends: bool) -> u64 {
    if bugs::made(Bug::WaitsForEver) {
        return 0;
    }
    let (told, begin, quiet) = peer;
    let urgent = ask.class.is_urgent();
    let Some(begun) = ask.begun else {
        let limit = match ask.class {
            Class::User => begin,
            Class::Boot => Span(BEGIN_BOOT.0.max(begin.0)),
            Class::Bulk if ends => Span(BEGIN_BOOT.0.max(told.0)),
            // Who sends other answers gets to this one.
            Class::Bulk if quiet.0 < QUIET.0.max(told.0) => return 0,
            Class::Bulk => Span(BEGIN_BULK.0.max(2 * told.0)),
        };
        return now.since(ask.at).0 / limit.0;
    };
    let Some(body) = ask.body.as_ref().filter(|body| !body.is_complete()) else {
        return 0;
    };
    let rate = if urgent { RATE_MIN_USER } else { RATE_MIN_BULK };
    let allowed = Span::of(u64::from(body.got) + 64 * 1024, rate);
    now.since(begun).0 / (allowed.0 + if urgent { 100_000 } else { 1_000_000 })
}
