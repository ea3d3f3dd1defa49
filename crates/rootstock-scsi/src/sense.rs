//! Sense data: what went wrong, and where (SPC-4 4.5).

/// A sense key (SPC-4 4.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to tell.
    NoSense = 0x0,
    /// The unit cannot be used now.
    NotReady = 0x2,
    /// Data could not be read or written.
    MediumError = 0x3,
    /// The target failed.
    HardwareError = 0x4,
    /// The command is wrong.
    IllegalRequest = 0x5,
    /// Something happened that the initiator has to know first.
    UnitAttention = 0x6,
    /// Not to be written, or not by this initiator.
    DataProtect = 0x7,
    /// The command was ended by the target.
    AbortedCommand = 0xb,
    /// The medium's data differ from the initiator's.
    Miscompare = 0xe,
}

/// Where an initiator's mistake is (SPC-4 4.5.2, field pointer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// In the command.
    Command {
        /// The byte, from 0.
        byte: u16,
        /// The leftmost bit of the field, if it is not the whole byte.
        bit: Option<u8>,
    },
    /// In the parameter list.
    Parameter {
        /// The byte, from 0.
        byte: u16,
        /// The leftmost bit of the field, if it is not the whole byte.
        bit: Option<u8>,
    },
}

/// How sense data are laid out: the D_SENSE bit of the control mode page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenseFormat {
    /// Fixed format (SPC-4 4.5.3).
    Fixed,
    /// Descriptor format (SPC-4 4.5.2).
    Descriptor,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// The kind.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE and its qualifier (SPC-4 annex D).
    pub code: (u8, u8),
    /// The INFORMATION field, such as the offset of a difference.
    pub information: Option<u64>,
    /// Where the mistake is.
    pub field: Option<Field>,
}

impl Sense {
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Self = Self::illegal(0x20, 0x00);
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD_IN_CDB: Self = Self::illegal(0x24, 0x00);
    /// INVALID FIELD IN PARAMETER LIST.
    pub const INVALID_FIELD_IN_PARAMETERS: Self = Self::illegal(0x26, 0x00);
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    pub const INVALID_RELEASE: Self = Self::illegal(0x26, 0x04);
    /// PARAMETER LIST LENGTH ERROR.
    pub const PARAMETER_LIST_LENGTH: Self = Self::illegal(0x1a, 0x00);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const LBA_OUT_OF_RANGE: Self = Self::illegal(0x21, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const UNIT_NOT_SUPPORTED: Self = Self::illegal(0x25, 0x00);
    /// SAVING PARAMETERS NOT SUPPORTED.
    pub const SAVING_NOT_SUPPORTED: Self = Self::illegal(0x39, 0x00);
    /// INSUFFICIENT REGISTRATION RESOURCES.
    pub const TOO_MANY_REGISTRATIONS: Self = Self::illegal(0x55, 0x04);
    /// INVALID FIELD IN COMMAND INFORMATION UNIT: for a transport whose
    /// initiator announces less data than its command needs.
    pub const INVALID_FIELD_IN_UNIT: Self = Self::illegal(0x0e, 0x03);
    /// WRITE PROTECTED: the unit is read-only.
    pub const WRITE_PROTECTED: Self = Self::new(SenseKey::DataProtect, 0x27, 0x00);
    /// SPACE ALLOCATION FAILED WRITE PROTECT: no room for a write
    /// (SBC-3 4.7).
    pub const NO_SPACE: Self = Self::new(SenseKey::DataProtect, 0x27, 0x07);
    /// UNRECOVERED READ ERROR.
    pub const READ_FAILED: Self = Self::new(SenseKey::MediumError, 0x11, 0x00);
    /// WRITE ERROR.
    pub const WRITE_FAILED: Self = Self::new(SenseKey::MediumError, 0x0c, 0x00);
    /// INTERNAL TARGET FAILURE.
    pub const INTERNAL_FAILURE: Self = Self::new(SenseKey::HardwareError, 0x44, 0x00);
    /// LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE.
    pub const NOT_READY: Self = Self::new(SenseKey::NotReady, 0x04, 0x00);
    /// NO ADDITIONAL SENSE INFORMATION.
    pub const NONE: Self = Self::new(SenseKey::NoSense, 0x00, 0x00);
    /// MISCOMPARE DURING VERIFY OPERATION.
    pub(crate) const MISCOMPARE: Self = Self::new(SenseKey::Miscompare, 0x1d, 0x00);

    /// Any sense.
    #[must_use]
    pub const fn new(key: SenseKey, code: u8, qualifier: u8) -> Self {
        Self {
            key,
            code: (code, qualifier),
            information: None,
            field: None,
        }
    }

    const fn illegal(code: u8, qualifier: u8) -> Self {
        Self::new(SenseKey::IllegalRequest, code, qualifier)
    }

    /// With an INFORMATION field: a logical block address, or an offset.
    #[must_use]
    pub const fn with_information(self, information: u64) -> Self {
        Self {
            information: Some(information),
            ..self
        }
    }

    /// INVALID FIELD IN CDB, at a byte of it.
    pub(crate) const fn command_byte(byte: u16) -> Self {
        Self {
            field: Some(Field::Command { byte, bit: None }),
            ..Self::INVALID_FIELD_IN_CDB
        }
    }

    /// INVALID FIELD IN CDB, at a field whose leftmost bit is `bit` of a byte.
    pub(crate) const fn command_bit(byte: u16, bit: u8) -> Self {
        Self {
            field: Some(Field::Command {
                byte,
                bit: Some(bit),
            }),
            ..Self::INVALID_FIELD_IN_CDB
        }
    }

    /// INVALID FIELD IN PARAMETER LIST, at a byte of it.
    pub(crate) fn parameter_byte(byte: usize) -> Self {
        Self {
            field: Some(Field::Parameter {
                byte: u16::try_from(byte).unwrap_or(u16::MAX),
                bit: None,
            }),
            ..Self::INVALID_FIELD_IN_PARAMETERS
        }
    }

    /// The sense data as they are sent: 18 bytes in fixed format, at most 28
    /// in descriptor format.
    #[must_use]
    pub fn bytes(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.fixed(),
            SenseFormat::Descriptor => self.descriptors(),
        }
    }

