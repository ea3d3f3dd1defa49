//! `[boot]` and `[[network]]`: which machines are booted, and how.

use std::{fmt, net::Ipv4Addr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AddressError, as_text};

mod check;

pub(super) use check::check;

/// Where the boot services are, when nobody says.
const DEFAULT_INTERFACES: &[BootInterface] = &[BootInterface::Auto];

/// The longest name of an interface that Linux has (IFNAMSIZ without its NUL).
const INTERFACE_BYTES_MAX: usize = 15;

/// The most addresses in a pool.
pub const POOL_ADDRESSES_MAX: u32 = 1 << 16;

/// The longest domain (RFC 1035, section 2.3.4).
const DOMAIN_BYTES_MAX: usize = 253;

/// `[boot]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootConfig {
    /// Where machines are booted: `auto`, `off`, or `IFACE=MODE` for each.
    pub interfaces: Vec<BootInterface>,
    /// The port of HTTP for firmware, iPXE and first stages.
    pub http_port: u16,
    /// The port of HTTPS for first stages.
    pub https_port: u16,
    /// The port of NBD for personal machines' own volumes.
    pub nbd_port: u16,
    /// The port on which machines of the swarm reach the daemon as one of them; 0 is none.
    pub swarm_port: u16,
    /// `rootstock-agent`, the first stage's program; looked for when not given.
    pub agent: Option<PathBuf>,
    /// Directories where boot programs are looked for before the distribution's.
    pub files: Vec<PathBuf>,
    /// The directory of the plug-ins.
    pub plugins: PathBuf,
    /// The directory of the installers.
    pub installers: PathBuf,
    /// Whether machines may take their orders over plain HTTP.
    pub plain_orders: bool,
    /// The time zone of hours in settings, such as `Europe/Berlin`; the system's
    /// when not given.
    pub time_zone: Option<String>,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self {
            interfaces: DEFAULT_INTERFACES.to_vec(),
            http_port: 8480,
            https_port: 8481,
            nbd_port: 8482,
            swarm_port: 8486,
            agent: None,
            files: Vec::new(),
            plugins: "/etc/rootstock/plugins.d".into(),
            installers: "/etc/rootstock/installers".into(),
            plain_orders: false,
            time_zone: None,
        }
    }
}

impl BootConfig {
    /// Whether there are boot services at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let on = |one: &BootInterface| *one == BootInterface::Auto || one.names_a_place();
        self.interfaces.iter().any(on)
    }
}

/// Where machines are booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootInterface {
    /// Nowhere.
    Off,
    /// On every wired interface that has a network card, is up and has a private
    /// address, and on those that a `[[network]]` names; nowhere without the rights.
    Auto,
    /// On this one.
    Named {
        /// The kernel's name of the interface.
        interface: String,
        /// What is done there.
        mode: BootMode,
    },
}

impl BootInterface {
    /// Whether something is done on an interface that it names.
    pub(crate) fn names_a_place(&self) -> bool {
        matches!(self, Self::Named { mode, .. } if *mode != BootMode::Off)
    }
}

/// What is done on an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootMode {
    /// ProxyDHCP beside another DHCP server, or DHCP where there is none.
    #[default]
    Auto,
    /// The subnet's DHCP server.
    Dhcp,
    /// Boot answers beside the site's own DHCP server.
    Proxy,
    /// Nothing is answered; what is seen is reported.
    Observe,
    /// Nothing.
    Off,
}

/// `[[network]]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// The interface it is reached by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its addresses; those of the interface when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// What is done there.
    pub mode: BootMode,
    /// Addresses that are given out; the upper half of the subnet when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// The router that machines are told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// The name servers that machines are told of.
    pub name_servers: Vec<Ipv4Addr>,
    /// The domain that machines are told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// How long an address is leased once a system runs.
    pub lease_seconds: Option<u32>,
    /// What happens to machines that nobody has heard of.
    pub unknown: UnknownPolicy,
    /// Names for machines that register themselves: `n[001-999]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<String>,
    /// The profile that they get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Relays that may ask for it.
    pub relays: Vec<Ipv4Addr>,
}

impl NetworkConfig {
    /// How long an address is leased once a system runs.
    #[must_use]
    pub fn lease_seconds(&self) -> u32 {
        self.lease_seconds.unwrap_or(3600)
    }

    /// How messages call it.
    #[must_use]
    pub fn label(&self) -> String {
        match (&self.interface, &self.subnet) {
            (Some(interface), _) => interface.clone(),
            (None, Some(subnet)) => subnet.to_string(),
            (None, None) => "of no interface".to_owned(),
        }
    }
}

/// What happens to machines that nobody has heard of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPolicy {
    /// Ignored beside another DHCP server, held where we are it.
    #[default]
    Auto,
    /// They boot as if we were not there.
    Ignore,
    /// They wait for an administrator's approval.
    Hold,
    /// They get the next free name and boot.
    Register,
}

/// An IPv4 network: `10.0.0.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub network: Ipv4Addr,
    /// The length of its prefix, in bits.
    pub prefix: u8,
}

