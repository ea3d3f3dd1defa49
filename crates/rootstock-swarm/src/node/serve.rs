//! Chunks that others ask for: what is sent first, and how much at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rootstock_core::{ChunkId, PeerId};

use super::{Action, Body, Node, Payload, Whole};
use crate::node::fetch::Want;
use crate::node::given::Given;
use crate::time::{Span, Time};
use crate::wire::{Class, Message, Refusal};

/// Answers that nobody waits for and that are under way at once: few, so that each is
/// soon whole and can be passed on.
const ACTIVE_MAX: usize = 8;

/// The same of a head: each of those it sends to may have its link full.
const HEAD_ACTIVE_MAX: usize = 64;

/// Questions that wait, of one peer and of all.
const PEER_UPLOADS_MAX: usize = 192;
const UPLOADS_MAX: usize = 16_384;

/// A peer that had no room for so long does not keep others waiting.
const STUCK: Span = Span::millis(200);

/// What is taken to leave a second, until it did.
const RATE_FIRST: u64 = 50_000_000;

/// How often others are told how long they would wait, when that changed much.
const TELL_EVERY: Span = Span::millis(100);
const TELL_STEP: Span = Span::millis(20);

/// How often all are told what came and went: so often for each of them, and at least.
const NEWS_EACH: Span = Span::millis(3);
const NEWS_MAX: Span = Span::millis(100);

/// What may be sent at once under a limit, in time.
const BURST: Span = Span::millis(100);

/// What goes out.
pub(super) struct Serving {
    uploads: BTreeMap<(PeerId, u32), Upload>,
    /// Those that can begin, best first.
    queue: BTreeSet<(Reverse<Class>, u64, PeerId, u32)>,
    /// How many uploads there are of a chunk.
    users: BTreeMap<ChunkId, usize>,
    loading: BTreeSet<ChunkId>,
    active: usize,
    stuck: usize,
    next: u64,
    rate_max: Option<u64>,
    tokens: u64,
    filled: Time,
    rate: u64,
    sent: u64,
    told: Span,
    told_at: Time,
    news_at: Time,
    /// Bytes of an answer, of late.
    mean_bytes: u64,
    is_yielding: bool,
    /// What a head gave.
    given: Given,
}

/// An answer.
struct Upload {
    chunk: ChunkId,
    class: Class,
    number: u64,
    sent: u32,
    is_begun: bool,
    is_queued: bool,
    is_active: bool,
    /// Whether it is to be answered here, and not sent elsewhere.
    insists: bool,
}

impl Serving {
    pub(super) fn new(rate_max: Option<u64>) -> Self {
        Self {
            uploads: BTreeMap::new(),
            queue: BTreeSet::new(),
            users: BTreeMap::new(),
            loading: BTreeSet::new(),
            active: 0,
            stuck: 0,
            next: 0,
            rate_max,
            tokens: 0,
            filled: Time::default(),
            rate: RATE_FIRST,
            sent: 0,
            told: Span::default(),
            told_at: Time::default(),
            news_at: Time::default(),
            mean_bytes: rootstock_core::CHUNK_BYTES,
            is_yielding: false,
            given: Given::default(),
        }
    }

    /// How many answers wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.uploads.len()
    }

    pub(super) fn set_rate_max(&mut self, rate_max: Option<u64>) {
        self.rate_max = rate_max;
    }

    /// Whether there is leave to send so much now.
    fn allows(&mut self, now: Time) -> bool {
        let Some(max) = self.rate_max else {
            return true;
        };
        let more = max.saturating_mul(now.since(self.filled).0) / 1_000_000;
        let most = max.saturating_mul(BURST.0) / 1_000_000 + u64::from(u16::MAX);
        self.tokens = (self.tokens + more).min(most);
        self.filled = now;
        self.tokens > 0
    }

    /// Bytes that leave a second, about.
    fn pace(&self) -> u64 {
        let most = self.rate_max.unwrap_or(u64::MAX);
        self.rate.min(most).max(10_000)
    }

    /// How long an answer takes, about.
    pub(super) fn each(&self) -> Span {
        Span::of(self.mean_bytes, self.pace())
    }

    /// Who waits for something to begin that others may give as well, the last one first.
    pub(super) fn may_go_elsewhere(&self) -> impl Iterator<Item = (PeerId, u32, ChunkId)> {
        let last = self.queue.iter().rev();
        let last = last.take_while(|(class, ..)| !class.0.is_urgent());
        last.filter_map(|(_, _, peer, request)| {
            let upload = self.uploads.get(&(*peer, *request))?;
            let may = !upload.insists && !upload.is_begun;
            may.then_some((*peer, *request, upload.chunk))
        })
    }

    fn of(&self, peer: PeerId) -> impl Iterator<Item = (&(PeerId, u32), &Upload)> {
        self.uploads.range((peer, 0)..=(peer, u32::MAX))
    }
}

