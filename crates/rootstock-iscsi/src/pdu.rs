//! The fields of PDUs: opcodes, flags and where the numbers lie (section 11).

use crate::frame::{Digests, Frame, HEADER_BYTES, encode};

/// Opcodes (section 11.2.1.2).
pub mod opcode {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const COMMAND: u8 = 0x01;
    /// Task Management Function Request.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login Request.
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const RESPONSE: u8 = 0x21;
    /// Task Management Function Response.
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// Login Response.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Text Response.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;
}

/// The tag that is none (section 11.2.1.8 and others).
pub const NO_TAG: u32 = 0xffff_ffff;

/// The last PDU of its sequence (section 11.2.1.3).
pub const FINAL: u8 = 0x80;
/// Text goes on in the next PDU (sections 11.10.2 and 11.12.2).
pub const CONTINUE: u8 = 0x40;

/// Whether `one` comes before `other` (RFC 1982, which section 4.2.2.1 asks for).
#[must_use]
pub fn before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Frame<'_> {
    /// Four bytes of the header as a number.
    #[must_use]
    pub fn word(&self, at: usize) -> u32 {
        self.header
            .get(at..at + 4)
            .unwrap_or_default()
            .iter()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// Two bytes of the header as a number.
    #[must_use]
    pub fn half(&self, at: usize) -> u16 {
        self.header
            .get(at..at + 2)
            .unwrap_or_default()
            .iter()
            .fold(0, |value, byte| value << 8 | u16::from(*byte))
    }

    /// The second byte, with the flags.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.header[1]
    }

    /// The logical unit, as it lies in the header (section 11.2.1.7).
    #[must_use]
    pub fn lun(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.header[8..16]);
        lun
    }
}

/// A header that is being written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header([u8; HEADER_BYTES]);

impl Header {
    pub(crate) fn new(opcode: u8, flags: u8) -> Self {
        let mut header = [0; HEADER_BYTES];
        header[0] = opcode;
        header[1] = flags;
        Self(header)
    }

    pub(crate) fn of(header: [u8; HEADER_BYTES]) -> Self {
        Self(header)
    }

    pub(crate) fn byte(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    pub(crate) fn half(mut self, at: usize, value: u16) -> Self {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn bytes(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    pub(crate) fn array(self) -> [u8; HEADER_BYTES] {
        self.0
    }

    /// Appends the PDU; what is written here is always shorter than a PDU's limit.
    pub(crate) fn write(self, data: &[u8], digests: Digests, out: &mut Vec<u8>) {
        let written = encode(self.0, data, digests, out);
        debug_assert!(written, "longer than a PDU can be");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round() {
        for (one, other, expected) in [
            (1, 2, true),
            (2, 1, false),
            (2, 2, false),
            (u32::MAX, 0, true),
            (0, u32::MAX, false),
        ] {
            assert_eq!(before(one, other), expected, "{one} {other}");
        }
    }
}
