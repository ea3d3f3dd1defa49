//! The sockets of one interface, and the tasks that read them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use rootstock_core::MacAddress;
use rootstock_netboot::dhcp::{
    CLIENT_PORT, Destination, InterfaceId, Mode, Outgoing, PXE_PORT, SERVER_PORT,
};
use tokio::{sync::mpsc, task::JoinSet};

use super::DhcpStartError;
use crate::boot::udp::{FrameLink, Sharing, UdpLink};

/// The longest packet that is taken in, in bytes; clients send about 300 to 600.
const PACKET_BYTES_MAX: usize = 4096;

/// Faults of a socket in a row before it is waited for again.
const FAULTS_MAX: u32 = 16;

/// Something that a socket brought.
#[derive(Debug)]
pub(super) enum Brought {
    Packet {
        interface: InterfaceId,
        source: SocketAddrV4,
        destination: SocketAddrV4,
        bytes: Box<[u8]>,
    },
    Has {
        interface: InterfaceId,
        mac: MacAddress,
        address: Ipv4Addr,
    },
}

/// The sockets of an interface.
#[derive(Debug)]
pub(super) struct Links {
    server: Arc<UdpLink>,
    pxe: Arc<UdpLink>,
    /// Where other servers are overheard; lacks when a client holds the port alone.
    client: Option<Arc<UdpLink>>,
    pub(super) arp: Arc<FrameLink>,
    frames: FrameLink,
}

impl Links {
    pub(super) fn open(
        interface: &str,
        mac: MacAddress,
        mode: Mode,
    ) -> Result<Self, DhcpStartError> {
        let port = |port, sharing| {
            UdpLink::open(interface, port, sharing)
                .map(Arc::new)
                .map_err(|source| DhcpStartError::Port {
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
            arp: Arc::new(FrameLink::arp(interface, mac).map_err(frames)?),
            frames: FrameLink::sender(interface, mac).map_err(frames)?,
        })
    }

    /// Starts a task for each socket.
    pub(super) fn read(
        &self,
        id: InterfaceId,
        to: &mpsc::Sender<Brought>,
        tasks: &mut JoinSet<()>,
    ) {
        let ports = [
            (Some(&self.server), SERVER_PORT),
            (Some(&self.pxe), PXE_PORT),
        ];
        for (link, port) in ports
            .into_iter()
            .chain([(self.client.as_ref(), CLIENT_PORT)])
        {
            if let Some(link) = link {
                tasks.spawn(read_packets(Arc::clone(link), id, port, to.clone()));
            }
        }
        tasks.spawn(read_arp(Arc::clone(&self.arp), id, to.clone()));
    }

    pub(super) fn send(&self, outgoing: &Outgoing) -> io::Result<()> {
        let link = match outgoing.source.port() {
            PXE_PORT => &self.pxe,
            CLIENT_PORT => self.client.as_ref().unwrap_or(&self.server),
            _ => &self.server,
        };
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

/// Hands on what a port receives. A fault of the socket, such as an interface that
/// went down, is waited out.
async fn read_packets(
    link: Arc<UdpLink>,
    interface: InterfaceId,
    port: u16,
    to: mpsc::Sender<Brought>,
) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    while link.readable().await.is_ok() {
        let mut faults = 0;
        while faults < FAULTS_MAX {
            match link.receive(&mut buffer) {
                Ok(Some(datagram)) => {
                    let brought = Brought::Packet {
                        interface,
                        source: datagram.source,
                        destination: SocketAddrV4::new(datagram.destination, port),
                        bytes: buffer[..datagram.bytes.min(PACKET_BYTES_MAX)].into(),
                    };
                    if to.send(brought).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    faults += 1;
                    tracing::debug!(%error, port, "receive a DHCP packet");
                }
            }
        }
    }
}

/// Hands on who has which address. When nobody takes it, it is lost: it matters only
/// while something is asked.
async fn read_arp(link: Arc<FrameLink>, interface: InterfaceId, to: mpsc::Sender<Brought>) {
    while link.readable().await.is_ok() {
        while let Ok(Some(sender)) = link.receive_arp() {
            if let Some((mac, address)) = sender {
                let _ = to.try_send(Brought::Has {
                    interface,
                    mac,
                    address,
                });
            }
        }
        if to.is_closed() {
            return;
        }
    }
}
