//! What a server is told of interfaces, networks and machines.

use std::{collections::BTreeSet, net::Ipv4Addr};

use rootstock_core::MacAddress;

use crate::{Millis, strategy};

/// An interface: its place in [`Config::interfaces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceId(pub usize);

/// What is done on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// ProxyDHCP beside another DHCP server; DHCP where there is none and the
    /// addresses are private.
    Auto,
    /// The subnet's DHCP server.
    Dhcp,
    /// Boot answers beside the site's own DHCP server.
    Proxy,
    /// Nothing is answered; what is seen is reported.
    Observe,
}

/// What is told to machines that nobody has heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// How to boot.
    Boot,
    /// Nothing about booting.
    Ignore,
    /// Nothing beside another DHCP server; where we are it, how to boot.
    Auto,
}

/// An interface.
#[derive(Debug, Clone)]
pub struct InterfaceConfig {
    /// The kernel's name of it.
    pub name: String,
    /// Its card.
    pub mac: MacAddress,
    /// Our address there: it is in every answer, and what they come from.
    pub address: Ipv4Addr,
    /// What is done there.
    pub mode: Mode,
    /// What machines are told that nobody has heard of, beside another server.
    pub unknown: Unknown,
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub network: Ipv4Addr,
    /// The length of its prefix, in bits; at most 32.
    pub prefix: u8,
}

impl Subnet {
    /// The network that an address is in.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let subnet = Self {
            network: address,
            prefix,
        };
        Self {
            network: address & subnet.mask(),
            prefix,
        }
    }

    /// Its mask.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        let bits = 32 - u32::from(self.prefix.min(32));
        Ipv4Addr::from_bits(u32::MAX.checked_shl(bits).unwrap_or(0))
    }

    /// Its last address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        self.network | !self.mask()
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network
    }

    /// Whether an address is a machine's in it.
    #[must_use]
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        let edge = address == self.network || address == self.broadcast();
        self.contains(address) && (self.prefix >= 31 || !edge)
    }
}

/// A subnet whose DHCP server we are, or may become.
#[derive(Debug, Clone)]
pub struct Network {
    /// How it is called.
    pub name: String,
    /// The interface it is on; `None` where only relays ask.
    pub interface: Option<InterfaceId>,
    /// Its addresses.
    pub subnet: Subnet,
    /// Addresses that are given out, first and last; none without.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// The router that machines are told of.
    pub gateway: Option<Ipv4Addr>,
    /// The name servers that machines are told of.
    pub name_servers: Vec<Ipv4Addr>,
    /// The domain that machines are told of.
    pub domain: Option<String>,
    /// How long a system has its address.
    pub lease: Millis,
    /// How long firmware and iPXE have theirs: the system asks again soon.
    pub boot_lease: Millis,
    /// Relays that may ask for it; any in the subnet when empty.
    pub relays: Vec<Ipv4Addr>,
    /// What machines are told that nobody has heard of.
    pub unknown: Unknown,
}

/// A machine that the site knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// One of its cards.
    pub mac: MacAddress,
    /// The address that is its own.
    pub address: Option<Ipv4Addr>,
    /// Its name.
    pub host_name: Option<String>,
    /// The strategy that an administrator chose for it.
    pub strategy: Option<String>,
    /// Whether only iPXE can start it: its disk is reached over iSCSI, which GRUB does
    /// not know.
    pub wants_ipxe: bool,
}

/// All that a server is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The interfaces.
    pub interfaces: Vec<InterfaceConfig>,
    /// The networks.
    pub networks: Vec<Network>,
    /// The port of HTTP for firmware and iPXE.
    pub http_port: u16,
    /// How firmware is booted.
    pub rules: &'static [strategy::Rule],
    /// Boot programs that are there; any when `None`.
    pub programs: Option<BTreeSet<String>>,
    /// Whether addresses are asked after before they are offered (RFC 2131, section
    /// 2.2).
    pub probes: Probes,
    /// Makes our own questions differ from those of other servers.
    pub seed: u32,
}

/// Whether addresses are asked after before they are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probes {
    /// They are, unless very many wait for it at once.
    On,
    /// They are not.
    Off,
}
