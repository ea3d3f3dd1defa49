//! Which commands there are, and which of their bits mean something: the one
//! table for decoding, for reservations, and for what initiators are told by
//! REPORT SUPPORTED OPERATION CODES.

use Medium::{Changed, Kept};
use Reach::{Free, Reads, Reservation, Reserve, Writes};

use crate::sense::Sense;

/// The longest command in bytes.
pub const CDB_BYTES_MAX: usize = 16;

/// How a command meets another nexus's reservation (SPC-4 5.12 and SBC-3 4.17,
/// the tables of allowed commands).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Always allowed.
    Free,
    /// Like a read: refused where only holders have access.
    Reads,
    /// Like a write: refused under every reservation.
    Writes,
    /// A persistent reservation's own command: it checks for itself.
    Reservation,
    /// RESERVE and RELEASE of SPC-2.
    Reserve,
}

/// Whether a command changes the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// It does: refused on a unit that is read-only.
    Changed,
    /// It does not.
    Kept,
}

/// A command, as far as a table can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode {
    /// OPERATION CODE.
    pub code: u8,
    /// SERVICE ACTION, where the code has several.
    pub service_action: Option<u8>,
    /// How it meets reservations.
    pub reach: Reach,
    /// Whether it changes the medium.
    pub medium: Medium,
    /// CDB USAGE DATA (SPC-4 6.35.3): a bit that is not set here must not be
    /// set in a command. As long as the command.
    pub usage: &'static [u8],
}

pub(crate) const SERVICE_ACTION_MASK: u8 = 0x1f;

/// Bits of the control byte that are vendor's or the transport's own (SAM-5
/// 5.2): they are passed over.
const CONTROL_PASSED: u8 = 0xc0;

/// Finds a command's row.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE, or INVALID FIELD IN CDB for a service
/// action that is not there.
pub fn find(cdb: &[u8; CDB_BYTES_MAX]) -> Result<&'static Opcode, Sense> {
    let mut known = false;
    for row in OPCODES.iter().filter(|row| row.code == cdb[0]) {
        known = true;
        if row
            .service_action
            .is_none_or(|action| action == cdb[1] & SERVICE_ACTION_MASK)
        {
            return Ok(row);
        }
    }
    Err(if known {
        Sense::command_bit(1, 4)
    } else {
        Sense::INVALID_OPCODE
    })
}

impl Opcode {
    /// Refuses what this command does not know.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB, with the place.
    pub fn check_reserved(&self, cdb: &[u8; CDB_BYTES_MAX]) -> Result<(), Sense> {
        let control = self.usage.len() - 1;
        for (at, (&byte, &used)) in cdb.iter().zip(self.usage).enumerate().skip(1) {
            let mut wrong = byte & !used;
            if at == control {
                wrong &= !CONTROL_PASSED;
            }
            if wrong != 0 {
                let bit = 7 - wrong.leading_zeros() as u8;
                return Err(Sense::command_bit(at as u16, bit));
            }
        }
        Ok(())
    }
}

const fn row(code: u8, reach: Reach, medium: Medium, usage: &'static [u8]) -> Opcode {
    Opcode {
        code,
        service_action: None,
        reach,
        medium,
        usage,
    }
}

const fn action(
    code: u8,
    service_action: u8,
    reach: Reach,
    medium: Medium,
    usage: &'static [u8],
) -> Opcode {
    Opcode {
        code,
        service_action: Some(service_action),
        reach,
        medium,
        usage,
    }
}