impl<P: Payload> Node<P> {
    /// While the machine's own user waits for a disk or the link, what nobody waits for
    /// elsewhere does.
    pub fn give_way(&mut self, gives_way: bool) {
        self.serving.is_yielding = gives_way;
        if !gives_way {
            self.wake_all();
            self.start_uploads();
        }
    }

    /// A chunk was read, or is not there after all.
    pub fn loaded(&mut self, now: Time, chunk: ChunkId, whole: Option<Whole<P>>) {
        self.serving.loading.remove(&chunk);
        let uploads = self.serving.uploads.iter();
        let mine = uploads.filter(|(_, upload)| upload.chunk == chunk);
        let mine: Vec<(PeerId, u32)> = mine.map(|(key, _)| *key).collect();
        match whole {
            Some(whole) if !mine.is_empty() => {
                self.bodies.insert(chunk, Body::whole(whole));
                mine.iter().for_each(|(peer, _)| self.ready(*peer));
            }
            Some(_) => {}
            None => {
                for (peer, request) in mine {
                    self.finish(peer, request);
                    self.refuse(peer, request, chunk, Refusal::Lacking);
                }
                if !self.config.is_head {
                    self.lost(now, chunk);
                }
            }
        }
        self.start_uploads();
    }

    /// Answers a question of somebody who may not have the chunk, and of which the state
    /// machine was not told: to them it is not here.
    pub fn deny(&mut self, peer: PeerId, request: u32) {
        let (why, hint) = (Refusal::Lacking, None);
        self.say(peer, Message::Refuse { request, why, hint });
    }

    pub(super) fn asked(
        &mut self,
        now: Time,
        peer: PeerId,
        request: u32,
        chunk: ChunkId,
        class: Class,
        insists: bool,
    ) {
        let is_again = self.serving.uploads.contains_key(&(peer, request));
        let is_much = self.serving.of(peer).count() >= PEER_UPLOADS_MAX
            || self.serving.uploads.len() >= UPLOADS_MAX;
        if is_again || is_much || !self.config.serves {
            return self.refuse(peer, request, chunk, Refusal::Busy);
        }
        if !insists
            && class != Class::User
            && let Some(hint) = self.nearer(peer, chunk)
        {
            let why = Refusal::Elsewhere;
            let hint = Some(hint);
            return self.say(peer, Message::Refuse { request, why, hint });
        }
        if self.has(chunk) || self.bodies.contains_key(&chunk) {
            if self.config.is_head {
                self.serving.given.note(chunk, peer);
            }
            self.upload((peer, request), chunk, class, insists);
            self.enqueue(peer, request);
            return self.start_uploads();
        }
        let want = self.wants.get(&chunk);
        let is_coming = want.is_some_and(|want| want.lead.is_some());
        // Who waits for somebody who may be waiting for it helps nobody.
        let is_adrift = want.is_some_and(|want| !want.is_grounded && want.lead.is_none());
        let same_rack = self
            .links
            .get(&peer)
            .is_some_and(|link| link.rack == self.config.rack);
        // Whoever has it was asked for it already.
        let is_asked = want.is_some_and(|want| want.is_grounded && !want.asks.is_empty());
        let fetches = same_rack && (is_asked || (!is_adrift && self.owns(chunk)));
        if !is_coming && !fetches {
            return self.refuse(peer, request, chunk, Refusal::Lacking);
        }
        self.upload((peer, request), chunk, class, insists);
        let want = self.wants.entry(chunk).or_insert_with(|| Want::new(class));
        want.relays.push((peer, request));
        let is_more = class > want.class;
        want.class = want.class.max(class);
        let (has_lead, is_idle) = (want.lead.is_some(), want.asks.is_empty());
        self.set_taken(chunk, true);
        if has_lead {
            self.relay_may_go_on(peer, request);
            self.start_uploads();
        }
        if is_idle || is_more {
            self.dispatch(now, chunk);
        }
    }

