//! DHCP in all its roles: the subnet's server, ProxyDHCP beside another server, or an
//! observer that answers nothing.
//!
//! [`Server`] takes packets, times and answers, and gives [`Action`]s. What it must
//! not know by itself it asks for: whether an address is in use ([`Action::Probe`]),
//! and whether a lease is durable and no other server gave it ([`Action::Commit`]).
//! No acknowledgement leaves before its commit was answered. The alternative, to
//! acknowledge first and to write then, gives one address to two machines when power
//! fails in between, or when two servers share a pool.

mod action;
mod auto;
mod boot;
mod config;
mod lease;
mod proxy;
mod reply;
mod server;
mod table;

pub use action::{
    Action, Boot, CommitError, Destination, Event, Ignored, Incoming, Link, NakReason, Outgoing,
    PROBE_WAIT, Probed, Progress, Role, Ticket, Who,
};
pub use config::{
    Config, InterfaceConfig, InterfaceId, Known, Mode, Network, Probes, Subnet, Unknown,
};
pub use lease::{Lease, LeaseState};
pub use server::Server;

/// The port of servers (RFC 2131, section 4.1).
pub const SERVER_PORT: u16 = 67;
/// The port of clients.
pub const CLIENT_PORT: u16 = 68;
/// The port where PXE clients ask for boot programs (PXE 2.1, section 2.2.3).
pub const PXE_PORT: u16 = 4011;

#[cfg(test)]
mod tests;
