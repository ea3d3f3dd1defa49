//! The full-feature phase of one session with one connection (sections 4 and 11).
//!
//! PDUs come in, answers are appended to the caller's buffer, and what only the
//! driver can do comes out as an [`Event`]. Memory is bounded: [`WINDOW_COMMANDS`]
//! tasks with a first burst each, and [`GATHER_BYTES_MAX`] for what was asked for.

mod reply;
mod text;
mod transfer;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use thiserror::Error;

use crate::frame::{Digests, Frame};
use crate::login::Established;
use crate::operational::Operational;
use crate::pdu::{FINAL, Header, NO_TAG, before, opcode};

pub use reply::{Completion, Filled, RejectReason};
use text::Answer;
use transfer::Task;

/// Commands that an initiator may have under way (section 4.2.2.1).
pub const WINDOW_COMMANDS: u32 = 64;
/// Commands for immediate delivery, beside the window.
const IMMEDIATE_COMMANDS_MAX: usize = 16;
/// Data that was asked for and is on its way, in bytes; a single larger
/// transfer is let through alone.
pub const GATHER_BYTES_MAX: usize = 8 << 20;
/// Data of a ping that is sent back, in bytes.
const PING_BYTES_MAX: usize = 64 << 10;

/// How a task stands to others of its logical unit (section 11.3.1, SAM-5 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskAttribute {
    /// In any order.
    Simple,
    /// After all that came before, and before all that come after.
    Ordered,
    /// Before all others.
    HeadOfQueue,
}

impl TaskAttribute {
    /// What is unknown here (ACA, and what is reserved) is taken for the strictest.
    fn of(flags: u8) -> Self {
        match flags & 7 {
            // Untagged, and simple.
            0 | 1 => Self::Simple,
            3 => Self::HeadOfQueue,
            _ => Self::Ordered,
        }
    }
}

/// A SCSI command that has arrived (section 11.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The task it makes.
    pub tag: u32,
    /// The logical unit.
    pub lun: [u8; 8],
    /// The command descriptor block, 16 bytes unless it has an extension.
    pub cdb: Vec<u8>,
    /// Bytes that the initiator means to send or to take.
    pub expected_bytes: u32,
    /// Whether it takes data.
    pub reads: bool,
    /// Whether it sends data.
    pub writes: bool,
    /// In which order.
    pub attribute: TaskAttribute,
}

/// A task management function (section 11.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskFunction {
    /// One task, which is forgotten already if it was there.
    AbortTask,
    /// All of this initiator's tasks of the logical unit, which are forgotten already.
    AbortTaskSet,
    /// All tasks of the logical unit, whoever's.
    ClearTaskSet,
    /// The logical unit is as if it had just been switched on.
    LogicalUnitReset,
    /// All logical units are.
    TargetWarmReset,
    /// As above, and all sessions end.
    TargetColdReset,
}

/// What only the driver can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// To be answered by [`Session::gather`] or [`Session::stream`] for its data,
    /// [`Session::data_in`] or [`Session::respond`].
    Command(Command),
    /// What was gathered for a task is complete.
    Data {
        /// Whose.
        tag: u32,
        /// The data.
        data: Vec<u8>,
    },
    /// The next data of a task whose data are streamed.
    Part {
        /// Whose.
        tag: u32,
        /// Where in the task's data they begin, in bytes.
        offset: u64,
        /// The data.
        data: Cow<'a, [u8]>,
        /// Whether they are the last.
        last: bool,
    },
    /// Tasks have ended otherwise; they are to be forgotten.
    Dropped(Vec<u32>),
    /// To be answered by [`Session::task_management_done`]; `dropped` tasks are to
    /// be forgotten.
    TaskManagement {
        /// Its own tag.
        tag: u32,
        /// What is to be done.
        function: TaskFunction,
        /// To which logical unit.
        lun: [u8; 8],
        /// Tasks of this session that it ended.
        dropped: Vec<u32>,
    },
    /// To be answered by [`Session::targets`]: all that the initiator may use, or one.
    SendTargets {
        /// Its tag.
        tag: u32,
        /// Which one, none for all.
        target: Option<String>,
    },
    /// The initiator leaves; its answer is written, and the connection is to end.
    Logout,
}

