//! The server in all its roles, packet by packet.

mod answers;
mod boots;
mod model;
mod modes;

use std::net::{Ipv4Addr, SocketAddrV4};

use rootstock_core::MacAddress;

use super::*;
use crate::{
    Millis,
    client::{Kind, Packet},
    strategy,
};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const START: Millis = Millis(1_000_000);

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn mac(number: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, number])
}

fn config(mode: Mode) -> Config {
    let network = |third: u8, interface| Network {
        name: format!("net{third}"),
        interface,
        subnet: Subnet::of(Ipv4Addr::new(10, 0, third, 0), 24),
        pool: Some((
            Ipv4Addr::new(10, 0, third, 100),
            Ipv4Addr::new(10, 0, third, 109),
        )),
        gateway: Some(Ipv4Addr::new(10, 0, third, 254)),
        name_servers: vec![Ipv4Addr::new(10, 0, third, 253)],
        domain: Some("lab".to_owned()),
        lease: Millis::seconds(3600),
        boot_lease: Millis::seconds(120),
        relays: Vec::new(),
        unknown: Unknown::Auto,
    };
    Config {
        interfaces: vec![InterfaceConfig {
            name: "eth0".to_owned(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            address: SERVER,
            mode,
            unknown: Unknown::Boot,
        }],
        networks: vec![network(0, Some(InterfaceId(0))), network(5, None)],
        http_port: 8480,
        rules: strategy::RULES,
        programs: None,
        probes: Probes::Off,
        seed: 7,
    }
}

/// A packet of a client, to be altered and sent.
#[derive(Clone)]
struct Ask {
    bytes: Vec<u8>,
    source: SocketAddrV4,
    port: u16,
}

fn ask(number: u8, kind: Kind, options: &[(u8, &[u8])]) -> Ask {
    let kind = match kind {
        Kind::Discover => 1,
        Kind::Offer => 2,
        Kind::Request => 3,
        Kind::Decline => 4,
        Kind::Ack => 5,
        Kind::Nak => 6,
        Kind::Release => 7,
        Kind::Inform => 8,
    };
    Ask {
        bytes: crate::client::tests::request(mac(number).0, kind, options),
        source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        port: 67,
    }
}

impl Ask {
    fn at(mut self, place: usize, bytes: &[u8]) -> Self {
        self.bytes[place..place + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn from(mut self, address: Ipv4Addr) -> Self {
        self.source = SocketAddrV4::new(address, 68);
        self.at(12, &address.octets())
    }

    fn relayed(self, relay: Ipv4Addr) -> Self {
        self.at(24, &relay.octets())
    }

    fn to(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    fn send(&self, server: &mut Server, now: Millis) -> Vec<Action> {
        server.handle(
            now,
            &Incoming {
                interface: InterfaceId(0),
                source: self.source,
                destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, self.port),
                bytes: &self.bytes,
            },
        )
    }
}

/// The packets among actions.
fn sent(actions: &[Action]) -> Vec<(&Outgoing, Packet)> {
    let packets = actions.iter().filter_map(|action| match action {
        Action::Send(outgoing) => Some(outgoing),
        _ => None,
    });
    packets
        .map(|outgoing| (outgoing, Packet::read(&outgoing.bytes).unwrap()))
        .collect()
}

/// The only packet among actions.
fn answer(actions: &[Action]) -> Packet {
    let mut packets = sent(actions);
    assert_eq!(packets.len(), 1, "{actions:?}");
    packets.remove(0).1
}

/// An option's bytes in a packet of ours.
fn option(outgoing: &Outgoing, wanted: u8) -> Option<Vec<u8>> {
    let mut options = crate::client::encapsulated(&outgoing.bytes[240..]);
    options
        .find(|(code, _)| *code == wanted)
        .map(|(_, value)| value.to_vec())
}

/// Answers each commit.
fn commit(
    server: &mut Server,
    now: Millis,
    actions: &[Action],
    result: Result<(), CommitError>,
) -> Vec<Action> {
    let tickets = actions.iter().filter_map(|action| match action {
        Action::Commit { ticket, .. } => Some(*ticket),
        _ => None,
    });
    tickets
        .flat_map(|ticket| server.committed(now, ticket, result))
        .collect()
}

/// Takes an address by the book; answers which.
fn take(server: &mut Server, number: u8, now: Millis, options: &[(u8, &[u8])]) -> Ipv4Addr {
    let offer = answer(&ask(number, Kind::Discover, options).send(server, now));
    assert_eq!(offer.kind, Kind::Offer);
    let octets = offer.yiaddr.octets();
    let server_id = SERVER.octets();
    let mut chosen: Vec<(u8, &[u8])> = vec![(50, &octets), (54, &server_id)];
    chosen.extend(options);
    let actions = ask(number, Kind::Request, &chosen).send(server, now);
    assert!(
        sent(&actions).is_empty(),
        "no answer before the commit: {actions:?}"
    );
    let ack = answer(&commit(server, now, &actions, Ok(())));
    assert_eq!((ack.kind, ack.yiaddr), (Kind::Ack, offer.yiaddr));
    offer.yiaddr
}
