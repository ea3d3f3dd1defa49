//! Persistent reservations (SPC-4 5.12): who is registered, who holds the unit,
//! and what others may do meanwhile.
//!
//! The state is one plain value. A driver keeps it ([`crate::Action::Persist`])
//! and gives it back after a restart; what then remains is decided by the
//! APTPL bit of the last registration (SPC-4 5.12, preserving through power loss).

mod out;
mod report;

use serde::{Deserialize, Serialize};

use crate::{nexus::NexusId, opcode::Reach};

pub(crate) use out::{OutParameters, apply};
pub(crate) use report::reply;

/// The most registrations of a unit.
pub const REGISTRATIONS_MAX: usize = 128;

/// What PERSISTENT RESERVE IN asks (SPC-4 6.15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InAction {
    /// READ KEYS.
    ReadKeys,
    /// READ RESERVATION.
    ReadReservation,
    /// REPORT CAPABILITIES.
    ReportCapabilities,
    /// READ FULL STATUS.
    ReadFullStatus,
}

impl InAction {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::ReadKeys),
            1 => Some(Self::ReadReservation),
            2 => Some(Self::ReportCapabilities),
            3 => Some(Self::ReadFullStatus),
            _ => None,
        }
    }
}

/// What PERSISTENT RESERVE OUT does (SPC-4 6.16.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutAction {
    /// REGISTER.
    Register,
    /// RESERVE.
    Reserve,
    /// RELEASE.
    Release,
    /// CLEAR.
    Clear,
    /// PREEMPT.
    Preempt,
    /// PREEMPT AND ABORT.
    PreemptAndAbort,
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore,
}

impl OutAction {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Register),
            1 => Some(Self::Reserve),
            2 => Some(Self::Release),
            3 => Some(Self::Clear),
            4 => Some(Self::Preempt),
            5 => Some(Self::PreemptAndAbort),
            6 => Some(Self::RegisterAndIgnore),
            _ => None,
        }
    }
}

/// TYPE of a reservation (SPC-4 6.15.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Write Exclusive.
    WriteExclusive,
    /// Exclusive Access.
    ExclusiveAccess,
    /// Write Exclusive – Registrants Only.
    WriteExclusiveRegistrantsOnly,
    /// Exclusive Access – Registrants Only.
    ExclusiveAccessRegistrantsOnly,
    /// Write Exclusive – All Registrants.
    WriteExclusiveAllRegistrants,
    /// Exclusive Access – All Registrants.
    ExclusiveAccessAllRegistrants,
}

/// Who is allowed to do something under a reservation, besides its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    Everybody,
    Registered,
    Nobody,
}

/// A row of the tables of conflicts.
struct Row {
    kind: Kind,
    code: u8,
    /// Commands of [`Reach::Reads`].
    reads: Allowed,
    /// Commands of [`Reach::Writes`].
    writes: Allowed,
}

/// The tables of SPC-4 5.12 and SBC-3 4.17, which differ only by the kind of command
/// and of reservation.
#[rustfmt::skip]
const CONFLICTS: [Row; 6] = {
    use Allowed::{Everybody, Nobody, Registered};
    [
        Row { kind: Kind::WriteExclusive, code: 1, reads: Everybody, writes: Nobody },
        Row { kind: Kind::ExclusiveAccess, code: 3, reads: Nobody, writes: Nobody },
        Row { kind: Kind::WriteExclusiveRegistrantsOnly, code: 5, reads: Everybody, writes: Registered },
        Row { kind: Kind::ExclusiveAccessRegistrantsOnly, code: 6, reads: Registered, writes: Registered },
        Row { kind: Kind::WriteExclusiveAllRegistrants, code: 7, reads: Everybody, writes: Registered },
        Row { kind: Kind::ExclusiveAccessAllRegistrants, code: 8, reads: Registered, writes: Registered },
    ]
};