/// What ends a session: with error recovery level 0 nothing can be repaired (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SessionError {
    /// A command's number leaves a gap that nothing can fill.
    #[error("command {number} came when {expected} was next")]
    Gap {
        /// What came.
        number: u32,
        /// What was to come.
        expected: u32,
    },
    /// A damaged PDU that is no data.
    #[error("the data of a PDU with opcode {opcode:#04x} do not fit their digest")]
    DataDigest {
        /// Which.
        opcode: u8,
    },
    /// A second login on the same connection.
    #[error("a login request in the full-feature phase")]
    Login,
}

/// A session in the full-feature phase.
#[derive(Debug)]
pub struct Session {
    operational: Operational,
    discovery: bool,
    /// The connection's number, for its logout.
    cid: u16,
    status_number: u32,
    /// The next command's number.
    expected_number: u32,
    tasks: BTreeMap<u32, Task>,
    /// Tasks that wait for room to be asked for their data, first come first served.
    waiting: VecDeque<u32>,
    granted_bytes: usize,
    next_transfer_tag: u32,
    text: Answer,
}

impl Session {
    /// Begins where a login ended.
    #[must_use]
    pub fn new(established: &Established) -> Self {
        Self {
            operational: established.operational,
            discovery: established.question.target.is_none(),
            cid: established.question.cid,
            status_number: established.status_number,
            expected_number: established.command_number,
            tasks: BTreeMap::new(),
            waiting: VecDeque::new(),
            granted_bytes: 0,
            next_transfer_tag: 1,
            text: Answer::default(),
        }
    }

    /// What parts of PDUs carry digests from now on, in both directions.
    #[must_use]
    pub fn digests(&self) -> Digests {
        self.operational.digests
    }

    /// Ends a task without an answer, as another initiator's reset does.
    pub fn abort(&mut self, tag: u32, out: &mut Vec<u8>) {
        self.forget(tag);
        self.grant(out);
    }

