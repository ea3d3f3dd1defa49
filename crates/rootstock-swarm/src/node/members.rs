//! Who else there is: told by heads, by others, or met.

use std::net::{IpAddr, SocketAddr};

use rootstock_core::PeerId;

use super::{Action, Leaving, Link, Node, Payload};
use crate::owners::owners;
use crate::time::{Span, Time};
use crate::wire::{Hello, Known, Message};

/// The most members that are known.
const MEMBERS_MAX: usize = 8192;

/// The most connections.
pub(super) const LINKS_MAX: usize = 128;

/// Members of the rack with whom a connection is kept; in a larger rack the others are
/// connected to when they are asked.
const RACK_LINKS: usize = 32;

/// Members of other racks with whom one is kept.
const FAR_LINKS: usize = 2;

/// Heads with whom one is kept.
const HEAD_LINKS: usize = 2;

/// Connections that are begun at once; to members of whom nothing is wanted yet.
const DIALS_MAX: usize = 16;
const DIALS_AHEAD: usize = 4;

/// Who gave no sign of life for so long is not asked as an owner, and then forgotten.
const QUIET_LIMIT: Span = Span::seconds(90);
const FORGET_LIMIT: Span = Span::seconds(600);

/// How often members are told about others, to how many, and of how many.
const GOSSIP_EVERY: Span = Span::seconds(5);
/// The same for a few times when somebody new is among them: who came first was told of
/// nobody.
const GOSSIP_SOON: Span = Span::millis(700);
const SOON_TIMES: usize = 3;
const GOSSIP_PEERS: usize = 3;
const GOSSIP_MEMBERS: usize = 32;

/// How often connections are looked after, when nobody new was heard of: what comes at
/// the start comes from whoever is known by then.
const LINK_EVERY: Span = Span::millis(500);

/// Of two who should have a connection the one with the greater id begins it when the
/// other has not for so long.
const DIAL_LIMIT: Span = Span::millis(50);

/// Heads are connected to so late: by then it is known who else is there to fetch a part.
const HEAD_DIAL: Span = Span::millis(50);

/// After a failure to connect; it doubles.
const RETRY_FIRST: Span = Span::millis(500);
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// A connection over which nothing comes for so long is ended. Each end says something
/// every few seconds.
const SILENCE_LIMIT: Span = Span::seconds(20);

/// Who did badly so often in a row is left alone for a while, which doubles.
const STRIKES_MAX: u32 = 3;
/// At most one in so many is.
const OUT_PART: usize = 2;
const OUT_FIRST: Span = Span::seconds(30);
const OUT_DOUBLINGS_MAX: u32 = 5;

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: PeerId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its rack.
    pub rack: String,
    /// Whether it is a head.
    pub is_head: bool,
    /// When somebody had a sign of life of it.
    pub seen: Time,
    /// Failures to reach it since it was, and when to try again.
    failures: u32,
    retry_at: Time,
    /// Since when it is known.
    since: Time,
    /// How often it was left alone, and until when.
    outs: u32,
    out_until: Time,
}

impl Member {
    /// A member of whom there was a sign of life at `seen`.
    #[must_use]
    pub fn new(id: PeerId, address: SocketAddr, rack: &str, is_head: bool, seen: Time) -> Self {
        Self {
            id,
            address,
            rack: rack.to_owned(),
            is_head,
            seen,
            failures: 0,
            retry_at: Time::default(),
            since: seen,
            outs: 0,
            out_until: Time::default(),
        }
    }
}

impl<P: Payload> Node<P> {
    /// Somebody who is trusted with it (a head, the last boot's list) knows of these. Who
    /// is a head is believed of nobody else: heads are never left alone.
    pub fn know(&mut self, now: Time, members: impl IntoIterator<Item = Member>) {
        for member in members {
            self.meet(member);
        }
        self.count_rack(now);
        self.pump(now);
    }

    /// All that are known, to be written down.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// With whom there is a connection.
    pub fn linked(&self) -> impl Iterator<Item = PeerId> {
        let up = self.links.iter().filter(|(_, link)| link.is_up);
        up.map(|(peer, _)| *peer)
    }

    /// Who lied.
    pub fn liars(&self) -> impl Iterator<Item = PeerId> {
        self.banned.iter().copied()
    }

    /// Changes the rack, and what may be sent.
    pub fn set_order(&mut self, now: Time, rack: &str, copies: usize, upload_max: Option<u64>) {
        rack.clone_into(&mut self.config.rack);
        self.config.copies = copies;
        self.serving.set_rate_max(upload_max);
        self.count_rack(now);
        self.pump(now);
    }

    /// The owners of a chunk in this rack, among those who seem to be there.
    pub(super) fn owners_of(&self, chunk: rootstock_core::ChunkId) -> Vec<PeerId> {
        owners(chunk, self.rack.iter().copied(), self.config.copies)
    }