impl Subnet {
    /// The network that an address is in.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let mask = mask_bits(prefix);
        Self {
            network: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        }
    }

    /// Its mask.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_bits(self.prefix))
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        Self::of(address, self.prefix) == self
    }

    /// Its last address, which reaches all.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask_bits(self.prefix))
    }

    /// The upper half of its addresses without the last, and without those that
    /// would not fit [`POOL_ADDRESSES_MAX`].
    #[must_use]
    pub fn upper_half(self) -> Option<Pool> {
        let last = self.broadcast().to_bits().checked_sub(1)?;
        let size = u64::from(!mask_bits(self.prefix)) + 1;
        let half = u32::try_from(size / 2).ok()?;
        let first = self.network.to_bits().checked_add(half)?;
        let first = first.max(last.saturating_sub(POOL_ADDRESSES_MAX - 1));
        (self.prefix < 31 && first <= last).then(|| Pool {
            first: Ipv4Addr::from_bits(first),
            last: Ipv4Addr::from_bits(last),
        })
    }
}

/// Addresses that are given out: `10.0.0.100-10.0.0.200`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The first.
    pub first: Ipv4Addr,
    /// The last.
    pub last: Ipv4Addr,
}

impl FromStr for BootInterface {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError {
            text: text.chars().take(200).collect(),
            what: "a place to boot machines",
            expected: "auto, off, or IFACE=dhcp|proxy|observe|auto|off",
        };
        match text {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let (interface, mode) = text.split_once('=').ok_or_else(wrong)?;
        let mode = match mode {
            "auto" => BootMode::Auto,
            "dhcp" => BootMode::Dhcp,
            "proxy" => BootMode::Proxy,
            "observe" => BootMode::Observe,
            "off" => BootMode::Off,
            _ => return Err(wrong()),
        };
        if !is_interface_name(interface) {
            return Err(wrong());
        }
        Ok(Self::Named {
            interface: interface.to_owned(),
            mode,
        })
    }
}

impl fmt::Display for BootInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Named { interface, mode } => write!(f, "{interface}={mode}"),
        }
    }
}

impl fmt::Display for BootMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Dhcp => "dhcp",
            Self::Proxy => "proxy",
            Self::Observe => "observe",
            Self::Off => "off",
        })
    }
}

impl FromStr for Subnet {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parsed = text.split_once('/').and_then(|(network, prefix)| {
            let network: Ipv4Addr = network.parse().ok()?;
            let prefix: u8 = prefix.parse().ok().filter(|bits| *bits <= 32)?;
            let subnet = Self::of(network, prefix);
            (subnet.network == network).then_some(subnet)
        });
        parsed.ok_or_else(|| AddressError {
            text: text.chars().take(200).collect(),
            what: "a subnet",
            expected: "NETWORK/BITS with no bits set after the first BITS, such as 10.0.0.0/24",
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Pool {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parsed = text.split_once('-').and_then(|(first, last)| {
            let first: Ipv4Addr = first.trim().parse().ok()?;
            let last: Ipv4Addr = last.trim().parse().ok()?;
            let span = last.to_bits().checked_sub(first.to_bits())?;
            (span < POOL_ADDRESSES_MAX).then_some(Self { first, last })
        });
        parsed.ok_or_else(|| AddressError {
            text: text.chars().take(200).collect(),
            what: "a pool",
            expected: "FIRST-LAST, at most 65536 addresses, such as 10.0.0.100-10.0.0.200",
        })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

as_text!(BootInterface);
as_text!(Subnet);
as_text!(Pool);

/// Whether Linux could have an interface of this name.
pub(crate) fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= INTERFACE_BYTES_MAX
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b',' | b'=' | b':'))
}

/// Whether this is a domain of letters, digits and hyphens (RFC 1123, section 2.1).
pub(crate) fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    !domain.is_empty() && domain.len() <= DOMAIN_BYTES_MAX && domain.split('.').all(label)
}

fn mask_bits(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_and_written() {
        for text in [
            "auto",
            "off",
            "eth0=dhcp",
            "br-lan.5=proxy",
            "enp1s0=observe",
        ] {
            assert_eq!(text.parse::<BootInterface>().expect(text).to_string(), text);
        }
        for bad in [
            "",
            "eth0",
            "eth0=",
            "=dhcp",
            "eth0=DHCP",
            "a/b=dhcp",
            "sixteen-letters-=off",
        ] {
            assert!(bad.parse::<BootInterface>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_and_pools() {
        for text in ["10.0.0.0/24", "0.0.0.0/0", "192.168.1.1/32"] {
            assert_eq!(text.parse::<Subnet>().expect(text).to_string(), text);
        }
        for bad in [
            "10.0.0.1/24",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "x/8",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        for (subnet, half) in [
            ("10.0.0.0/24", Some("10.0.0.128-10.0.0.254")),
            ("10.0.0.0/30", Some("10.0.0.2-10.0.0.2")),
            ("10.0.0.0/31", None),
            ("10.0.0.0/8", Some("10.254.255.255-10.255.255.254")),
        ] {
            let pool = subnet.parse::<Subnet>().expect(subnet).upper_half();
            assert_eq!(
                pool.map(|pool| pool.to_string()).as_deref(),
                half,
                "{subnet}"
            );
        }
        for bad in ["10.0.0.2-10.0.0.1", "10.0.0.1", "10.0.0.0-10.1.0.0"] {
            assert!(bad.parse::<Pool>().is_err(), "{bad}");
        }
        assert!("10.0.0.0-10.0.255.255".parse::<Pool>().is_ok());
    }
}
