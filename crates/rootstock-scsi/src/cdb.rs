//! Decoding commands.

use rootstock_core::ByteRange;

use crate::{
    action::{Action, Comparison, DataOut, Durability, Parameters, ParametersOf},
    lba_status::LbaStatus,
    opcode::{self, CDB_BYTES_MAX, SERVICE_ACTION_MASK},
    reply::Reply,
    report::ReportLuns,
    reservation::{InAction, OutAction},
    sense::{Sense, SenseFormat},
    unit::Unit,
};

/// A command whose fields make sense for its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// It concerns the medium only, and the unit's state no further.
    Medium(Action),
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE.
    RequestSense {
        /// DESC.
        format: SenseFormat,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// INQUIRY.
    Inquiry {
        /// PAGE CODE, if EVPD is set.
        page: Option<u8>,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// READ CAPACITY(10).
    ReadCapacity10,
    /// READ CAPACITY(16).
    ReadCapacity16 {
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// MODE SENSE.
    ModeSense(ModeSense),
    /// MODE SELECT.
    ModeSelect(SelectLen),
    /// RESERVE of SPC-2.
    Reserve,
    /// RELEASE of SPC-2.
    Release,
    /// PERSISTENT RESERVE IN.
    PersistentIn {
        /// SERVICE ACTION.
        action: InAction,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// PERSISTENT RESERVE OUT.
    PersistentOut {
        /// What the command says.
        out: PersistentOut,
        /// PARAMETER LIST LENGTH.
        len: u32,
    },
    /// REPORT TARGET PORT GROUPS.
    TargetPortGroups {
        /// Whether the header is the long one.
        header: GroupsHeader,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    SupportedOpcodes(SupportedOpcodes),
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    SupportedTaskManagement {
        /// How many bytes the answer has: 4, or 16 with REPD.
        len: usize,
        /// ALLOCATION LENGTH.
        allocation: u32,
    },
}

/// Whether a command has its long or its short form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Of 6 bytes, with a header of 4.
    Short,
    /// Of 10 bytes, with a header of 8.
    Long,
}

/// MODE SENSE (SPC-4 6.13, 6.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSense {
    /// The command's form.
    pub form: Form,
    /// Which block descriptor is wanted.
    pub descriptor: BlockDescriptor,
    /// PC: current, changeable, default or saved values.
    pub control: PageControl,
    /// PAGE CODE.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    /// ALLOCATION LENGTH.
    pub allocation: u32,
}

/// A block descriptor in mode parameters (SBC-3 6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockDescriptor {
    /// None (DBD).
    None,
    /// 8 bytes.
    Short,
    /// 16 bytes (LLBAA).
    Long,
}

/// PC (SPC-4 6.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageControl {
    /// What holds now.
    Current,
    /// Which bits MODE SELECT may change.
    Changeable,
    /// What holds after a reset.
    Default,
    /// What was saved: nothing ever is.
    Saved,
}

/// How long MODE SELECT's parameter list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectLen {
    /// The command's form.
    pub form: Form,
    /// PARAMETER LIST LENGTH.
    pub bytes: u16,
}

/// What PERSISTENT RESERVE OUT says outside of its parameter list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistentOut {
    /// SERVICE ACTION.
    pub action: OutAction,
    /// SCOPE and TYPE; which actions look at them differs.
    pub scope_and_type: u8,
}

/// PARAMETER DATA FORMAT of REPORT TARGET PORT GROUPS (SPC-4 6.37).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupsHeader {
    /// The length only.
    LengthOnly,
    /// The length, and a transition time.
    Extended,
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SupportedOpcodes {
    /// Which commands.
    pub which: Which,
    /// RCTD: whether timeouts are told with them.
    pub timeouts: Timeouts,
    /// ALLOCATION LENGTH.
    pub allocation: u32,
}

/// REPORTING OPTIONS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// One that has no service actions.
    Code(u8),
    /// One with its service action.
    Action(u8, u16),
    /// One, whose service action counts if it has some.
    Either(u8, u16),
}

/// RCTD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeouts {
    /// Without.
    Omitted,
    /// With a timeouts descriptor for each command.
    Told,
}

impl Parameters {
    pub(crate) const fn data_out(&self) -> DataOut {
        match &self.of {
            ParametersOf::ModeSelect(len) => DataOut::List(len.bytes as u64),
            ParametersOf::PersistentOut { len, .. } => DataOut::List(*len as u64),
            ParametersOf::Unmap { len } => DataOut::List(*len as u64),
            ParametersOf::WriteSame { block_bytes, .. } => DataOut::Exactly(*block_bytes as u64),
        }
    }
}

