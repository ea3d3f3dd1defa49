//! The machine's network interfaces, as far as booting others wants to know.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, net::Ipv4Addr, path::Path};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use rootstock_core::MacAddress;

use crate::config::{BootInterface, BootMode, NetworkConfig, Subnet};

/// Ethernet, in the kernel's list of kinds (`ARPHRD_ETHER`).
const ETHERNET: &str = "1";

/// Where the kernel tells of its interfaces.
const SYS: &str = "/sys/class/net";

/// Kinds of interfaces that stand for those below them (`DEVTYPE` in `uevent`).
const STACKED: &[&str] = &["DEVTYPE=bridge", "DEVTYPE=bond", "DEVTYPE=vlan"];

/// How many of them may lie above one another.
const STACKED_MAX: u32 = 4;

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
    let sys = Path::new(SYS);
    let own = sys.join(name);
    let kind = fs::read_to_string(own.join("type"));
    if flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        Some("it is the loopback")
    } else if flags.contains(InterfaceFlags::IFF_POINTOPOINT) {
        Some("it leads to one machine only")
    } else if kind.is_ok_and(|kind| kind.trim() != ETHERNET) {
        Some("it is no Ethernet")
    } else if is_wireless(&own) {
        Some("it is wireless, and firmware boots over wires")
    } else if own.join("master").exists() {
        Some("it is a part of a bridge or bond, which counts instead")
    } else if !has_card(sys, name, STACKED_MAX) {
        Some("no network card is below it, as for those of containers and virtual machines")
    } else {
        None
    }
}

fn is_wireless(own: &Path) -> bool {
    own.join("wireless").exists() || own.join("phy80211").exists()
}

/// Whether an interface is a wired network card, or a bridge, bond or VLAN of one.
/// Bridges of containers and virtual machines have none, or their own DHCP.
fn has_card(sys: &Path, name: &str, stacked_max: u32) -> bool {
    let own = sys.join(name);
    if own.join("device").exists() {
        return !is_wireless(&own);
    }
    let is_stacked = fs::read_to_string(own.join("uevent"))
        .is_ok_and(|text| text.lines().any(|line| STACKED.contains(&line)));
    let Some(stacked_max) = stacked_max.checked_sub(1).filter(|_| is_stacked) else {
        return false;
    };
    let entries = fs::read_dir(&own).into_iter().flatten().flatten();
    let mut below = entries.filter_map(|entry| {
        let name = entry.file_name();
        Some(name.to_str()?.strip_prefix("lower_")?.to_owned())
    });
    below.any(|name| has_card(sys, &name, stacked_max))
}

/// What is wanted of which interfaces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// `boot.interfaces`, as far as it is allowed.
    pub(crate) interfaces: &'a [BootInterface],
    /// Every `[[network]]`.
    pub(crate) networks: &'a [NetworkConfig],
    /// Where machines are booted until now.
    pub(crate) now: &'a [BootPlace],
}

impl Wanted<'_> {
    fn is_named(&self, name: &str) -> bool {
        self.interfaces.iter().any(
            |entry| matches!(entry, BootInterface::Named { interface, .. } if interface == name),
        )
    }

    fn network(&self, name: &str) -> Option<&NetworkConfig> {
        let mut networks = self.networks.iter();
        networks.find(|network| network.interface.as_deref() == Some(name))
    }

    /// What `auto` does on an interface. One that a `[[network]]` names is wanted
    /// whatever it is made of.
    fn usual(&self, interface: &Interface) -> Option<BootPlace> {
        let network = self.network(&interface.name);
        let mode = network.map_or(BootMode::Auto, |network| network.mode);
        if self.is_named(&interface.name)
            || (network.is_none() && interface.left_out.is_some())
            || mode == BootMode::Off
        {
            return None;
        }
        let found = match mode {
            BootMode::Auto => place(interface, mode),
            _ => place_any(interface, mode),
        }?;
        // A cable to one machine has no carrier while that machine is off: what was
        // begun is not ended for it.
        let same = |now: &BootPlace| now.name == found.name && now.address == found.address;
        (interface.is_running || self.now.iter().any(same)).then_some(found)
    }

    fn named(&self, found: &Interface, mode: BootMode) -> Option<BootPlace> {
        let mode = match (mode, self.network(&found.name)) {
            (BootMode::Auto, Some(network)) => network.mode,
            _ => mode,
        };
        place_any(found, mode)
    }
}

/// Where machines are booted now, and what is missing for the interfaces that
/// were named.
pub(crate) fn choose(wanted: Wanted<'_>, all: &[Interface]) -> (Vec<BootPlace>, Vec<String>) {
    let (mut places, mut missing) = (Vec::new(), Vec::new());
    for entry in wanted.interfaces {
        match entry {
            BootInterface::Off => {}
            BootInterface::Auto => {
                places.extend(all.iter().filter_map(|interface| wanted.usual(interface)));
            }
            BootInterface::Named {
                mode: BootMode::Off,
                ..
            } => {}
            BootInterface::Named { interface, mode } => {
                match all.iter().find(|found| found.name == *interface) {
                    None => missing.push(format!("there is no interface {interface}")),
                    Some(found) => match wanted.named(found, *mode) {
                        Some(place) => places.push(place),
                        None => missing.push(format!("{interface} has no IPv4 address")),
                    },
                }
            }
        }
    }
    (places, missing)
}

