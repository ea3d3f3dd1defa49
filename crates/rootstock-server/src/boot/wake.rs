//! Waking machines up: Wake-on-LAN, from every interface on which machines are booted.
//!
//! A magic packet has no answer. It goes to the limited broadcast address and to that
//! of the subnet, three times, since nobody would notice that it was lost.

use std::{
    ffi::OsString,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use rootstock_api::ProblemCode;
use rootstock_core::{MacAddress, NodeName};

use super::interfaces::{self, BootPlace, Wanted};
use crate::{
    app::App,
    config::{BootMode, Config},
    http::ApiError,
};

/// The discard service: what listens there, if anything does, ignores it.
const PORT: u16 = 9;

/// How often each packet goes out.
const TIMES: u32 = 3;

/// Between the rounds.
const PAUSE: Duration = Duration::from_millis(100);

/// The packet that wakes a card: six bytes of ones, and its address 16 times (AMD's
/// white paper 20213, "Magic Packet Technology").
fn packet(mac: MacAddress) -> [u8; 102] {
    let mut packet = [0xff; 102];
    for place in packet[6..].chunks_exact_mut(6) {
        place.copy_from_slice(&mac.0);
    }
    packet
}

/// Where packets go out.
struct Way {
    /// The interface; any when absent.
    interface: Option<String>,
    from: Ipv4Addr,
    to: Vec<SocketAddrV4>,
}

impl Way {
    fn of(place: BootPlace) -> Self {
        let to = [Ipv4Addr::BROADCAST, place.subnet.broadcast()];
        Self {
            interface: Some(place.name),
            from: place.address,
            to: to.map(|to| SocketAddrV4::new(to, PORT)).into(),
        }
    }

    fn socket(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((self.from, 0))?;
        socket.set_broadcast(true)?;
        if let Some(interface) = &self.interface {
            setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
        }
        Ok(socket)
    }
}

/// Wakes the machines of these nodes.
pub(crate) async fn wake_nodes(app: &Arc<App>, nodes: &[NodeName]) -> Result<(), ApiError> {
    let mut cards = Vec::new();
    for node in nodes {
        cards.extend(app.catalog.node(node).await?.macs);
    }
    if cards.is_empty() {
        return Ok(());
    }
    let sent = app.blocking(move |app| Ok(wake(&app.config, &cards)));
    let hint = "`rootstock boot doctor` says where machines are booted";
    let refused = |detail| ApiError::new(ProblemCode::Unavailable, detail).with_hint(hint);
    match sent.await? {
        Ok(0) => {
            return Err(refused(
                "there is no interface to wake machines from".to_owned(),
            ));
        }
        Ok(interfaces) => tracing::info!(nodes = nodes.len(), interfaces, "machines are woken"),
        Err(error) => return Err(refused(format!("nothing could be sent: {error}"))),
    }
    Ok(())
}

/// Wakes these cards, and answers on how many interfaces. It takes a fraction of a
/// second, and blocks.
///
/// # Errors
/// When nothing could be sent on any of them.
fn wake(config: &Config, cards: &[MacAddress]) -> io::Result<usize> {
    let wanted = Wanted {
        interfaces: &config.boot.interfaces,
        networks: &config.network,
        now: &[],
    };
    let (places, _) = interfaces::choose(wanted, &interfaces::discover()?);
    let serves = |place: &BootPlace| place.mode != BootMode::Observe;
    let ways: Vec<Way> = places.into_iter().filter(serves).map(Way::of).collect();
    send(&ways, cards)
}

fn send(ways: &[Way], cards: &[MacAddress]) -> io::Result<usize> {
    let mut sockets = Vec::with_capacity(ways.len());
    let mut failure = None;
    for way in ways {
        match way.socket() {
            Ok(socket) => sockets.push((socket, way)),
            Err(error) => failure = Some(error),
        }
    }
    let mut worked = vec![false; sockets.len()];
    for round in 0..TIMES {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        for ((socket, way), worked) in sockets.iter().zip(&mut worked) {
            for card in cards {
                let packet = packet(*card);
                for to in &way.to {
                    match socket.send_to(&packet, to) {
                        Ok(_) => *worked = true,
                        Err(error) => failure = Some(error),
                    }
                }
            }
        }
    }
    let count = worked.iter().filter(|worked| **worked).count();
    match failure {
        Some(error) if count == 0 => Err(error),
        _ => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_woken_by_its_address_sixteen_times() {
        let ear = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let to = match ear.local_addr().expect("has one") {
            std::net::SocketAddr::V4(to) => to,
            other => panic!("{other}"),
        };
        let way = Way {
            interface: None,
            from: Ipv4Addr::LOCALHOST,
            to: vec![to],
        };
        let cards: Vec<MacAddress> = ["52:54:00:12:34:56", "52:54:00:12:34:57"]
            .map(|text| text.parse().expect("a MAC"))
            .into();
        assert_eq!(send(&[way], &cards).expect("sends"), 1);
        for _ in 0..TIMES {
            for card in &cards {
                let mut heard = [0; 200];
                let len = ear.recv(&mut heard).expect("hears");
                assert_eq!(len, 102);
                assert_eq!(heard[..6], [0xff; 6]);
                assert!(heard[6..len].chunks(6).all(|place| place == card.0));
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_anywhere_is_an_error() {
        let mac = "52:54:00:12:34:56".parse().expect("a MAC");
        let way = Way {
            interface: Some("no-such-card".to_owned()),
            from: Ipv4Addr::LOCALHOST,
            to: Vec::new(),
        };
        assert!(send(&[way], &[mac]).is_err());
        assert_eq!(send(&[], &[mac]).expect("has nothing to do"), 0);
    }
}
