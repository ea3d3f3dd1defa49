//! One member of the swarm.
//!
//! Three things go on at once, a file each: chunks are fetched (`fetch`, and `bulk` for
//! what nobody waits for), chunks are sent (`serve`), and others are known (`members`).
//! They meet in the connections (`link`) and in what is held (`mine`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use bytes::Bytes;
use rootstock_core::{ChunkId, PeerId};

use crate::rng::Rng;
use crate::time::{Span, Time};
use crate::wire::{Class, Hello, Message};

mod body;
mod bulk;
mod fetch;
mod given;
mod link;
mod members;
mod mine;
mod serve;
mod shed;
#[cfg(test)]
mod tests;

use body::Body;
use fetch::Want;
use link::Link;
pub use members::Member;
pub use mine::Goal;
use mine::Mine;
use serve::Serving;

/// How often a member looks at its clock.
pub(crate) const TICK: Span = Span::millis(25);

/// Messages that wait for a peer to take them; the pieces of chunks are not among them.
const CONTROL_MAX: usize = 4096;

/// Bytes of chunks, which the state machine passes on and never looks into.
pub trait Payload: Clone {
    /// How many.
    fn len(&self) -> usize;

    /// A part of them.
    #[must_use]
    fn slice(&self, range: Range<usize>) -> Self;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Payload for Bytes {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn slice(&self, range: Range<usize>) -> Self {
        Self::slice(self, range)
    }
}

/// A chunk as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole<P = Bytes> {
    /// How it is encoded.
    pub codec: u8,
    /// Bytes of the chunk.
    pub raw_bytes: u32,
    /// What travels.
    pub data: P,
}

/// Who this member is, and what it may do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who it is.
    pub id: PeerId,
    /// Its rack.
    pub rack: String,
    /// Whether it has every chunk there is.
    pub is_head: bool,
    /// Whether it sends others anything at all.
    pub serves: bool,
    /// Owners of a chunk in each rack.
    pub copies: usize,
    /// What it sends at most, in bytes a second.
    pub upload_max: Option<u64>,
    /// What its choices follow from.
    pub seed: u64,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// What it gave was not what was asked for: it is not spoken to again.
    Lied,
    /// What it says makes no sense.
    Nonsense,
    /// It does not answer, or too slowly, again and again.
    Slow,
    /// There are too many connections, and this one is of least use.
    Idle,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P = Bytes> {
    /// Connect to a member; [`Node::up`] or [`Node::down`] says how it went.
    Connect {
        /// Which.
        peer: PeerId,
        /// Where.
        address: SocketAddr,
    },
    /// End a connection; [`Node::down`] has been accounted for.
    Disconnect {
        /// With whom.
        peer: PeerId,
        /// Why.
        why: Leaving,
    },
    /// There may be messages for this peer now.
    Ready {
        /// Who.
        peer: PeerId,
    },
    /// Read a chunk that is held here; [`Node::loaded`] takes it.
    Load {
        /// Which.
        chunk: ChunkId,
    },
    /// A chunk came: check it, and say so with [`Node::checked`].
    Arrived {
        /// Which.
        chunk: ChunkId,
        /// From whom.
        peer: PeerId,
        /// The number of the question.
        request: u32,
        /// How it is encoded.
        codec: u8,
        /// Bytes of the chunk.
        raw_bytes: u32,
        /// What travelled, in order.
        pieces: Vec<P>,
        /// Whether it is to be kept, for others or as part of what is filled:
        /// [`Node::gained`] or [`Node::lost`] says whether it was.
        keep: bool,
    },
    /// Nobody who is reached has this chunk, and it is waited for. It is asked for again
    /// in a while.
    NoSource {
        /// Which.
        chunk: ChunkId,
    },
}

/// What went on, in bytes and numbers since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of chunks from heads.
    pub from_heads: u64,
    /// Bytes of chunks from others.
    pub from_peers: u64,
    /// Bytes of chunks that were sent.
    pub sent: u64,
    /// Bytes that came for nothing: cancelled, too late, or wrong.
    pub wasted: u64,
    /// Questions that were asked a second time beside the first.
    pub hedged: u64,
    /// Members that lied.
    pub liars: u64,
}

