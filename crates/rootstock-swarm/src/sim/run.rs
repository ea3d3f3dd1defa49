//! The run: events in their order, and what machines do with them.

use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::node::{Action, Config, Member, Whole};
use crate::sim::net::{Came, Carried, Event, Fake};
use crate::sim::work::table_of;
use crate::wire::{Hello, Message};

/// How often a head tells a machine who is there.
const INTRODUCE_EVERY: Span = Span::seconds(10);

/// With many machines it does so that often a second, as the daemon does.
const ASKS_APART: Span = Span::millis(20);

/// Of how many of a rack it tells, and of how many others.
pub(super) const RACK_TOLD_MAX: usize = 384;
const FAR_TOLD_MAX: usize = 64;

/// The last machine hears so much later of another version than the first.
const CHANGE_SPREAD: Span = Span::seconds(1);

/// Who watches is told after so many events.
const WATCH_EVENTS: u64 = 4096;

/// To read a chunk, and to be heard when a connection is begun.
const LOAD: Span = Span(150);

/// To look at a chunk that came.
const CHECK: Span = Span(400);

impl<'a> World<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Self {
        let (tables, chunks) = scenario.tables();
        let heads = (0..scenario.heads).map(|head| (head, usize::MAX, true));
        let racks = scenario.racks.iter().enumerate();
        let machines = racks.flat_map(|(rack, count)| (0..*count).map(move |_| rack));
        let machines = machines
            .enumerate()
            .map(|(number, rack)| (number, rack, false));
        let mut hosts = Vec::new();
        for (number, rack, is_head) in heads.chain(machines) {
            hosts.push(host(scenario, number, rack, is_head, chunks));
        }
        let rate = |host: &Host| {
            if host.is_head {
                scenario.head_rate
            } else {
                scenario.node_rate
            }
        };
        let rates: Vec<Rate> = hosts.iter().map(rate).collect();
        let mut world = Self {
            scenario,
            by_id: hosts
                .iter()
                .enumerate()
                .map(|(at, host)| (host.id, at))
                .collect(),
            net: Net::new(&rates),
            hosts,
            tables,
            all: table_of(chunks),
            racks: Vec::new(),
            now: Time::default(),
            coming: 0,
            late: 0,
            faults_end: scenario.faults.iter().map(|(at, _)| *at).max(),
            got: 0,
            broken: Vec::new(),
            sends: BTreeMap::new(),
            reads_worst: Span::default(),
            rng: Rng::new(scenario.seed),
        };
        let mut first = scenario.heads;
        for count in &scenario.racks {
            world.racks.push(first..first + count);
            first += count;
        }
        for at in 0..world.hosts.len() {
            let wait = if world.hosts[at].is_head {
                0
            } else {
                world.rng.next() % scenario.stagger.0.max(1)
            };
            world.comes(Time(wait), Event::Start(at));
        }
        if let Some(change) = scenario.change {
            for at in scenario.heads..world.hosts.len() {
                let wait = Span(world.rng.next() % CHANGE_SPREAD.0);
                world.comes(change.at + wait, Event::Change(at));
            }
        }
        for (number, (at, _)) in scenario.faults.iter().enumerate() {
            world.net.at(*at, Event::Fault(number));
        }
        world
    }

    /// Something that the run does not end before.
    pub(super) fn comes(&mut self, at: Time, event: Event) {
        self.coming += 1;
        self.net.at(at, event);
    }

    pub(super) fn run(&mut self, watch: &mut dyn FnMut(u64, u64)) {
        let chunks = self.scenario.work_chunks() as u64;
        let total = chunks * self.scenario.nodes() as u64;
        let mut events = 0_u64;
        while let Some((now, event)) = self.net.next() {
            if now > self.scenario.limit || self.is_over() {
                break;
            }
            self.now = now;
            self.happens(event);
            events += 1;
            if events.is_multiple_of(WATCH_EVENTS) {
                watch(self.got.min(total), total);
            }
        }
        self.check_end();
    }

    pub(super) fn is_over(&self) -> bool {
        let no_more_faults = self.faults_end.is_none_or(|last| self.now > last);
        self.late == 0 && self.coming == 0 && no_more_faults
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Start(at) => {
                self.hosts[at].is_alive = true;
                self.coming -= 1;
                self.count_late();
                self.join(at);
                self.net.at(self.now, Event::Tick(at));
                if !self.hosts[at].is_head {
                    self.net.at(self.now, Event::Introduce(at));
                }
            }
            Event::Tick(at) => {
                if self.hosts[at].is_alive {
                    self.hosts[at].node.tick(self.now);
                    self.check_sizes(at);
                    let next = self.hosts[at].node.wakes().max(self.now + Span(1));
                    self.net.at(next, Event::Tick(at));
                    self.act(at);
                }
            }
            Event::Change(at) => self.change(at),
            Event::Introduce(at) => self.introduce(at),
            Event::Free(from) => self.free(from),
            Event::Reaches(to, carried) => self.net.reaches(self.now, to, carried),
            Event::Delivered(to, carried) => self.delivered(to, carried),
            Event::Connected(from, to) => self.connected(from, to),
            Event::Ended(at, other) => {
                let peer = self.hosts[other].id;
                if self.hosts[at].is_alive && self.net.connection(at, other).is_none() {
                    self.hosts[at].node.down(self.now, peer);
                    self.act(at);
                }
            }
            Event::Loaded(at, chunk) => self.loaded(at, chunk),
            Event::Checked(at, came) => {
                self.checked(at, &came);
                self.act(at);
            }
            Event::Fault(number) => {
                let (_, fault) = self.scenario.faults[number];
                self.fault(fault);
            }
        }
    }

    pub(super) fn introduce_every(&self) -> Span {
        INTRODUCE_EVERY.max(Span(self.hosts.len() as u64 * ASKS_APART.0))
    }

    /// A head tells of heads, of the rack and of some others.
    fn introduce(&mut self, at: usize) {
        let next = self.now + self.introduce_every();
        self.net.at(next, Event::Introduce(at));
        let is_told = self.hosts.iter().any(|host| host.is_head && host.is_alive);
        if !is_told || !self.hosts[at].is_alive || self.hosts[at].is_parted {
            return;
        }
        let is_there = |other: &usize| *other != at && self.hosts[*other].is_alive;
        let mut told: Vec<usize> = (0..self.scenario.heads).filter(is_there).collect();
        let rack = self.hosts[at].rack;
        // Who gives nothing is not told of.
        let is_there = |other: &usize| is_there(other) && self.hosts[*other].serves;
        let near = self.racks[rack].clone().filter(is_there);
        told.extend(near.take(RACK_TOLD_MAX));
        let (racks, mut rng) = (self.racks.len(), self.rng.clone());
        let first = rng.below(racks);
        let others = (0..FAR_TOLD_MAX).map(|step| (first + step) % racks);
        let others = others.filter(|other| *other != rack && !self.racks[*other].is_empty());
        let far = others.map(|other| {
            let other = &self.racks[other];
            other.start + rng.below(other.len())
        });
        told.extend(far.filter(is_there));
        self.rng = rng;
        let told = told.into_iter();
        let told: Vec<Member> = told
            .map(|other| member(&self.hosts[other], other, self.now))
            .collect();
        self.hosts[at].node.know(self.now, told);
        self.act(at);
    }

    /// A sender's link is free: the next message of the next connection.
    fn free(&mut self, from: usize) {
        if !self.hosts[from].is_alive {
            self.net.idle(from);
            return;
        }
        while let Some(to) = self.net.turn(from) {
            let peer = self.hosts[to].id;
            if self.net.connection(from, to).is_none() {
                continue;
            }
            let Some(message) = self.hosts[from].node.message(self.now, peer) else {
                continue;
            };
            let Some(message) = self.as_sent(from, to, message) else {
                continue;
            };
            let latency = self.latency(from, to);
            self.net.send(self.now, from, to, latency, message);
            self.act(from);
            return;
        }
        self.act(from);
    }

    /// What a host that does wrong makes of a message.
    fn as_sent(&mut self, from: usize, to: usize, message: Message<Fake>) -> Option<Message<Fake>> {
        let host = &self.hosts[from];
        match message {
            Message::Begin { .. } | Message::Piece { .. } if host.is_mute => None,
            Message::Piece { request, mut data } => {
                data.is_right &= !host.lies;
                let is_last = data.from + data.len == self.scenario.wire_bytes;
                if host.is_head && is_last {
                    let number = self.all.find(data.chunk).unwrap_or_default();
                    *self.sends.entry((self.hosts[to].rack, number)).or_default() += 1;
                }
                Some(Message::Piece { request, data })
            }
            message => Some(message),
        }
    }

    fn delivered(&mut self, to: usize, carried: Box<Carried>) {
        let from = carried.from;
        if !self.net.delivered(self.now, to, &carried) || !self.hosts[to].is_alive {
            return;
        }
        let peer = self.hosts[from].id;
        self.hosts[to]
            .node
            .received(self.now, peer, carried.message);
        self.act(to);
    }

    fn connected(&mut self, from: usize, to: usize) {
        let (a, b) = (&self.hosts[from], &self.hosts[to]);
        let hears = a.is_alive && b.is_alive && !self.is_parted(from, to);
        let (id_a, id_b) = (a.id, b.id);
        if !hears {
            if self.hosts[from].is_alive {
                self.hosts[from].node.down(self.now, id_b);
                self.act(from);
            }
            return;
        }
        if self.net.connection(from, to).is_some() {
            // Both began one: the first stays.
            return;
        }
        self.net.connect(from, to);
        for (at, other, id) in [(from, to, id_b), (to, from, id_a)] {
            let hello = Hello {
                id,
                rack: rack_name(self.hosts[other].rack),
                port: u16::from(self.hosts[other].serves),
                is_head: self.hosts[other].is_head,
            };
            self.hosts[at]
                .node
                .up(self.now, &hello, address(other).ip());
            self.act(at);
        }
    }

    fn loaded(&mut self, at: usize, chunk: ChunkId) {
        let host = &mut self.hosts[at];
        let number = self.all.find(chunk);
        let is_here = host.is_head || number.is_some_and(|number| host.store.has(number));
        let whole = is_here.then_some(Whole {
            codec: 0,
            raw_bytes: self.scenario.wire_bytes,
            data: Fake {
                chunk,
                from: 0,
                len: self.scenario.wire_bytes,
                is_right: true,
            },
        });
        host.node.loaded(self.now, chunk, whole);
        self.act(at);
    }

    /// Does what a host's state machine says.
    pub(super) fn act(&mut self, at: usize) {
        while let Some(action) = self.hosts[at].node.action() {
            match action {
                Action::Connect { peer, .. } => {
                    if let Some(other) = self.by_id.get(&peer).copied() {
                        let takes = Span(3 * self.latency(at, other).0);
                        self.net.at(self.now + takes, Event::Connected(at, other));
                    }
                }
                Action::Disconnect { peer, .. } => {
                    if let Some(other) = self.by_id.get(&peer).copied() {
                        self.net.disconnect(at, other);
                        let latency = self.latency(at, other);
                        self.net.at(self.now + latency, Event::Ended(other, at));
                    }
                }
                Action::Ready { peer } => {
                    if let Some(other) = self.by_id.get(&peer).copied() {
                        self.net.wake(self.now, at, other);
                    }
                }
                Action::Load { chunk } => self.net.at(self.now + LOAD, Event::Loaded(at, chunk)),
                Action::Arrived {
                    chunk,
                    peer,
                    request,
                    pieces,
                    keep,
                    ..
                } => self.arrived(at, chunk, (peer, request), &pieces, keep),
                Action::NoSource { .. } => {}
            }
        }
    }

    fn arrived(
        &mut self,
        at: usize,
        chunk: ChunkId,
        from: (PeerId, u32),
        pieces: &[Fake],
        keep: bool,
    ) {
        let mut end = 0;
        let mut is_right = true;
        for piece in pieces {
            is_right &= piece.chunk == chunk && piece.from == end && piece.is_right;
            end += piece.len;
        }
        is_right &= end == self.scenario.wire_bytes;
        let sender = self.by_id.get(&from.0).copied();
        let is_honest = sender.is_some_and(|sender| !self.hosts[sender].lies);
        if !is_right && is_honest {
            self.broke(format!(
                "machine {at} got a wrong chunk of an honest one: {pieces:?}"
            ));
        }
        let came = Box::new(Came {
            chunk,
            from,
            is_right,
            keep,
        });
        self.net.at(self.now + CHECK, Event::Checked(at, came));
    }

    fn fault(&mut self, fault: Fault) {
        let heads = self.scenario.heads;
        match fault {
            Fault::Kill(machine) => self.kill(heads + machine),
            Fault::KillHead(head) => self.kill(head),
            Fault::StartHead(head) => {
                let chunks = self.all.len();
                self.hosts[head] = host(self.scenario, head, usize::MAX, true, chunks);
                self.comes(self.now, Event::Start(head));
            }
            Fault::Lie(machine) => self.hosts[heads + machine].lies = true,
            Fault::Mute(machine) => self.hosts[heads + machine].is_mute = true,
            Fault::Drip(machine) => {
                let rate = self.net.up_rate(heads + machine) / 1000;
                self.net.set_up_rate(heads + machine, rate);
            }
            Fault::Cut(a, b) => self.cut(heads + a, heads + b),
            Fault::Part(rack) | Fault::Join(rack) => {
                let is_parted = matches!(fault, Fault::Part(_));
                for at in 0..self.hosts.len() {
                    if self.hosts[at].rack == rack {
                        self.hosts[at].is_parted = is_parted;
                    }
                }
                for a in 0..self.hosts.len() {
                    for b in 0..a {
                        if self.is_parted(a, b) {
                            self.cut(a, b);
                        }
                    }
                }
            }
        }
    }

    fn kill(&mut self, at: usize) {
        self.hosts[at].is_alive = false;
        self.count_late();
        for other in 0..self.hosts.len() {
            self.cut(at, other);
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        if self.net.connection(a, b).is_some() {
            self.net.disconnect(a, b);
            self.net.at(self.now, Event::Ended(a, b));
            self.net.at(self.now, Event::Ended(b, a));
        }
    }

    /// A parted rack hears its own machines.
    fn is_parted(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.hosts[a], &self.hosts[b]);
        a.rack != b.rack && (a.is_parted || b.is_parted)
    }

    fn latency(&self, a: usize, b: usize) -> Span {
        let (a, b) = (&self.hosts[a], &self.hosts[b]);
        let is_far = a.rack != b.rack && !a.is_head && !b.is_head;
        Span(self.scenario.latency.0 * if is_far { 2 } else { 1 })
    }
}