    // SPC-4 4.5.3.
    fn fixed(&self) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        // A value that has no room is not told (4.5.3).
        if let Some(information) = self.information.and_then(|all| u32::try_from(all).ok()) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[2] = self.key as u8;
        bytes[7] = 10;
        (bytes[12], bytes[13]) = self.code;
        if let Some(field) = self.field {
            bytes[15..18].copy_from_slice(&field.pointer());
        }
        bytes
    }

    // SPC-4 4.5.2.
    fn descriptors(&self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key as u8, self.code.0, self.code.1, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend_from_slice(&[0x00, 0x0a, 0x80, 0]);
            bytes.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(field) = self.field {
            bytes.extend_from_slice(&[0x02, 0x06, 0, 0]);
            bytes.extend_from_slice(&field.pointer());
            bytes.push(0);
        }
        bytes[7] = (bytes.len() - 8) as u8;
        bytes
    }
}

impl Field {
    // SPC-4 4.5.2, field pointer: SKSV, C/D, BPV, BIT POINTER, FIELD POINTER.
    fn pointer(self) -> [u8; 3] {
        let (flags, byte, bit) = match self {
            Self::Command { byte, bit } => (0xc0, byte, bit),
            Self::Parameter { byte, bit } => (0x80, byte, bit),
        };
        let bit = bit.map_or(0, |bit| 0x08 | (bit & 0x07));
        let [high, low] = byte.to_be_bytes();
        [flags | bit, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let beyond = Sense::LBA_OUT_OF_RANGE.with_information(0x1234);
        let wide = Sense::LBA_OUT_OF_RANGE.with_information(1 << 32);
        let bit = Sense::command_bit(1, 7);
        #[rustfmt::skip]
        let cases: [(Sense, SenseFormat, &[u8]); 5] = [
            (beyond, SenseFormat::Fixed, &[
                0xf0, 0, 5, 0, 0, 0x12, 0x34, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0,
            ]),
            (wide, SenseFormat::Fixed, &[
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0,
            ]),
            (wide, SenseFormat::Descriptor, &[
                0x72, 5, 0x21, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0,
            ]),
            (bit, SenseFormat::Fixed, &[
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1,
            ]),
            (Sense::parameter_byte(300), SenseFormat::Descriptor, &[
                0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 1, 44, 0,
            ]),
        ];
        for (sense, format, expected) in cases {
            assert_eq!(sense.bytes(format), expected, "{sense:?} {format:?}");
        }
    }
}