    pub(super) fn cancelled(&mut self, peer: PeerId, request: u32) {
        if let Some(chunk) = self.finish(peer, request) {
            self.settle(chunk);
            self.release(chunk);
            self.start_uploads();
        }
    }

    /// A head sends who reads ahead of a boot to a member of its own rack to which it gave
    /// the chunk. It takes part in no version, and does not hear who holds what. Who fills
    /// asks it for what it owns, and for what owners are too slow with: it is not sent back
    /// to those.
    fn nearer(&self, peer: PeerId, chunk: ChunkId) -> Option<PeerId> {
        let rack = &self.links.get(&peer)?.rack;
        let is_near = |other: &PeerId| {
            let link = self.links.get(other).filter(|link| link.is_up);
            let gives = link.is_some_and(|link| link.serves && link.rack == *rack);
            gives && *other != peer
        };
        self.serving.given.of(chunk).find(is_near)
    }

    fn refuse(&mut self, peer: PeerId, request: u32, chunk: ChunkId, why: Refusal) {
        let links = self
            .links
            .iter()
            .filter(|(other, link)| **other != peer && link.is_up && !link.is_head);
        let mut holders = links.filter(|(other, _)| self.holds(**other, chunk));
        let holder = holders.next().map(|(other, _)| *other);
        let owners = || self.owners_of(chunk).into_iter();
        let hint =
            holder.or_else(|| owners().find(|owner| *owner != peer && *owner != self.config.id));
        self.say(peer, Message::Refuse { request, why, hint });
    }

    fn upload(&mut self, key: (PeerId, u32), chunk: ChunkId, class: Class, insists: bool) {
        self.serving.next += 1;
        let upload = Upload {
            chunk,
            class,
            number: self.serving.next,
            sent: 0,
            is_begun: false,
            is_queued: false,
            is_active: false,
            insists,
        };
        self.serving.uploads.insert(key, upload);
        *self.serving.users.entry(chunk).or_default() += 1;
    }

    fn enqueue(&mut self, peer: PeerId, request: u32) {
        let serving = &mut self.serving;
        if let Some(upload) = serving.uploads.get_mut(&(peer, request))
            && !upload.is_active
            && !upload.is_queued
        {
            upload.is_queued = true;
            let place = (Reverse(upload.class), upload.number, peer, request);
            serving.queue.insert(place);
        }
    }

    /// Something of what is passed on is here.
    pub(super) fn relay_may_go_on(&mut self, peer: PeerId, request: u32) {
        self.enqueue(peer, request);
        self.ready(peer);
    }

    pub(super) fn start_uploads(&mut self) {
        let most = if self.config.is_head {
            HEAD_ACTIVE_MAX
        } else {
            ACTIVE_MAX
        };
        while let Some((class, number, peer, request)) = self.serving.queue.first().copied() {
            let may =
                class.0.is_urgent() || (!self.serving.is_yielding && self.under_way(most) < most);
            if !may {
                return;
            }
            self.serving.queue.remove(&(class, number, peer, request));
            let Some(upload) = self.serving.uploads.get_mut(&(peer, request)) else {
                continue;
            };
            upload.is_queued = false;
            upload.is_active = true;
            self.serving.active += 1;
            let chunk = upload.chunk;
            let is_here = self.bodies.contains_key(&chunk) || self.wants.contains_key(&chunk);
            if is_here {
                self.ready(peer);
            } else if self.serving.loading.insert(chunk) {
                self.actions.push_back(Action::Load { chunk });
            }
        }
    }

