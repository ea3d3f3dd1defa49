//! What single values of `[boot]` and `[[network]]` cannot show.

use std::net::Ipv4Addr;

use rootstock_core::{HostList, ProfileName};

use super::{
    BootConfig, BootInterface, NetworkConfig, Subnet, UnknownPolicy, is_domain, is_interface_name,
};
use crate::config::ConfigError;

/// The most networks.
const NETWORKS_MAX: usize = 256;

/// The least and the most that a lease may last, in seconds.
const LEASE_SECONDS: std::ops::RangeInclusive<u32> = 60..=30 * 24 * 3600;

/// The most name servers, and relays, of a network.
const ADDRESSES_MAX: usize = 16;

/// What single values cannot show.
pub(crate) fn check(boot: &BootConfig, networks: &[NetworkConfig]) -> Result<(), ConfigError> {
    let wrong = |text: String| Err(ConfigError::Together(text));
    let mut names = Vec::new();
    for interface in &boot.interfaces {
        let name = match interface {
            BootInterface::Named { interface, .. } => interface.as_str(),
            BootInterface::Off if boot.interfaces.len() > 1 => {
                return wrong(
                    "boot.interfaces has 'off' beside others: write it alone, or IFACE=off"
                        .to_owned(),
                );
            }
            BootInterface::Off | BootInterface::Auto => "auto",
        };
        if names.contains(&name) {
            return wrong(format!("boot.interfaces has '{name}' twice"));
        }
        names.push(name);
    }
    let ports = [
        ("http_port", boot.http_port),
        ("https_port", boot.https_port),
        ("nbd_port", boot.nbd_port),
        ("swarm_port", boot.swarm_port),
    ];
    for (at, (key, port)) in ports.iter().enumerate() {
        // Without the last one the others go on.
        if *port == 0 && *key != "swarm_port" {
            return wrong(format!("boot.{key} is told to machines: it cannot be 0"));
        }
        if let Some((other, _)) = ports[..at].iter().find(|(_, other)| other == port) {
            return wrong(format!(
                "boot.{other} and boot.{key} are the same: choose two"
            ));
        }
    }
    if let Some(path) = boot.files.iter().find(|path| !path.is_absolute()) {
        return wrong(format!(
            "boot.files has '{}', which depends on where the daemon is started: write the whole path, from / on",
            path.display()
        ));
    }
    if let Some(name) = &boot.time_zone
        && jiff::tz::TimeZone::get(name).is_err()
    {
        return wrong(format!(
            "boot.time_zone = '{}' is not known here: write one of /usr/share/zoneinfo, such as Europe/Berlin",
            name.escape_debug()
        ));
    }
    if networks.len() > NETWORKS_MAX {
        return wrong(format!(
            "there are {} networks, and the limit is {NETWORKS_MAX}",
            networks.len()
        ));
    }
    for (number, network) in networks.iter().enumerate() {
        if let Err(text) = check_network(network) {
            return wrong(format!(
                "network {} ({}): {text}",
                number + 1,
                network.label()
            ));
        }
        let twin = networks[..number].iter().find(|other| same(other, network));
        if let Some(twin) = twin {
            return wrong(format!(
                "network {} ({}) is there twice",
                number + 1,
                twin.label()
            ));
        }
    }
    Ok(())
}

fn same(one: &NetworkConfig, other: &NetworkConfig) -> bool {
    one.interface == other.interface && one.subnet == other.subnet
}

fn check_network(network: &NetworkConfig) -> Result<(), String> {
    match &network.interface {
        None if network.subnet.is_none() => {
            return Err("it needs an interface, or a subnet that relays ask for".to_owned());
        }
        Some(name) if !is_interface_name(name) => {
            return Err(format!(
                "interface = '{}' is no name of an interface",
                name.escape_debug()
            ));
        }
        _ => {}
    }
    if let Some(subnet) = network.subnet {
        check_subnet(network, subnet)?;
    } else if network.pool.is_some() {
        return Err("pool needs subnet: say both, or none".to_owned());
    }
    if network.interface.is_none() && network.relays.is_empty() {
        return Err("it has no interface: name the relays that ask for it".to_owned());
    }
    if !LEASE_SECONDS.contains(&network.lease_seconds()) {
        return Err(format!(
            "lease_seconds is out of bounds: {} to {}",
            LEASE_SECONDS.start(),
            LEASE_SECONDS.end()
        ));
    }
    for (key, list) in [
        ("name_servers", &network.name_servers),
        ("relays", &network.relays),
    ] {
        if list.len() > ADDRESSES_MAX {
            return Err(format!("{key} has more than {ADDRESSES_MAX} addresses"));
        }
    }
    if let Some(domain) = &network.domain
        && !is_domain(domain)
    {
        return Err(format!("domain = '{}' is no domain", domain.escape_debug()));
    }
    check_names(network)
}

