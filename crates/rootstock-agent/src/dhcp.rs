//! A small DHCP client, for a machine whose boot loader told no address.
//!
//! It asks once and keeps the address without renewing it: the lease of a boot
//! lasts until the image's own network programs take over (RFC 2131).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rootstock_core::MacAddress;

use crate::cmdline::{Ipv4Config, mask_bits};
use crate::nic::Nic;
use crate::sys;

/// RFC 2131, section 4.1: 4 s, doubling; a boot asks a little sooner.
pub(crate) const WAITS: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(8),
    Duration::from_secs(8),
];

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// RFC 2131, section 2: up to the options; then the magic cookie.
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BROADCAST_FLAG: [u8; 2] = [0x80, 0];
const PACKET_BYTES_MAX: usize = 1500;
const NAME_SERVERS_MAX: usize = 3;

// RFC 2132, by section.
const OPTION_MASK: u8 = 1; // 3.3
const OPTION_ROUTER: u8 = 3; // 3.5
const OPTION_NAME_SERVER: u8 = 6; // 3.8
const OPTION_REQUESTED: u8 = 50; // 9.1
const OPTION_KIND: u8 = 53; // 9.6
const OPTION_SERVER: u8 = 54; // 9.7
const OPTION_WANTED: u8 = 55; // 9.8
const OPTION_END: u8 = 255; // 3.2

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    kind: u8,
    address: Ipv4Addr,
    server: Option<Ipv4Addr>,
    prefix_bits: Option<u8>,
    gateway: Option<Ipv4Addr>,
    name_servers: Vec<Ipv4Addr>,
}

/// Asks for an address, as often and as patiently as `waits` says.
///
/// # Errors
/// When no server gives one by then.
pub(crate) fn ask(nic: &Nic, waits: &[Duration]) -> io::Result<Ipv4Config> {
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    socket.set_broadcast(true)?;
    sys::bind_to_device(socket.as_fd(), &nic.name)?;
    // The address makes it differ between machines, the number between tries.
    let mac = nic.mac.as_bytes();
    let mut transaction = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]);
    for wait in waits.iter().copied() {
        transaction = transaction.wrapping_add(0x0100_0000);
        let Some(offer) = exchange(&socket, nic.mac, transaction, None, wait)? else {
            continue;
        };
        let Some(lease) = exchange(&socket, nic.mac, transaction, Some(&offer), wait)? else {
            continue;
        };
        return Ok(Ipv4Config {
            address: lease.address,
            prefix_bits: lease.prefix_bits.or(offer.prefix_bits).unwrap_or(24),
            gateway: lease.gateway,
            name_servers: lease.name_servers,
        });
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no DHCP server answers on {}", nic.name),
    ))
}