/// Every command there is. START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL
/// are free in the forms that start and allow; see [`crate::Command`].
#[rustfmt::skip]
pub static OPCODES: [Opcode; 54] = [
    // TEST UNIT READY (SPC-4 6.47)
    row(0x00, Free, Kept, &[0x00, 0, 0, 0, 0, 0]),
    // REQUEST SENSE (SPC-4 6.39)
    row(0x03, Free, Kept, &[0x03, 0x01, 0, 0, 0xff, 0]),
    // READ(6), WRITE(6) (SBC-2)
    row(0x08, Reads, Kept, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    row(0x0a, Writes, Changed, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    // INQUIRY (SPC-4 6.6)
    row(0x12, Free, Kept, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    // MODE SELECT(6) (SPC-4 6.11)
    row(0x15, Writes, Kept, &[0x15, 0x10, 0, 0, 0xff, 0]),
    // RESERVE(6), RELEASE(6) (SPC-2)
    row(0x16, Reserve, Kept, &[0x16, 0, 0, 0, 0, 0]),
    row(0x17, Reserve, Kept, &[0x17, 0, 0, 0, 0, 0]),
    // MODE SENSE(6) (SPC-4 6.13)
    row(0x1a, Reads, Kept, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    // START STOP UNIT (SBC-3 5.25)
    row(0x1b, Writes, Kept, &[0x1b, 0x01, 0, 0, 0x05, 0]),
    // PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.10)
    row(0x1e, Writes, Kept, &[0x1e, 0, 0, 0, 0x03, 0]),
    // READ CAPACITY(10) (SBC-3 5.15)
    row(0x25, Free, Kept, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    // READ(10) (SBC-3 5.11), WRITE(10) (5.33), WRITE AND VERIFY(10) (5.37),
    // VERIFY(10) (5.29)
    row(0x28, Reads, Kept, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    row(0x2a, Writes, Changed, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    row(0x2e, Writes, Changed, &[0x2e, 0x12, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    row(0x2f, Reads, Kept, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    // PRE-FETCH(10) (SBC-3 5.8), SYNCHRONIZE CACHE(10) (5.26)
    row(0x34, Reads, Kept, &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    row(0x35, Writes, Kept, &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    // WRITE SAME(10) (SBC-3 5.43)
    row(0x41, Writes, Changed, &[0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]),
    // UNMAP (SBC-3 5.28)
    row(0x42, Writes, Changed, &[0x42, 0, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0]),
    // MODE SELECT(10) (SPC-4 6.12)
    row(0x55, Writes, Kept, &[0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    // RESERVE(10), RELEASE(10) (SPC-2)
    row(0x56, Reserve, Kept, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    row(0x57, Reserve, Kept, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    // MODE SENSE(10) (SPC-4 6.14)
    row(0x5a, Reads, Kept, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    // PERSISTENT RESERVE IN (SPC-4 6.15)
    action(0x5e, 0x00, Free, Kept, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x5e, 0x01, Free, Kept, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x5e, 0x02, Free, Kept, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x5e, 0x03, Free, Kept, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    // PERSISTENT RESERVE OUT (SPC-4 6.16), without REGISTER AND MOVE
    action(0x5f, 0x00, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x5f, 0x01, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x5f, 0x02, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x5f, 0x03, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x5f, 0x04, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x5f, 0x05, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x5f, 0x06, Reservation, Kept, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    // READ(16), COMPARE AND WRITE (SBC-3 5.2), WRITE(16), ORWRITE(16) (5.5),
    // WRITE AND VERIFY(16), VERIFY(16)
    row(0x88, Reads, Kept, &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0x89, Writes, Changed, &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x1f, 0]),
    row(0x8a, Writes, Changed, &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0x8b, Writes, Changed, &[0x8b, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0x8e, Writes, Changed, &[0x8e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0x8f, Reads, Kept, &[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    // PRE-FETCH(16), SYNCHRONIZE CACHE(16), WRITE SAME(16) (SBC-3 5.44)
    row(0x90, Reads, Kept, &[0x90, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0x91, Writes, Kept, &[0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0x93, Writes, Changed, &[0x93, 0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    // READ CAPACITY(16) (SBC-3 5.16), GET LBA STATUS (5.4)
    action(0x9e, 0x10, Free, Kept, &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x9e, 0x12, Reads, Kept, &[0x9e, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    // REPORT LUNS (SPC-4 6.33)
    row(0xa0, Free, Kept, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    // REPORT TARGET PORT GROUPS (SPC-4 6.37), REPORT SUPPORTED OPERATION CODES
    // (6.35), REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (6.36)
    action(0xa3, 0x0a, Free, Kept, &[0xa3, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0xa3, 0x0c, Reads, Kept, &[0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0xa3, 0x0d, Reads, Kept, &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    // READ(12), WRITE(12), WRITE AND VERIFY(12), VERIFY(12)
    row(0xa8, Reads, Kept, &[0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0xaa, Writes, Changed, &[0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0xae, Writes, Changed, &[0xae, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
    row(0xaf, Reads, Kept, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_well_formed() {
        for row in &OPCODES {
            assert_eq!(row.usage[0], row.code);
            // SPC-4 4.2.5.1: the group code says the length.
            let len = match row.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(row.usage.len(), len, "{:#04x}", row.code);
            let mut cdb = [0; CDB_BYTES_MAX];
            cdb[0] = row.code;
            cdb[1] = row.service_action.unwrap_or(0);
            assert_eq!(find(&cdb), Ok(row));
            assert_eq!(row.check_reserved(&cdb), Ok(()));
            assert!(row.medium == Kept || row.reach == Writes);
        }
    }

    #[test]
    fn reserved_bits_are_told_by_their_place() {
        let mut cdb = [0; CDB_BYTES_MAX];
        cdb[0] = 0x28;
        let row = find(&cdb).unwrap();
        for (at, value, expected) in [
            (1, 0x18, Ok(())),
            // RDPROTECT
            (1, 0x20, Err(Sense::command_bit(1, 5))),
            (1, 0xf8, Err(Sense::command_bit(1, 7))),
            (1, 0x03, Err(Sense::command_bit(1, 1))),
            // NACA, and the vendor's bits beside it
            (9, 0x04, Err(Sense::command_bit(9, 2))),
            (9, 0xc0, Ok(())),
            (15, 0xff, Ok(())),
        ] {
            let mut cdb = cdb;
            cdb[at] = value;
            assert_eq!(row.check_reserved(&cdb), expected, "{at} {value:#x}");
        }
    }

    #[test]
    fn what_is_not_there_is_told() {
        let with = |code, action| {
            let mut cdb = [0; CDB_BYTES_MAX];
            (cdb[0], cdb[1]) = (code, action);
            find(&cdb).err()
        };
        assert_eq!(with(0x04, 0), Some(Sense::INVALID_OPCODE));
        // REGISTER AND MOVE, READ LONG(16)
        assert_eq!(with(0x5f, 7), Some(Sense::command_bit(1, 4)));
        assert_eq!(with(0x9e, 0x11), Some(Sense::command_bit(1, 4)));
        assert_eq!(with(0x9e, 0xf0), None);
    }
}