fn check_subnet(network: &NetworkConfig, subnet: Subnet) -> Result<(), String> {
    let inside = |key: &str, address: Ipv4Addr| {
        let host =
            subnet.prefix >= 31 || (address != subnet.network && address != subnet.broadcast());
        if subnet.contains(address) && host {
            return Ok(());
        }
        Err(format!(
            "{key} {address} is no address of a machine in {subnet}"
        ))
    };
    if let Some(pool) = network.pool {
        inside("pool", pool.first)?;
        inside("pool", pool.last)?;
    }
    network
        .gateway
        .map_or(Ok(()), |gateway| inside("gateway", gateway))
}

fn check_names(network: &NetworkConfig) -> Result<(), String> {
    if network.unknown == UnknownPolicy::Register && network.names.is_none() {
        return Err(
            "unknown = 'register' needs names to give, such as names = 'n[001-999]'".to_owned(),
        );
    }
    if let Some(names) = &network.names {
        let list: Result<HostList, _> = names.parse();
        list.map_err(|error| format!("names = '{}': {error}", names.escape_debug()))?;
    }
    if let Some(profile) = &network.profile {
        let name: Result<ProfileName, _> = profile.parse();
        name.map_err(|error| format!("profile = '{}': {error}", profile.escape_debug()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_named() {
        let wrong = |text: &str| {
            let config: crate::Config = toml::from_str(text).expect("is TOML");
            check(&config.boot, &config.network)
                .map_or_else(|error| error.to_string(), |()| "fine".to_owned())
        };
        for (text, expected) in [
            (
                "[[network]]\ninterface = 'eth0'\nsubnet = '10.0.0.0/24'\npool = '10.0.0.9-10.0.0.99'",
                "fine",
            ),
            ("[boot]\ninterfaces = ['auto', 'eth0=off']", "fine"),
            ("[boot]\ntime_zone = 'UTC'", "fine"),
            (
                "[boot]\ntime_zone = 'Mars/Olympus'",
                "boot.time_zone = 'Mars/Olympus' is not known here: write one of /usr/share/zoneinfo, such as Europe/Berlin",
            ),
            (
                "[boot]\ninterfaces = ['off', 'eth0=dhcp']",
                "boot.interfaces has 'off' beside others: write it alone, or IFACE=off",
            ),
            (
                "[boot]\ninterfaces = ['eth0=off', 'eth0=dhcp']",
                "boot.interfaces has 'eth0' twice",
            ),
            (
                "[boot]\nhttp_port = 8481",
                "boot.http_port and boot.https_port are the same: choose two",
            ),
            (
                "[boot]\nswarm_port = 8482",
                "boot.nbd_port and boot.swarm_port are the same: choose two",
            ),
            ("[boot]\nswarm_port = 0", "fine"),
            (
                "[boot]\nnbd_port = 0",
                "boot.nbd_port is told to machines: it cannot be 0",
            ),
            (
                "[[network]]\nmode = 'dhcp'",
                "network 1 (of no interface): it needs an interface, or a subnet that relays ask for",
            ),
            (
                "[[network]]\nsubnet = '10.0.0.0/24'",
                "network 1 (10.0.0.0/24): it has no interface: name the relays that ask for it",
            ),
            (
                "[[network]]\ninterface = 'eth0'\nsubnet = '10.0.0.0/24'\ngateway = '10.0.1.1'",
                "network 1 (eth0): gateway 10.0.1.1 is no address of a machine in 10.0.0.0/24",
            ),
            (
                "[[network]]\ninterface = 'eth0'\nsubnet = '10.0.0.0/24'\npool = '10.0.0.9-10.0.0.255'",
                "network 1 (eth0): pool 10.0.0.255 is no address of a machine in 10.0.0.0/24",
            ),
            (
                "[[network]]\ninterface = 'eth0'\nunknown = 'register'",
                "network 1 (eth0): unknown = 'register' needs names to give, such as names = 'n[001-999]'",
            ),
            (
                "[[network]]\ninterface = 'eth0'\nlease_seconds = 5",
                "network 1 (eth0): lease_seconds is out of bounds: 60 to 2592000",
            ),
            (
                "[[network]]\ninterface = 'eth0'\ndomain = 'a b'",
                "network 1 (eth0): domain = 'a b' is no domain",
            ),
            (
                "[[network]]\ninterface = 'eth0'\nunknown = 'register'\nnames = 'n[1-'",
                "network 1 (eth0): names = 'n[1-': a bracket of 'n[1-' is not closed: write n[001-300]",
            ),
            (
                "[[network]]\ninterface = 'eth0'\nprofile = 'a b'",
                "network 1 (eth0): profile = 'a b': the profile name 'a b' has ' ' in it: names are letters, digits, '.', '_' and '-', and begin with a letter or digit",
            ),
            (
                "[boot]\nfiles = ['programs']",
                "boot.files has 'programs', which depends on where the daemon is started: write the whole path, from / on",
            ),
            (
                "[[network]]\ninterface = 'eth0'\n[[network]]\ninterface = 'eth0'",
                "network 2 (eth0) is there twice",
            ),
        ] {
            assert_eq!(wrong(text), expected, "{text}");
        }
    }
}