fn host(scenario: &Scenario, number: usize, rack: usize, is_head: bool, chunks: usize) -> Host {
    let kind = if is_head { "head" } else { "machine" };
    let id = PeerId::of(&format!("{kind} {number}"));
    let serves = is_head || number >= scenario.abstain;
    let config = Config {
        id,
        rack: rack_name(rack),
        is_head,
        serves,
        copies: scenario.copies,
        upload_max: None,
        seed: scenario.seed,
    };
    let mut store = Bits::new(chunks);
    for chunk in 0..scenario.holds.min(scenario.chunks) {
        store.set(chunk);
    }
    Host {
        node: Node::new(config),
        id,
        rack,
        is_head,
        serves,
        is_alive: false,
        lies: false,
        is_mute: false,
        is_parted: false,
        lacks: scenario.chunks - store.ones(),
        store,
        next_read: 0,
        reading: BTreeMap::new(),
        read: 0,
        version: 0,
        ready: None,
        done: None,
    }
}

fn rack_name(rack: usize) -> String {
    if rack == usize::MAX {
        String::new()
    } else {
        format!("rack {rack}")
    }
}

fn member(host: &Host, number: usize, now: Time) -> Member {
    let rack = rack_name(host.rack);
    Member::new(host.id, address(number), &rack, host.is_head, now)
}

/// Nobody connects to it here; it has only to be one.
fn address(number: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + number as u32).into(), 1)
}
