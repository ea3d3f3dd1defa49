//! A lease, as it is kept.

use std::net::Ipv4Addr;

use rootstock_core::MacAddress;

use crate::Millis;

/// How far a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Its client may use the address until it expires.
    Bound,
    /// Its client gave it back.
    Released,
    /// Its client found it used by somebody else.
    Declined,
}

/// An address that is one client's until its time is over. A client is told by its
/// card alone: ROM, iPXE, first stage and system send different client identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The client's card.
    pub mac: MacAddress,
    /// The client identifier it sent; empty without one.
    pub client_id: Vec<u8>,
    /// The host name it sent.
    pub host_name: Option<String>,
    /// The network it is in.
    pub network: String,
    /// How far it is.
    pub state: LeaseState,
    /// When it was given or last renewed.
    pub started: Millis,
    /// When it is over.
    pub expires: Millis,
}
