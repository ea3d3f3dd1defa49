//! The swarm, as the daemon sees it: who takes part and how.

use std::net::{IpAddr, Ipv6Addr};

use rootstock_api::{
    settings::Settings,
    swarm::{SwarmMode, SwarmOrder},
};

use super::networks::Network;
use crate::{config::Subnet, nodes::SWARM_MODE};

/// The prefix that a subnet is taken to have when nobody says, in bits.
const SUBNET_BITS: u8 = 24;

/// The same of IPv6 (RFC 4291, section 2.5.4).
const SUBNET_V6_BITS: u32 = 64;

/// How a machine with these settings takes part; none when it does not.
pub(crate) fn order(settings: &Settings) -> Option<SwarmOrder> {
    let mode = settings.swarm.unwrap_or(SWARM_MODE);
    (mode != SwarmMode::Off).then(|| SwarmOrder {
        mode,
        upload_mbit_max: settings.upload_mbit_max.map(u32::from),
        copies: settings.swarm_copies.unwrap_or_default().get(),
        memory_bytes_max: settings.swarm_memory,
    })
}

/// The rack of a machine: what is set, else its subnet, as far as that is known.
pub(crate) fn rack(settings: &Settings, network: &Network, peer: IpAddr) -> String {
    match (&settings.rack, peer) {
        (Some(rack), _) => rack.to_string(),
        (None, IpAddr::V4(peer)) => {
            let known = network.subnet.filter(|subnet| subnet.contains(peer));
            let subnet = known.unwrap_or_else(|| Subnet::of(peer, SUBNET_BITS));
            subnet.to_string()
        }
        (None, IpAddr::V6(peer)) => {
            let shift = u128::BITS - SUBNET_V6_BITS;
            let first = Ipv6Addr::from_bits(peer.to_bits() >> shift << shift);
            format!("{first}/{SUBNET_V6_BITS}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn settings_say_who_takes_part() {
        assert_eq!(order(&settings("{}")), None);
        assert_eq!(
            order(&settings(r#"{"swarm":"off","swarm_copies":3}"#)),
            None
        );
        let plain = order(&settings(r#"{"swarm":"plain"}"#)).expect("takes part");
        let usual = SwarmOrder {
            mode: SwarmMode::Plain,
            copies: 2,
            ..SwarmOrder::default()
        };
        assert_eq!(plain, usual);
        let full =
            r#"{"swarm":"tls","swarm_copies":3,"upload_mbit_max":500,"swarm_memory":1048576}"#;
        let expected = SwarmOrder {
            mode: SwarmMode::Tls,
            upload_mbit_max: Some(500),
            copies: 3,
            memory_bytes_max: Some(1 << 20),
        };
        assert_eq!(order(&settings(full)), Some(expected));
    }

    #[test]
    fn a_rack_is_what_is_set_or_the_subnet() {
        let in_subnet = |subnet: Option<&str>| Network {
            subnet: subnet.map(|subnet| subnet.parse().expect(subnet)),
            ..Network::default()
        };
        for (set, subnet, peer, expected) in [
            ("{}", Some("10.0.0.0/16"), "10.0.3.7", "10.0.0.0/16"),
            // Behind a router, in a subnet that nobody told us of.
            ("{}", Some("10.0.0.0/16"), "10.9.3.7", "10.9.3.0/24"),
            ("{}", None, "10.0.3.7", "10.0.3.0/24"),
            ("{}", None, "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
            (
                r#"{"rack":"room-1"}"#,
                Some("10.0.0.0/16"),
                "10.0.3.7",
                "room-1",
            ),
        ] {
            let peer = peer.parse().expect(peer);
            let found = rack(&settings(set), &in_subnet(subnet), peer);
            assert_eq!(found, expected, "{set} {subnet:?} {peer}");
        }
    }
}
