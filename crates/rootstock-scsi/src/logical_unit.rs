//! A unit and those who use it: attentions, reservations, modes.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    action::{Action, Parameters, ParametersOf},
    cdb::{Command, PersistentOut, padded},
    inquiry,
    mode::{self, Mode},
    nexus::NexusId,
    opcode::{self, CDB_BYTES_MAX, Medium, Opcode, Reach},
    parameter,
    refusal::Refusal,
    reply::Reply,
    report,
    reservation::{self, OutAction, OutParameters, Reservations},
    sense::{Sense, SenseFormat, SenseKey},
    unit::{Access, Unit},
};

/// The most nexuses of a unit.
pub const NEXUSES_MAX: usize = 1024;

/// The most attentions that wait for a nexus; there are not more kinds.
const ATTENTIONS_MAX: usize = 9;

/// A nexus that is attached to a unit. It is not used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexusHandle(u64);

/// A unit has as many nexuses as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk is used by {NEXUSES_MAX} sessions, which is the limit")]
pub struct TooManyNexuses;

/// What an initiator has to know before its next command (SAM-5 5.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    PowerOn,
    Reset,
    CommandsCleared,
    CapacityChanged,
    ModeChanged,
    ReservationsPreempted,
    ReservationsReleased,
    RegistrationsPreempted,
    LunsChanged,
}

impl Attention {
    // SPC-4 annex D.
    const fn sense(self) -> Sense {
        let (code, qualifier) = match self {
            Self::PowerOn => (0x29, 0x00),
            Self::Reset => (0x29, 0x03),
            Self::CommandsCleared => (0x2f, 0x00),
            Self::CapacityChanged => (0x2a, 0x09),
            Self::ModeChanged => (0x2a, 0x01),
            Self::ReservationsPreempted => (0x2a, 0x03),
            Self::ReservationsReleased => (0x2a, 0x04),
            Self::RegistrationsPreempted => (0x2a, 0x05),
            Self::LunsChanged => (0x3f, 0x0e),
        };
        Sense::new(SenseKey::UnitAttention, code, qualifier)
    }
}

#[derive(Debug)]
struct Nexus {
    id: NexusId,
    attentions: VecDeque<Attention>,
}

impl Nexus {
    fn tell(&mut self, attention: Attention) {
        // What a reset says, it says for all that was before (SAM-5 5.14).
        if attention == Attention::Reset {
            self.attentions.clear();
        }
        if !self.attentions.contains(&attention) && self.attentions.len() < ATTENTIONS_MAX {
            self.attentions.push_back(attention);
        }
    }
}

/// A unit, shared by all who use it. One caller at a time.
#[derive(Debug)]
pub struct LogicalUnit {
    unit: Unit,
    mode: Mode,
    nexuses: BTreeMap<NexusHandle, Nexus>,
    next_handle: u64,
    reservations: Reservations,
    /// Who holds it by RESERVE of SPC-2.
    reserved: Option<NexusHandle>,
}

impl LogicalUnit {
    /// A unit, with what was kept of its reservations
    /// ([`Reservations::after_restart`] is done here).
    #[must_use]
    pub fn new(unit: Unit, kept: Option<Reservations>) -> Self {
        let reservations = kept.unwrap_or_default().after_restart();
        Self {
            unit: Unit {
                blocks: possible(unit.blocks),
                ..unit
            },
            mode: Mode::default(),
            nexuses: BTreeMap::new(),
            next_handle: 0,
            reservations,
            reserved: None,
        }
    }

    /// What it is.
    #[must_use]
    pub const fn unit(&self) -> &Unit {
        &self.unit
    }

    /// Its reservations as they are now.
    #[must_use]
    pub const fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// How sense data are to be laid out.
    #[must_use]
    pub const fn sense_format(&self) -> SenseFormat {
        self.mode.sense_format
    }

