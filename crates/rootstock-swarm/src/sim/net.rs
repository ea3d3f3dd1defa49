//! The simulated network: links that carry one message after the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;

use rootstock_core::{ChunkId, PeerId};

use crate::node::Payload;
use crate::rng::mix;
use crate::time::{Span, Time};
use crate::wire::Message;

/// Bytes on their way over one connection: what sockets hold.
const WINDOW_BYTES: u64 = 192 << 10;

/// What headers cost: Ethernet, IP and TCP on 1448 bytes.
const OVERHEAD_PERCENT: u64 = 105;

/// Bytes of a chunk: which, from where, and whether they are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fake {
    pub(super) chunk: ChunkId,
    pub(super) from: u32,
    pub(super) len: u32,
    pub(super) is_right: bool,
}

impl Payload for Fake {
    fn len(&self) -> usize {
        self.len as usize
    }

    fn slice(&self, range: Range<usize>) -> Self {
        Self {
            from: self.from + range.start as u32,
            len: (range.end - range.start) as u32,
            ..*self
        }
    }
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    /// A machine looks at its clock.
    Tick(usize),
    /// A machine or head starts.
    Start(usize),
    /// A machine hears of another version.
    Change(usize),
    /// A head tells a machine who else is there.
    Introduce(usize),
    /// A sender's link is free.
    Free(usize),
    /// A message is at the other end's link.
    Reaches(usize, Box<Carried>),
    /// It is through.
    Delivered(usize, Box<Carried>),
    /// A connection is there, or is not: between these two, the first of which began it.
    Connected(usize, usize),
    /// A connection has ended for this end.
    Ended(usize, usize),
    /// A chunk was read from a machine's store.
    Loaded(usize, ChunkId),
    /// A chunk that came was looked at.
    Checked(usize, Box<Came>),
    /// Something goes wrong.
    Fault(usize),
}

/// A chunk that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    pub(super) chunk: ChunkId,
    pub(super) from: (PeerId, u32),
    pub(super) is_right: bool,
    pub(super) keep: bool,
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) from: usize,
    pub(super) bytes: u64,
    pub(super) connection: u64,
    pub(super) message: Message<Fake>,
}

/// Links, connections and what is on its way.
pub(super) struct Net {
    queue: BinaryHeap<Reverse<(Time, u64, EventBox)>>,
    /// What happens at this very moment, after what the queue has for it.
    soon: VecDeque<Event>,
    now: Time,
    order: u64,
    /// Which connections have something to send, by sender, in turn.
    ready: Vec<VecDeque<usize>>,
    busy: Vec<bool>,
    up: Vec<u64>,
    down: Vec<u64>,
    /// When a receiver's link is free again.
    down_free: Vec<Time>,
    /// By sender and receiver.
    ways: Vec<BTreeMap<usize, Way>>,
    next_connection: u64,
    pub(super) trace: u64,
    pub(super) sent: Vec<u64>,
    pub(super) messages: u64,
}

/// One direction between two.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// The number of the connection, when there is one.
    connection: Option<u64>,
    /// Bytes that were sent and are not through.
    on_way: u64,
    /// Whether the sender may have something to send.
    is_ready: bool,
}

/// An event that is not compared.
struct EventBox(Event);

impl PartialEq for EventBox {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for EventBox {}
impl PartialOrd for EventBox {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for EventBox {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Net {
    pub(super) fn new(rates: &[u64]) -> Self {
        let count = rates.len();
        Self {
            queue: BinaryHeap::new(),
            soon: VecDeque::new(),
            now: Time::default(),
            order: 0,
            ready: vec![VecDeque::new(); count],
            busy: vec![false; count],
            up: rates.to_vec(),
            down: rates.to_vec(),
            down_free: vec![Time::default(); count],
            ways: vec![BTreeMap::new(); count],
            next_connection: 1,
            trace: 0,
            sent: vec![0; count],
            messages: 0,
        }
    }

    pub(super) fn at(&mut self, time: Time, event: Event) {
        if time == self.now {
            self.soon.push_back(event);
            return;
        }
        self.order += 1;
        self.queue
            .push(Reverse((time, self.order, EventBox(event))));
    }

    pub(super) fn next(&mut self) -> Option<(Time, Event)> {
        let first = self.queue.peek();
        let is_now = first.is_some_and(|Reverse((time, ..))| *time <= self.now);
        if !is_now && let Some(event) = self.soon.pop_front() {
            return Some((self.now, event));
        }
        let Reverse((time, _, EventBox(event))) = self.queue.pop()?;
        self.now = self.now.max(time);
        Some((time, event))
    }