/// Why `auto` takes none of these interfaces.
pub(crate) fn reasons(all: &[Interface]) -> String {
    let mut text = String::new();
    for interface in all.iter().filter(|interface| !interface.is_loopback) {
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{}: {}", interface.name, reason(interface));
    }
    match text.is_empty() {
        true => "there is none but the loopback".to_owned(),
        false => text,
    }
}

/// Why `auto` does not take an interface that is not asked for.
pub(crate) fn reason(interface: &Interface) -> &'static str {
    match interface.left_out {
        Some(reason) => reason,
        None if !interface.is_running => "it is down or has no carrier",
        None => "it has no private IPv4 address, or was not asked for",
    }
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

    fn chosen(words: &str, networks: &[NetworkConfig], all: &[Interface]) -> (String, usize) {
        let interfaces: Vec<BootInterface> = words
            .split(',')
            .map(|word| word.parse().expect(word))
            .collect();
        let wanted = Wanted {
            interfaces: &interfaces,
            networks,
            now: &[],
        };
        let (places, missing) = choose(wanted, all);
        let found: Vec<_> = places
            .iter()
            .map(|place| format!("{} {}", place.name, place.mode))
            .collect();
        (found.join(","), missing.len())
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
            assert_eq!(
                chosen(words, &[], &all),
                (expected.to_owned(), gaps),
                "{words}"
            );
        }
    }

    #[test]
    fn a_network_names_an_interface_and_may_say_its_mode() {
        let all = [
            interface("br0", "10.0.0.1", Some("no network card is below it")),
            interface("br1", "8.8.8.8", None),
        ];
        let network = |name: &str, mode| NetworkConfig {
            interface: Some(name.to_owned()),
            mode,
            ..NetworkConfig::default()
        };
        for (words, name, mode, expected) in [
            ("auto", "br0", BootMode::Auto, "br0 auto"),
            ("auto", "br0", BootMode::Proxy, "br0 proxy"),
            ("auto", "br0", BootMode::Off, ""),
            // By guess never on public addresses.
            ("auto", "br1", BootMode::Auto, ""),
            ("auto", "br1", BootMode::Dhcp, "br1 dhcp"),
            ("br0=auto", "br0", BootMode::Proxy, "br0 proxy"),
            ("br0=dhcp", "br0", BootMode::Proxy, "br0 dhcp"),
            ("off", "br0", BootMode::Dhcp, ""),
        ] {
            let (found, _) = chosen(words, &[network(name, mode)], &all);
            assert_eq!(found, expected, "{words} {name} {mode}");
        }
    }

    #[test]
    fn what_was_begun_goes_on_without_a_carrier_but_not_without_its_address() {
        let mut card = interface("eth0", "10.0.0.1", None);
        card.is_running = false;
        let auto = [BootInterface::Auto];
        let now = [at(&card, card.addresses[0], BootMode::Auto)];
        let count = |now: &[BootPlace], card: &Interface| {
            let wanted = Wanted {
                interfaces: &auto,
                networks: &[],
                now,
            };
            choose(wanted, std::slice::from_ref(card)).0.len()
        };
        assert_eq!(count(&[], &card), 0);
        assert_eq!(count(&now, &card), 1);
        card.addresses = interface("eth0", "10.0.1.1", None).addresses;
        assert_eq!(count(&now, &card), 0);
    }

    #[test]
    fn cards_are_found_below_bridges_bonds_and_vlans() {
        let sys = tempfile::tempdir().expect("a directory");
        for (name, uevent, entries) in [
            ("eth0", "INTERFACE=eth0\n", &["device"][..]),
            ("wlan0", "DEVTYPE=wlan\n", &["device", "phy80211"]),
            ("veth1", "", &[]),
            ("tap0", "", &[]),
            ("docker0", "DEVTYPE=bridge\n", &["lower_veth1"]),
            ("virbr0", "DEVTYPE=bridge\n", &["lower_tap0"]),
            ("empty", "DEVTYPE=bridge\n", &[]),
            ("bond0", "DEVTYPE=bond\n", &["lower_eth0"]),
            ("bond0.5", "DEVTYPE=vlan\n", &["lower_bond0"]),
            ("br0", "DEVTYPE=bridge\n", &["lower_tap0", "lower_bond0.5"]),
            ("macvlan0", "DEVTYPE=macvlan\n", &["lower_eth0"]),
            ("a", "DEVTYPE=vlan\n", &["lower_b"]),
            ("b", "DEVTYPE=vlan\n", &["lower_a"]),
        ] {
            let own = sys.path().join(name);
            fs::create_dir(&own).expect("makes");
            fs::write(own.join("uevent"), uevent).expect("writes");
            for entry in entries {
                fs::write(own.join(entry), "").expect("writes");
            }
        }
        let found = |name: &&str| has_card(sys.path(), name, STACKED_MAX);
        let all = [
            "eth0", "wlan0", "veth1", "tap0", "docker0", "virbr0", "empty", "bond0", "bond0.5",
            "br0", "macvlan0", "a", "gone",
        ];
        let cards: Vec<_> = all.into_iter().filter(found).collect();
        assert_eq!(cards, ["eth0", "bond0", "bond0.5", "br0"]);
    }
}
