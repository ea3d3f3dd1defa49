//! The sockets of one interface.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    task::{Context, Poll},
};

use rootstock_core::MacAddress;
use rootstock_netboot::dhcp::{CLIENT_PORT, Destination, Mode, Outgoing, PXE_PORT, SERVER_PORT};

use super::DhcpStartError;
use crate::boot::udp::{Datagram, FrameLink, Sharing, UdpLink};

/// The ports that packets come to.
pub(super) const PORTS: [u16; 3] = [SERVER_PORT, PXE_PORT, CLIENT_PORT];

/// The sockets of an interface.
#[derive(Debug)]
pub(super) struct Links {
    server: UdpLink,
    pxe: UdpLink,
    /// Where other servers are overheard; lacks when a client holds the port alone.
    client: Option<UdpLink>,
    pub(super) arp: FrameLink,
    frames: FrameLink,
}

impl Links {
    pub(super) fn open(
        interface: &str,
        mac: MacAddress,
        mode: Mode,
    ) -> Result<Self, DhcpStartError> {
        let port = |port, sharing| {
            UdpLink::open(interface, port, sharing).map_err(|source| DhcpStartError::Port {
                interface: interface.to_owned(),
                port,
                source,
            })
        };
        let frames = |source| DhcpStartError::Frames {
            interface: interface.to_owned(),
            source,
        };
        let client = match port(CLIENT_PORT, Sharing::Shared) {
            Ok(client) => Some(client),
            // Who cannot hear others must not take itself for the only one.
            Err(DhcpStartError::Port {
                interface, source, ..
            }) if mode == Mode::Auto => return Err(DhcpStartError::Deaf { interface, source }),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(interface, error, "other DHCP servers are not heard");
                None
            }
        };
        Ok(Self {
            server: port(SERVER_PORT, Sharing::Alone)?,
            pxe: port(PXE_PORT, Sharing::Alone)?,
            client,
            arp: FrameLink::arp(interface, mac).map_err(frames)?,
            frames: FrameLink::sender(interface, mac).map_err(frames)?,
        })
    }

    /// Whether a socket may have something. The task is woken once one has.
    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        let ports = PORTS.into_iter().filter_map(|port| self.port(port));
        let polls = ports.map(|link| link.poll_readable(context).is_ready());
        // All of them, each of which is to wake the task.
        let is_ready = polls.fold(false, |any, is_ready| any | is_ready);
        if is_ready | self.arp.poll_readable(context).is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Takes a packet that came to a port; `None` when there is none.
    pub(super) fn receive(&self, port: u16, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        self.port(port)
            .map_or(Ok(None), |link| link.receive(buffer))
    }

    fn port(&self, port: u16) -> Option<&UdpLink> {
        match port {
            PXE_PORT => Some(&self.pxe),
            CLIENT_PORT => self.client.as_ref(),
            _ => Some(&self.server),
        }
    }

    pub(super) fn send(&self, outgoing: &Outgoing) -> io::Result<()> {
        let link = self.port(outgoing.source.port()).unwrap_or(&self.server);
        let from = *outgoing.source.ip();
        match outgoing.to {
            Destination::Broadcast(port) => {
                let all = SocketAddrV4::new(Ipv4Addr::BROADCAST, port);
                link.send(&outgoing.bytes, from, all)
            }
            Destination::Unicast(to) => link.send(&outgoing.bytes, from, to),
            Destination::Hardware { mac, address } => {
                self.frames
                    .send_udp(&outgoing.bytes, outgoing.source, mac, address)
            }
        }
    }
}
