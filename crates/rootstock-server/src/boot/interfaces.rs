//! The machine's network interfaces, as far as booting others wants to know.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr, path::Path};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use rootstock_core::MacAddress;

use crate::config::{BootConfig, BootInterface, BootMode, Subnet};

/// Ethernet, in the kernel's list of kinds (`ARPHRD_ETHER`).
const ETHERNET: &str = "1";

/// Interfaces of containers and of their hosts, which boot nothing.
const VIRTUAL_PREFIXES: &[&str] = &[
    "docker", "veth", "cni", "podman", "lxcbr", "tun", "tap", "wg",
];

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// The kernel's name.
    pub(crate) name: String,
    /// Its address on the link.
    pub(crate) mac: Option<MacAddress>,
    /// Its IPv4 addresses, each with its network.
    pub(crate) addresses: Vec<(Ipv4Addr, Subnet)>,
    /// Whether it is up and has a carrier.
    pub(crate) is_running: bool,
    /// Whether it is this machine itself.
    pub(crate) is_loopback: bool,
    /// Why `auto` leaves it out, if it does.
    pub(crate) left_out: Option<&'static str>,
}

/// An interface on which machines are booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootPlace {
    /// The kernel's name.
    pub(crate) name: String,
    /// Its address on the link.
    pub(crate) mac: Option<MacAddress>,
    /// The address that machines reach us by.
    pub(crate) address: Ipv4Addr,
    /// The network it is in.
    pub(crate) subnet: Subnet,
    /// What is done there.
    pub(crate) mode: BootMode,
}

/// All interfaces, by name.
pub(crate) fn discover() -> io::Result<Vec<Interface>> {
    let mut all: BTreeMap<String, Interface> = BTreeMap::new();
    for found in getifaddrs()? {
        let interface = all
            .entry(found.interface_name.clone())
            .or_insert_with(|| Interface {
                is_running: found
                    .flags
                    .contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
                is_loopback: found.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                left_out: left_out(&found.interface_name, found.flags),
                name: found.interface_name.clone(),
                mac: None,
                addresses: Vec::new(),
            });
        let Some(address) = found.address else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            let mac = link.addr().map(MacAddress);
            interface.mac = mac.filter(MacAddress::is_unicast);
        } else if let Some(v4) = address.as_sockaddr_in() {
            let mask = found
                .netmask
                .as_ref()
                .and_then(|mask| mask.as_sockaddr_in().copied());
            let prefix = mask.map_or(32, |mask| mask.ip().to_bits().count_ones());
            // At most 32.
            let subnet = Subnet::of(v4.ip(), prefix as u8);
            interface.addresses.push((v4.ip(), subnet));
        }
    }
    Ok(all.into_values().collect())
}

fn left_out(name: &str, flags: InterfaceFlags) -> Option<&'static str> {
    let sys = Path::new("/sys/class/net").join(name);
    let kind = fs::read_to_string(sys.join("type"));
    if flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        Some("it is the loopback")
    } else if flags.contains(InterfaceFlags::IFF_POINTOPOINT) {
        Some("it leads to one machine only")
    } else if kind.is_ok_and(|kind| kind.trim() != ETHERNET) {
        Some("it is no Ethernet")
    } else if sys.join("wireless").exists() || sys.join("phy80211").exists() {
        Some("it is wireless, and firmware boots over wires")
    } else if sys.join("master").exists() {
        Some("it is a part of a bridge or bond, which counts instead")
    } else if is_virtual(name) {
        Some("it belongs to containers or a tunnel")
    } else {
        None
    }
}

