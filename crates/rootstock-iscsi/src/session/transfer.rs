//! Data from the initiator: with the command, unasked, and by R2T (sections 11.7 and 11.8).

use super::{Command, Event, GATHER_BYTES_MAX, Session, reply};
use crate::frame::Frame;
use crate::operational::Operational;
use crate::pdu::{FINAL, Header, NO_TAG, opcode};

/// A command that has not been answered.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) lun: [u8; 8],
    pub(super) immediate: bool,
    pub(super) expected_bytes: u32,
    pub(super) reads: bool,
    writes: bool,
    /// What is kept, from the beginning; no longer than `wanted_bytes` once that is known,
    /// and until then all that comes unasked.
    data: Vec<u8>,
    /// All that has come, also what is not kept.
    received_bytes: usize,
    /// What the command needs, once the driver has said so.
    wanted_bytes: Option<usize>,
    sequence: Sequence,
    next_r2t_number: u32,
    granted_bytes: usize,
}

/// Which data PDUs are to come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    None,
    /// Without an R2T, up to the first burst.
    Unsolicited {
        next_number: u32,
        end: usize,
    },
    /// By an R2T.
    Solicited {
        transfer_tag: u32,
        next_number: u32,
        end: usize,
    },
}

impl Task {
    pub(super) fn new(frame: &Frame<'_>, command: &Command, terms: &Operational) -> Self {
        let expected = command.expected_bytes as usize;
        let unsolicited = command.writes && !terms.initial_r2t && frame.flags() & FINAL == 0;
        let end = (terms.first_burst_bytes_max as usize).min(expected);
        Self {
            lun: command.lun,
            immediate: frame.immediate(),
            expected_bytes: command.expected_bytes,
            reads: command.reads,
            writes: command.writes,
            data: frame.data.to_vec(),
            received_bytes: frame.data.len(),
            wanted_bytes: None,
            sequence: if unsolicited && frame.data.len() < end {
                Sequence::Unsolicited {
                    next_number: 0,
                    end,
                }
            } else {
                Sequence::None
            },
            next_r2t_number: 0,
            granted_bytes: 0,
        }
    }

    /// Whether a command came with data that it must not have (section 13.11).
    pub(super) fn misplaced(&self, immediate_bytes: usize, terms: &Operational) -> bool {
        let most = terms.first_burst_bytes_max.min(self.expected_bytes) as usize;
        immediate_bytes > 0 && (!self.writes || !terms.immediate_data || immediate_bytes > most)
    }

    fn limit(&self) -> usize {
        self.wanted_bytes.unwrap_or(self.expected_bytes as usize)
    }

    pub(super) fn expects_data(&self) -> bool {
        self.sequence != Sequence::None
    }

    fn is_complete(&self) -> bool {
        self.wanted_bytes
            .is_some_and(|wanted| self.data.len() >= wanted)
    }
}

impl Session {
    /// Asks for a command's data, `wanted_bytes` from its beginning, or as many as
    /// the initiator means to send. They come back at once when they are here
    /// already, and else as [`Event::Data`].
    pub fn gather(&mut self, tag: u32, wanted_bytes: usize, out: &mut Vec<u8>) -> Option<Vec<u8>> {
        let task = self.tasks.get_mut(&tag)?;
        let sent = if task.writes {
            task.expected_bytes as usize
        } else {
            0
        };
        let wanted = wanted_bytes.min(sent);
        task.wanted_bytes = Some(wanted);
        task.data.truncate(wanted);
        if task.is_complete() {
            // What else was on its way is not needed.
            task.sequence = Sequence::None;
            return Some(std::mem::take(&mut task.data));
        }
        if task.sequence == Sequence::None {
            self.waiting.push_back(tag);
            self.grant(out);
        }
        None
    }