impl Kind {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        let row = CONFLICTS.iter().find(|row| row.code == code)?;
        Some(row.kind)
    }

    fn row(self) -> &'static Row {
        let [first, rest @ ..] = &CONFLICTS;
        rest.iter().find(|row| row.kind == self).unwrap_or(first)
    }

    pub(crate) fn code(self) -> u8 {
        self.row().code
    }

    /// Whether every registered nexus holds it (SPC-4 5.12, reservation holders).
    pub(crate) const fn is_of_all(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Whether others lose something when it ends, and are told (SPC-4
    /// 5.12, releasing).
    pub(crate) const fn concerns_registered(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }
}

/// A nexus and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registration {
    pub(crate) nexus: NexusId,
    pub(crate) key: u64,
}

/// A reservation; its scope is always the whole unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    pub(crate) kind: Kind,
    /// Who made it; of the kinds of all registrants, one of the holders.
    pub(crate) holder: NexusId,
}

/// Which revision of this crate's format a value has.
const FORMAT: u32 = 1;

/// All registrations of a unit, and its reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservations {
    format: u32,
    revision: u64,
    /// PRGENERATION.
    pub(crate) generation: u32,
    /// Whether it survives a loss of power (APTPL).
    pub(crate) through_power_loss: bool,
    /// In the order of registration.
    pub(crate) registrations: Vec<Registration>,
    pub(crate) reservation: Option<Reservation>,
}

impl Default for Reservations {
    fn default() -> Self {
        Self {
            format: FORMAT,
            revision: 0,
            generation: 0,
            through_power_loss: false,
            registrations: Vec::new(),
            reservation: None,
        }
    }
}

impl Reservations {
    /// What is left of a kept value after a restart (SPC-4 5.12, preserving through power loss): everything
    /// if APTPL was set, else nothing. So is a value that cannot have been
    /// made here.
    #[must_use]
    pub fn after_restart(self) -> Self {
        if self.through_power_loss && self.is_sound() {
            // PRGENERATION starts again (SPC-4 6.15.2).
            Self {
                generation: 0,
                ..self
            }
        } else {
            Self {
                revision: self.revision,
                ..Self::default()
            }
        }
    }

    fn is_sound(&self) -> bool {
        let mut nexuses: Vec<&NexusId> = self.registrations.iter().map(|one| &one.nexus).collect();
        nexuses.sort_unstable();
        self.format == FORMAT
            && self.registrations.len() <= REGISTRATIONS_MAX
            && self.registrations.iter().all(|one| one.key != 0)
            && nexuses.windows(2).all(|pair| pair[0] != pair[1])
            && self
                .reservation
                .as_ref()
                .is_none_or(|reservation| self.key_of(&reservation.holder).is_some())
    }

    /// Grows with every change, so that the newer of two values is known.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.registrations.is_empty()
    }

    /// Whether it is to survive a restart.
    pub(crate) const fn is_kept(&self) -> bool {
        self.through_power_loss
    }

    pub(crate) fn key_of(&self, nexus: &NexusId) -> Option<u64> {
        let registration = self.registrations.iter().find(|one| one.nexus == *nexus)?;
        Some(registration.key)
    }

    /// Whether a nexus holds the reservation.
    pub(crate) fn is_holder(&self, nexus: &NexusId) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| {
            if reservation.kind.is_of_all() {
                self.key_of(nexus).is_some()
            } else {
                reservation.holder == *nexus
            }
        })
    }

    /// Whether a nexus may use a command of this reach now.
    pub(crate) fn allow(&self, nexus: &NexusId, reach: Reach) -> bool {
        let Some(reservation) = &self.reservation else {
            return true;
        };
        let row = reservation.kind.row();
        let allowed = match reach {
            Reach::Free | Reach::Reservation | Reach::Reserve => Allowed::Everybody,
            Reach::Reads => row.reads,
            Reach::Writes => row.writes,
        };
        match allowed {
            Allowed::Everybody => true,
            Allowed::Registered => self.key_of(nexus).is_some(),
            Allowed::Nobody => self.is_holder(nexus),
        }
    }
}

#[cfg(test)]
mod tests;
