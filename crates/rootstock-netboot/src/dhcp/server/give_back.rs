//! Addresses that clients give back or find in use, and clients that have theirs
//! from elsewhere.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::MessageType;

use super::{Ask, QUARANTINE, Server, ignore_ask};
use crate::{
    Millis,
    dhcp::{
        CLIENT_PORT,
        action::{Action, Destination, Event, Ignored},
        reply::{self, Reply},
        table::{Entry, NetworkId, State},
    },
};

impl Server {
    /// Only what was offered to or held by this client can be declined: else anybody
    /// could take a pool out of use.
    pub(super) fn decline(
        &mut self,
        now: Millis,
        ask: &Ask,
        network: NetworkId,
        out: &mut Vec<Action>,
    ) {
        let mac = ask.client.mac;
        let Some(address) = ask.packet.requested else {
            return ignore_ask(ask, Ignored::Malformed, out);
        };
        let other = ask
            .packet
            .server
            .is_some_and(|server| !self.is_us(server, ask));
        let entry = self.table.held(address, now);
        let theirs = entry.is_some_and(|entry| {
            entry.mac == mac && matches!(entry.state, State::Offered | State::Bound)
        });
        if other || !theirs {
            return;
        }
        let until = now.after(QUARANTINE);
        self.table.set(
            network,
            address,
            Entry {
                mac,
                state: State::Quarantined,
                until,
            },
        );
        out.push(Action::Decline {
            address,
            mac,
            until,
        });
        let interface = ask.interface;
        out.push(Action::Event(Event::Conflict {
            interface,
            address,
            mac,
        }));
    }

    /// A release comes from the address it gives back, or through a relay. While the
    /// lease is being written it is not taken: its acknowledgement would follow.
    pub(super) fn release(
        &mut self,
        now: Millis,
        ask: &Ask,
        network: NetworkId,
        out: &mut Vec<Action>,
    ) {
        let mac = ask.client.mac;
        let address = ask.packet.ciaddr;
        let genuine = *ask.source.ip() == address || !ask.packet.giaddr.is_unspecified();
        let entry = self.table.held(address, now);
        let theirs = entry.is_some_and(|entry| entry.mac == mac && entry.state == State::Bound);
        if !genuine || !theirs {
            return;
        }
        self.table.set(
            network,
            address,
            Entry {
                mac,
                state: State::Over,
                until: now,
            },
        );
        out.push(Action::Release { address, mac, now });
        out.push(Action::Event(Event::Released { mac, address }));
    }

    /// The client has an address from elsewhere: no lease, no address (RFC 2131,
    /// section 4.3.5).
    pub(super) fn inform(
        &mut self,
        now: Millis,
        ask: &Ask,
        network: NetworkId,
        out: &mut Vec<Action>,
    ) {
        let boot = self.boot_of(now, ask, network);
        let bytes = reply::bytes(&Reply {
            request: &ask.packet,
            kind: MessageType::Ack,
            server: self.identity(ask),
            ciaddr: ask.packet.ciaddr,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            options: self.network_options(ask, network),
            boot: boot.as_ref().map(|boot| &boot.1),
        });
        let address = if ask.packet.ciaddr.is_unspecified() {
            *ask.source.ip()
        } else {
            ask.packet.ciaddr
        };
        let to = if address.is_unspecified() {
            Destination::Broadcast(CLIENT_PORT)
        } else {
            Destination::Unicast(SocketAddrV4::new(address, CLIENT_PORT))
        };
        out.push(self.outgoing(ask, to, bytes));
    }
}
