//! The server: takes packets, and hands each to the role that its interface has.

mod give_back;
mod grant;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use super::{
    PXE_PORT, SERVER_PORT,
    action::{Action, Event, Ignored, Incoming, Link, Probed, Progress, Ticket, Who},
    auto::{Duty, HasNetwork, Step},
    boot::Machines,
    config::{Config, InterfaceConfig, InterfaceId, Known, Mode, Probes},
    lease::{Lease, LeaseState},
    table::{Entry, NetworkId, State, Table},
};
use crate::{
    Millis,
    client::{Client, Kind, Operation, Packet},
};

/// The most leases and probes that are waited for at once; what comes on top is not
/// answered, and its clients ask again.
const PENDING_MAX: usize = 4096;

/// The most probes at once: beyond, addresses are offered unasked, and their clients
/// find out (as dnsmasq does it under load).
const PROBES_MAX: usize = 64;

/// How long a declined or used address is given to nobody.
const QUARANTINE: Millis = Millis::seconds(600);

/// How long an address rests that another server gave to somebody.
const TAKEN_REST: Millis = Millis::seconds(60);

/// DHCP in all its roles, on all interfaces.
#[derive(Debug)]
pub struct Server {
    config: Config,
    duties: Vec<Duty>,
    table: Table,
    machines: Machines,
    pending: HashMap<Ticket, Pending>,
    probes: usize,
    tickets: u64,
}

/// A packet that is being answered.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) interface: InterfaceId,
    pub(super) packet: Packet,
    pub(super) client: Client,
    pub(super) source: SocketAddrV4,
}

/// What an answer is waited for.
#[derive(Debug)]
enum Pending {
    /// A lease is written; then its client is told.
    Commit {
        ask: Option<Box<Ask>>,
        network: NetworkId,
        /// What the address was before.
        before: Option<Entry>,
        lease: Lease,
    },
    /// An address is asked after; then it is offered.
    Probe {
        ask: Box<Ask>,
        network: NetworkId,
        address: Ipv4Addr,
        tries: u32,
    },
}

