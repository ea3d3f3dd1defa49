//! A DHCP packet, read without trusting it.

use std::net::Ipv4Addr;

use dhcproto::v4::{MAGIC, Opcode, borrowed};
use rootstock_core::MacAddress;

/// Bytes before the options: the header of BOOTP and the magic cookie (RFC 2131,
/// section 2).
pub(crate) const HEADER_BYTES: usize = 240;

/// The largest packet that is looked at.
const PACKET_BYTES_MAX: usize = 4096;

/// The hardware type of Ethernet (RFC 1700).
const ETHERNET: u8 = 1;

/// Bytes for a hardware address in the header.
const HARDWARE_BYTES_MAX: u8 = 16;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// From a client.
    Request,
    /// From a server.
    Reply,
}

/// The kind of a message (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// DHCPDISCOVER
    Discover,
    /// DHCPOFFER
    Offer,
    /// DHCPREQUEST
    Request,
    /// DHCPDECLINE
    Decline,
    /// DHCPACK
    Ack,
    /// DHCPNAK
    Nak,
    /// DHCPRELEASE
    Release,
    /// DHCPINFORM
    Inform,
}

impl Kind {
    const fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}

/// Bytes that are not a DHCP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It ends within the header, or is longer than any client's.
    #[error("a DHCP packet has {HEADER_BYTES} to {PACKET_BYTES_MAX} bytes, this has {bytes}")]
    Length {
        /// How many it has.
        bytes: usize,
    },
    /// Neither a request nor a reply, or BOOTP without DHCP.
    #[error("this is not DHCP: operation {operation}, and the magic cookie may lack")]
    NotDhcp {
        /// Its first byte.
        operation: u8,
    },
    /// The length of the hardware address is more than the header holds.
    #[error("a hardware address has at most {HARDWARE_BYTES_MAX} bytes, this one {length}")]
    Hardware {
        /// What it claims.
        length: u8,
    },
    /// Option 53 lacks or is none that we know.
    #[error("the packet does not say what kind of message it is (option 53)")]
    Kind,
}

/// A DHCP packet. Options that it lacks, or that have an impossible length, are
/// empty or `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which way it goes.
    pub operation: Operation,
    /// What kind of message it is.
    pub kind: Kind,
    /// Kind of hardware.
    pub hardware: u8,
    /// Bytes of `chaddr` that count: at most 16.
    pub hardware_bytes: u8,
    /// Relays it came through.
    pub hops: u8,
    /// The exchange it belongs to.
    pub xid: u32,
    /// All flags.
    pub flags: u16,
    /// The address that the client has.
    pub ciaddr: Ipv4Addr,
    /// The address that a server gives.
    pub yiaddr: Ipv4Addr,
    /// The server of the boot program.
    pub siaddr: Ipv4Addr,
    /// The relay.
    pub giaddr: Ipv4Addr,
    /// The client's hardware address.
    pub chaddr: [u8; 16],
    /// Option 12.
    pub host_name: Vec<u8>,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 55.
    pub parameters: Vec<u8>,
    /// Option 60.
    pub class: Vec<u8>,
    /// Option 61.
    pub client_id: Vec<u8>,
    /// Option 77.
    pub user_class: Vec<u8>,
    /// Option 82, as it came.
    pub relay: Vec<u8>,
    /// Option 93: it may list several.
    pub architectures: Vec<u16>,
    /// Option 97, as it came.
    pub machine_id: Vec<u8>,
    /// Option 118 (RFC 3011).
    pub subnet: Option<Ipv4Addr>,
    /// Option 175: iPXE's own.
    pub ipxe: Vec<u8>,
}