    pub(super) fn owns(&self, chunk: rootstock_core::ChunkId) -> bool {
        self.owners_of(chunk).contains(&self.config.id)
    }

    /// Who is in the rack changes with each connection and silence.
    pub(super) fn count_rack(&mut self, now: Time) {
        let is_there = |member: &&Member| {
            let link = self.links.get(&member.id).filter(|link| link.is_up);
            let is_quiet = now.since(member.seen) > QUIET_LIMIT || member.failures > 0;
            let serves = link.map_or(!is_quiet, |link| link.serves);
            !member.is_head && member.rack == self.config.rack && serves
        };
        let others = self.members.values().filter(is_there);
        let mut rack: Vec<PeerId> = others.map(|member| member.id).collect();
        if !self.config.is_head && self.config.serves {
            rack.push(self.config.id);
        }
        rack.retain(|id| !self.banned.contains(id) && !self.is_out(now, *id));
        rack.sort_unstable();
        self.rack = rack;
    }

    /// A peer that did badly again and again is left alone: its word on what it holds
    /// keeps others from fetching that. A head is needed, however it does.
    pub(super) fn mind(&mut self, now: Time, peer: PeerId) {
        let link = self.links.get(&peer);
        let is_bad = link.is_some_and(|link| link.strikes >= STRIKES_MAX && !link.is_head);
        if !is_bad || self.seems_slow_itself(now) {
            return;
        }
        let Some(member) = self.members.get_mut(&peer) else {
            return;
        };
        let doublings = member.outs.min(OUT_DOUBLINGS_MAX);
        member.out_until = now + Span(OUT_FIRST.0 << doublings);
        member.outs += 1;
        self.end(now, peer, Leaving::Slow);
    }

    /// Whether so many do badly that it is rather this machine, or its link.
    fn seems_slow_itself(&self, now: Time) -> bool {
        let out = self.members.keys();
        let out = out.filter(|peer| self.is_out(now, **peer)).count();
        let linked = self.links.values();
        let linked = linked.filter(|link| link.is_up && !link.is_head).count();
        out >= ((linked + out) / OUT_PART).max(1)
    }

    /// Whether a member is left alone.
    pub(super) fn is_out(&self, now: Time, peer: PeerId) -> bool {
        self.members
            .get(&peer)
            .is_some_and(|member| member.out_until > now)
    }

    pub(super) fn met(&mut self, now: Time, hello: &Hello, address: IpAddr) {
        let address = SocketAddr::new(address, hello.port);
        self.meet(Member::new(hello.id, address, &hello.rack, false, now));
        if let Some(member) = self.members.get_mut(&hello.id) {
            member.failures = 0;
        }
    }

    pub(super) fn missed(&mut self, now: Time, peer: PeerId) {
        if let Some(member) = self.members.get_mut(&peer) {
            let doublings = member.failures.min(RETRY_DOUBLINGS_MAX);
            member.retry_at = now + Span(RETRY_FIRST.0 << doublings);
            member.failures += 1;
        }
    }

    pub(super) fn heard_of(&mut self, now: Time, known: &[Known]) {
        for known in known {
            let seen = now - Span::seconds(u64::from(known.age_seconds));
            let Known { id, address, .. } = known;
            self.meet(Member::new(*id, *address, &known.rack, false, seen));
        }
        self.count_rack(now);
    }

    fn meet(&mut self, member: Member) {
        let is_wrong = member.id == self.config.id || member.address.port() == 0;
        if is_wrong || self.banned.contains(&member.id) {
            return;
        }
        let is_room = self.members.len() < MEMBERS_MAX;
        match self.members.get_mut(&member.id) {
            Some(known) if known.seen >= member.seen => known.is_head |= member.is_head,
            Some(known) => {
                if known.address != member.address {
                    (known.failures, known.retry_at) = (0, Time::default());
                }
                known.is_head |= member.is_head;
                known.seen = member.seen;
                known.address = member.address;
                known.rack = member.rack;
            }
            None if is_room => {
                self.members.insert(member.id, member);
                self.has_news = true;
                self.tells_soon = SOON_TIMES;
            }
            None => {}
        }
    }

    /// A connection to a member, or the begin of one; whether there is hope.
    pub(super) fn connect(&mut self, now: Time, peer: PeerId) -> bool {
        if self.links.contains_key(&peer) {
            return true;
        }
        let member = self.members.get(&peer);
        let is_banned = self.banned.contains(&peer);
        let Some(member) = member.filter(|member| member.retry_at <= now && !is_banned) else {
            return false;
        };
        if self.dials() >= DIALS_MAX || self.links.len() >= LINKS_MAX || self.is_out(now, peer) {
            return false;
        }
        let address = member.address;
        self.links.insert(peer, Link::new(now));
        self.actions.push_back(Action::Connect { peer, address });
        true
    }

