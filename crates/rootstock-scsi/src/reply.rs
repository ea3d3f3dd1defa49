//! How a command ends.

use crate::sense::Sense;

/// A command's status (SAM-5 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// Not done, or done with something to say: the sense data tells.
    CheckCondition = 0x02,
    /// A prefetch that found room for all.
    ConditionMet = 0x04,
    /// Try again later.
    Busy = 0x08,
    /// Refused because of another initiator's reservation.
    ReservationConflict = 0x18,
    /// No room for another command.
    TaskSetFull = 0x28,
    /// Ended by another nexus's task management.
    TaskAborted = 0x40,
}

/// How a command ends. The transport compares the length of `data_in` with
/// what its initiator expects, for the residual count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: Status,
    /// Why, with [`Status::CheckCondition`]; see [`Sense::bytes`].
    pub sense: Option<Sense>,
    /// The data for the initiator, already cut to its ALLOCATION LENGTH.
    pub data_in: Vec<u8>,
}

impl Reply {
    /// Done, without data.
    #[must_use]
    pub const fn good() -> Self {
        Self::with_status(Status::Good)
    }

    /// Done, with data.
    #[must_use]
    pub const fn data(data_in: Vec<u8>) -> Self {
        Self {
            status: Status::Good,
            sense: None,
            data_in,
        }
    }

    /// Refused or failed.
    #[must_use]
    pub const fn check_condition(sense: Sense) -> Self {
        Self {
            status: Status::CheckCondition,
            sense: Some(sense),
            data_in: Vec::new(),
        }
    }

    /// A status that says all.
    #[must_use]
    pub const fn with_status(status: Status) -> Self {
        Self {
            status,
            sense: None,
            data_in: Vec::new(),
        }
    }
}

impl From<Sense> for Reply {
    fn from(sense: Sense) -> Self {
        Self::check_condition(sense)
    }
}
