//! Sockets of one interface: UDP that says which of our addresses a packet was for and
//! which it comes from, and frames for machines that no address reaches yet.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU32,
    os::fd::{AsRawFd, OwnedFd},
    task::{Context, Poll},
};

use nix::{
    cmsg_space,
    ifaddrs::getifaddrs,
    libc,
    net::if_::if_nametoindex,
    sys::socket::{
        ControlMessage, ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn, bind, recvmsg,
        sendmsg, setsockopt, sockopt,
    },
};
use rootstock_core::MacAddress;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use tokio::{io::Interest, net::UdpSocket};

/// What the kernel holds for us of a burst: about 2,000 packets.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// The kind of frames that carry IPv4, and the one of ARP (IEEE 802 numbers).
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;

/// Bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// Bytes of a frame of ARP, padded to Ethernet's least, without its checksum.
const ARP_FRAME_BYTES: usize = 60;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

/// A UDP socket that belongs to one interface.
#[derive(Debug)]
pub(crate) struct UdpLink {
    socket: UdpSocket,
    interface: libc::c_int,
}

/// Who else may have a port of the same interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody: two servers would both answer, with the same addresses.
    Alone,
    /// All who agree to it, as DHCP clients do.
    Shared,
}

/// A packet that came in.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddrV4,
    /// The address it was sent to: ours, or a broadcast one.
    pub(crate) destination: Ipv4Addr,
    /// How many bytes of the buffer are its.
    pub(crate) bytes: usize,
}

impl UdpLink {
    /// Opens a port on one interface only, on all of its addresses.
    pub(crate) fn open(interface: &str, port: u16, sharing: Sharing) -> io::Result<Self> {
        let socket = new_socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &(sharing == Sharing::Shared))?;
        setsockopt(&socket, sockopt::Broadcast, &true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
        // Past the system's limit, where we may; up to it otherwise.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
        }
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        bind(socket.as_raw_fd(), &SockaddrIn::from(any))?;
        let number = if_nametoindex(interface)?;
        Ok(Self {
            socket: polled(socket)?,
            interface: libc::c_int::try_from(number).map_err(io::Error::other)?,
        })
    }

    /// Ready when there may be a packet; otherwise the task is woken once there is.
    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        poll_readable(&self.socket, context)
    }

    /// Takes a packet; `None` when there is none.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        let take = || self.take(buffer);
        match self.socket.try_io(Interest::READABLE, take) {
            Ok(datagram) => Ok(Some(datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let mut control = cmsg_space!(libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrIn>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let destination = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)))
            }
            _ => None,
        });
        let source = message.address.map(SocketAddrV4::from);
        Ok(Datagram {
            source: source.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
            destination: destination.unwrap_or(Ipv4Addr::UNSPECIFIED),
            bytes: message.bytes,
        })
    }

    /// Sends a packet from one of our addresses; from the interface's first when it
    /// is unspecified.
    pub(crate) fn send(&self, bytes: &[u8], from: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
        let info = libc::in_pktinfo {
            ipi_ifindex: self.interface,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from(from).to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(to)),
        )?;
        Ok(())
    }
}

/// A socket for whole frames of one interface.
#[derive(Debug)]
pub(crate) struct FrameLink {
    /// Not one of UDP: tokio only waits on it, which is the same for all sockets.
    socket: UdpSocket,
    mac: MacAddress,
}

impl FrameLink {
    /// One that only sends.
    pub(crate) fn sender(interface: &str, mac: MacAddress) -> io::Result<Self> {
        Self::open(interface, mac, None)
    }

    /// One that sends and receives ARP.
    pub(crate) fn arp(interface: &str, mac: MacAddress) -> io::Result<Self> {
        let number = NonZeroU32::new(u32::from(ARP.to_be()));
        Self::open(interface, mac, number.map(Protocol::from_raw))
    }

    fn open(interface: &str, mac: MacAddress, protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = new_socket(AddressFamily::PACKET, SocketType::RAW, protocol)?;
        bind(socket.as_raw_fd(), &link_address(interface)?)?;
        Ok(Self {
            socket: polled(socket)?,
            mac,
        })
    }

