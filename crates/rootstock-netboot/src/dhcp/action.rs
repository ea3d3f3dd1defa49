//! What goes into a server, and what comes out of it.

use std::net::{Ipv4Addr, SocketAddrV4};

use rootstock_core::MacAddress;

use super::{
    config::{InterfaceId, Mode},
    lease::Lease,
};
use crate::{Millis, client::Client};

/// A packet that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Where.
    pub interface: InterfaceId,
    /// From whom.
    pub source: SocketAddrV4,
    /// To what address and port of ours.
    pub destination: SocketAddrV4,
    /// Its bytes, from the operation on.
    pub bytes: &'a [u8],
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a packet.
    Send(Outgoing),
    /// Make a lease durable unless somebody else has the address, and call
    /// [`super::Server::committed`]. All leases of one turn may be one transaction.
    Commit {
        /// What the answer names.
        ticket: Ticket,
        /// The lease.
        lease: Lease,
    },
    /// Record that a client gave its address back. After commits before it and
    /// before those after it.
    Release {
        /// The address.
        address: Ipv4Addr,
        /// The client.
        mac: MacAddress,
        /// When.
        now: Millis,
    },
    /// Record that a client found its address used. As for a release.
    Decline {
        /// The address.
        address: Ipv4Addr,
        /// The client.
        mac: MacAddress,
        /// Until when nobody gets it.
        until: Millis,
    },
    /// Find out whether anybody uses an address, and call
    /// [`super::Server::probed`] within [`PROBE_WAIT`].
    Probe {
        /// What the answer names.
        ticket: Ticket,
        /// Where.
        interface: InterfaceId,
        /// Which address.
        address: Ipv4Addr,
        /// Who is to get it: an answer from this card is none.
        mac: MacAddress,
        /// Whether it is on the interface's own link, where ARP finds it, or behind
        /// a relay, where only ICMP does.
        link: Link,
    },
    /// Something happened.
    Event(Event),
}

/// How long a client waits while its address is asked after: firmware asks again
/// after a second at the earliest (iPXE), after four as a rule.
pub const PROBE_WAIT: Millis = Millis(250);

/// Whether an address is on a link of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It is.
    Own,
    /// It is behind a relay.
    Relayed,
}

/// What an answer refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where.
    pub interface: InterfaceId,
    /// From which address and port of ours.
    pub source: SocketAddrV4,
    /// To whom.
    pub to: Destination,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// To whom a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To all on the link, at this port.
    Broadcast(u16),
    /// To an address that can be asked for by ARP, or routed to.
    Unicast(SocketAddrV4),
    /// To a card that does not answer ARP yet, at the address it will have. May be
    /// broadcast instead.
    Hardware {
        /// The card.
        mac: MacAddress,
        /// The address and port.
        address: SocketAddrV4,
    },
}

/// Why a lease was not made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitError {
    /// Somebody else has the address.
    Taken,
    /// It could not be written.
    Failed,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// Nobody answered.
    Silent,
    /// Somebody uses the address.
    Used,
}

/// A machine, as another service knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// By its card.
    Card(MacAddress),
    /// By its address.
    Address(Ipv4Addr),
}

/// How far a machine's boot is, as other services see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It asked for a boot program.
    File,
    /// It fetched its script: the strategy worked.
    Script,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A machine asked for an address or a boot program.
    Discovered {
        /// Where.
        interface: InterfaceId,
        /// Who.
        client: Client,
    },
    /// It was offered something.
    Offered {
        /// Who.
        client: Client,
        /// An address, where we are the server.
        address: Option<Ipv4Addr>,
        /// How it is to boot.
        boot: Option<Boot>,
    },
    /// It took an address, or asked for its boot program on port 4011.
    Acknowledged {
        /// Who.
        client: Client,
        /// Its address.
        address: Ipv4Addr,
        /// Until when; `None` when it is not ours.
        expires: Option<Millis>,
        /// How it is to boot.
        boot: Option<Boot>,
    },
    /// It was told that it cannot have an address.
    Refused {
        /// Who.
        mac: MacAddress,
        /// The address.
        address: Ipv4Addr,
        /// Why.
        reason: NakReason,
    },
    /// It gave its address back.
    Released {
        /// Who.
        mac: MacAddress,
        /// The address.
        address: Ipv4Addr,
    },
    /// Somebody uses an address that we did not give it.
    Conflict {
        /// Where.
        interface: InterfaceId,
        /// The address.
        address: Ipv4Addr,
        /// Who was to get it.
        mac: MacAddress,
    },
    /// A network has no address left.
    Exhausted {
        /// The network's name.
        network: String,
        /// Who asked.
        mac: MacAddress,
    },
    /// A lease could not be written, so that nothing was answered.
    NotWritten {
        /// Who asked.
        mac: MacAddress,
        /// For which address.
        address: Ipv4Addr,
    },
    /// Another server answers here.
    Rival {
        /// Where.
        interface: InterfaceId,
        /// What it calls itself.
        server: Ipv4Addr,
        /// Whether it gives addresses, or boot programs only.
        role: Role,
    },
    /// What an interface in mode `auto` does from now on.
    Decided {
        /// Which.
        interface: InterfaceId,
        /// What it does.
        mode: Mode,
        /// The other server that was heard.
        rival: Option<Ipv4Addr>,
    },
    /// A machine did not go on after our offers.
    Silent {
        /// Who.
        mac: MacAddress,
        /// What was tried.
        strategy: &'static str,
        /// What it gets the next time.
        next: &'static str,
    },
    /// A machine came as far as its script.
    Worked {
        /// Who.
        mac: MacAddress,
        /// How.
        strategy: &'static str,
    },
    /// A packet was not answered.
    Ignored {
        /// Where.
        interface: InterfaceId,
        /// From whom.
        source: SocketAddrV4,
        /// Why.
        reason: Ignored,
    },
}

/// How a machine is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// By which strategy.
    pub strategy: &'static str,
    /// What it was told to fetch.
    pub file: String,
}

/// What a rival does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It gives addresses.
    Addresses,
    /// It tells how to boot.
    Boot,
}

/// Why a machine cannot have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NakReason {
    /// It belongs to another network.
    WrongNetwork,
    /// It is somebody else's.
    Taken,
    /// It is not what this machine was offered or has.
    NotYours,
}

/// Why a packet was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It is not DHCP, or damaged.
    Malformed,
    /// Its sender has no Ethernet address.
    NotEthernet,
    /// No network here is for it.
    NoNetwork,
    /// A relay that the network does not list.
    ForeignRelay,
    /// The machine is not known, and unknown ones are left alone.
    UnknownMachine,
    /// The table says nothing of such firmware, or its programs are missing.
    NoStrategy,
    /// The same packet came by another interface of ours.
    Twin,
}
