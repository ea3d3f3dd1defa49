//! Which network a machine is in, and what holds for unknown ones there.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::interfaces::BootPlace;
use crate::config::{BootMode, NetworkConfig, Subnet, UnknownPolicy};

/// Names for machines that are held when a network gives none.
const DEFAULT_NAMES: &str = "node[0001-9999]";

/// The networks as they are now.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    configured: Vec<NetworkConfig>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    places: Vec<BootPlace>,
    /// What `auto` turned out to be, by interface.
    modes: HashMap<String, BootMode>,
    lacks: Vec<String>,
    rivals: HashMap<String, Vec<Ipv4Addr>>,
}

/// The network of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// What is configured for it.
    pub(crate) config: NetworkConfig,
    /// Its addresses.
    pub(crate) subnet: Option<Subnet>,
    /// What is done there.
    pub(crate) mode: BootMode,
}

impl Network {
    /// What happens to unknown machines there.
    pub(crate) fn unknown(&self) -> UnknownPolicy {
        match (self.config.unknown, self.mode) {
            (UnknownPolicy::Auto, BootMode::Proxy) => UnknownPolicy::Ignore,
            // A machine that asks for its script was sent here by our own DHCP, or
            // by its administrator.
            (UnknownPolicy::Auto, _) => UnknownPolicy::Hold,
            (policy, _) => policy,
        }
    }

    /// The names that they get.
    pub(crate) fn names(&self) -> &str {
        self.config.names.as_deref().unwrap_or(DEFAULT_NAMES)
    }
}

impl Networks {
    pub(crate) fn new(configured: &[NetworkConfig]) -> Self {
        Self {
            configured: configured.to_vec(),
            now: Mutex::default(),
        }
    }

    /// The network of a machine that asked one of our addresses.
    pub(crate) fn of(&self, peer: IpAddr, local: IpAddr) -> Network {
        let now = self.now();
        let place = now
            .places
            .iter()
            .find(|place| IpAddr::V4(place.address) == local);
        let by_subnet = self.configured.iter().find(|config| {
            let subnet = config.subnet;
            matches!((subnet, peer), (Some(subnet), IpAddr::V4(peer)) if subnet.contains(peer))
        });
        let by_interface = self.configured.iter().find(|config| {
            let interface = config.interface.as_deref();
            interface.is_some() && interface == place.map(|place| place.name.as_str())
        });
        let config = by_subnet.or(by_interface).cloned().unwrap_or_default();
        let subnet = config.subnet.or(place.map(|place| place.subnet));
        let mode = place.map_or(config.mode, |place| {
            let found = now.modes.get(&place.name).copied();
            found.unwrap_or(place.mode)
        });
        Network {
            config,
            subnet,
            mode,
        }
    }

    /// Where machines are booted now.
    pub(crate) fn places(&self) -> Vec<BootPlace> {
        self.now().places.clone()
    }

    pub(crate) fn set_places(&self, places: Vec<BootPlace>) {
        self.now().places = places;
    }

    /// What an interface's mode turned out to be.
    pub(crate) fn set_mode(&self, interface: &str, mode: BootMode) {
        self.now().modes.insert(interface.to_owned(), mode);
    }

    pub(crate) fn mode(&self, interface: &str) -> Option<BootMode> {
        self.now().modes.get(interface).copied()
    }

    /// What the boot services lack, for people.
    pub(crate) fn lacks(&self) -> Vec<String> {
        self.now().lacks.clone()
    }

    /// Records a lack; the same one once.
    pub(crate) fn lack(&self, text: String) -> bool {
        let mut now = self.now();
        if now.lacks.contains(&text) || now.lacks.len() >= 64 {
            return false;
        }
        now.lacks.push(text);
        true
    }

    /// Another DHCP server was seen on an interface.
    pub(crate) fn rival(&self, interface: &str, server: Ipv4Addr) {
        let mut now = self.now();
        let rivals = now.rivals.entry(interface.to_owned()).or_default();
        if !rivals.contains(&server) && rivals.len() < 16 {
            rivals.push(server);
        }
    }

    /// The DHCP servers that were seen on an interface.
    pub(crate) fn rivals(&self, interface: &str) -> Vec<Ipv4Addr> {
        self.now()
            .rivals
            .get(interface)
            .cloned()
            .unwrap_or_default()
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_in_the_network_of_its_address_or_of_the_interface() {
        let config = |interface: Option<&str>, subnet: Option<&str>| NetworkConfig {
            interface: interface.map(str::to_owned),
            subnet: subnet.map(|text| text.parse().expect(text)),
            ..NetworkConfig::default()
        };
        let networks = Networks::new(&[
            config(None, Some("10.9.0.0/16")),
            config(Some("eth0"), None),
        ]);
        let local: Ipv4Addr = [10, 0, 0, 1].into();
        networks.set_places(vec![BootPlace {
            name: "eth0".to_owned(),
            mac: None,
            address: local,
            subnet: Subnet::of(local, 24),
            mode: BootMode::Auto,
        }]);
        let of = |peer: [u8; 4], local: Ipv4Addr| {
            let network = networks.of(IpAddr::from(peer), IpAddr::V4(local));
            (network.config.label(), network.unknown())
        };
        let hold = UnknownPolicy::Hold;
        assert_eq!(of([10, 9, 1, 1], local), ("10.9.0.0/16".to_owned(), hold));
        assert_eq!(of([10, 0, 0, 7], local), ("eth0".to_owned(), hold));
        assert_eq!(
            of([10, 1, 0, 7], [1, 1, 1, 1].into()),
            ("of no interface".to_owned(), hold)
        );
        networks.set_mode("eth0", BootMode::Proxy);
        assert_eq!(of([10, 0, 0, 7], local).1, UnknownPolicy::Ignore);
    }
}
