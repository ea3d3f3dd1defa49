//! Packets of any client, relay and rival server, through the DHCP server, with
//! whatever the lease book and the wire answer.

#![no_main]

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
};

use libfuzzer_sys::fuzz_target;
use rootstock_core::MacAddress;
use rootstock_netboot::{
    Millis,
    dhcp::{
        Action, CommitError, Config, Incoming, InterfaceConfig, InterfaceId, Mode, Network, Probed,
        Probes, Server, Subnet, Unknown,
    },
    strategy::RULES,
};

/// The longest UDP payload that Ethernet carries in one piece.
const REPLY_BYTES_MAX: usize = 1472;

/// Bits of the byte before each packet.
const ON_PROXY: u8 = 1;
const TO_4011: u8 = 2;
const COMMIT_FAILS: u8 = 4;
const ADDRESS_USED: u8 = 8;
const TIME_PASSES: u8 = 16;
/// The packet's bytes are a number for its card, and its options.
const WITH_HEADER: u8 = 32;
const RELAYED: u8 = 64;

// Packets one after the other: flags, a length of two bytes, the bytes.
fuzz_target!(|data: &[u8]| {
    let mut site = Site {
        server: Server::new(config()),
        committed: HashMap::new(),
        now: Millis(1_000_000),
    };
    let mut rest = data;
    while let [flags, low, high, bytes @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len());
        let (packet, after) = bytes.split_at(len);
        rest = after;
        let passed = if flags & TIME_PASSES == 0 {
            50
        } else {
            100_000
        };
        site.now = site.now.after(Millis(passed));
        if site.server.next_wake().is_some_and(|wake| wake <= site.now) {
            let actions = site.server.wake(site.now);
            site.follow(actions, *flags);
        }
        let made;
        let packet = match packet {
            [number, options @ ..] if flags & WITH_HEADER != 0 => {
                made = with_header(*number, *flags, options);
                &made
            }
            packet => packet,
        };
        let incoming = Incoming {
            interface: InterfaceId(usize::from(flags & ON_PROXY)),
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            destination: SocketAddrV4::new(
                Ipv4Addr::BROADCAST,
                if flags & TO_4011 == 0 { 67 } else { 4011 },
            ),
            bytes: packet,
        };
        let actions = site.server.handle(site.now, &incoming);
        site.follow(actions, *flags);
    }
});

struct Site {
    server: Server,
    committed: HashMap<Ipv4Addr, MacAddress>,
    now: Millis,
}

impl Site {
    fn follow(&mut self, actions: Vec<Action>, flags: u8) {
        let mut waiting = VecDeque::from(actions);
        while let Some(action) = waiting.pop_front() {
            match action {
                Action::Commit { ticket, lease } => {
                    let result = if flags & COMMIT_FAILS == 0 {
                        self.committed.insert(lease.address, lease.mac);
                        Ok(())
                    } else {
                        Err(CommitError::Taken)
                    };
                    waiting.extend(self.server.committed(self.now, ticket, result));
                }
                Action::Probe { ticket, .. } => {
                    let found = if flags & ADDRESS_USED == 0 {
                        Probed::Silent
                    } else {
                        Probed::Used
                    };
                    waiting.extend(self.server.probed(self.now, ticket, found));
                }
                Action::Send(packet) => self.check(&packet.bytes),
                Action::Release { .. } | Action::Decline { .. } | Action::Event(_) => {}
            }
        }
    }

    /// What is sent is whole, and no address is given that is not the client's.
    fn check(&self, packet: &[u8]) {
        assert!((240..=REPLY_BYTES_MAX).contains(&packet.len()));
        let is_reply = packet[0] == 2;
        let yours = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let kind = option(packet, 53).expect("a message type");
        if is_reply && kind == [5] && !yours.is_unspecified() {
            let card: [u8; 6] = packet[28..34].try_into().expect("six bytes");
            assert_eq!(
                self.committed.get(&yours),
                Some(&MacAddress(card)),
                "{yours} was acknowledged before it was the client's"
            );
        }
    }
}

fn option(packet: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = &packet[240..];
    loop {
        match rest {
            [0, after @ ..] => rest = after,
            [255, ..] | [] | [_] => return None,
            [code, len, after @ ..] => {
                let (value, after) = after.split_at_checked(usize::from(*len))?;
                if *code == wanted {
                    return Some(value);
                }
                rest = after;
            }
        }
    }
}

/// A question of a card, in Ethernet's form, with these options.
fn with_header(number: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 236];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[7] = number;
    if flags & RELAYED != 0 {
        packet[24..28].copy_from_slice(&[10, 0, 5, 1]);
    }
    packet[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, number]);
    packet.extend([0x63, 0x82, 0x53, 0x63]);
    packet.extend(options);
    packet.push(255);
    packet
}

fn config() -> Config {
    let interface = |number: u8, mode| InterfaceConfig {
        name: format!("eth{number}"),
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        address: Ipv4Addr::new(10, 0, number, 1),
        mode,
        unknown: Unknown::Boot,
    };
    let network = |third: u8, interface| Network {
        name: format!("net{third}"),
        interface,
        subnet: Subnet::of(Ipv4Addr::new(10, 0, third, 0), 24),
        // So few that they run out.
        pool: Some((
            Ipv4Addr::new(10, 0, third, 100),
            Ipv4Addr::new(10, 0, third, 103),
        )),
        gateway: None,
        name_servers: Vec::new(),
        domain: Some("lab".to_owned()),
        lease: Millis::seconds(3600),
        boot_lease: Millis::seconds(120),
        relays: Vec::new(),
        unknown: Unknown::Boot,
    };
    Config {
        interfaces: vec![interface(0, Mode::Dhcp), interface(1, Mode::Proxy)],
        networks: vec![network(0, Some(InterfaceId(0))), network(5, None)],
        http_port: 8480,
        rules: RULES,
        programs: None,
        probes: Probes::On,
        seed: 7,
    }
}
