//! What the system lets this process do that booting machines needs.

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// DHCP's port, and one of those that need a right (ip(7), `ip_unprivileged_port_start`).
const PORT: u16 = 67;

/// What machines cannot be booted without and is not allowed, by its names in
/// capabilities(7). Tried, not read from the process' sets: a user namespace, a
/// system call filter or a system setting may say otherwise.
pub(super) fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !may_bind() {
        missing.push("CAP_NET_BIND_SERVICE");
    }
    if !may_send_frames() {
        missing.push("CAP_NET_RAW");
    }
    missing
}

/// TCP, since nobody's DHCP server is disturbed by it; nothing listens.
fn may_bind() -> bool {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let bound = socket.and_then(|socket| bind(&socket, &any));
    // Another's port is no lack of rights.
    bound.is_ok() || bound == Err(rustix::io::Errno::ADDRINUSE)
}

/// A socket without a protocol receives nothing (packet(7)).
fn may_send_frames() -> bool {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).is_ok()
}

/// What is said, once, of a daemon whose `auto` boots nothing for want of rights.
pub(super) fn lack_of(missing: &[&str]) -> Option<String> {
    (!missing.is_empty()).then(|| {
        format!(
            "no machine is booted, since boot.interfaces is auto and the daemon lacks {}: start \
             it as root or by its systemd unit, or say --boot off; everything else runs",
            missing.join(" and ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_says_what_is_off_why_and_what_to_do() {
        assert_eq!(lack_of(&[]), None);
        insta::assert_snapshot!(
            lack_of(&["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]).expect("a lack"),
            @"no machine is booted, since boot.interfaces is auto and the daemon lacks CAP_NET_BIND_SERVICE and CAP_NET_RAW: start it as root or by its systemd unit, or say --boot off; everything else runs"
        );
    }
}