    /// Attaches a session. Its first command gets a unit attention, as after a
    /// loss of the nexus (SAM-5 6.3.4).
    ///
    /// # Errors
    /// When there are too many.
    pub fn attach(&mut self, id: NexusId) -> Result<NexusHandle, TooManyNexuses> {
        if self.nexuses.len() >= NEXUSES_MAX {
            return Err(TooManyNexuses);
        }
        let handle = NexusHandle(self.next_handle);
        self.next_handle += 1;
        let attentions = VecDeque::from([Attention::PowerOn]);
        self.nexuses.insert(handle, Nexus { id, attentions });
        Ok(handle)
    }

    /// Forgets a session. Its RESERVE ends (SPC-2 5.5); what it registered
    /// stays.
    pub fn detach(&mut self, nexus: NexusHandle) {
        self.nexuses.remove(&nexus);
        if self.reserved == Some(nexus) {
            self.reserved = None;
        }
    }

    /// LOGICAL UNIT RESET, or a reset of the target (SAM-5 6.3.3): RESERVE and
    /// changed modes are gone, everybody is told. Commands are the caller's to
    /// abort; persistent reservations stay.
    pub fn reset(&mut self) {
        self.reserved = None;
        self.mode = Mode::default();
        self.tell_all(Attention::Reset);
    }

    /// CLEAR TASK SET by a nexus (SAM-5 7.5): the others, whose commands the
    /// caller aborts, are told.
    pub fn commands_cleared(&mut self, by: NexusHandle) {
        self.tell_others(by, Attention::CommandsCleared);
    }

    /// The unit has another size from now on; everybody is told.
    pub fn resize(&mut self, blocks: u64) {
        let blocks = possible(blocks);
        if blocks != self.unit.blocks {
            self.unit.blocks = blocks;
            self.tell_all(Attention::CapacityChanged);
        }
    }

    /// The target has other units for a nexus from now on, which is told.
    pub fn luns_changed(&mut self, nexus: NexusHandle) {
        if let Some(nexus) = self.nexuses.get_mut(&nexus) {
            nexus.tell(Attention::LunsChanged);
        }
    }

    /// A nexus has asked one of the target's units which there are: none of them needs to
    /// announce it any more (SPC-4 6.33).
    pub fn luns_told(&mut self, nexus: NexusHandle) {
        if let Some(nexus) = self.nexuses.get_mut(&nexus) {
            let luns = Attention::LunsChanged;
            nexus.attentions.retain(|attention| *attention != luns);
        }
    }

    /// Begins a command.
    pub fn start(&mut self, nexus: NexusHandle, cdb: &[u8]) -> Action {
        match self.try_start(nexus, &padded(cdb)) {
            Ok(action) => action,
            Err(refusal) => Action::Done(refusal.into()),
        }
    }

    /// Goes on with a command whose parameters have arrived.
    pub fn parameters(&mut self, nexus: NexusHandle, waiting: Parameters, data: &[u8]) -> Action {
        match self.try_parameters(nexus, waiting.of, data) {
            Ok(action) => action,
            Err(refusal) => Action::Done(refusal.into()),
        }
    }

    fn try_start(
        &mut self,
        handle: NexusHandle,
        cdb: &[u8; CDB_BYTES_MAX],
    ) -> Result<Action, Refusal> {
        self.take_attention(handle, cdb[0])?;
        let row = opcode::find(cdb)?;
        self.check_reservations(handle, row, cdb)?;
        let command = Command::parse(cdb, &self.unit)?;
        if row.medium == Medium::Changed {
            self.check_access()?;
        }
        self.command(handle, command)
    }