    /// How many answers share the link. One whose chunk is still arriving takes no more of
    /// it than that does.
    fn under_way(&self, most: usize) -> usize {
        let serving = &self.serving;
        let all = serving.active.saturating_sub(serving.stuck);
        if all < most {
            return all;
        }
        let active = serving.uploads.values().filter(|upload| upload.is_active);
        let whole = active.filter(|upload| !self.wants.contains_key(&upload.chunk));
        whole.count().saturating_sub(serving.stuck)
    }

    /// The next part of an answer to this peer.
    pub(super) fn next_piece(&mut self, now: Time, peer: PeerId) -> Option<Message<P>> {
        let active = self.serving.of(peer).filter(|(_, upload)| upload.is_active);
        let mut order: Vec<(Reverse<Class>, u64, u32)> = active
            .map(|((_, request), upload)| (Reverse(upload.class), upload.number, *request))
            .collect();
        order.sort_unstable();
        for (class, _, request) in order {
            if !class.0.is_urgent() && (self.serving.is_yielding || !self.serving.allows(now)) {
                return None;
            }
            if let Some(message) = self.next_of(peer, request) {
                return Some(message);
            }
        }
        None
    }

    fn next_of(&mut self, peer: PeerId, request: u32) -> Option<Message<P>> {
        let upload = self.serving.uploads.get_mut(&(peer, request))?;
        let chunk = upload.chunk;
        let body = match self.bodies.get(&chunk) {
            Some(body) => body,
            None => {
                let (lead, number) = self.wants.get(&chunk)?.lead?;
                self.links.get(&lead)?.asks.get(&number)?.body.as_ref()?
            }
        };
        if !upload.is_begun {
            upload.is_begun = true;
            return Some(Message::Begin {
                request,
                codec: body.codec,
                raw_bytes: body.raw_bytes,
                wire_bytes: body.wire_bytes,
            });
        }
        let data = body.next(upload.sent)?;
        let len = data.len() as u64;
        upload.sent += len as u32;
        let wire_bytes = body.wire_bytes;
        let is_over = upload.sent == wire_bytes;
        self.counters.sent += len;
        self.serving.sent += len;
        self.serving.tokens = self.serving.tokens.saturating_sub(len);
        if is_over {
            let mean = self.serving.mean_bytes;
            self.serving.mean_bytes = (mean * 15 + u64::from(wire_bytes)) / 16;
            self.finish(peer, request);
            self.release(chunk);
            self.start_uploads();
        }
        Some(Message::Piece { request, data })
    }

    /// An answer is over; which chunk it was.
    pub(super) fn finish(&mut self, peer: PeerId, request: u32) -> Option<ChunkId> {
        let serving = &mut self.serving;
        let upload = serving.uploads.remove(&(peer, request))?;
        let place = (Reverse(upload.class), upload.number, peer, request);
        serving.queue.remove(&place);
        serving.active -= usize::from(upload.is_active);
        let chunk = upload.chunk;
        if let Some(users) = serving.users.get_mut(&chunk) {
            *users -= 1;
            if *users == 0 {
                serving.users.remove(&chunk);
            }
        }
        if let Some(want) = self.wants.get_mut(&chunk) {
            want.relays.retain(|relay| *relay != (peer, request));
        }
        Some(chunk)
    }

    /// Lets go of a chunk's bytes, unless somebody is sent them or they are not kept
    /// elsewhere yet.
    pub(super) fn release(&mut self, chunk: ChunkId) {
        let is_pending = self.mine.iter().any(|mine| {
            let at = mine.table.find(chunk);
            at.is_some_and(|at| mine.taken.has(at) && !mine.held.has(at))
        });
        if !is_pending && !self.serving.users.contains_key(&chunk) {
            self.bodies.remove(&chunk);
        }
    }

