//! Addresses given, refused and taken back (RFC 2131, section 4.3).

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, MessageType};

use super::{Ask, PENDING_MAX, Pending, QUARANTINE, Server, TAKEN_REST, ignore_ask, link_of};
use crate::{
    Millis,
    client::Kind,
    dhcp::{
        CLIENT_PORT, CommitError, SERVER_PORT,
        action::{Action, Boot, Destination, Event, Ignored, NakReason, Outgoing, Probed},
        boot::Voice,
        config::Unknown,
        lease::{Lease, LeaseState},
        reply::{self, BootFields, Reply},
        table::{Entry, NetworkId, State},
    },
};

/// How long an offered address waits for its client.
const OFFER_HOLD: Millis = Millis::seconds(30);

/// How much longer a lease is kept than its client was told: its clock may be slow,
/// and the acknowledgement takes its time.
const GRACE: Millis = Millis::seconds(10);

/// How many addresses are asked after for one offer.
const PROBE_TRIES_MAX: u32 = 4;

/// Bytes kept of a client identifier.
const CLIENT_ID_BYTES_MAX: usize = 64;

/// The part of option 82 that says what address the relay's clients shall know us by
/// (RFC 5107, section 4).
const SERVER_OVERRIDE: u8 = 11;

impl Server {
    /// Answers as the subnet's server.
    pub(super) fn serve(&mut self, now: Millis, ask: Box<Ask>, out: &mut Vec<Action>) {
        if self.pending.len() >= PENDING_MAX {
            return;
        }
        let network = match self.network_of(&ask) {
            Ok(network) => network,
            Err(reason) => return ignore_ask(&ask, reason, out),
        };
        match ask.packet.kind {
            Kind::Discover => self.discover(now, ask, network, out),
            Kind::Request => self.request(now, ask, network, out),
            Kind::Decline => self.decline(now, &ask, network, out),
            Kind::Release => self.release(now, &ask, network, out),
            Kind::Inform => self.inform(now, &ask, network, out),
            Kind::Offer | Kind::Ack | Kind::Nak => {}
        }
    }

    /// Writes a lease's new end for a machine that runs without asking again: its
    /// first stage took over the address that iPXE had.
    pub fn keep(
        &mut self,
        now: Millis,
        address: Ipv4Addr,
        mac: rootstock_core::MacAddress,
        span: Millis,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(network) = self.network_at(address) else {
            return out;
        };
        let held = self.table.held(address, now);
        let writing = held.is_some_and(|entry| entry.state == State::Committing);
        let later = held.is_some_and(|entry| entry.until >= now.after(span));
        if writing || later || !self.table.may_have(network, address, mac, now) {
            return out;
        }
        let lease = Lease {
            address,
            mac,
            client_id: Vec::new(),
            host_name: None,
            network: self.config.networks[network.0].name.clone(),
            state: LeaseState::Bound,
            started: now,
            expires: now.after(span),
        };
        self.commit(None, network, lease, &mut out);
        out
    }

    fn discover(&mut self, now: Millis, ask: Box<Ask>, network: NetworkId, out: &mut Vec<Action>) {
        let (mac, xid) = (ask.client.mac, ask.packet.xid);
        if self.machines.is_twin(mac, xid, ask.interface.0, now) {
            return ignore_ask(&ask, Ignored::Twin, out);
        }
        self.find_address(now, ask, network, 0, out);
    }

    /// Chooses an address and asks after it, or offers it at once.
    fn find_address(
        &mut self,
        now: Millis,
        ask: Box<Ask>,
        network: NetworkId,
        tries: u32,
        out: &mut Vec<Action>,
    ) {
        let mac = ask.client.mac;
        let Some(address) = self.choose(now, &ask, network) else {
            let network = self.config.networks[network.0].name.clone();
            out.push(Action::Event(Event::Exhausted { network, mac }));
            return;
        };
        let held = self.table.held(address, now);
        let state = held.map(|entry| entry.state);
        if state == Some(State::Probing) {
            // The client asked again before the probe's answer.
            return;
        }
        if held.is_some() || tries >= PROBE_TRIES_MAX || !self.may_probe() {
            return self.offer(now, &ask, network, address, out);
        }
        let until = now.after(OFFER_HOLD);
        self.table.set(
            network,
            address,
            Entry {
                mac,
                state: State::Probing,
                until,
            },
        );
        let ticket = self.ticket();
        self.probes += 1;
        out.push(Action::Probe {
            ticket,
            interface: ask.interface,
            address,
            mac,
            link: link_of(&ask.packet),
        });
        self.pending.insert(
            ticket,
            Pending::Probe {
                ask,
                network,
                address,
                tries,
            },
        );
    }