/// A member of the swarm.
pub struct Node<P = Bytes> {
    config: Config,
    rng: Rng,
    links: BTreeMap<PeerId, Link<P>>,
    members: BTreeMap<PeerId, Member>,
    banned: BTreeSet<PeerId>,
    /// Members of the rack that may be asked as owners, this one included.
    rack: Vec<PeerId>,
    mine: Vec<Mine>,
    wants: BTreeMap<ChunkId, Want>,
    /// Chunks that are here, whole and checked, while somebody is sent them.
    bodies: BTreeMap<ChunkId, Body<P>>,
    serving: Serving,
    bulk: bulk::Bulk,
    actions: VecDeque<Action<P>>,
    ticked: Time,
    gossiped: Time,
    tended: Time,
    /// Whether somebody was met since.
    has_news: bool,
    /// How often others are still told of members sooner, since somebody new was heard of.
    tells_soon: usize,
    counters: Counters,
}

impl<P: Payload> Node<P> {
    /// A member that knows nobody.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let serving = Serving::new(config.upload_max);
        let rng = Rng::new(config.seed ^ config.id.0);
        let mut node = Self {
            config,
            rng,
            links: BTreeMap::new(),
            members: BTreeMap::new(),
            banned: BTreeSet::new(),
            rack: Vec::new(),
            mine: Vec::new(),
            wants: BTreeMap::new(),
            bodies: BTreeMap::new(),
            serving,
            bulk: bulk::Bulk::default(),
            actions: VecDeque::new(),
            ticked: Time::default(),
            gossiped: Time::default(),
            tended: Time::default(),
            has_news: false,
            tells_soon: 0,
            counters: Counters::default(),
        };
        node.count_rack(Time::default());
        node
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.config.id
    }

    /// What went on.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What is in memory: chunks that are wanted, chunks whole or in part, questions that
    /// wait for an answer.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        let asks = self.links.values().flat_map(|link| link.asks.values());
        let begun = asks.filter(|ask| ask.body.is_some()).count();
        (
            self.wants.len(),
            self.bodies.len() + begun,
            self.serving.len(),
        )
    }

    #[cfg(test)]
    fn in_flight(&self) -> usize {
        self.bulk.in_flight
    }

    /// The members of its rack that it takes for owners, itself included.
    #[must_use]
    pub fn rack(&self) -> &[PeerId] {
        &self.rack
    }

    /// The next thing to do.
    pub fn action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When [`Node::tick`] is due.
    #[must_use]
    pub fn wakes(&self) -> Time {
        self.ticked + TICK
    }

    /// Time went by.
    pub fn tick(&mut self, now: Time) {
        // On a busy machine it is longer.
        let since = Span(now.since(self.ticked).0.max(TICK.0));
        self.ticked = now;
        self.tend_wants(now);
        self.tend_serving(now, since);
        self.tend_members(now);
        self.tend_bulk(now, since);
        self.pump(now);
    }

    /// A connection is there, and the other end has said who it is. It is reached at
    /// `address`, at the port that it said.
    pub fn up(&mut self, now: Time, hello: &Hello, address: IpAddr) {
        if hello.id == self.config.id {
            // Whoever takes its name must not have it banned by itself.
            self.end(now, hello.id, Leaving::Nonsense);
            return;
        }
        if self.banned.contains(&hello.id) {
            self.end(now, hello.id, Leaving::Lied);
            return;
        }
        if self.is_out(now, hello.id) {
            self.end(now, hello.id, Leaving::Slow);
            return;
        }
        if self.links.get(&hello.id).is_some_and(|link| link.is_up) {
            // It began anew: what was asked over the old connection is lost.
            self.down(now, hello.id);
        }
        self.met(now, hello, address);
        let pending = self.links.remove(&hello.id).filter(|link| !link.is_up);
        let mut link = pending.unwrap_or_else(|| Link::new(now));
        let member = self.members.get(&hello.id);
        let is_head = member.is_some_and(|member| member.is_head);
        link.came_up(now, &hello.rack, is_head);
        link.serves = hello.port != 0;
        self.links.insert(hello.id, link);
        self.introduce(hello.id);
        self.count_rack(now);
        self.ready(hello.id);
        self.pump(now);
    }

    /// A connection has ended, or did not come about.
    pub fn down(&mut self, now: Time, peer: PeerId) {
        let Some(link) = self.links.remove(&peer) else {
            return;
        };
        self.missed(now, peer);
        self.forget_holdings(&link);
        self.forget_uploads(peer);
        self.count_rack(now);
        for (_, ask) in link.asks {
            self.ask_failed(now, peer, &ask);
        }
        self.pump(now);
    }

    /// A message came.
    pub fn received(&mut self, now: Time, peer: PeerId, message: Message<P>) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.heard = now;
        if link.control.len() > CONTROL_MAX {
            // It asks and does not listen.
            return self.end(now, peer, Leaving::Nonsense);
        }
        let is_news = matches!(message, Message::Held { .. } | Message::Gained { .. });
        let is_refusal = matches!(message, Message::Refuse { .. });
        let makes_sense = match message {
            Message::Hello(_) => true,
            Message::Version {
                slot,
                version,
                chunks,
            } => self.told_version(peer, slot, version, chunks),
            Message::Held { slot, first, bits } => self.told_held(peer, slot, first, &bits),
            Message::Gained { slot, numbers } => self.told_gained(peer, slot, &numbers),
            Message::Lost { slot, numbers } => self.told_lost(peer, slot, &numbers),
            Message::Ask {
                request,
                chunk,
                class,
                insists,
            } => {
                self.asked(now, peer, request, chunk, class, insists);
                true
            }
            Message::Cancel { request } => {
                self.cancelled(peer, request);
                true
            }
            Message::Begin {
                request,
                codec,
                raw_bytes,
                wire_bytes,
            } => self.begun(now, peer, request, Body::new(codec, raw_bytes, wire_bytes)),
            Message::Piece { request, data } => self.came(now, peer, request, data),
            Message::Refuse { request, why, hint } => {
                self.refused(now, peer, request, why, hint);
                true
            }
            Message::Load { delay_ms } => {
                link.told_delay(delay_ms);
                true
            }
            Message::Peers(known) => {
                self.heard_of(now, &known);
                true
            }
        };
        if makes_sense {
            if is_refusal {
                self.pump_anew(now);
            } else if is_news {
                self.pump(now);
            }
        } else {
            self.end(now, peer, Leaving::Nonsense);
        }
    }

    /// The next message for a peer whose connection has room.
    pub fn message(&mut self, now: Time, peer: PeerId) -> Option<Message<P>> {
        let link = self.links.get_mut(&peer).filter(|link| link.is_up)?;
        link.pulled = now;
        link.is_ready = false;
        if let Some(message) = link.control.pop_front() {
            return Some(message);
        }
        if let Some(message) = self.news(peer) {
            return Some(message);
        }
        self.next_piece(now, peer)
    }

    /// Ends a connection from this side.
    fn end(&mut self, now: Time, peer: PeerId, why: Leaving) {
        if why == Leaving::Lied {
            self.banned.insert(peer);
        }
        self.actions.push_back(Action::Disconnect { peer, why });
        self.down(now, peer);
    }

    /// Says that there may be messages for a peer, once until it has looked.
    fn ready(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer)
            && link.is_up
            && !link.is_ready
        {
            link.is_ready = true;
            self.actions.push_back(Action::Ready { peer });
        }
    }

    fn say(&mut self, peer: PeerId, message: Message<P>) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.control.push_back(message);
            self.ready(peer);
        }
    }
}

/// What waits in a queue for nobody is of the lowest class.
impl Class {
    /// Whether somebody or something waits.
    #[must_use]
    pub fn is_urgent(self) -> bool {
        self > Self::Bulk
    }
}
