//! Who speaks: an initiator port and the target port it came through.

use serde::{Deserialize, Serialize};

/// An iSCSI initiator port: the initiator's name and its session's identifier
/// (RFC 7143 4.4.2), which together outlive a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InitiatorPort {
    /// The iSCSI name, at most [`InitiatorPort::NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// The initiator's part of the session identifier.
    pub isid: [u8; 6],
}

impl InitiatorPort {
    /// The longest iSCSI name in bytes (RFC 7143 4.2.7.2).
    pub const NAME_BYTES_MAX: usize = 223;

    /// The port's TransportID, a multiple of four bytes long (SPC-4 7.6.4.6,
    /// format 01b: world-wide unique name, `,i,0x`, ISID).
    #[must_use]
    pub fn transport_id(&self) -> Vec<u8> {
        let isid = self.isid.iter().map(|byte| format!("{byte:02x}"));
        let mut text = format!("{},i,0x{}", self.name, isid.collect::<String>()).into_bytes();
        // Null-terminated, padded, at least 20 bytes.
        let padded = (text.len() + 1).next_multiple_of(4).max(20);
        text.resize(padded, 0);
        let mut id = vec![0b0100_0000 | PROTOCOL_ISCSI, 0];
        id.extend_from_slice(&u16::try_from(padded).unwrap_or(u16::MAX).to_be_bytes());
        id.append(&mut text);
        id
    }
}

/// The protocol identifier of iSCSI (SPC-4 7.6.1).
pub(crate) const PROTOCOL_ISCSI: u8 = 5;

/// An I_T nexus (SAM-5 4.8).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NexusId {
    /// The initiator port.
    pub initiator: InitiatorPort,
    /// The relative target port identifier.
    pub relative_port: u16,
}