    fn dials(&self) -> usize {
        self.links.values().filter(|link| !link.is_up).count()
    }

    pub(super) fn tend_members(&mut self, now: Time) {
        if self.has_news || now.since(self.tended) >= LINK_EVERY {
            self.tended = now;
            self.has_news = false;
            self.end_silent(now);
            self.members.retain(|id, member| {
                now.since(member.seen) < FORGET_LIMIT || self.links.contains_key(id)
            });
            self.count_rack(now);
            self.keep_links(now);
        }
        let every = if self.tells_soon > 0 {
            GOSSIP_SOON
        } else {
            GOSSIP_EVERY
        };
        if now.since(self.gossiped) >= every {
            self.tells_soon = self.tells_soon.saturating_sub(1);
            self.gossiped = now;
            self.gossip(now);
        }
    }

    fn end_silent(&mut self, now: Time) {
        let silent = |link: &Link<P>| link.is_up && now.since(link.heard) > SILENCE_LIMIT;
        let ended = self.links.iter().filter(|(_, link)| silent(link));
        let ended: Vec<PeerId> = ended.map(|(peer, _)| *peer).collect();
        for peer in ended {
            self.end(now, peer, Leaving::Idle);
        }
        for (peer, link) in self.links.iter().filter(|(_, link)| link.is_up) {
            if let Some(member) = self.members.get_mut(peer) {
                member.seen = member.seen.max(link.heard);
            }
        }
        // Room for those who are asked next. A head asks nobody, and those who ask it are
        // as many as its caller lets in: to part with one would only break off its answers.
        if !self.config.is_head && self.links.len() > LINKS_MAX * 7 / 8 {
            let spare = self.links.iter().filter(|(_, link)| {
                link.is_up && !link.is_head && link.asks.is_empty() && now.since(link.used).0 > 0
            });
            let least = spare.min_by_key(|(_, link)| link.used);
            if let Some(peer) = least.map(|(peer, _)| *peer) {
                self.end(now, peer, Leaving::Idle);
            }
        }
    }

    /// Connects to heads, to the rack and to some farther away. Of two who should have a
    /// connection the one with the smaller id begins it.
    fn keep_links(&mut self, now: Time) {
        let mut heads = Vec::new();
        let mut near = Vec::new();
        let mut far = Vec::new();
        for member in self.members.values() {
            let kind = if member.is_head {
                &mut heads
            } else if member.rack == self.config.rack {
                &mut near
            } else {
                &mut far
            };
            kind.push(member.id);
        }
        if self.config.is_head {
            return;
        }
        for (kind, wanted) in [(heads, HEAD_LINKS), (near, RACK_LINKS), (far, FAR_LINKS)] {
            let linked = kind.iter().filter(|id| self.links.contains_key(id)).count();
            let mut others = kind;
            others.retain(|id| !self.links.contains_key(id));
            for _ in linked..wanted {
                if others.is_empty() {
                    break;
                }
                if self.dials() >= DIALS_AHEAD {
                    self.has_news = true;
                    break;
                }
                let at = self.rng.below(others.len());
                let peer = others.swap_remove(at);
                let Some(member) = self.members.get(&peer) else {
                    continue;
                };
                let known = now.since(member.since);
                let is_time = match member.is_head {
                    true => known >= HEAD_DIAL,
                    false => self.config.id < peer || known >= DIAL_LIMIT,
                };
                if is_time {
                    self.connect(now, peer);
                } else {
                    // It is looked at again soon.
                    self.has_news = true;
                }
            }
        }
    }

    fn gossip(&mut self, now: Time) {
        let mut peers: Vec<PeerId> = self.linked().collect();
        let fresh = self.members.values();
        // Who gives nothing now may have been met when it did.
        let gives = |id| self.links.get(id).is_none_or(|link| link.serves);
        let fresh =
            fresh.filter(|member| now.since(member.seen) < QUIET_LIMIT && gives(&member.id));
        let known: Vec<Known> = fresh
            .map(|member| Known {
                id: member.id,
                address: member.address,
                rack: member.rack.clone(),
                is_head: member.is_head,
                age_seconds: (now.since(member.seen).0 / 1_000_000) as u16,
            })
            .collect();
        for told in 0..peers.len() {
            let at = told + self.rng.below(peers.len() - told);
            peers.swap(told, at);
            let mut said = Vec::new();
            if told < GOSSIP_PEERS && !known.is_empty() {
                let start = self.rng.below(known.len());
                let around = known.iter().cycle().skip(start);
                said.extend(around.take(GOSSIP_MEMBERS.min(known.len())).cloned());
            }
            // An empty one says at least that this member is there.
            self.say(peers[told], Message::Peers(said));
        }
    }
}
