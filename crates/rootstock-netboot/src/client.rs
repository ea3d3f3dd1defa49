//! What a DHCP packet says, and who it says sent it.

mod architecture;
mod packet;

use rootstock_core::MacAddress;

pub use architecture::{Architecture, Firmware, Machine};
pub(crate) use packet::{HEADER_BYTES, encapsulated};
pub use packet::{Kind, Operation, Packet, PacketError};

/// Prefixes of the addresses of Raspberry Pis, whose firmware says that it is a PC
/// BIOS (smee, LTSP).
const RASPBERRY_PI_PREFIXES: [[u8; 3]; 7] = [
    [0xb8, 0x27, 0xeb],
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
    [0x28, 0xcd, 0xc1],
    [0xd8, 0x3a, 0xdd],
    [0x2c, 0xcf, 0x67],
    [0x88, 0xa2, 0x9e],
];

/// The machine that sent a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The card it sent it from.
    pub mac: MacAddress,
    /// Its SMBIOS UUID, in the order of bytes that it was sent in.
    pub uuid: Option<[u8; 16]>,
    /// What runs on what.
    pub architecture: Option<Architecture>,
    /// What program asks.
    pub program: Asker,
}

/// What program asks for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A system, or anything else that does not boot.
    System,
    /// A PXE ROM or UEFI's PXE.
    Pxe,
    /// UEFI's HTTP boot.
    Http,
    /// iPXE, with what it is able to.
    Ipxe(Features),
}

impl Asker {
    /// Whether it wants a boot program or script.
    #[must_use]
    pub const fn boots(self) -> bool {
        !matches!(self, Self::System)
    }
}

/// What an iPXE says that it is able to, in option 175.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether it said anything: builds before 2010 and some vendors' do not.
    pub told: bool,
    /// HTTP (0x13).
    pub http: bool,
    /// Linux kernels of a BIOS machine (0x18).
    pub bzimage: bool,
    /// EFI programs, and so kernels of a UEFI machine (0x24).
    pub efi: bool,
    /// Menus (0x27).
    pub menu: bool,
}

impl Features {
    /// Whether it can run our script: fetch by HTTP, start a kernel. One that says
    /// nothing is believed to be.
    #[must_use]
    pub const fn suffice(self) -> bool {
        !self.told || (self.http && (self.bzimage || self.efi))
    }
}

impl Client {
    /// Who sent a packet; `None` when it is not from a card with six bytes of
    /// address, or from a group's.
    #[must_use]
    pub fn of(packet: &Packet) -> Option<Self> {
        let mac = packet.mac()?;
        let program = asker(packet);
        let raspberry =
            program.boots() && RASPBERRY_PI_PREFIXES.iter().any(|p| mac.0.starts_with(p));
        let architecture = if raspberry {
            Some(Architecture::RASPBERRY_PI)
        } else {
            architecture(packet)
        };
        Some(Self {
            mac,
            uuid: packet.uuid(),
            architecture,
            program,
        })
    }
}

/// iPXE always says `PXEClient` too (ipxe#1527), so it is looked for first. Firmware
/// must say its architecture (RFC 4578, section 2.1; smee, pixiecore); a UUID it
/// need not, since some ROMs send none.
fn asker(packet: &Packet) -> Asker {
    if is_ipxe(packet) {
        return Asker::Ipxe(features(&packet.ipxe));
    }
    if packet.architectures.is_empty() {
        return Asker::System;
    }
    if packet.class.starts_with(b"PXEClient") {
        Asker::Pxe
    } else if packet.class.starts_with(b"HTTPClient") {
        Asker::Http
    } else {
        Asker::System
    }
}

/// The user class is the plain text `iPXE`, as Microsoft's clients do it, or a list
/// of texts after their lengths (RFC 3004, section 4; insomniacslk/dhcp#113). Its
/// own options are proof as well (LTSP).
fn is_ipxe(packet: &Packet) -> bool {
    packet.user_class == b"iPXE"
        || classes(&packet.user_class).any(|class| class == b"iPXE")
        || !packet.ipxe.is_empty()
}

fn classes(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, rest) = bytes.split_first()?;
        let (class, after) = rest.split_at_checked(usize::from(length))?;
        bytes = after;
        Some(class)
    })
}

/// The options inside of option 175, as iPXE's `dhcp.h` numbers them.
fn features(bytes: &[u8]) -> Features {
    let mut features = Features::default();
    for (code, value) in encapsulated(bytes) {
        let yes = value.iter().any(|&byte| byte != 0);
        match code {
            0x13 => features.http = yes,
            0x18 => features.bzimage = yes,
            0x24 => features.efi = yes,
            0x27 => features.menu = yes,
            // 0x21 PXE, 0x10 onwards: said by every build with features.
            0x10..=0x2a => {}
            _ => continue,
        }
        features.told = true;
    }
    features
}

/// The option may list several: the first that is known counts. Where none is, the
/// number in the class's text does, which is decimal.
fn architecture(packet: &Packet) -> Option<Architecture> {
    let listed = packet.architectures.iter().copied();
    listed
        .chain(architecture_text(&packet.class))
        .find_map(Architecture::of)
}

/// `PXEClient:Arch:00007:UNDI:003016`. Some firmware writes `0000B` for 11
/// (netboot.xyz).
fn architecture_text(class: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(class).ok()?;
    let (_, rest) = text.split_once(":Arch:")?;
    let number = rest.get(..5)?;
    number
        .parse()
        .ok()
        .or_else(|| u16::from_str_radix(number, 16).ok())
}

#[cfg(test)]
pub(crate) mod tests;