    fn command(&mut self, handle: NexusHandle, command: Command) -> Result<Action, Refusal> {
        let unit = &self.unit;
        let reply = match command {
            Command::Medium(action) => return Ok(action),
            Command::TestUnitReady => Reply::good(),
            Command::RequestSense { format, allocation } => {
                report::cut(self.sense_for(handle).bytes(format), allocation)
            }
            Command::Inquiry { page, allocation } => inquiry::reply(unit, page, allocation)?,
            Command::ReadCapacity10 => report::capacity10(unit),
            Command::ReadCapacity16 { allocation } => report::capacity16(unit, allocation),
            Command::ModeSense(asked) => mode::sense(unit, self.mode, asked)?,
            Command::Reserve => {
                self.reserved = Some(handle);
                Reply::good()
            }
            Command::Release => {
                // Another's is not ended, and that is no error (SPC-2).
                if self.reserved == Some(handle) {
                    self.reserved = None;
                }
                Reply::good()
            }
            Command::PersistentIn { action, allocation } => {
                reservation::reply(&self.reservations, action, allocation)
            }
            Command::TargetPortGroups { header, allocation } => {
                report::target_port_groups(unit, header, allocation)
            }
            Command::SupportedOpcodes(asked) => report::opcodes(asked)?,
            Command::SupportedTaskManagement { len, allocation } => {
                report::task_management(len, allocation)
            }
            Command::ModeSelect(len) => return Ok(Self::gather(ParametersOf::ModeSelect(len))),
            Command::PersistentOut { out, len } => {
                // SPC-4 6.16.1: the list is 24 bytes long, or refused unread.
                if len != 24 {
                    return Err(Sense::PARAMETER_LIST_LENGTH.into());
                }
                return Ok(Self::gather(ParametersOf::PersistentOut { out, len }));
            }
        };
        Ok(Action::Done(reply))
    }

    const fn gather(of: ParametersOf) -> Action {
        Action::Parameters(Parameters { of })
    }