    /// What was passed on of a chunk was not it, or stopped. Who waits here for its begin
    /// may go on waiting only where it is fetched for others.
    pub(super) fn break_relays(&mut self, chunk: ChunkId) {
        let fetches = self.owns(chunk);
        let relays = self.wants.get(&chunk).map(|want| want.relays.clone());
        for (peer, request) in relays.unwrap_or_default() {
            let upload = self.serving.uploads.get_mut(&(peer, request));
            let Some(upload) = upload else {
                continue;
            };
            if upload.is_begun || !fetches {
                self.finish(peer, request);
                self.refuse(peer, request, chunk, Refusal::Broken);
            } else if upload.is_active {
                upload.is_active = false;
                self.serving.active -= 1;
            }
        }
    }

    /// There is nobody to pass a chunk on from.
    pub(super) fn refuse_relays(&mut self, chunk: ChunkId) {
        let relays = self.wants.get(&chunk).map(|want| want.relays.clone());
        for (peer, request) in relays.unwrap_or_default() {
            self.finish(peer, request);
            self.refuse(peer, request, chunk, Refusal::Lacking);
        }
    }

    pub(super) fn forget_uploads(&mut self, peer: PeerId) {
        let requests: Vec<u32> = self
            .serving
            .of(peer)
            .map(|((_, number), _)| *number)
            .collect();
        for request in requests {
            if let Some(chunk) = self.finish(peer, request) {
                self.settle(chunk);
                self.release(chunk);
            }
        }
    }

    /// Counts what left, and tells others how long they would wait.
    pub(super) fn tend_serving(&mut self, now: Time, since: Span) {
        let sent = std::mem::take(&mut self.serving.sent);
        if self.serving.active > 0 {
            let rate = sent * 1_000_000 / since.0;
            self.serving.rate = (self.serving.rate * 15 + rate) / 16;
        }
        let is_stuck = |(peer, _): &(PeerId, u32)| {
            let link = self.links.get(peer);
            link.is_some_and(|link| link.is_ready && now.since(link.pulled) > STUCK)
        };
        let active = self
            .serving
            .uploads
            .iter()
            .filter(|(_, upload)| upload.is_active);
        self.serving.stuck = active.filter(|(key, _)| is_stuck(key)).count();
        self.start_uploads();
        let bulk = self.serving.uploads.len() as u64;
        let delay = Span::of(bulk * self.serving.mean_bytes, self.serving.pace());
        self.shed(now, delay);
        let step = Span((self.serving.told.0 / 4).max(TELL_STEP.0));
        let is_other = delay.0.abs_diff(self.serving.told.0) > step.0;
        if is_other && now.since(self.serving.told_at) >= TELL_EVERY {
            self.serving.told = delay;
            self.serving.told_at = now;
            let delay_ms = delay.as_millis();
            let all: Vec<PeerId> = self.linked().collect();
            for peer in all {
                self.say(peer, Message::Load { delay_ms });
            }
        }
        self.wake_all();
        self.tell_news(now);
    }

    /// What waited for leave to send goes on.
    fn wake_all(&mut self) {
        if self.serving.rate_max.is_none() && !self.serving.is_yielding {
            return;
        }
        let uploads = self.serving.uploads.iter();
        let active = uploads.filter(|(_, upload)| upload.is_active);
        let active: Vec<PeerId> = active.map(|((peer, _), _)| *peer).collect();
        for peer in active {
            self.ready(peer);
        }
    }

    /// What came and went is said to all, the more of it at once the more they are: else
    /// a member of a large rack would send and get more of such messages than of chunks.
    fn tell_news(&mut self, now: Time) {
        let links = self.links.len() as u64;
        let every = Span((links * NEWS_EACH.0).min(NEWS_MAX.0));
        if now.since(self.serving.news_at) < every {
            return;
        }
        self.serving.news_at = now;
        let with_news = self.links.iter().filter(|(_, link)| !link.news.is_empty());
        let with_news: Vec<PeerId> = with_news.map(|(peer, _)| *peer).collect();
        for peer in with_news {
            self.ready(peer);
        }
    }
}