impl Server {
    /// A server that has not heard of any lease or machine.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let own = config.interfaces.iter().map(|interface| interface.address);
        let table = Table::new(&config.networks, own);
        let duties = config.interfaces.iter().enumerate();
        let duties = duties
            .map(|(place, interface)| Duty::new(InterfaceId(place), interface.mode, config.seed));
        Self {
            duties: duties.collect(),
            table,
            machines: Machines::default(),
            pending: HashMap::new(),
            probes: 0,
            tickets: 0,
            config,
        }
    }

    /// Leases that were committed, by this server or another. To be called before
    /// the first packet, and as often as one likes.
    pub fn load(&mut self, now: Millis, leases: &[Lease]) {
        for lease in leases {
            let Some(network) = self.network_at(lease.address) else {
                continue;
            };
            let writing = self.table.entry(lease.address);
            if writing.is_some_and(|entry| entry.state == State::Committing) {
                continue;
            }
            let over = lease.expires <= now;
            let state = match lease.state {
                _ if over => State::Over,
                LeaseState::Bound => State::Bound,
                LeaseState::Declined => State::Quarantined,
                LeaseState::Released => State::Over,
            };
            let entry = Entry {
                mac: lease.mac,
                state,
                until: lease.expires,
            };
            self.table.set(network, lease.address, entry);
        }
    }

    /// The machines that the site knows, in place of all known before.
    pub fn set_known(&mut self, known: Vec<Known>) {
        self.table.reserve(&known);
        self.machines.set_known(known);
    }

    /// Strategies that worked in earlier runs.
    pub fn set_worked(&mut self, worked: Vec<(rootstock_core::MacAddress, String)>) {
        self.machines.remember(worked);
    }

    /// What is done on an interface; `None` while it is being decided.
    #[must_use]
    pub fn mode(&self, interface: InterfaceId) -> Option<Mode> {
        self.duties.get(interface.0).and_then(Duty::mode)
    }

    /// Takes a packet.
    pub fn handle(&mut self, now: Millis, incoming: &Incoming<'_>) -> Vec<Action> {
        let mut out = Vec::new();
        if incoming.interface.0 >= self.duties.len() {
            return out;
        }
        match Packet::read(incoming.bytes) {
            Ok(packet) if packet.operation == Operation::Reply => {
                self.overhear(now, incoming, &packet, &mut out);
            }
            Ok(packet) => self.take(now, incoming, packet, &mut out),
            Err(_) => ignore(incoming, Ignored::Malformed, &mut out),
        }
        out
    }

    /// A lease was written, or not.
    pub fn committed(
        &mut self,
        now: Millis,
        ticket: Ticket,
        result: Result<(), super::CommitError>,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        match self.pending.remove(&ticket) {
            Some(Pending::Commit {
                ask,
                network,
                before,
                lease,
            }) => {
                self.settle(now, ask, network, before, &lease, result, &mut out);
            }
            Some(other) => {
                self.pending.insert(ticket, other);
            }
            None => {}
        }
        out
    }

    /// An address was asked after.
    pub fn probed(&mut self, now: Millis, ticket: Ticket, found: Probed) -> Vec<Action> {
        let mut out = Vec::new();
        match self.pending.remove(&ticket) {
            Some(Pending::Probe {
                ask,
                network,
                address,
                tries,
            }) => {
                self.probes = self.probes.saturating_sub(1);
                self.judge(now, ask, network, address, tries, found, &mut out);
            }
            Some(other) => {
                self.pending.insert(ticket, other);
            }
            None => {}
        }
        out
    }

    /// Another service saw a machine fetch something.
    pub fn progress(&mut self, now: Millis, who: Who, progress: Progress) -> Vec<Action> {
        let mac = match who {
            Who::Card(mac) => Some(mac),
            Who::Address(address) => {
                let held = self.table.held(address, now).map(|entry| entry.mac);
                held.or_else(|| self.machines.at(address))
            }
        };
        let mut events = Vec::new();
        if let Some(mac) = mac {
            self.machines.progress(mac, progress, &mut events);
        }
        events.into_iter().map(Action::Event).collect()
    }

    /// The card that has or had an address last, as far as this server saw.
    #[must_use]
    pub fn card_at(&self, address: Ipv4Addr) -> Option<rootstock_core::MacAddress> {
        let entry = self
            .table
            .entry(address)
            .filter(|entry| entry.state == State::Bound);
        entry
            .map(|entry| entry.mac)
            .or_else(|| self.machines.at(address))
    }

    /// When to call [`Self::wake`], if nothing happens before.
    #[must_use]
    pub fn next_wake(&self) -> Option<Millis> {
        let duties = self.duties.iter().filter_map(Duty::next_wake);
        duties.chain(self.machines.next_wake()).min()
    }

    /// Time has passed.
    pub fn wake(&mut self, now: Millis) -> Vec<Action> {
        let mut out = Vec::new();
        for (place, duty) in self.duties.iter_mut().enumerate() {
            let id = InterfaceId(place);
            let serves = self
                .config
                .networks
                .iter()
                .any(|network| network.interface == Some(id));
            let has = if serves {
                HasNetwork::Yes
            } else {
                HasNetwork::No
            };
            match duty.wake(&self.config.interfaces[place], now, has) {
                Some(Step::Ask(question)) => out.push(Action::Send(question)),
                Some(Step::Tell(event)) => out.push(Action::Event(event)),
                None => {}
            }
        }
        let mut events = Vec::new();
        self.machines.wake(&self.config, now, &mut events);
        out.extend(events.into_iter().map(Action::Event));
        self.table.sweep(now);
        out
    }

    fn take(
        &mut self,
        now: Millis,
        incoming: &Incoming<'_>,
        packet: Packet,
        out: &mut Vec<Action>,
    ) {
        if self.duties.iter().any(|duty| duty.is_own_question(&packet)) {
            return;
        }
        let Some(client) = Client::of(&packet) else {
            return ignore(incoming, Ignored::NotEthernet, out);
        };
        let interface = incoming.interface;
        let mode = self.mode(interface);
        let boots = client.program.boots();
        if packet.kind == Kind::Discover && (boots || mode == Some(Mode::Observe)) {
            out.push(Action::Event(Event::Discovered {
                interface,
                client: client.clone(),
            }));
        }
        self.overhear_choice(now, interface, &packet, out);
        let ask = Box::new(Ask {
            interface,
            packet,
            client,
            source: incoming.source,
        });
        match (mode, incoming.destination.port()) {
            (Some(Mode::Dhcp | Mode::Proxy), PXE_PORT) => self.answer_pxe(now, &ask, out),
            (Some(Mode::Dhcp), SERVER_PORT) => self.serve(now, ask, out),
            (Some(Mode::Proxy), SERVER_PORT) => self.propose(now, &ask, out),
            _ => {}
        }
    }

    /// A reply that is not ours is another server's.
    fn overhear(
        &mut self,
        now: Millis,
        incoming: &Incoming<'_>,
        packet: &Packet,
        out: &mut Vec<Action>,
    ) {
        let server = packet.server.unwrap_or(*incoming.source.ip());
        let own = self.is_own(server) || self.is_own(*incoming.source.ip());
        if own || !matches!(packet.kind, Kind::Offer | Kind::Ack | Kind::Nak) {
            return;
        }
        let mut events = Vec::new();
        self.duties[incoming.interface.0].rival(now, packet, server, &mut events);
        out.extend(events.into_iter().map(Action::Event));
    }

    /// A client says in its REQUEST, by broadcast, whose offer it takes (RFC 2131,
    /// section 3.1). The server's own words may have gone to the client alone.
    fn overhear_choice(
        &mut self,
        now: Millis,
        interface: InterfaceId,
        packet: &Packet,
        out: &mut Vec<Action>,
    ) {
        let (Kind::Request, Some(server), Some(address)) =
            (packet.kind, packet.server, packet.requested)
        else {
            return;
        };
        if self.is_own(server) || !packet.giaddr.is_unspecified() {
            return;
        }
        let taken = Packet {
            kind: Kind::Ack,
            yiaddr: address,
            ..packet.clone()
        };
        let mut events = Vec::new();
        self.duties[interface.0].rival(now, &taken, server, &mut events);
        out.extend(events.into_iter().map(Action::Event));
    }

    pub(super) fn is_own(&self, address: Ipv4Addr) -> bool {
        self.config
            .interfaces
            .iter()
            .any(|interface| interface.address == address)
    }

    pub(super) fn interface(&self, id: InterfaceId) -> &InterfaceConfig {
        &self.config.interfaces[id.0]
    }

    pub(super) fn machines(&mut self) -> (&mut Machines, &Config) {
        (&mut self.machines, &self.config)
    }

    /// The network an address is in.
    fn network_at(&self, address: Ipv4Addr) -> Option<NetworkId> {
        let mut networks = self.config.networks.iter();
        networks
            .position(|network| network.subnet.contains(address))
            .map(NetworkId)
    }

    /// The network that a packet asks for.
    fn network_of(&self, ask: &Ask) -> Result<NetworkId, Ignored> {
        let packet = &ask.packet;
        if !packet.giaddr.is_unspecified() {
            return self.relayed_network(packet);
        }
        if !packet.ciaddr.is_unspecified() {
            // Renewing by unicast, perhaps from behind a relay.
            return self.network_at(packet.ciaddr).ok_or(Ignored::NoNetwork);
        }
        let own = self.table.own_of(ask.client.mac);
        let mut here = (0..self.config.networks.len())
            .filter(|&place| self.config.networks[place].interface == Some(ask.interface));
        let wishes = |&place: &usize| {
            let subnet = self.config.networks[place].subnet;
            let wished = own.iter().copied().chain(packet.requested);
            wished.into_iter().any(|address| subnet.contains(address))
        };
        let first = here.clone().next().ok_or(Ignored::NoNetwork)?;
        Ok(NetworkId(here.find(wishes).unwrap_or(first)))
    }

    /// The relay's word on the client's link counts (RFC 3527, section 3), then the
    /// client's (RFC 3011, section 2), then the relay's own address (RFC 2131,
    /// section 4.3.1).
    fn relayed_network(&self, packet: &Packet) -> Result<NetworkId, Ignored> {
        const LINK_SELECTION: u8 = 5;
        let link = packet.relay_part(LINK_SELECTION).or(packet.subnet);
        let network = self
            .network_at(link.unwrap_or(packet.giaddr))
            .ok_or(Ignored::NoNetwork)?;
        let config = &self.config.networks[network.0];
        let listed = if config.relays.is_empty() {
            config.subnet.contains(packet.giaddr)
        } else {
            config.relays.contains(&packet.giaddr)
        };
        if listed {
            Ok(network)
        } else {
            Err(Ignored::ForeignRelay)
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn may_probe(&self) -> bool {
        self.config.probes == Probes::On && self.probes < PROBES_MAX
    }
}

fn link_of(packet: &Packet) -> Link {
    if packet.giaddr.is_unspecified() {
        Link::Own
    } else {
        Link::Relayed
    }
}

fn ignore(incoming: &Incoming<'_>, reason: Ignored, out: &mut Vec<Action>) {
    out.push(Action::Event(Event::Ignored {
        interface: incoming.interface,
        source: incoming.source,
        reason,
    }));
}

pub(super) fn ignore_ask(ask: &Ask, reason: Ignored, out: &mut Vec<Action>) {
    out.push(Action::Event(Event::Ignored {
        interface: ask.interface,
        source: ask.source,
        reason,
    }));
}
