//! Data from the initiator: with the command, unasked, and by R2T (sections 11.7 and 11.8).

use std::borrow::Cow;

use super::{Command, Event, GATHER_BYTES_MAX, Session, reply};
use crate::frame::Frame;
use crate::operational::Operational;
use crate::pdu::{FINAL, Header, NO_TAG, opcode};

/// Data that are streamed are handed out when there is this much, in bytes: initiators may
/// send them in very small PDUs.
const PART_BYTES_MIN: usize = 64 << 10;

/// A command that has not been answered.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) lun: [u8; 8],
    pub(super) immediate: bool,
    pub(super) expected_bytes: u32,
    pub(super) reads: bool,
    writes: bool,
    /// What is kept and was not handed out; with that no longer than `wanted_bytes` once
    /// that is known, and until then all that comes unasked.
    data: Vec<u8>,
    /// What was handed out already, if it is handed out as it comes.
    streamed_bytes: Option<usize>,
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
            streamed_bytes: None,
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

    /// What is here of the data that are wanted.
    fn kept_bytes(&self) -> usize {
        self.streamed_bytes.unwrap_or_default() + self.data.len()
    }

    /// What of them is still to come.
    fn missing_bytes(&self) -> usize {
        self.limit().saturating_sub(self.kept_bytes())
    }

    fn is_complete(&self) -> bool {
        self.wanted_bytes
            .is_some_and(|wanted| self.kept_bytes() >= wanted)
    }

    /// Keeps what is wanted of the next data, and hands out what is to be handed out by now.
    fn take<'a>(&mut self, tag: u32, data: &'a [u8]) -> Option<Event<'a>> {
        let data = &data[..data.len().min(self.missing_bytes())];
        let Some(offset) = self.streamed_bytes else {
            self.data.extend_from_slice(data);
            if !self.is_complete() {
                return None;
            }
            let data = std::mem::take(&mut self.data);
            return Some(Event::Data { tag, data });
        };
        let part = if self.data.is_empty() && data.len() >= PART_BYTES_MIN {
            Cow::Borrowed(data)
        } else {
            self.data.extend_from_slice(data);
            if self.data.len() < PART_BYTES_MIN && !self.is_complete() {
                return None;
            }
            Cow::Owned(std::mem::take(&mut self.data))
        };
        self.streamed_bytes = Some(offset + part.len());
        Some(Event::Part {
            tag,
            offset: offset as u64,
            data: part,
            last: self.is_complete(),
        })
    }
}

impl Session {
    /// Asks for a command's data, `wanted_bytes` from its beginning, or as many as
    /// the initiator means to send. They come back at once when they are here
    /// already, and else as [`Event::Data`].
    pub fn gather(&mut self, tag: u32, wanted_bytes: usize, out: &mut Vec<u8>) -> Option<Vec<u8>> {
        let task = self.want(tag, wanted_bytes)?;
        if task.is_complete() {
            return Some(std::mem::take(&mut task.data));
        }
        self.ask_for_data(tag, out);
        None
    }

    /// As [`Session::gather`], for data that are needed no longer than it takes to put
    /// them where they go: what is here comes back, and whether it is all; the rest
    /// comes as [`Event::Part`], in order.
    pub fn stream(
        &mut self,
        tag: u32,
        wanted_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Option<(Vec<u8>, bool)> {
        let task = self.want(tag, wanted_bytes)?;
        let data = std::mem::take(&mut task.data);
        task.streamed_bytes = Some(data.len());
        let complete = task.is_complete();
        if !complete {
            self.ask_for_data(tag, out);
        }
        Some((data, complete))
    }

    /// Says how much of a task's data is wanted.
    fn want(&mut self, tag: u32, wanted_bytes: usize) -> Option<&mut Task> {
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
        }
        Some(task)
    }

    /// Unless they are on their way.
    fn ask_for_data(&mut self, tag: u32, out: &mut Vec<u8>) {
        let Some(task) = self.tasks.get_mut(&tag) else {
            return;
        };
        if task.sequence == Sequence::None {
            self.waiting.push_back(tag);
            self.grant(out);
        }
    }

    /// Takes a Data-Out PDU. Those of tasks that are not there any more are what
    /// was on its way when they ended.
    pub(super) fn data_out<'a>(
        &mut self,
        frame: &Frame<'a>,
        out: &mut Vec<u8>,
    ) -> Option<Event<'a>> {
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
        if over {
            task.sequence = Sequence::None;
        }
        let event = task.take(tag, frame.data);
        if task.is_complete() {
            task.sequence = Sequence::None;
            self.release(tag);
            self.grant(out);
            return event;
        }
        if over && due != NO_TAG {
            self.ask_for_more(tag, out);
        } else if over && task.wanted_bytes.is_some() {
            // Else the command has not begun: it asks when it does.
            self.waiting.push_back(tag);
            self.grant(out);
        }
        event
    }

    /// Asks waiting tasks for their data, as far as there is room for it.
    pub(super) fn grant(&mut self, out: &mut Vec<u8>) {
        while let Some(tag) = self.waiting.front().copied() {
            let Some(task) = self.tasks.get_mut(&tag) else {
                self.waiting.pop_front();
                continue;
            };
            let needed = task.missing_bytes();
            if self.granted_bytes > 0 && self.granted_bytes + needed > GATHER_BYTES_MAX {
                return;
            }
            self.waiting.pop_front();
            task.granted_bytes = needed;
            if task.streamed_bytes.is_none() {
                // What does not grow does not have to move.
                task.data.reserve_exact(needed);
            }
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
