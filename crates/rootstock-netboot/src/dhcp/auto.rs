//! What an interface does: as configured, or decided by listening for other servers.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Encodable, Encoder};

use super::{
    CLIENT_PORT,
    action::{Destination, Event, Outgoing, Role},
    config::{InterfaceConfig, InterfaceId, Mode},
};
use crate::{
    Millis,
    client::{Kind, Packet},
};

/// How often other servers are asked for before there are none.
const QUESTIONS: u32 = 3;

/// The time between questions. The last is waited for as long: a server that pings
/// an address before it offers it takes a second.
const PATIENCE: Millis = Millis(1500);

/// How often a server that found itself alone asks again: one that came later may
/// answer its clients where we cannot overhear it.
const ASK_AGAIN: Millis = Millis::seconds(60);

/// How many other servers are remembered on an interface.
const RIVALS_MAX: usize = 16;

/// How often a rival is reported again.
const REPORT_AGAIN: Millis = Millis::seconds(600);

/// An interface's mode as it is now.
#[derive(Debug)]
pub(super) struct Duty {
    id: InterfaceId,
    configured: Mode,
    /// `None` while it is being decided.
    now: Option<Mode>,
    questions: u32,
    next: Option<Millis>,
    rivals: Vec<(Ipv4Addr, Millis)>,
    xid: u32,
}

impl Duty {
    pub(super) fn new(id: InterfaceId, mode: Mode, seed: u32) -> Self {
        let place = u32::try_from(id.0).unwrap_or(0);
        Self {
            id,
            configured: mode,
            now: (mode != Mode::Auto).then_some(mode),
            questions: 0,
            next: (mode == Mode::Auto).then_some(Millis(0)),
            rivals: Vec::new(),
            xid: seed.wrapping_add(place.wrapping_mul(0x9e37_79b9)),
        }
    }

    /// What is done now; `None` while it is being decided, when nothing is.
    pub(super) const fn mode(&self) -> Option<Mode> {
        self.now
    }

    pub(super) const fn next_wake(&self) -> Option<Millis> {
        self.next
    }

    /// Whether a packet is our own question.
    pub(super) fn is_own_question(&self, packet: &Packet) -> bool {
        self.configured == Mode::Auto && self.questions > 0 && packet.xid == self.xid
    }

    /// Asks, or decides.
    pub(super) fn wake(
        &mut self,
        interface: &InterfaceConfig,
        now: Millis,
        has_network: HasNetwork,
    ) -> Option<Step> {
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        if self.now.is_some() {
            self.next = Some(now.after(ASK_AGAIN));
            return Some(Step::Ask(self.question(interface)));
        }
        if self.questions < QUESTIONS {
            self.questions += 1;
            self.next = Some(now.after(PATIENCE));
            return Some(Step::Ask(self.question(interface)));
        }
        // Nobody answered. Public addresses are never given out by guess.
        let mode = if interface.address.is_private() && has_network == HasNetwork::Yes {
            Mode::Dhcp
        } else {
            Mode::Observe
        };
        let event = self.decide(mode, None);
        self.next = (mode == Mode::Dhcp).then(|| now.after(ASK_AGAIN));
        Some(Step::Tell(event))
    }

    /// Another server was heard.
    pub(super) fn rival(
        &mut self,
        now: Millis,
        packet: &Packet,
        server: Ipv4Addr,
        events: &mut Vec<Event>,
    ) {
        // An offer of an address, or an acknowledgement, is a DHCP server's; one
        // without is a ProxyDHCP server's, which we can live beside as DHCP server.
        let role = if packet.yiaddr.is_unspecified() && packet.kind != Kind::Nak {
            Role::Boot
        } else {
            Role::Addresses
        };
        let place = self.rivals.iter().position(|rival| rival.0 == server);
        let news = place.is_none_or(|place| now.since(self.rivals[place].1) >= REPORT_AGAIN);
        match place {
            Some(place) if news => self.rivals[place].1 = now,
            Some(_) => {}
            None if self.rivals.len() < RIVALS_MAX => self.rivals.push((server, now)),
            None => return,
        }
        if news {
            events.push(Event::Rival {
                interface: self.id,
                server,
                role,
            });
        }
        let yields = self.configured == Mode::Auto && !matches!(self.now, Some(Mode::Proxy));
        if yields && role == Role::Addresses {
            events.push(self.decide(Mode::Proxy, Some(server)));
        }
    }

    fn decide(&mut self, mode: Mode, rival: Option<Ipv4Addr>) -> Event {
        self.now = Some(mode);
        self.next = None;
        Event::Decided {
            interface: self.id,
            mode,
            rival,
        }
    }

    /// A DISCOVER like any client's, to be answered by broadcast.
    fn question(&self, interface: &InterfaceConfig) -> Outgoing {
        let mut bytes = vec![0; 236];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[10] = 0x80;
        bytes[28..34].copy_from_slice(interface.mac.as_bytes());
        bytes.extend_from_slice(&dhcproto::v4::MAGIC);
        let mut options = Vec::new();
        let mut encoder = Encoder::new(&mut options);
        let parameters = [1_u8, 3, 6].map(Into::into).to_vec();
        for option in [
            DhcpOption::MessageType(dhcproto::v4::MessageType::Discover),
            DhcpOption::ParameterRequestList(parameters),
        ] {
            let _ = option.encode(&mut encoder);
        }
        bytes.extend_from_slice(&options);
        bytes.push(0xff);
        bytes.resize(300, 0);
        Outgoing {
            interface: self.id,
            source: std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT),
            to: Destination::Broadcast(super::SERVER_PORT),
            bytes,
        }
    }
}

/// Whether there is a network to serve on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasNetwork {
    Yes,
    No,
}

/// What comes of waking.
#[derive(Debug)]
pub(super) enum Step {
    Ask(Outgoing),
    Tell(Event),
}
