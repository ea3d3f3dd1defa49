//! Who is connected to a port: as the kernel lists it.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A connection's state in the list (`TCP_ESTABLISHED` of `include/net/tcp_states.h`).
const ESTABLISHED: &str = "01";

/// The other ends of connections to each of our ports.
pub(crate) fn connected() -> Vec<(u16, IpAddr)> {
    let lists = ["/proc/net/tcp", "/proc/net/tcp6"];
    let texts = lists.map(|path| fs::read_to_string(path).unwrap_or_default());
    let all: BTreeSet<_> = texts.iter().flat_map(|text| parse(text)).collect();
    all.into_iter().collect()
}

/// Lines are `0: 0100007F:0801 0700000A:03E9 01 ...`; addresses are words of the
/// machine's own byte order, in hex (`proc_net_tcp.rst`).
fn parse(text: &str) -> impl Iterator<Item = (u16, IpAddr)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (own, other, state) = (words.next()?, words.next()?, words.next()?);
        if state != ESTABLISHED {
            return None;
        }
        let (_, port) = own.rsplit_once(':')?;
        let (address, _) = other.rsplit_once(':')?;
        Some((u16::from_str_radix(port, 16).ok()?, address_of(address)?))
    })
}

fn address_of(hex: &str) -> Option<IpAddr> {
    if !hex.is_ascii() {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok();
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at * 8)?.to_ne_bytes());
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:0801 0700000A:03E9 01 00000000:00000000 00:00000000 00000000     0
   1: 00000000:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   2: 0000000000000000FFFF00000100000A:0802 0000000000000000FFFF00000800000A:03E9 01 0
   3: nonsense
   4: 0100007F:zz 0700000A:03E9 01
";

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_read_and_nonsense_is_not() {
        let found: Vec<_> = parse(LIST)
            .map(|(port, other)| format!("{port} {other}"))
            .collect();
        assert_eq!(found, ["2049 10.0.0.7", "2050 10.0.0.8"]);
    }
}