    /// Tasks that have not been answered.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Takes a PDU.
    ///
    /// # Errors
    /// When the session cannot go on; what was written is still to be sent.
    pub fn receive<'a>(
        &mut self,
        frame: &Frame<'a>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, SessionError> {
        if !frame.data_intact {
            return self.damaged(frame, out);
        }
        match frame.opcode() {
            opcode::DATA_OUT => return Ok(self.data_out(frame, out)),
            opcode::LOGIN => return Err(SessionError::Login),
            opcode::SNACK => {
                self.reject(frame, RejectReason::Snack, out);
                return Ok(None);
            }
            opcode::NOP_OUT
            | opcode::COMMAND
            | opcode::TASK_MANAGEMENT
            | opcode::TEXT
            | opcode::LOGOUT => {}
            _ => {
                self.reject(frame, RejectReason::CommandNotSupported, out);
                return Ok(None);
            }
        }
        if !self.in_turn(frame)? {
            return Ok(None);
        }
        Ok(match frame.opcode() {
            opcode::NOP_OUT => self.ping_back(frame, out),
            opcode::TEXT => self.text_request(frame, out),
            opcode::LOGOUT => self.logout(frame, out),
            _ if self.discovery => {
                self.reject(frame, RejectReason::Protocol, out);
                None
            }
            opcode::COMMAND => self.command(frame, out),
            _ => self.task_management(frame, out),
        })
    }

    /// Asks the initiator for a sign of life (section 11.19).
    pub fn ping(&mut self, out: &mut Vec<u8>) {
        let transfer_tag = self.transfer_tag();
        let header = Header::new(opcode::NOP_IN, FINAL)
            .word(16, NO_TAG)
            .word(20, transfer_tag);
        self.write_unnumbered(header, out);
    }

    /// Asks the initiator to log out within some seconds (section 11.9, event 1).
    pub fn ask_to_leave(&mut self, seconds: u16, out: &mut Vec<u8>) {
        let header = Header::new(opcode::ASYNC, FINAL)
            .word(16, NO_TAG)
            .byte(36, 1)
            .half(42, seconds);
        self.write_numbered(header, &[], out);
    }

    /// Section 4.2.2.1: what is outside of the window is dropped without a word.
    fn in_turn(&mut self, frame: &Frame<'_>) -> Result<bool, SessionError> {
        let number = frame.word(24);
        let (expected, last) = (self.expected_number, self.last_number());
        if frame.immediate() {
            return Ok(!before(last, number) || number == expected);
        }
        if number == expected {
            if before(last, number) {
                return Ok(false);
            }
            self.expected_number = number.wrapping_add(1);
            return Ok(true);
        }
        if before(number, expected) || before(last, number) {
            return Ok(false);
        }
        Err(SessionError::Gap { number, expected })
    }

    /// `MaxCmdSN`: never less than it was, since a task takes the place that its
    /// own command left.
    fn last_number(&self) -> u32 {
        let taken = self.tasks.values().filter(|task| !task.immediate).count();
        let taken = u32::try_from(taken)
            .unwrap_or(u32::MAX)
            .min(WINDOW_COMMANDS);
        let room = WINDOW_COMMANDS - taken;
        self.expected_number.wrapping_add(room).wrapping_sub(1)
    }

    fn command(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Option<Event<'static>> {
        let flags = frame.flags();
        let tag = frame.initiator_task_tag();
        if tag == NO_TAG || self.tasks.contains_key(&tag) {
            self.reject(frame, RejectReason::InvalidField, out);
            return None;
        }
        let immediate = frame.immediate();
        let others = self.tasks.values().filter(|task| task.immediate).count();
        if immediate && others >= IMMEDIATE_COMMANDS_MAX {
            self.reject(frame, RejectReason::ImmediateCommand, out);
            return None;
        }
        let Some(cdb) = cdb(frame) else {
            self.reject(frame, RejectReason::InvalidField, out);
            return None;
        };
        let command = Command {
            tag,
            lun: frame.lun(),
            cdb,
            expected_bytes: frame.word(20),
            reads: flags & 0x40 != 0,
            writes: flags & 0x20 != 0,
            attribute: TaskAttribute::of(flags),
        };
        let task = Task::new(frame, &command, &self.operational);
        let misplaced = task.misplaced(frame.data.len(), &self.operational);
        self.tasks.insert(tag, task);
        if misplaced {
            self.fail(tag, reply::UNEXPECTED_UNSOLICITED_DATA, out);
            return None;
        }
        Some(Event::Command(command))
    }

    fn task_management(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Option<Event<'static>> {
        let tag = frame.initiator_task_tag();
        let function = match frame.flags() & 0x7f {
            1 => TaskFunction::AbortTask,
            2 => TaskFunction::AbortTaskSet,
            4 => TaskFunction::ClearTaskSet,
            5 => TaskFunction::LogicalUnitReset,
            6 => TaskFunction::TargetWarmReset,
            7 => TaskFunction::TargetColdReset,
            // Task reassignment is of a higher error recovery level.
            8 => return self.task_management_refused(tag, 4, out),
            _ => return self.task_management_refused(tag, 5, out),
        };
        let lun = frame.lun();
        let dropped = match function {
            TaskFunction::AbortTask => {
                let referenced = frame.word(20);
                // Section 11.5.4: the task of that unit, and no other.
                let task = self.tasks.get(&referenced);
                if !task.is_some_and(|task| is_same_unit(task.lun, lun)) {
                    return self.unknown_task(frame, tag, out);
                }
                vec![referenced]
            }
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset => {
                self.tasks.keys().copied().collect()
            }
            _ => {
                let of_lun = self
                    .tasks
                    .iter()
                    .filter(|(_, task)| is_same_unit(task.lun, lun));
                of_lun.map(|(tag, _)| *tag).collect::<Vec<_>>()
            }
        };
        for tag in &dropped {
            self.forget(*tag);
        }
        self.grant(out);
        Some(Event::TaskManagement {
            tag,
            function,
            lun,
            dropped,
        })
    }

    /// Section 11.6.1: a task that is not there was answered, unless its command
    /// never came, which cannot be on one connection.
    fn unknown_task(
        &mut self,
        frame: &Frame<'_>,
        tag: u32,
        out: &mut Vec<u8>,
    ) -> Option<Event<'static>> {
        let number = frame.word(32);
        let (expected, last) = (self.expected_number, self.last_number());
        let to_come = !before(number, expected) && !before(last, number);
        self.task_management_refused(tag, if to_come { 0 } else { 1 }, out)
    }

    fn task_management_refused(
        &mut self,
        tag: u32,
        response: u8,
        out: &mut Vec<u8>,
    ) -> Option<Event<'static>> {
        self.task_management_done(tag, response, out);
        None
    }

    /// Answers a task management function with one of section 11.6.1's responses:
    /// 0 is done, 2 is no such logical unit, 5 is not supported.
    pub fn task_management_done(&mut self, tag: u32, response: u8, out: &mut Vec<u8>) {
        let header = Header::new(opcode::TASK_MANAGEMENT_RESPONSE, FINAL)
            .byte(2, response)
            .word(16, tag);
        self.write_numbered(header, &[], out);
    }

    fn ping_back(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Option<Event<'static>> {
        let tag = frame.initiator_task_tag();
        // An answer to our own, or nothing but news of the initiator's numbers.
        if tag == NO_TAG {
            return None;
        }
        let most = (self.operational.initiator_segment_bytes_max as usize).min(PING_BYTES_MAX);
        let data = &frame.data[..frame.data.len().min(most)];
        let header = Header::new(opcode::NOP_IN, FINAL)
            .bytes(8, &frame.lun())
            .word(16, tag)
            .word(20, NO_TAG);
        self.write_numbered(header, data, out);
        None
    }

    /// Section 11.14: reasons 0 and 1 are the same with one connection.
    fn logout(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Option<Event<'static>> {
        let response = match frame.flags() & 0x7f {
            0 => 0,
            1 if frame.half(20) == self.cid => 0,
            1 => 1,
            2 => 2,
            _ => {
                self.reject(frame, RejectReason::InvalidField, out);
                return None;
            }
        };
        let retained = u16::try_from(self.operational.time_to_retain_seconds).unwrap_or(u16::MAX);
        let header = Header::new(opcode::LOGOUT_RESPONSE, FINAL)
            .byte(2, response)
            .word(16, frame.initiator_task_tag())
            .half(42, retained);
        self.write_numbered(header, &[], out);
        (response == 0).then_some(Event::Logout)
    }

    /// Section 7.8.
    fn damaged(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'static>>, SessionError> {
        self.reject(frame, RejectReason::DataDigest, out);
        if frame.opcode() != opcode::DATA_OUT {
            return Err(SessionError::DataDigest {
                opcode: frame.opcode(),
            });
        }
        let tag = frame.initiator_task_tag();
        // A command whose data are complete goes on: these are somebody else's mistake.
        if self.tasks.get(&tag).is_none_or(|task| !task.expects_data()) {
            return Ok(None);
        }
        Ok(self.fail(tag, reply::PROTOCOL_SERVICE_CRC_ERROR, out))
    }

    fn transfer_tag(&mut self) -> u32 {
        let tag = self.next_transfer_tag;
        self.next_transfer_tag = match tag.wrapping_add(1) {
            NO_TAG => 1,
            next => next,
        };
        tag
    }
}

/// The block of the header and its extension (sections 11.2.2.3 and 11.3.5).
fn cdb(frame: &Frame<'_>) -> Option<Vec<u8>> {
    let mut cdb = frame.header[32..48].to_vec();
    let mut rest = frame.additional;
    while let [high, low, kind, _, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let whole = (len + 3).next_multiple_of(4).checked_sub(4)?;
        // The length counts the byte after the type, which the pattern took.
        let body = tail.get(..len.checked_sub(1)?)?;
        if *kind == 1 {
            cdb.extend_from_slice(body);
        }
        rest = tail.get(whole..)?;
    }
    Some(cdb)
}

/// Whether two LUN fields name one unit, which may be written in more than one way.
fn is_same_unit(one: [u8; 8], other: [u8; 8]) -> bool {
    plain(one) == plain(other)
}

/// SAM-5 4.7: a unit below 256 is written by peripheral device addressing, or by flat
/// space addressing.
fn plain(lun: [u8; 8]) -> [u8; 8] {
    match lun {
        [0x40, number, 0, 0, 0, 0, 0, 0] => [0, number, 0, 0, 0, 0, 0, 0],
        lun => lun,
    }
}

#[cfg(test)]
mod tests;
