//! ProxyDHCP: how to boot, said beside the server that gives the addresses (PXE 2.1,
//! section 2.2).

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::MessageType;

use super::{
    CLIENT_PORT, PXE_PORT, SERVER_PORT,
    action::{Action, Destination, Event, Ignored, Outgoing},
    boot::Voice,
    config::Unknown,
    reply::{self, Reply},
    server::{Ask, Server, ignore_ask},
};
use crate::{Millis, client::Kind};

impl Server {
    /// A packet to port 67 while another server gives the addresses. Only what boots
    /// is answered.
    pub(super) fn propose(&mut self, now: Millis, ask: &Ask, out: &mut Vec<Action>) {
        let packet = &ask.packet;
        let mac = ask.client.mac;
        let (machines, _) = self.machines();
        if packet.kind == Kind::Request {
            // To the other server, but it tells which address is whose.
            machines.heard(now, mac, packet.requested.unwrap_or(packet.ciaddr));
            return;
        }
        if packet.kind != Kind::Discover || !ask.client.program.boots() {
            return;
        }
        if machines.is_twin(mac, packet.xid, ask.interface.0, now) {
            return ignore_ask(ask, Ignored::Twin, out);
        }
        let to = if packet.giaddr.is_unspecified() {
            // It has no address yet, and we do not know which it will have.
            Destination::Broadcast(CLIENT_PORT)
        } else {
            Destination::Unicast(SocketAddrV4::new(packet.giaddr, SERVER_PORT))
        };
        self.tell(now, ask, MessageType::Offer, SERVER_PORT, to, out);
    }

    /// A packet to port 4011: a client that has an address asks for its boot program,
    /// and is answered from the port it asked.
    pub(super) fn answer_pxe(&mut self, now: Millis, ask: &Ask, out: &mut Vec<Action>) {
        let packet = &ask.packet;
        if !ask.client.program.boots() {
            return;
        }
        let kind = match packet.kind {
            Kind::Request | Kind::Inform => MessageType::Ack,
            Kind::Discover => MessageType::Offer,
            _ => return,
        };
        let address = if packet.ciaddr.is_unspecified() {
            *ask.source.ip()
        } else {
            packet.ciaddr
        };
        let to = if address.is_unspecified() {
            Destination::Broadcast(CLIENT_PORT)
        } else {
            Destination::Unicast(SocketAddrV4::new(address, ask.source.port()))
        };
        let (machines, _) = self.machines();
        machines.heard(now, ask.client.mac, address);
        self.tell(now, ask, kind, PXE_PORT, to, out);
    }

    fn tell(
        &mut self,
        now: Millis,
        ask: &Ask,
        kind: MessageType,
        port: u16,
        to: Destination,
        out: &mut Vec<Action>,
    ) {
        let interface = self.interface(ask.interface);
        let (server, unknown) = (interface.address, interface.unknown);
        let (machines, config) = self.machines();
        let known = machines.known(ask.client.mac).is_some();
        if !known && unknown != Unknown::Boot {
            return ignore_ask(ask, Ignored::UnknownMachine, out);
        }
        let mut events = Vec::new();
        if kind == MessageType::Offer {
            machines.asks(config, &ask.client, &mut events);
        }
        let answer = machines.answer(config, now, &ask.client, Voice::Proxy, server);
        let Some((boot, fields)) = answer else {
            return ignore_ask(ask, Ignored::NoStrategy, out);
        };
        if kind == MessageType::Offer {
            machines.offered(now, ask.client.mac);
        }
        let bytes = reply::bytes(&Reply {
            request: &ask.packet,
            kind,
            server,
            ciaddr: ask.packet.ciaddr,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            options: Vec::new(),
            boot: Some(&fields),
        });
        out.extend(events.into_iter().map(Action::Event));
        out.push(Action::Send(Outgoing {
            interface: ask.interface,
            source: SocketAddrV4::new(server, port),
            to,
            bytes,
        }));
        let client = ask.client.clone();
        out.push(Action::Event(if kind == MessageType::Offer {
            Event::Offered {
                client,
                address: None,
                boot: Some(boot),
            }
        } else {
            let address = ask.packet.ciaddr;
            Event::Acknowledged {
                client,
                address,
                expires: None,
                boot: Some(boot),
            }
        }));
    }
}