impl Packet {
    /// Reads a packet. Nothing in it is believed to be well formed: what makes no
    /// sense is left out, and what makes an answer impossible is an error.
    ///
    /// # Errors
    /// [`PacketError`] says what it lacks.
    pub fn read(bytes: &[u8]) -> Result<Self, PacketError> {
        let length = PacketError::Length { bytes: bytes.len() };
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(length);
        }
        let message = borrowed::Message::new(bytes).map_err(|_| length)?;
        let operation = match message.opcode() {
            Opcode::BootRequest => Operation::Request,
            Opcode::BootReply => Operation::Reply,
            Opcode::Unknown(operation) => return Err(PacketError::NotDhcp { operation }),
        };
        if bytes.get(HEADER_BYTES - MAGIC.len()..HEADER_BYTES) != Some(&MAGIC) {
            return Err(PacketError::NotDhcp {
                operation: bytes[0],
            });
        }
        let hardware_bytes = message.hlen();
        if hardware_bytes > HARDWARE_BYTES_MAX {
            return Err(PacketError::Hardware {
                length: hardware_bytes,
            });
        }
        let mut chaddr = [0; 16];
        chaddr.copy_from_slice(&bytes[28..44]);
        let mut packet = Self {
            operation,
            kind: Kind::Discover,
            hardware: bytes[1],
            hardware_bytes,
            hops: message.hops(),
            xid: message.xid(),
            flags: message.flags().into(),
            ciaddr: message.ciaddr(),
            yiaddr: message.yiaddr(),
            siaddr: message.siaddr(),
            giaddr: message.giaddr(),
            chaddr,
            host_name: Vec::new(),
            requested: None,
            server: None,
            parameters: Vec::new(),
            class: Vec::new(),
            client_id: Vec::new(),
            user_class: Vec::new(),
            relay: Vec::new(),
            architectures: Vec::new(),
            machine_id: Vec::new(),
            subnet: None,
            ipxe: Vec::new(),
        };
        let mut kind = None;
        for option in message.opts() {
            let data = option.data();
            if let (53, &[number]) = (u8::from(option.code()), data) {
                kind = Kind::of(number);
            } else {
                packet.take(option.code().into(), data);
            }
        }
        packet.kind = kind.ok_or(PacketError::Kind)?;
        Ok(packet)
    }

    /// An option that comes in parts is put together (RFC 3396, section 7).
    fn take(&mut self, code: u8, data: &[u8]) {
        match code {
            12 => self.host_name.extend_from_slice(data),
            50 => self.requested = address(data),
            54 => self.server = address(data),
            55 => self.parameters.extend_from_slice(data),
            60 => self.class.extend_from_slice(data),
            61 => self.client_id.extend_from_slice(data),
            77 => self.user_class.extend_from_slice(data),
            82 => self.relay.extend_from_slice(data),
            93 => {
                let numbers = data
                    .chunks_exact(2)
                    .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                self.architectures.extend(numbers);
            }
            97 => self.machine_id.extend_from_slice(data),
            118 => self.subnet = address(data),
            175 => self.ipxe.extend_from_slice(data),
            _ => {}
        }
    }

    /// The card, when it is Ethernet.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        if self.hardware != ETHERNET || usize::from(self.hardware_bytes) != MacAddress::LEN {
            return None;
        }
        let bytes = self.chaddr.first_chunk()?;
        Some(MacAddress(*bytes)).filter(MacAddress::is_unicast)
    }

    /// The SMBIOS UUID: 17 bytes of option 97, of which the first, the kind, is 0
    /// (RFC 4578, section 2.3).
    #[must_use]
    pub fn uuid(&self) -> Option<[u8; 16]> {
        let (0, uuid) = self
            .machine_id
            .split_first()
            .map(|(kind, uuid)| (*kind, uuid))?
        else {
            return None;
        };
        uuid.try_into().ok()
    }

    /// Whether the client can only hear what all hear (RFC 2131, section 4.1).
    #[must_use]
    pub const fn wants_broadcast(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// A part of the relay's option 82 (RFC 3046, section 2.0).
    #[must_use]
    pub fn relay_part(&self, code: u8) -> Option<Ipv4Addr> {
        let mut parts = encapsulated(&self.relay);
        parts
            .find(|part| part.0 == code)
            .and_then(|part| address(part.1))
    }

    /// The host name, when it is one: letters, digits, hyphens and dots, at most
    /// 253 bytes (RFC 1123, section 2.1).
    #[must_use]
    pub fn host_name(&self) -> Option<&str> {
        let end = self.host_name.iter().position(|&byte| byte == 0);
        let name = &self.host_name[..end.unwrap_or(self.host_name.len())];
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        if name.is_empty() || name.len() > 253 || !name.iter().all(good) {
            return None;
        }
        std::str::from_utf8(name).ok()
    }
}

/// Options inside of an option: code, length, value. Ends at the first that does
/// not fit.
pub(crate) fn encapsulated(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        while let [0, rest @ ..] = bytes {
            bytes = rest;
        }
        let (&code, rest) = bytes.split_first()?;
        let (&length, rest) = rest.split_first()?;
        let (value, after) = rest.split_at_checked(usize::from(length))?;
        bytes = after;
        (code != 0xff).then_some((code, value))
    })
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}