    /// Takes a Data-Out PDU. Those of tasks that are not there any more are what
    /// was on its way when they ended.
    pub(super) fn data_out(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Option<Event> {
        let tag = frame.initiator_task_tag();
        let task = self.tasks.get_mut(&tag)?;
        let (transfer_tag, number) = (frame.word(20), frame.word(36));
        let (due, next_number, end) = match &mut task.sequence {
            Sequence::None => return None,
            Sequence::Unsolicited { next_number, end } => (NO_TAG, next_number, *end),
            Sequence::Solicited {
                transfer_tag,
                next_number,
                end,
            } => (*transfer_tag, next_number, *end),
        };
        let offset = frame.word(40) as usize;
        let received = task.received_bytes + frame.data.len();
        let over = frame.flags() & FINAL != 0 || received == end;
        // Section 11.7: numbered from 0 in each sequence, and in order.
        let wrong = transfer_tag != due || number != *next_number || offset != task.received_bytes;
        if wrong || received > end {
            return self.fail(tag, reply::INCORRECT_AMOUNT_OF_DATA, out);
        }
        *next_number = next_number.wrapping_add(1);
        // An R2T is answered in full (section 11.8).
        if over && due != NO_TAG && received < end {
            return self.fail(tag, reply::INCORRECT_AMOUNT_OF_DATA, out);
        }
        task.received_bytes = received;
        let room = task.limit().saturating_sub(task.data.len());
        task.data
            .extend_from_slice(&frame.data[..frame.data.len().min(room)]);
        if over {
            task.sequence = Sequence::None;
        }
        if task.is_complete() {
            task.sequence = Sequence::None;
            let data = std::mem::take(&mut task.data);
            self.release(tag);
            self.grant(out);
            return Some(Event::Data { tag, data });
        }
        if over && due != NO_TAG {
            self.ask_for_more(tag, out);
        } else if over && task.wanted_bytes.is_some() {
            // Else the command has not begun: it asks when it does.
            self.waiting.push_back(tag);
            self.grant(out);
        }
        None
    }

    /// Asks waiting tasks for their data, as far as there is room for it.
    pub(super) fn grant(&mut self, out: &mut Vec<u8>) {
        while let Some(tag) = self.waiting.front().copied() {
            let Some(task) = self.tasks.get_mut(&tag) else {
                self.waiting.pop_front();
                continue;
            };
            let needed = task.limit().saturating_sub(task.data.len());
            if self.granted_bytes > 0 && self.granted_bytes + needed > GATHER_BYTES_MAX {
                return;
            }
            self.waiting.pop_front();
            task.granted_bytes = needed;
            self.granted_bytes += needed;
            self.ask_for_more(tag, out);
        }
    }

    fn ask_for_more(&mut self, tag: u32, out: &mut Vec<u8>) {
        let transfer_tag = self.transfer_tag();
        let Some(task) = self.tasks.get_mut(&tag) else {
            return;
        };
        let offset = task.received_bytes;
        let len = task
            .limit()
            .saturating_sub(offset)
            .min(self.operational.burst_bytes_max as usize);
        task.sequence = Sequence::Solicited {
            transfer_tag,
            next_number: 0,
            end: offset + len,
        };
        // Both are below the expected length, which has four bytes.
        let header = Header::new(opcode::R2T, FINAL)
            .bytes(8, &task.lun)
            .word(16, tag)
            .word(20, transfer_tag)
            .word(36, task.next_r2t_number)
            .word(40, offset as u32)
            .word(44, len as u32);
        task.next_r2t_number = task.next_r2t_number.wrapping_add(1);
        self.write_unnumbered(header, out);
    }

    /// Gives back what a task was granted.
    fn release(&mut self, tag: u32) {
        if let Some(task) = self.tasks.get_mut(&tag) {
            self.granted_bytes = self.granted_bytes.saturating_sub(task.granted_bytes);
            task.granted_bytes = 0;
        }
    }

    /// Forgets a task without an answer.
    pub(super) fn forget(&mut self, tag: u32) -> Option<Task> {
        self.release(tag);
        self.waiting.retain(|waiting| *waiting != tag);
        self.tasks.remove(&tag)
    }
}