/// Sends a DISCOVER, or a REQUEST for an offer, and waits for what answers it.
fn exchange(
    socket: &UdpSocket,
    mac: MacAddress,
    transaction: u32,
    offer: Option<&Reply>,
    wait: Duration,
) -> io::Result<Option<Reply>> {
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    socket.send_to(&question(mac, transaction, offer), to)?;
    let expected = if offer.is_some() { ACK } else { OFFER };
    let began = Instant::now();
    let mut buffer = [0; PACKET_BYTES_MAX];
    while let Some(left) = wait
        .checked_sub(began.elapsed())
        .filter(|left| !left.is_zero())
    {
        socket.set_read_timeout(Some(left))?;
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(reply) = reply(&buffer[..len], mac, transaction)
            && reply.kind == expected
        {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

fn question(mac: MacAddress, transaction: u32, offer: Option<&Reply>) -> Vec<u8> {
    // BOOTREQUEST over Ethernet with 6-byte addresses.
    let mut packet = vec![1, 1, 6, 0];
    packet.extend(transaction.to_be_bytes());
    packet.extend([0, 0]);
    // Without an address of its own it can only hear broadcasts.
    packet.extend(BROADCAST_FLAG);
    packet.extend([0; 16]);
    packet.extend(mac.as_bytes());
    packet.resize(FIXED_BYTES, 0);
    packet.extend(COOKIE);
    match offer {
        None => packet.extend([OPTION_KIND, 1, DISCOVER]),
        Some(offer) => {
            packet.extend([OPTION_KIND, 1, REQUEST, OPTION_REQUESTED, 4]);
            packet.extend(offer.address.octets());
            if let Some(server) = offer.server {
                packet.extend([OPTION_SERVER, 4]);
                packet.extend(server.octets());
            }
        }
    }
    let wanted = [OPTION_MASK, OPTION_ROUTER, OPTION_NAME_SERVER];
    packet.extend([OPTION_WANTED, wanted.len() as u8]);
    packet.extend(wanted);
    packet.push(OPTION_END);
    // Servers and relays drop what is shorter than BOOTP's packet (RFC 1542, 2.1).
    packet.resize(packet.len().max(300), 0);
    packet
}

/// A server's packet for this card and this transaction.
fn reply(packet: &[u8], mac: MacAddress, transaction: u32) -> Option<Reply> {
    let (fixed, options) = packet.split_at_checked(FIXED_BYTES)?;
    let ours = fixed[0] == 2
        && fixed[4..8] == transaction.to_be_bytes()
        && fixed[28..34] == *mac.as_bytes();
    let mut rest = options.strip_prefix(&COOKIE)?;
    if !ours {
        return None;
    }
    let mut reply = Reply {
        kind: 0,
        address: address(&fixed[16..])?,
        server: None,
        prefix_bits: None,
        gateway: None,
        name_servers: Vec::new(),
    };
    loop {
        rest = match rest {
            [0, rest @ ..] => rest,
            [OPTION_END, ..] | [] => break,
            [code, len, rest @ ..] => {
                let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                match *code {
                    OPTION_KIND => reply.kind = *value.first()?,
                    OPTION_SERVER => reply.server = address(value),
                    OPTION_MASK => reply.prefix_bits = address(value).and_then(mask_bits),
                    OPTION_ROUTER => reply.gateway = address(value),
                    OPTION_NAME_SERVER => {
                        let servers = value.chunks_exact(4).filter_map(address);
                        reply.name_servers = servers.take(NAME_SERVERS_MAX).collect();
                    }
                    _ => {}
                }
                rest
            }
            [_] => return None,
        };
    }
    Some(reply)
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn answer(kind: u8, options: &[u8]) -> Vec<u8> {
        let mut packet = question(MAC, 77, None);
        packet[0] = 2;
        packet[16..20].copy_from_slice(&[10, 0, 0, 9]);
        packet.truncate(FIXED_BYTES + 4);
        packet.extend([OPTION_KIND, 1, kind]);
        packet.extend(options);
        packet.push(OPTION_END);
        packet
    }

    #[test]
    fn an_offer_is_read() {
        let options = [
            54, 4, 10, 0, 0, 1, 0, 0, 1, 4, 255, 255, 254, 0, 3, 4, 10, 0, 0, 2, 6, 8, 1, 1, 1, 1,
            9, 9, 9, 9, 12, 1, 65,
        ];
        let found = reply(&answer(OFFER, &options), MAC, 77).expect("an offer");
        assert_eq!(found.kind, OFFER);
        assert_eq!(found.address, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(found.server, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(found.prefix_bits, Some(23));
        assert_eq!(found.gateway, Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(found.name_servers.len(), 2);
        let request = question(MAC, 77, Some(&found));
        let asked = [
            OPTION_REQUESTED,
            4,
            10,
            0,
            0,
            9,
            OPTION_SERVER,
            4,
            10,
            0,
            0,
            1,
        ];
        assert!(request.windows(asked.len()).any(|part| part == asked));
    }

    #[test]
    fn what_is_for_others_is_not_ours() {
        let packet = answer(OFFER, &[]);
        assert!(reply(&packet, MAC, 78).is_none());
        assert!(reply(&packet, MacAddress([2; 6]), 77).is_none());
        assert!(reply(&question(MAC, 77, None), MAC, 77).is_none());
        assert!(reply(&answer(OFFER, &[54, 200, 1]), MAC, 77).is_none());
        assert!(reply(&packet[..100], MAC, 77).is_none());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(options in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = reply(&answer(ACK, &options), MAC, 77);
        }
    }
}