    pub(super) fn set_up_rate(&mut self, host: usize, rate: u64) {
        self.up[host] = rate;
    }

    pub(super) fn up_rate(&self, host: usize) -> u64 {
        self.up[host]
    }

    pub(super) fn connection(&self, a: usize, b: usize) -> Option<u64> {
        self.ways[a].get(&b)?.connection
    }

    /// Makes a connection; an older one between the two is over.
    pub(super) fn connect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let way = self.ways[from].entry(to).or_default();
            (way.connection, way.on_way) = (Some(self.next_connection), 0);
        }
        self.next_connection += 1;
    }

    pub(super) fn disconnect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if let Some(way) = self.ways[from].get_mut(&to) {
                (way.connection, way.on_way) = (None, 0);
            }
        }
    }

    /// A sender may have something for a receiver.
    pub(super) fn wake(&mut self, now: Time, from: usize, to: usize) {
        self.line_up(from, to);
        if !self.busy[from] {
            self.busy[from] = true;
            self.at(now, Event::Free(from));
        }
    }

    fn line_up(&mut self, from: usize, to: usize) {
        let way = self.ways[from].entry(to).or_default();
        if !way.is_ready {
            way.is_ready = true;
            self.ready[from].push_back(to);
        }
    }

    /// The next connection of a sender with room, in turn; its link is idle when there
    /// is none.
    pub(super) fn turn(&mut self, from: usize) -> Option<usize> {
        for _ in 0..self.ready[from].len() {
            let to = self.ready[from].pop_front()?;
            let way = self.ways[from].entry(to).or_default();
            if way.on_way < WINDOW_BYTES {
                way.is_ready = false;
                return Some(to);
            }
            self.ready[from].push_back(to);
        }
        self.busy[from] = false;
        None
    }

    /// A sender is gone, and what it had to send with it.
    pub(super) fn idle(&mut self, from: usize) {
        self.busy[from] = false;
        self.ready[from].clear();
        for way in self.ways[from].values_mut() {
            way.is_ready = false;
        }
    }

    /// Sends a message, which keeps the sender's link busy.
    pub(super) fn send(
        &mut self,
        now: Time,
        from: usize,
        to: usize,
        latency: Span,
        message: Message<Fake>,
    ) {
        let Some(connection) = self.connection(from, to) else {
            self.at(now, Event::Free(from));
            return;
        };
        let bytes = size(&message);
        self.messages += 1;
        self.trace = mix(self.trace ^ now.0 ^ (from as u64) << 40 ^ (to as u64) << 20 ^ bytes);
        self.sent[from] += bytes;
        let gone = now + Span::of(bytes * OVERHEAD_PERCENT / 100, self.up[from]);
        // More may follow over the same connection.
        self.line_up(from, to);
        if let Some(way) = self.ways[from].get_mut(&to) {
            way.on_way += bytes;
        }
        self.at(gone, Event::Free(from));
        let carried = Box::new(Carried {
            from,
            bytes,
            connection,
            message,
        });
        self.at(gone + latency, Event::Reaches(to, carried));
    }

    /// A message waits for the receiver's link.
    pub(super) fn reaches(&mut self, now: Time, to: usize, carried: Box<Carried>) {
        let takes = Span::of(carried.bytes * OVERHEAD_PERCENT / 100, self.down[to]);
        // The first part came while it was sent: only a queue costs more time.
        let begins = self.down_free[to].max(now - takes);
        let through = begins + takes;
        self.down_free[to] = through;
        self.at(through.max(now), Event::Delivered(to, carried));
    }

    /// A message is through; whether its connection still is.
    pub(super) fn delivered(&mut self, now: Time, to: usize, carried: &Carried) -> bool {
        let way = self.ways[carried.from].get_mut(&to);
        let Some(way) = way.filter(|way| way.connection == Some(carried.connection)) else {
            return false;
        };
        way.on_way = way.on_way.saturating_sub(carried.bytes);
        if way.is_ready && !self.busy[carried.from] {
            self.busy[carried.from] = true;
            self.at(now, Event::Free(carried.from));
        }
        true
    }
}

/// About what a message takes on the wire, with what TLS adds.
fn size(message: &Message<Fake>) -> u64 {
    27 + match message {
        Message::Piece { data, .. } => 4 + u64::from(data.len),
        Message::Held { bits, .. } => 5 + bits.len() as u64,
        Message::Gained { numbers, .. } | Message::Lost { numbers, .. } => {
            1 + 4 * numbers.len() as u64
        }
        Message::Peers(peers) => 48 * peers.len() as u64,
        Message::Ask { .. } | Message::Version { .. } => 38,
        _ => 16,
    }
}
