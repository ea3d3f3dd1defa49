//! Where initiators come from, and where they are sent.

use std::net::{IpAddr, Ipv6Addr};

use rootstock_api::ProblemCode;

use crate::http::ApiError;

/// The longest name of a host, in bytes (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

pub(super) fn check_addresses(text: &str) -> Result<(), ApiError> {
    if parse_addresses(text).is_some() {
        return Ok(());
    }
    let start: String = text.chars().take(100).collect();
    let detail = format!("'{}' is not a network", start.escape_debug());
    Err(ApiError::new(ProblemCode::BadValue, detail)
        .with_hint("write NETWORK/BITS such as 10.0.0.0/24, or one address"))
}

/// RFC 7143, section 13.8, TargetAddress: `HOST:PORT`, or `[ADDRESS]:PORT` for IPv6.
pub(super) fn check_redirect(text: &str) -> Result<(), ApiError> {
    let is_host = |host: &str| match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
            !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(known)
        }
    };
    let parts = text.rsplit_once(':');
    let good = parts.is_some_and(|(host, port)| {
        is_host(host)
            && port
                .parse::<u16>()
                .is_ok_and(|number| number.to_string() == port)
    });
    if good {
        return Ok(());
    }
    let start: String = text.chars().take(100).collect();
    let detail = format!("'{}' is not where a target can be", start.escape_debug());
    Err(ApiError::new(ProblemCode::BadValue, detail)
        .with_hint("write HOST:PORT such as 10.0.0.2:3260, or [ADDRESS]:PORT for IPv6"))
}

/// A network's first address and its length in bits, as 128-bit numbers; a family
/// has a range of its own.
fn parse_addresses(text: &str) -> Option<(u128, u32)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
    (bits <= most).then(|| (number(address), bits + 128 - most))
}

pub(super) fn may_come_from(addresses: Option<&str>, address: IpAddr) -> bool {
    let Some(text) = addresses else {
        return true;
    };
    // What cannot be read lets nobody in.
    let Some((network, bits)) = parse_addresses(text) else {
        return false;
    };
    let differ = network ^ number(address.to_canonical());
    differ.checked_shr(128 - bits).unwrap_or(0) == 0
}

/// IPv4 addresses lie where IPv6 maps them (RFC 4291, section 2.5.5.2).
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_let_in_whom_they_name() {
        for (network, address, expected) in [
            (None, "10.0.0.7", true),
            (Some("10.0.0.0/24"), "10.0.0.7", true),
            (Some("10.0.0.0/24"), "::ffff:10.0.0.7", true),
            (Some("10.0.0.0/24"), "10.0.1.7", false),
            (Some("10.0.0.7"), "10.0.0.7", true),
            (Some("10.0.0.7"), "10.0.0.8", false),
            (Some("0.0.0.0/0"), "192.0.2.1", true),
            (Some("0.0.0.0/0"), "2001:db8::1", false),
            (Some("::/0"), "2001:db8::1", true),
            (Some("2001:db8::/32"), "2001:db8:1::1", true),
            (Some("2001:db8::/32"), "2001:db9::1", false),
            (Some("nonsense"), "10.0.0.7", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(
                may_come_from(network, address),
                expected,
                "{network:?} {address}"
            );
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "::/129", "/8"] {
            assert!(check_addresses(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirections_lead_to_hosts_and_ports() {
        for good in ["10.0.0.2:3260", "head-2.example:1", "[2001:db8::1]:3260"] {
            assert!(check_redirect(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.2",
            ":3260",
            "a:0x1",
            "a:+1",
            "a,1:2",
            "[::1:3260",
            "2001:db8::1:1",
            "a:65536",
        ] {
            assert!(check_redirect(bad).is_err(), "{bad}");
        }
    }
}