    /// In the order of RFC 2131, section 4.3.1, after the machine's own address.
    fn choose(&mut self, now: Millis, ask: &Ask, network: NetworkId) -> Option<Ipv4Addr> {
        let mac = ask.client.mac;
        let subnet = self.config.networks[network.0].subnet;
        let own = self.table.own_of(mac).iter().copied();
        let last = self.table.last_of(network, mac);
        let mut wishes = own.chain(last).chain(ask.packet.requested);
        let wish = wishes.find(|&address| {
            subnet.contains(address) && self.table.may_have(network, address, mac, now)
        });
        wish.or_else(|| self.table.pick(network, mac, now))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one pending probe")]
    pub(super) fn judge(
        &mut self,
        now: Millis,
        ask: Box<Ask>,
        network: NetworkId,
        address: Ipv4Addr,
        tries: u32,
        found: Probed,
        out: &mut Vec<Action>,
    ) {
        let mac = ask.client.mac;
        if found == Probed::Used {
            let until = now.after(QUARANTINE);
            let entry = Entry {
                mac,
                state: State::Quarantined,
                until,
            };
            self.table.set(network, address, entry);
            let interface = ask.interface;
            out.push(Action::Event(Event::Conflict {
                interface,
                address,
                mac,
            }));
            return self.find_address(now, ask, network, tries + 1, out);
        }
        let entry = self.table.entry(address);
        let ours = entry.is_some_and(|entry| entry.mac == mac && entry.state == State::Probing);
        if ours {
            self.offer(now, &ask, network, address, out);
        }
    }

    fn offer(
        &mut self,
        now: Millis,
        ask: &Ask,
        network: NetworkId,
        address: Ipv4Addr,
        out: &mut Vec<Action>,
    ) {
        let mac = ask.client.mac;
        let held = self.table.held(address, now).map(|entry| entry.state);
        if !matches!(held, Some(State::Bound | State::Committing)) {
            let until = now.after(OFFER_HOLD);
            self.table.set(
                network,
                address,
                Entry {
                    mac,
                    state: State::Offered,
                    until,
                },
            );
        }
        let mut events = Vec::new();
        self.machines.asks(&self.config, &ask.client, &mut events);
        out.extend(events.into_iter().map(Action::Event));
        let boot = self.boot_of(now, ask, network);
        self.send_lease(
            ask,
            network,
            MessageType::Offer,
            address,
            boot.as_ref(),
            out,
        );
        if boot.is_some() {
            self.machines.offered(now, mac);
        }
        if ask.client.program.boots() {
            out.push(Action::Event(Event::Offered {
                client: ask.client.clone(),
                address: Some(address),
                boot: boot.map(|boot| boot.0),
            }));
        }
    }

    /// RFC 2131, section 4.3.2: which of the four kinds of request it is.
    fn request(&mut self, now: Millis, ask: Box<Ask>, network: NetworkId, out: &mut Vec<Action>) {
        let packet = &ask.packet;
        let mac = ask.client.mac;
        let subnet = self.config.networks[network.0].subnet;
        let renews = (!packet.ciaddr.is_unspecified()).then_some(packet.ciaddr);
        if let Some(server) = packet.server {
            // SELECTING.
            if !self.is_us(server, &ask) {
                return self.passed_over(now, &ask, network);
            }
            let Some(address) = packet.requested.or(renews) else {
                return ignore_ask(&ask, Ignored::Malformed, out);
            };
            if !subnet.contains(address) {
                return self.refuse(&ask, address, NakReason::WrongNetwork, out);
            }
            return self.grant(now, ask, network, address, out);
        }
        if let Some(address) = renews {
            // RENEWING or REBINDING. One that is free, but not in our memory, was
            // given by another server or before a loss: the commit decides.
            return match self.table.held(address, now) {
                Some(entry) if entry.mac != mac => {
                    self.refuse(&ask, address, NakReason::Taken, out);
                }
                _ if self.table.may_have(network, address, mac, now) => {
                    self.grant(now, ask, network, address, out);
                }
                _ => {}
            };
        }
        let Some(address) = packet.requested else {
            return ignore_ask(&ask, Ignored::Malformed, out);
        };
        // INIT-REBOOT. Silent when there is no record of the client.
        if !subnet.contains(address) {
            return self.refuse(&ask, address, NakReason::WrongNetwork, out);
        }
        let last = self.table.last_of(network, mac);
        let own = self.table.own_of(mac);
        let bound = last.is_some_and(|last| self.table.held(last, now).is_some());
        if last == Some(address) || own.contains(&address) {
            self.grant(now, ask, network, address, out);
        } else if self
            .table
            .held(address, now)
            .is_some_and(|entry| entry.mac != mac)
        {
            self.refuse(&ask, address, NakReason::Taken, out);
        } else if bound || !own.is_empty() {
            self.refuse(&ask, address, NakReason::NotYours, out);
        }
    }

    /// It chose another server's offer.
    fn passed_over(&mut self, now: Millis, ask: &Ask, network: NetworkId) {
        let mac = ask.client.mac;
        let Some(address) = self.table.last_of(network, mac) else {
            return;
        };
        let entry = self.table.held(address, now);
        if entry.is_some_and(|entry| entry.state == State::Offered && entry.mac == mac) {
            let entry = Entry {
                mac,
                state: State::Over,
                until: now,
            };
            self.table.set(network, address, entry);
        }
    }

    /// Has a lease written for an address, if the client can have it.
    fn grant(
        &mut self,
        now: Millis,
        ask: Box<Ask>,
        network: NetworkId,
        address: Ipv4Addr,
        out: &mut Vec<Action>,
    ) {
        let mac = ask.client.mac;
        if !self.table.may_have(network, address, mac, now) {
            return self.refuse(&ask, address, NakReason::Taken, out);
        }
        let writing = self.table.entry(address);
        if writing.is_some_and(|entry| entry.state == State::Committing) {
            // Asked again before the answer.
            return;
        }
        let span = self.span(&ask, network);
        let lease = Lease {
            address,
            mac,
            client_id: {
                let id = &ask.packet.client_id;
                id[..id.len().min(CLIENT_ID_BYTES_MAX)].to_vec()
            },
            host_name: ask.packet.host_name().map(str::to_owned),
            network: self.config.networks[network.0].name.clone(),
            state: LeaseState::Bound,
            started: now,
            expires: now.after(span).after(GRACE),
        };
        self.commit(Some(ask), network, lease, out);
    }

    fn commit(
        &mut self,
        ask: Option<Box<Ask>>,
        network: NetworkId,
        lease: Lease,
        out: &mut Vec<Action>,
    ) {
        let before = self.table.entry(lease.address);
        let entry = Entry {
            mac: lease.mac,
            state: State::Committing,
            until: lease.expires,
        };
        self.table.set(network, lease.address, entry);
        let ticket = self.ticket();
        out.push(Action::Commit {
            ticket,
            lease: lease.clone(),
        });
        self.pending.insert(
            ticket,
            Pending::Commit {
                ask,
                network,
                before,
                lease,
            },
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one pending commit")]
    pub(super) fn settle(
        &mut self,
        now: Millis,
        ask: Option<Box<Ask>>,
        network: NetworkId,
        before: Option<Entry>,
        lease: &Lease,
        result: Result<(), CommitError>,
        out: &mut Vec<Action>,
    ) {
        let (address, mac) = (lease.address, lease.mac);
        let entry = match result {
            Ok(()) => Entry {
                mac,
                state: State::Bound,
                until: lease.expires,
            },
            Err(CommitError::Taken) => {
                let until = now.after(TAKEN_REST);
                Entry {
                    mac,
                    state: State::Quarantined,
                    until,
                }
            }
            Err(CommitError::Failed) => before.unwrap_or(Entry {
                mac,
                state: State::Over,
                until: now,
            }),
        };
        self.table.set(network, address, entry);
        self.table.sweep(now);
        let Some(ask) = ask else { return };
        match result {
            // Told now, its client would believe in the lease longer than it lasts.
            Ok(()) if now.since(lease.started) > GRACE => {}
            Ok(()) => self.acknowledge(now, &ask, network, lease, out),
            Err(CommitError::Taken) => self.refuse(&ask, address, NakReason::Taken, out),
            Err(CommitError::Failed) => {
                out.push(Action::Event(Event::NotWritten { mac, address }));
            }
        }
    }

    fn acknowledge(
        &mut self,
        now: Millis,
        ask: &Ask,
        network: NetworkId,
        lease: &Lease,
        out: &mut Vec<Action>,
    ) {
        let boot = self.boot_of(now, ask, network);
        self.machines.heard(now, ask.client.mac, lease.address);
        self.send_lease(
            ask,
            network,
            MessageType::Ack,
            lease.address,
            boot.as_ref(),
            out,
        );
        out.push(Action::Event(Event::Acknowledged {
            client: ask.client.clone(),
            address: lease.address,
            expires: Some(lease.expires),
            boot: boot.map(|boot| boot.0),
        }));
    }

    fn refuse(&mut self, ask: &Ask, address: Ipv4Addr, reason: NakReason, out: &mut Vec<Action>) {
        let bytes = reply::bytes(&Reply {
            request: &ask.packet,
            kind: MessageType::Nak,
            server: self.identity(ask),
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            options: Vec::new(),
            boot: None,
        });
        let to = destination(ask, MessageType::Nak, Ipv4Addr::UNSPECIFIED);
        out.push(self.outgoing(ask, to, bytes));
        let mac = ask.client.mac;
        out.push(Action::Event(Event::Refused {
            mac,
            address,
            reason,
        }));
    }

    fn send_lease(
        &mut self,
        ask: &Ask,
        network: NetworkId,
        kind: MessageType,
        address: Ipv4Addr,
        boot: Option<&(Boot, BootFields)>,
        out: &mut Vec<Action>,
    ) {
        let seconds = u32::try_from(self.span(ask, network).0 / 1000).unwrap_or(u32::MAX);
        // T1 and T2 at half and seven eighths (RFC 2131, section 4.4.5).
        let mut options = vec![
            DhcpOption::AddressLeaseTime(seconds),
            DhcpOption::Renewal(seconds / 2),
            DhcpOption::Rebinding(seconds - seconds / 8),
        ];
        options.extend(self.network_options(ask, network));
        // RFC 2131, table 3: `ciaddr` of an offer is 0.
        let ciaddr = if kind == MessageType::Ack {
            ask.packet.ciaddr
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let bytes = reply::bytes(&Reply {
            request: &ask.packet,
            kind,
            server: self.identity(ask),
            ciaddr,
            yiaddr: address,
            options,
            boot: boot.map(|boot| &boot.1),
        });
        let to = destination(ask, kind, address);
        out.push(self.outgoing(ask, to, bytes));
    }

    pub(super) fn network_options(&self, ask: &Ask, network: NetworkId) -> Vec<DhcpOption> {
        let network = &self.config.networks[network.0];
        let mut options = vec![
            DhcpOption::SubnetMask(network.subnet.mask()),
            DhcpOption::BroadcastAddr(network.subnet.broadcast()),
        ];
        options.extend(
            network
                .gateway
                .map(|gateway| DhcpOption::Router(vec![gateway])),
        );
        if !network.name_servers.is_empty() {
            options.push(DhcpOption::DomainNameServer(network.name_servers.clone()));
        }
        let known = self.machines.known(ask.client.mac);
        let name = known.and_then(|known| known.host_name.clone());
        options.extend(name.map(DhcpOption::Hostname));
        options.extend(network.domain.clone().map(DhcpOption::DomainName));
        options
    }

    /// Firmware and iPXE have an address for a short time: the system asks again.
    fn span(&self, ask: &Ask, network: NetworkId) -> Millis {
        let network = &self.config.networks[network.0];
        if ask.client.program.boots() {
            network.boot_lease
        } else {
            network.lease
        }
    }

    pub(super) fn boot_of(
        &mut self,
        now: Millis,
        ask: &Ask,
        network: NetworkId,
    ) -> Option<(Boot, BootFields)> {
        let known = self.machines.known(ask.client.mac).is_some();
        if !known && self.config.networks[network.0].unknown == Unknown::Ignore {
            return None;
        }
        let server = self.interface(ask.interface).address;
        self.machines
            .answer(&self.config, now, &ask.client, Voice::Dhcp, server)
    }

    /// What we call ourselves to a client.
    pub(super) fn identity(&self, ask: &Ask) -> Ipv4Addr {
        let wished = ask.packet.relay_part(SERVER_OVERRIDE);
        wished.unwrap_or_else(|| self.interface(ask.interface).address)
    }

    pub(super) fn is_us(&self, server: Ipv4Addr, ask: &Ask) -> bool {
        self.is_own(server) || ask.packet.relay_part(SERVER_OVERRIDE) == Some(server)
    }

    pub(super) fn outgoing(&self, ask: &Ask, to: Destination, bytes: Vec<u8>) -> Action {
        Action::Send(Outgoing {
            interface: ask.interface,
            source: SocketAddrV4::new(self.interface(ask.interface).address, SERVER_PORT),
            to,
            bytes,
        })
    }
}

/// RFC 2131, section 4.1.
fn destination(ask: &Ask, kind: MessageType, yiaddr: Ipv4Addr) -> Destination {
    let packet = &ask.packet;
    if !packet.giaddr.is_unspecified() {
        Destination::Unicast(SocketAddrV4::new(packet.giaddr, SERVER_PORT))
    } else if kind == MessageType::Nak {
        Destination::Broadcast(CLIENT_PORT)
    } else if !packet.ciaddr.is_unspecified() {
        Destination::Unicast(SocketAddrV4::new(packet.ciaddr, CLIENT_PORT))
    } else if packet.wants_broadcast() {
        Destination::Broadcast(CLIENT_PORT)
    } else {
        Destination::Hardware {
            mac: ask.client.mac,
            address: SocketAddrV4::new(yiaddr, CLIENT_PORT),
        }
    }
}
