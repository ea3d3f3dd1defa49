//! Answers: status, data to the initiator, refusals (sections 11.4, 11.7 and 11.17).

use super::{Event, Session};
use crate::frame::{Digests, Frame, HEADER_BYTES};
use crate::pdu::{FINAL, Header, NO_TAG, opcode};

/// Sense of iSCSI's own conditions (section 11.4.7.2): additional code and qualifier.
pub(super) type Condition = (u8, u8);
pub(super) const UNEXPECTED_UNSOLICITED_DATA: Condition = (0x0c, 0x0c);
pub(super) const INCORRECT_AMOUNT_OF_DATA: Condition = (0x0c, 0x0d);
pub(super) const PROTOCOL_SERVICE_CRC_ERROR: Condition = (0x47, 0x05);

const CHECK_CONDITION: u8 = 0x02;
const ABORTED_COMMAND: u8 = 0x0b;

/// Section 11.4.1.
const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;
/// Section 11.7.3.
const WITH_STATUS: u8 = 0x01;

/// Why a PDU is refused (section 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// Its data are damaged.
    DataDigest,
    /// Nothing can be sent again here.
    Snack,
    /// It has no place here.
    Protocol,
    /// Its opcode is not known.
    CommandNotSupported,
    /// Too many for immediate delivery.
    ImmediateCommand,
    /// One of its fields.
    InvalidField,
}

impl RejectReason {
    fn code(self) -> u8 {
        match self {
            Self::DataDigest => 0x02,
            Self::Snack => 0x03,
            Self::Protocol => 0x04,
            Self::CommandNotSupported => 0x05,
            Self::ImmediateCommand => 0x06,
            Self::InvalidField => 0x09,
        }
    }
}

/// How a command ended, without data for the initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion<'a> {
    /// SCSI status.
    pub status: u8,
    /// Sense data, which go with CHECK CONDITION.
    pub sense: &'a [u8],
    /// Bytes that the command would move if the initiator let it; none when that
    /// is not known, as after an error.
    pub length_bytes: Option<u64>,
}

/// What became of a part of the data that a PDU is to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// It was written.
    Here,
    /// It was not, and the driver sends it at this place of the stream. Only without
    /// digests of data: they are made of what was written.
    Beside,
}

impl Session {
    /// Answers a command without data for the initiator.
    pub fn respond(&mut self, tag: u32, completion: &Completion<'_>, out: &mut Vec<u8>) {
        let Some(task) = self.forget(tag) else {
            return;
        };
        let (flag, residual) = match completion.length_bytes {
            Some(length) => residual(task.expected_bytes, length),
            None => (0, 0),
        };
        let header = Header::new(opcode::RESPONSE, FINAL | flag)
            .byte(3, completion.status)
            .word(16, tag)
            .word(44, residual);
        let mut data = Vec::new();
        if let (Ok(len), false) = (
            u16::try_from(completion.sense.len()),
            completion.sense.is_empty(),
        ) {
            data.extend_from_slice(&len.to_be_bytes());
            data.extend_from_slice(completion.sense);
        }
        self.write_numbered(header, &data, out);
        self.grant(out);
    }

    /// Answers a command with `length_bytes` of data and good status. `fill`
    /// appends a part, from an offset, of exactly the length it is given, or says that
    /// the driver sends it.
    pub fn data_in(
        &mut self,
        tag: u32,
        length_bytes: u64,
        mut fill: impl FnMut(&mut Vec<u8>, usize, usize) -> Filled,
        out: &mut Vec<u8>,
    ) {
        let Some(expected) = self
            .tasks
            .get(&tag)
            .map(|task| if task.reads { task.expected_bytes } else { 0 })
        else {
            return;
        };
        let total = length_bytes.min(u64::from(expected)) as usize;
        if total == 0 {
            let completion = Completion {
                status: 0,
                sense: &[],
                length_bytes: Some(length_bytes),
            };
            return self.respond(tag, &completion, out);
        }
        self.forget(tag);
        let (flag, residual) = residual(expected, length_bytes);
        let segment = self.operational.initiator_segment_bytes_max as usize;
        let burst = self.operational.burst_bytes_max as usize;
        let (mut offset, mut number) = (0, 0);
        while offset < total {
            // Both limits are at least 512.
            let burst_end = (offset / burst + 1) * burst;
            let len = segment.min(burst_end - offset).min(total - offset);
            let last = offset + len == total;
            let mut header = Header::new(opcode::DATA_IN, 0)
                .word(16, tag)
                .word(20, NO_TAG)
                .word(36, number)
                .word(40, offset as u32);
            if last {
                header = header
                    .byte(1, FINAL | WITH_STATUS | flag)
                    .word(44, residual);
            } else if offset + len == burst_end {
                header = header.byte(1, FINAL);
            }
            let header = self.numbered(header, last);
            write_filled(header, len, self.operational.digests, out, |out| {
                fill(out, offset, len)
            });
            offset += len;
            number += 1;
        }
        self.grant(out);
    }

