//! The bytes of an answer, so that all firmware that we have heard of takes them.

use std::net::Ipv4Addr;

use dhcproto::v4::{
    Decodable, Decoder, DhcpOption, Encodable, Encoder, Flags, Message, MessageType, Opcode,
    OptionCode, UnknownOption,
};

use crate::client::Packet;

/// The least bytes that a BOOTP client takes (RFC 1542, section 2.1).
const BYTES_MIN: usize = 300;

/// Bytes of the header's `file` without its NUL.
pub(super) const FILE_BYTES_MAX: usize = 127;

/// The code that ends the options.
const END: u8 = 0xff;

/// An answer to a packet.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    /// What it answers.
    pub(super) request: &'a Packet,
    /// What kind of message it is.
    pub(super) kind: MessageType,
    /// Our address, which it is sent from: option 54.
    pub(super) server: Ipv4Addr,
    /// The client's address, where it has one.
    pub(super) ciaddr: Ipv4Addr,
    /// The address given.
    pub(super) yiaddr: Ipv4Addr,
    /// Options beside 53, 54, 82 and 97, in their order.
    pub(super) options: Vec<DhcpOption>,
    /// How to boot.
    pub(super) boot: Option<&'a BootFields>,
}

/// What an answer says about booting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootFields {
    /// Option 60.
    pub(super) class: Option<&'static [u8]>,
    /// Option 43.
    pub(super) vendor: Option<Vec<u8>>,
    /// The header's `file`, at most [`FILE_BYTES_MAX`].
    pub(super) file: String,
    /// Whether iPXE need not wait for a ProxyDHCP server (175.176).
    pub(super) no_proxy: bool,
}

/// Makes its bytes. `file` and `sname` never carry options (option 52): firmware
/// that reads them as text would boot garbage (dnsmasq's `dhcp-no-override`).
pub(super) fn bytes(reply: &Reply<'_>) -> Vec<u8> {
    let mut bytes = header(reply);
    let mut encoder_options = vec![
        DhcpOption::MessageType(reply.kind),
        DhcpOption::ServerIdentifier(reply.server),
    ];
    encoder_options.extend(reply.options.iter().cloned());
    if let Some(boot) = reply.boot {
        boot_options(boot, reply, &mut encoder_options);
    }
    if !reply.request.relay.is_empty() {
        // Whole and unchanged, and last (RFC 3046, section 2.2).
        encoder_options.push(raw(82, reply.request.relay.clone()));
    }
    let mut options = Vec::with_capacity(256);
    let mut encoder = Encoder::new(&mut options);
    for option in &encoder_options {
        // Writing to memory fails only for texts beyond any of ours.
        let _ = option.encode(&mut encoder);
    }
    bytes.extend_from_slice(&options);
    // The end, then zeros: WDS reads on past a missing end (ipxe's efi_pxe.c).
    bytes.push(END);
    if bytes.len() < BYTES_MIN {
        bytes.resize(BYTES_MIN, 0);
    }
    bytes
}

fn boot_options(boot: &BootFields, reply: &Reply<'_>, options: &mut Vec<DhcpOption>) {
    if let Some(class) = boot.class {
        options.push(DhcpOption::ClassIdentifier(class.to_vec()));
    }
    if let Some(vendor) = &boot.vendor {
        options.push(DhcpOption::VendorExtensions(vendor.clone()));
    }
    // RFC 4578, section 2.3: the same value goes back. Only a valid one: some ROMs
    // send none or garbage (pixiecore, smee).
    let id = &reply.request.machine_id;
    if id.len() == 17 && id[0] == 0 {
        options.push(DhcpOption::ClientMachineIdentifier(id.clone()));
    }
    let asks = |code: u8| reply.request.parameters.contains(&code);
    if asks(66) {
        let name = reply.server.to_string().into_bytes();
        options.push(DhcpOption::TFTPServerName(name));
    }
    if asks(150) {
        // RFC 5859, section 3.
        options.push(DhcpOption::TFTPServerAddress(reply.server));
    }
    if boot.no_proxy {
        options.push(raw(175, vec![176, 1, 1]));
    }
}

/// The header, of which exchange, hardware address and relay are the request's.
fn header(reply: &Reply<'_>) -> Vec<u8> {
    let request = reply.request;
    // dhcproto's constructors draw a random number; its decoder does not.
    let mut blank = [0; 241];
    blank[236..240].copy_from_slice(&dhcproto::v4::MAGIC);
    blank[240] = END;
    let Ok(mut message) = Message::decode(&mut Decoder::new(&blank)) else {
        return Vec::new();
    };
    let mut flags = Flags::new(request.flags);
    if reply.kind == MessageType::Nak && !request.giaddr.is_unspecified() {
        // The relay shall broadcast it: the client has no address (RFC 2131,
        // section 4.3.2).
        flags = flags.set_broadcast();
    }
    message
        .set_opcode(Opcode::BootReply)
        .set_htype(request.hardware.into())
        .set_chaddr(&request.chaddr[..usize::from(request.hardware_bytes)])
        .set_xid(request.xid)
        .set_flags(flags)
        .set_ciaddr(reply.ciaddr)
        .set_yiaddr(reply.yiaddr)
        .set_giaddr(request.giaddr);
    if let Some(boot) = reply.boot {
        // Without option 54 and `siaddr` some clients broadcast to port 4011 (smee).
        message.set_siaddr(reply.server);
        message.set_sname_str(reply.server.to_string());
        let file = boot.file.as_bytes();
        message.set_fname(&file[..file.len().min(FILE_BYTES_MAX)]);
    }
    let mut bytes = message.to_vec().unwrap_or_default();
    bytes.truncate(crate::client::HEADER_BYTES);
    bytes
}

/// An option by number.
pub(super) fn raw(code: u8, data: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data))
}