/// A command's bytes; what is missing at its end is zero.
pub(crate) fn padded(cdb: &[u8]) -> [u8; CDB_BYTES_MAX] {
    let mut padded = [0; CDB_BYTES_MAX];
    for (to, from) in padded.iter_mut().zip(cdb) {
        *to = *from;
    }
    padded
}

impl Command {
    /// Reads a command for a unit; any bytes will do.
    ///
    /// # Errors
    /// INVALID COMMAND OPERATION CODE, INVALID FIELD IN CDB with the place, or
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub fn parse(cdb: &[u8], unit: &Unit) -> Result<Self, Sense> {
        let cdb = padded(cdb);
        opcode::find(&cdb)?.check_reserved(&cdb)?;
        Fields { cdb, unit }.command()
    }
}

struct Fields<'a> {
    cdb: [u8; CDB_BYTES_MAX],
    unit: &'a Unit,
}

/// What a command does with its blocks.
#[derive(Debug, Clone, Copy)]
enum Transfer {
    Read,
    Write,
    WriteAndVerify,
    Verify,
    CompareAndWrite,
    OrWrite,
    WriteSame,
    Prefetch,
    Flush,
}

impl Fields<'_> {
    fn command(&self) -> Result<Command, Sense> {
        let cdb = &self.cdb;
        match cdb[0] {
            0x00 => Ok(Command::TestUnitReady),
            0x03 => Ok(Command::RequestSense {
                format: if cdb[1] & 1 == 0 {
                    SenseFormat::Fixed
                } else {
                    SenseFormat::Descriptor
                },
                allocation: cdb[4].into(),
            }),
            0x12 => self.inquiry(),
            0x15 | 0x55 => Ok(Command::ModeSelect(self.mode_select())),
            0x1a | 0x5a => Ok(Command::ModeSense(self.mode_sense())),
            0x16 | 0x56 => Ok(Command::Reserve),
            0x17 | 0x57 => Ok(Command::Release),
            0x1b => Ok(self.start_stop()),
            // Nothing can be removed: it may be prevented.
            0x1e => Ok(Command::Medium(Action::Done(Reply::good()))),
            0x25 => Ok(Command::ReadCapacity10),
            0x42 => Ok(self.unmap()),
            0x5e => self.persistent_in(),
            0x5f => self.persistent_out(),
            0x9e | 0xa0 | 0xa3 => self.report(),
            _ => self.transfer(),
        }
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.cdb[at], self.cdb[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        (u32::from(self.u16(at)) << 16) | u32::from(self.u16(at + 2))
    }

    fn u64(&self, at: usize) -> u64 {
        (u64::from(self.u32(at)) << 32) | u64::from(self.u32(at + 4))
    }

    /// SPC-4 6.6.1: without EVPD, the page code has to be zero.
    fn inquiry(&self) -> Result<Command, Sense> {
        let page = (self.cdb[1] & 1 != 0).then_some(self.cdb[2]);
        if page.is_none() && self.cdb[2] != 0 {
            return Err(Sense::command_byte(2));
        }
        Ok(Command::Inquiry {
            page,
            allocation: self.u16(3).into(),
        })
    }

    fn mode_select(&self) -> SelectLen {
        if self.cdb[0] == 0x15 {
            SelectLen {
                form: Form::Short,
                bytes: self.cdb[4].into(),
            }
        } else {
            SelectLen {
                form: Form::Long,
                bytes: self.u16(7),
            }
        }
    }

    fn mode_sense(&self) -> ModeSense {
        let (form, allocation) = if self.cdb[0] == 0x1a {
            (Form::Short, u32::from(self.cdb[4]))
        } else {
            (Form::Long, u32::from(self.u16(7)))
        };
        let descriptor = match self.cdb[1] & 0x18 {
            0x00 => BlockDescriptor::Short,
            0x10 => BlockDescriptor::Long,
            _ => BlockDescriptor::None,
        };
        let control = match self.cdb[2] >> 6 {
            0 => PageControl::Current,
            1 => PageControl::Changeable,
            2 => PageControl::Default,
            _ => PageControl::Saved,
        };
        ModeSense {
            form,
            descriptor,
            control,
            page: self.cdb[2] & 0x3f,
            subpage: self.cdb[3],
            allocation,
        }
    }

    /// Stopping writes what is cached and changes nothing else (SBC-3 5.25):
    /// the next system to boot from this disk has firmware that would not
    /// start it again. Ejecting, and power conditions, are refused by the
    /// table of opcodes.
    fn start_stop(&self) -> Command {
        let flush_not_wanted = self.cdb[4] & 0x05 != 0;
        Command::Medium(if flush_not_wanted {
            Action::Done(Reply::good())
        } else {
            Action::Flush
        })
    }

    fn unmap(&self) -> Command {
        let len = self.u16(7);
        // SBC-3 5.28.1: no list is no error.
        Command::Medium(if len == 0 {
            Action::Done(Reply::good())
        } else {
            Action::Parameters(Parameters {
                of: ParametersOf::Unmap { len },
            })
        })
    }

    fn persistent_in(&self) -> Result<Command, Sense> {
        let action = InAction::from_code(self.cdb[1] & SERVICE_ACTION_MASK);
        Ok(Command::PersistentIn {
            action: action.ok_or(Sense::command_bit(1, 4))?,
            allocation: self.u16(7).into(),
        })
    }

    fn persistent_out(&self) -> Result<Command, Sense> {
        let action = OutAction::from_code(self.cdb[1] & SERVICE_ACTION_MASK);
        Ok(Command::PersistentOut {
            out: PersistentOut {
                action: action.ok_or(Sense::command_bit(1, 4))?,
                scope_and_type: self.cdb[2],
            },
            len: self.u32(5),
        })
    }

    fn report(&self) -> Result<Command, Sense> {
        match (self.cdb[0], self.cdb[1] & SERVICE_ACTION_MASK) {
            (0x9e, 0x10) => Ok(Command::ReadCapacity16 {
                allocation: self.u32(10),
            }),
            (0x9e, 0x12) => self.lba_status(),
            (0xa0, _) => Ok(Command::Medium(Action::ReportLuns(ReportLuns::new(
                self.cdb[2],
                self.u32(6),
            )?))),
            (0xa3, 0x0a) => Ok(Command::TargetPortGroups {
                header: match self.cdb[1] >> 5 {
                    0 => GroupsHeader::LengthOnly,
                    1 => GroupsHeader::Extended,
                    _ => return Err(Sense::command_bit(1, 7)),
                },
                allocation: self.u32(6),
            }),
            (0xa3, 0x0c) => self.supported_opcodes(),
            (0xa3, 0x0d) => self.supported_task_management(),
            _ => Err(Sense::command_bit(1, 4)),
        }
    }

    fn lba_status(&self) -> Result<Command, Sense> {
        let lba = self.u64(2);
        if lba >= self.unit.blocks {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        let block = self.unit.block_size.bytes();
        let range = self.unit.span(lba, self.unit.blocks - lba);
        let status = LbaStatus::new(range, block, self.u32(10));
        Ok(Command::Medium(Action::LbaStatus(status)))
    }

    fn supported_opcodes(&self) -> Result<Command, Sense> {
        let (code, action) = (self.cdb[3], self.u16(4));
        let which = match self.cdb[2] & 0x07 {
            0 => Which::All,
            1 => Which::Code(code),
            2 => Which::Action(code, action),
            3 => Which::Either(code, action),
            _ => return Err(Sense::command_bit(2, 2)),
        };
        let timeouts = if self.cdb[2] & 0x80 == 0 {
            Timeouts::Omitted
        } else {
            Timeouts::Told
        };
        Ok(Command::SupportedOpcodes(SupportedOpcodes {
            which,
            timeouts,
            allocation: self.u32(6),
        }))
    }

    /// SPC-4 6.36: fewer than four bytes are an error.
    fn supported_task_management(&self) -> Result<Command, Sense> {
        let allocation = self.u32(6);
        if allocation < 4 {
            return Err(Sense::command_byte(6));
        }
        let len = if self.cdb[2] & 0x80 == 0 { 4 } else { 16 };
        Ok(Command::SupportedTaskManagement { len, allocation })
    }

    fn transfer(&self) -> Result<Command, Sense> {
        let kind = match self.cdb[0] {
            0x08 | 0x28 | 0x88 | 0xa8 => Transfer::Read,
            0x0a | 0x2a | 0x8a | 0xaa => Transfer::Write,
            0x2e | 0x8e | 0xae => Transfer::WriteAndVerify,
            0x2f | 0x8f | 0xaf => Transfer::Verify,
            0x34 | 0x90 => Transfer::Prefetch,
            0x35 | 0x91 => Transfer::Flush,
            0x41 | 0x93 => Transfer::WriteSame,
            0x89 => Transfer::CompareAndWrite,
            0x8b => Transfer::OrWrite,
            _ => return Err(Sense::INVALID_OPCODE),
        };
        let (lba, mut blocks, at) = self.place();
        if lba >= self.unit.blocks || blocks > self.unit.blocks - lba {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        match kind {
            // To the end of the unit (SBC-3 5.8).
            Transfer::Prefetch if blocks == 0 => blocks = self.unit.blocks - lba,
            // Not so here: WSNZ of the block limits page (SBC-3 5.43).
            Transfer::WriteSame if blocks == 0 => return Err(Sense::command_byte(at)),
            _ => {}
        }
        let max = self.blocks_max(kind);
        if max.is_some_and(|max| blocks > max) {
            return Err(Sense::command_byte(at));
        }
        let range = self.unit.span(lba, blocks);
        if range.len == 0 && !matches!(kind, Transfer::Flush) {
            return Ok(Command::Medium(Action::Done(Reply::good())));
        }
        Ok(Command::Medium(self.transfer_of(kind, range)?))
    }

    /// The first block, how many, and the byte where that number is.
    fn place(&self) -> (u64, u64, u16) {
        match self.cdb[0] >> 5 {
            0 => {
                let lba = self.u32(0) & 0x001f_ffff;
                // SBC-2, READ(6): zero stands for 256 here, and here only.
                let blocks = match self.cdb[4] {
                    0 => 256,
                    blocks => blocks.into(),
                };
                (lba.into(), blocks, 4)
            }
            1 | 2 => (self.u32(2).into(), self.u16(7).into(), 7),
            5 => (self.u32(2).into(), self.u32(6).into(), 6),
            _ if self.cdb[0] == 0x89 => (self.u64(2), self.cdb[13].into(), 13),
            _ => (self.u64(2), self.u32(10).into(), 10),
        }
    }

    fn blocks_max(&self, kind: Transfer) -> Option<u64> {
        let limits = &self.unit.limits;
        match kind {
            Transfer::Flush | Transfer::Prefetch => None,
            Transfer::WriteSame => {
                (limits.write_same_blocks_max != 0).then_some(limits.write_same_blocks_max)
            }
            Transfer::CompareAndWrite => Some(limits.compare_and_write_blocks_max.into()),
            _ => Some(limits.transfer_blocks_max.into()),
        }
    }

    fn transfer_of(&self, kind: Transfer, range: ByteRange) -> Result<Action, Sense> {
        // DPO needs nothing: it is advice for a cache (SBC-3 4.15, caches).
        let durability = if self.cdb[0] >> 5 != 0 && self.cdb[1] & 0x08 != 0 {
            Durability::Forced
        } else {
            Durability::Cached
        };
        Ok(match kind {
            Transfer::Read => Action::Read { range },
            Transfer::Write => Action::Write { range, durability },
            Transfer::WriteAndVerify => Action::WriteAndVerify { range },
            Transfer::Verify => self.verify(range)?,
            Transfer::CompareAndWrite => Action::CompareAndWrite { range, durability },
            Transfer::OrWrite => Action::OrWrite { range, durability },
            Transfer::WriteSame => self.write_same(range)?,
            Transfer::Prefetch => Action::Prefetch { range },
            Transfer::Flush => Action::Flush,
        })
    }

    /// SBC-3 5.29, BYTCHK.
    fn verify(&self, range: ByteRange) -> Result<Action, Sense> {
        match (self.cdb[1] >> 1) & 0x03 {
            0b00 => Ok(Action::Verify { range }),
            0b01 => Ok(Action::Compare {
                range,
                comparison: Comparison::Whole,
            }),
            0b11 => Ok(Action::Compare {
                range,
                comparison: Comparison::OneBlock {
                    block_bytes: self.unit.block_size.bytes(),
                },
            }),
            _ => Err(Sense::command_bit(1, 2)),
        }
    }

    /// SBC-3 5.43 and 5.44. NDOB: no block is sent, zeros are written.
    fn write_same(&self, range: ByteRange) -> Result<Action, Sense> {
        if self.cdb[0] == 0x93 && self.cdb[1] & 0x01 != 0 {
            return Ok(Action::Zero { range });
        }
        Ok(Action::Parameters(Parameters {
            of: ParametersOf::WriteSame {
                range,
                block_bytes: self.unit.block_size.bytes(),
            },
        }))
    }
}

#[cfg(test)]
mod tests;