    /// Ready when there may be a frame; otherwise the task is woken once there is.
    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        poll_readable(&self.socket, context)
    }

    /// Takes a frame of ARP: who says that it has which address.
    pub(crate) fn receive_arp(&self) -> io::Result<Option<Option<(MacAddress, Ipv4Addr)>>> {
        let mut frame = [0; ARP_FRAME_BYTES];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let take = || Ok(rustix::net::recv(&self.socket, &mut frame[..], flags)?.0);
        match self.socket.try_io(Interest::READABLE, take) {
            Ok(length) => Ok(Some(arp_sender(&frame[..length.min(ARP_FRAME_BYTES)]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks who has an address, without claiming one (RFC 5227, section 2.1.1).
    pub(crate) fn ask(&self, address: Ipv4Addr) -> io::Result<()> {
        let mut frame = self.frame(MacAddress([0xff; 6]), ARP, ARP_FRAME_BYTES);
        // Ethernet, IPv4, their lengths, a request.
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(self.mac.as_bytes());
        frame.extend_from_slice(&[0; 10]);
        frame.extend_from_slice(&address.octets());
        frame.resize(ARP_FRAME_BYTES, 0);
        self.send(&frame)
    }

    /// Sends UDP to a card that does not answer ARP yet.
    pub(crate) fn send_udp(
        &self,
        bytes: &[u8],
        from: SocketAddrV4,
        mac: MacAddress,
        to: SocketAddrV4,
    ) -> io::Result<()> {
        let mut frame = self.frame(
            mac,
            IPV4,
            ETHERNET_BYTES + IP_BYTES + UDP_BYTES + bytes.len(),
        );
        udp_packet(&mut frame, bytes, from, to)?;
        self.send(&frame)
    }

    fn frame(&self, to: MacAddress, kind: u16, bytes: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(bytes);
        frame.extend_from_slice(to.as_bytes());
        frame.extend_from_slice(self.mac.as_bytes());
        frame.extend_from_slice(&kind.to_be_bytes());
        frame
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, frame, rustix::net::SendFlags::DONTWAIT)?;
        Ok(())
    }
}

fn new_socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, kind, flags, protocol)?)
}

fn poll_readable(socket: &UdpSocket, context: &mut Context<'_>) -> Poll<()> {
    match socket.poll_recv_ready(context) {
        Poll::Ready(Ok(())) => Poll::Ready(()),
        // It fails only when the runtime ends, and the task with it.
        Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
    }
}

/// Hands a socket to tokio, to wait on.
fn polled(socket: OwnedFd) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// The address that binds a socket to an interface's link.
fn link_address(interface: &str) -> io::Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|found| found.interface_name == interface);
    let found = all.find_map(|found| found.address?.as_link_addr().copied());
    found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// The sender of an ARP packet of IPv4 on Ethernet (RFC 826).
fn arp_sender(frame: &[u8]) -> Option<(MacAddress, Ipv4Addr)> {
    let packet = frame.get(ETHERNET_BYTES..ETHERNET_BYTES + 28)?;
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac = MacAddress(*packet[8..].first_chunk()?);
    let address = Ipv4Addr::from(*packet[14..].first_chunk::<4>()?);
    Some((mac, address))
}

/// Appends the headers of IPv4 (RFC 791) and UDP (RFC 768), and what they carry.
fn udp_packet(
    frame: &mut Vec<u8>,
    bytes: &[u8],
    from: SocketAddrV4,
    to: SocketAddrV4,
) -> io::Result<()> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let udp_bytes = u16::try_from(UDP_BYTES + bytes.len()).map_err(too_long)?;
    let ip_bytes = u16::try_from(IP_BYTES + UDP_BYTES + bytes.len()).map_err(too_long)?;
    const HOPS: u8 = 64;
    const UDP: u8 = 17;
    let mut ip = [0; IP_BYTES];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_bytes.to_be_bytes());
    // Do not fragment: then the identification may stay 0 (RFC 6864, section 4.1).
    ip[6] = 0x40;
    ip[8] = HOPS;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = [0; UDP_BYTES];
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
    let mut pseudo = [0; 4];
    pseudo[1] = UDP;
    pseudo[2..].copy_from_slice(&udp_bytes.to_be_bytes());
    let sum = checksum(&[&ip[12..], &pseudo, &udp, bytes]);
    // 0 would say that there is none.
    let sum = if sum == 0 { 0xffff } else { sum };
    udp[6..].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&udp);
    frame.extend_from_slice(bytes);
    Ok(())
}

/// The Internet checksum (RFC 1071) over parts of which all but the last are even.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // At most 16 bits are left.
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn checksums() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..4], &bytes[4..]]), !0xddf2);
        assert_eq!(checksum(&[&[0xff]]), !0xff00);
    }

    #[test]
    fn packets_check_out() {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 67);
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 68);
        let mut frame = Vec::new();
        udp_packet(&mut frame, b"odd", from, to).expect("it is short");
        assert_eq!(frame.len(), 31);
        // A sum over what holds its own checksum is 0.
        assert_eq!(checksum(&[&frame[..20]]), 0);
        assert_eq!(
            checksum(&[&frame[12..20], &[0, 17, 0, 11], &frame[20..]]),
            0
        );
        assert!(udp_packet(&mut frame, &vec![0; 70_000], from, to).is_err());
    }

    #[test]
    fn who_has_an_address() {
        let mut frame = vec![0; 60];
        frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[28..32].copy_from_slice(&[10, 0, 0, 9]);
        let expected = (MacAddress([2, 0, 0, 0, 0, 9]), Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(arp_sender(&frame), Some(expected));
        assert_eq!(arp_sender(&frame[..40]), None);
        frame[18] = 8;
        assert_eq!(arp_sender(&frame), None);
    }
}