    fn try_parameters(
        &mut self,
        handle: NexusHandle,
        of: ParametersOf,
        data: &[u8],
    ) -> Result<Action, Refusal> {
        match of {
            ParametersOf::ModeSelect(len) => {
                let list = data
                    .get(..len.bytes.into())
                    .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
                let after = mode::select(&self.unit, self.mode, len.form, list)?;
                if after != self.mode {
                    self.mode = after;
                    self.tell_others(handle, Attention::ModeChanged);
                }
                Ok(Action::Done(Reply::good()))
            }
            ParametersOf::PersistentOut { out, len } => {
                let list = data
                    .get(..len as usize)
                    .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
                self.persistent_out(handle, out, list)
            }
            ParametersOf::Unmap { len } => {
                let list = data.get(..len.into()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
                Ok(parameter::unmap(&self.unit, list)?)
            }
            ParametersOf::WriteSame { range, block_bytes } => {
                Ok(parameter::write_same(range, block_bytes, data)?)
            }
        }
    }

    fn persistent_out(
        &mut self,
        handle: NexusHandle,
        out: PersistentOut,
        list: &[u8],
    ) -> Result<Action, Refusal> {
        let list = OutParameters::parse(list, out.action)?;
        let nexus = self.nexus(handle)?.id.clone();
        let was_kept = self.reservations.is_kept();
        let effects = reservation::apply(&mut self.reservations, &nexus, out, list)?;
        for (id, attention) in &effects.attentions {
            self.tell_nexus(id, *attention);
        }
        let abort = match out.action {
            OutAction::PreemptAndAbort => effects.preempted,
            _ => Vec::new(),
        };
        let to_keep = effects.changed && (was_kept || self.reservations.is_kept());
        if !to_keep && abort.is_empty() {
            return Ok(Action::Done(Reply::good()));
        }
        Ok(Action::Persist {
            state: Box::new(self.reservations.clone()),
            reply: Reply::good(),
            abort,
        })
    }

    fn nexus(&self, handle: NexusHandle) -> Result<&Nexus, Sense> {
        // A handle of another unit, or of one that was detached.
        self.nexuses.get(&handle).ok_or(Sense::INTERNAL_FAILURE)
    }

    /// SAM-5 5.14.1: INQUIRY, REPORT LUNS and REQUEST SENSE are carried out,
    /// all else gets the first attention that waits.
    fn take_attention(&mut self, handle: NexusHandle, code: u8) -> Result<(), Sense> {
        let nexus = self
            .nexuses
            .get_mut(&handle)
            .ok_or(Sense::INTERNAL_FAILURE)?;
        match code {
            0x03 | 0x12 => return Ok(()),
            0xa0 => {
                // What it tells need not be announced any more (SPC-4 6.33).
                let luns = Attention::LunsChanged;
                nexus.attentions.retain(|attention| *attention != luns);
                return Ok(());
            }
            _ => {}
        }
        match nexus.attentions.pop_front() {
            Some(attention) => Err(attention.sense()),
            None => Ok(()),
        }
    }

    /// What REQUEST SENSE tells (SPC-4 6.39): an attention, which is then told.
    fn sense_for(&mut self, handle: NexusHandle) -> Sense {
        let nexus = self.nexuses.get_mut(&handle);
        let attention = nexus.and_then(|nexus| nexus.attentions.pop_front());
        attention.map_or(Sense::NONE, Attention::sense)
    }

    fn check_reservations(
        &self,
        handle: NexusHandle,
        row: &Opcode,
        cdb: &[u8; CDB_BYTES_MAX],
    ) -> Result<(), Refusal> {
        let reach = reach(row, cdb);
        if let Some(holder) = self.reserved
            && holder != handle
            && !passes_reserve(row.code, reach)
        {
            return Err(Refusal::Conflict);
        }
        // SPC-2 5.5, and CRH 0 of our capabilities: the two kinds of reservation exclude each other.
        let excluded = match reach {
            Reach::Reserve => !self.reservations.is_empty(),
            Reach::Reservation => self.reserved.is_some(),
            _ => false,
        };
        let allowed = self.reservations.allow(&self.nexus(handle)?.id, reach);
        if excluded || !allowed {
            return Err(Refusal::Conflict);
        }
        Ok(())
    }

    fn check_access(&self) -> Result<(), Sense> {
        let both = [self.unit.access, self.mode.software_access];
        if both.contains(&Access::ReadOnly) {
            return Err(Sense::WRITE_PROTECTED);
        }
        Ok(())
    }

    fn tell_all(&mut self, attention: Attention) {
        for nexus in self.nexuses.values_mut() {
            nexus.tell(attention);
        }
    }

    fn tell_others(&mut self, but: NexusHandle, attention: Attention) {
        for (handle, nexus) in &mut self.nexuses {
            if *handle != but {
                nexus.tell(attention);
            }
        }
    }

    fn tell_nexus(&mut self, id: &NexusId, attention: Attention) {
        for nexus in self.nexuses.values_mut().filter(|one| one.id == *id) {
            nexus.tell(attention);
        }
    }
}

fn possible(blocks: u64) -> u64 {
    blocks.clamp(1, Unit::BLOCKS_MAX)
}

/// SBC-3 4.17: to start a unit, and to allow removal, is always allowed.
fn reach(row: &Opcode, cdb: &[u8; CDB_BYTES_MAX]) -> Reach {
    match row.code {
        0x1b if cdb[4] & 0xf1 == 0x01 => Reach::Free,
        0x1e if cdb[4] & 0x03 == 0 => Reach::Free,
        _ => row.reach,
    }
}

/// SPC-2 5.5 and the tables of SBC-2: what another's RESERVE does not hold up.
/// RELEASE is carried out, and does nothing.
const fn passes_reserve(code: u8, reach: Reach) -> bool {
    match code {
        0x03 | 0x12 | 0x17 | 0x57 | 0xa0 => true,
        // Starting, allowing removal, READ CAPACITY.
        0x1b | 0x1e | 0x25 | 0x9e => matches!(reach, Reach::Free),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
