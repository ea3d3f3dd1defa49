//! Why a command does not begin.

use crate::{
    reply::{Reply, Status},
    sense::Sense,
};

/// Why a command is refused: by sense data, or by a reservation, which has a
/// status of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Sense(Sense),
    Conflict,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Sense(sense) => sense.into(),
            Refusal::Conflict => Self::with_status(Status::ReservationConflict),
        }
    }
}