fn is_virtual(name: &str) -> bool {
    // Docker names a network's bridge `br-` and twelve hex digits.
    let docker = name
        .strip_prefix("br-")
        .is_some_and(|id| id.len() == 12 && id.bytes().all(|digit| digit.is_ascii_hexdigit()));
    docker
        || VIRTUAL_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Where machines are booted now, and what is missing for the interfaces that
/// were named.
pub(crate) fn choose(config: &BootConfig, all: &[Interface]) -> (Vec<BootPlace>, Vec<String>) {
    let (mut places, mut missing) = (Vec::new(), Vec::new());
    let named = |name: &str| {
        config.interfaces.iter().any(
            |entry| matches!(entry, BootInterface::Named { interface, .. } if interface == name),
        )
    };
    for entry in &config.interfaces {
        match entry {
            BootInterface::Off => {}
            BootInterface::Auto => {
                let usual = all.iter().filter(|interface| {
                    interface.left_out.is_none() && interface.is_running && !named(&interface.name)
                });
                places.extend(usual.filter_map(|interface| place(interface, BootMode::Auto)));
            }
            BootInterface::Named {
                mode: BootMode::Off,
                ..
            } => {}
            BootInterface::Named { interface, mode } => {
                match all.iter().find(|found| found.name == *interface) {
                    None => missing.push(format!("there is no interface {interface}")),
                    Some(found) => match place_any(found, *mode) {
                        Some(place) => places.push(place),
                        None => missing.push(format!("{interface} has no IPv4 address")),
                    },
                }
            }
        }
    }
    (places, missing)
}

/// `auto` is for private networks (RFC 1918) only.
fn place(interface: &Interface, mode: BootMode) -> Option<BootPlace> {
    let private = interface
        .addresses
        .iter()
        .find(|(address, subnet)| address.is_private() && subnet.prefix < 31);
    private.map(|found| at(interface, *found, mode))
}

fn place_any(interface: &Interface, mode: BootMode) -> Option<BootPlace> {
    let first = interface.addresses.first();
    first.map(|found| at(interface, *found, mode))
}

fn at(interface: &Interface, (address, subnet): (Ipv4Addr, Subnet), mode: BootMode) -> BootPlace {
    BootPlace {
        name: interface.name.clone(),
        mac: interface.mac,
        address,
        subnet,
        mode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: &str, left_out: Option<&'static str>) -> Interface {
        let address: Ipv4Addr = address.parse().expect("an address");
        Interface {
            name: name.to_owned(),
            mac: None,
            addresses: vec![(address, Subnet::of(address, 24))],
            is_running: true,
            is_loopback: false,
            left_out,
        }
    }

    #[test]
    fn the_loopback_is_found_and_left_out() {
        let all = discover().expect("lists");
        let lo = all.iter().find(|interface| interface.is_loopback);
        // A namespace's loopback may be down and without an address.
        assert!(lo.is_some_and(|lo| lo.left_out == Some("it is the loopback")));
    }

    #[test]
    fn auto_takes_private_wired_networks_and_names_take_what_they_name() {
        let mut down = interface("eth2", "10.0.2.1", None);
        down.is_running = false;
        let mut bare = interface("eth4", "10.0.4.1", None);
        bare.addresses.clear();
        let all = [
            interface("eth0", "10.0.0.1", None),
            interface("eth1", "8.8.8.8", None),
            down,
            interface("wlan0", "10.0.3.1", Some("it is wireless")),
            bare,
        ];
        for (words, expected, gaps) in [
            ("off", "", 0),
            ("auto", "eth0 auto", 0),
            ("auto,eth0=off", "", 0),
            ("auto,eth0=dhcp", "eth0 dhcp", 0),
            (
                "eth1=proxy,wlan0=observe,eth2=dhcp",
                "eth1 proxy,wlan0 observe,eth2 dhcp",
                0,
            ),
            ("eth4=dhcp,eth9=dhcp", "", 2),
        ] {
            let config = BootConfig {
                interfaces: words
                    .split(',')
                    .map(|word| word.parse().expect(word))
                    .collect(),
                ..BootConfig::default()
            };
            let (places, missing) = choose(&config, &all);
            let found: Vec<_> = places
                .iter()
                .map(|place| format!("{} {}", place.name, place.mode))
                .collect();
            assert_eq!(
                (found.join(","), missing.len()),
                (expected.to_owned(), gaps),
                "{words}"
            );
        }
    }

    #[test]
    fn interfaces_of_containers_are_told_by_name() {
        for (name, expected) in [
            ("docker0", true),
            ("br-0123456789ab", true),
            ("br-lan", false),
            ("virbr0", false),
            ("veth12", true),
            ("eth0", false),
        ] {
            assert_eq!(is_virtual(name), expected, "{name}");
        }
    }
}