    /// Refuses a PDU, whose header goes back.
    pub fn reject(&mut self, frame: &Frame<'_>, reason: RejectReason, out: &mut Vec<u8>) {
        let header = Header::new(opcode::REJECT, FINAL)
            .byte(2, reason.code())
            .word(16, NO_TAG);
        let refused = *frame.header;
        self.write_numbered(header, &refused, out);
    }

    /// Ends a task for a condition of iSCSI's own.
    pub(super) fn fail(
        &mut self,
        tag: u32,
        condition: Condition,
        out: &mut Vec<u8>,
    ) -> Option<Event<'static>> {
        self.tasks.get(&tag)?;
        // Fixed format (SPC-4, section 4.5.3).
        let mut sense = [0; 18];
        sense[0] = 0x70;
        sense[2] = ABORTED_COMMAND;
        sense[7] = 10;
        sense[12] = condition.0;
        sense[13] = condition.1;
        let completion = Completion {
            status: CHECK_CONDITION,
            sense: &sense,
            length_bytes: None,
        };
        self.respond(tag, &completion, out);
        Some(Event::Dropped(vec![tag]))
    }

    /// With the next status number, which it uses up.
    pub(super) fn write_numbered(&mut self, header: Header, data: &[u8], out: &mut Vec<u8>) {
        let header = self.numbered(header, true);
        header.write(data, self.operational.digests, out);
    }

    /// With the next status number, which it leaves (sections 11.8 and 11.19).
    pub(super) fn write_unnumbered(&mut self, header: Header, out: &mut Vec<u8>) {
        let next = self.status_number;
        let header = self.numbered(header, false).word(24, next);
        header.write(&[], self.operational.digests, out);
    }

    fn numbered(&mut self, header: Header, status: bool) -> Header {
        let header = header
            .word(28, self.expected_number)
            .word(32, self.last_number());
        if !status {
            return header;
        }
        let number = self.status_number;
        self.status_number = number.wrapping_add(1);
        header.word(24, number)
    }
}

/// Sections 11.4.5.2 and 11.4.1: how far what was expected is from what there is.
fn residual(expected: u32, length: u64) -> (u8, u32) {
    let expected = u64::from(expected);
    if length > expected {
        let over = u32::try_from(length - expected).unwrap_or(u32::MAX);
        (OVERFLOW, over)
    } else if length < expected {
        (
            UNDERFLOW,
            u32::try_from(expected - length).unwrap_or(u32::MAX),
        )
    } else {
        (0, 0)
    }
}

/// Writes a PDU whose data are put where they go: they may be long.
fn write_filled(
    header: Header,
    len: usize,
    digests: Digests,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut Vec<u8>) -> Filled,
) {
    let length = (len as u32).to_be_bytes();
    let header = header.bytes(5, &length[1..]).array();
    let at = out.len();
    out.extend_from_slice(&header);
    if digests.header {
        let digest = crc32c::crc32c(&out[at..at + HEADER_BYTES]).to_le_bytes();
        out.extend_from_slice(&digest);
    }
    let data_at = out.len();
    let padding = len.next_multiple_of(4) - len;
    match fill(out) {
        // What the caller filled wrongly must not shift the stream.
        Filled::Here => out.resize(data_at + len + padding, 0),
        Filled::Beside => {
            debug_assert!(!digests.data);
            out.resize(data_at + padding, 0);
        }
    }
    if digests.data {
        let digest = crc32c::crc32c(&out[data_at..]).to_le_bytes();
        out.extend_from_slice(&digest);
    }
}
