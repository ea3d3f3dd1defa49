//! The commands of a SCSI disk as decisions without I/O: a command comes in,
//! what to do with a volume goes out, and at the end a reply.
//!
//! The standards are SPC-4 (T10/1731-D revision 37), SBC-3 (T10/BSR INCITS
//! 514 revision 36) and SAM-5 (T10/2104-D revision 21); their sections are
//! cited beside the code.
//!
//! A transport keeps one [`LogicalUnit`] for each disk, shared by all its
//! sessions, and attaches every session to it ([`LogicalUnit::attach`]). For
//! each command:
//!
//! 1. [`LogicalUnit::start`] says by an [`Action`] what is to be done.
//! 2. [`Action::data_out`] says how much the initiator sends with it: gather it.
//! 3. [`Action::Parameters`] goes back with what was gathered, by
//!    [`LogicalUnit::parameters`], for the action that follows from it. Any
//!    other action is carried out, and ends in a [`Reply`].
//!
//! Nothing here allocates in proportion to what an initiator claims: lists are
//! bounded by constants of this crate, transfers by [`Limits`].

pub mod action;
pub mod cdb;
pub mod compare;
mod inquiry;
mod lba_status;
pub mod logical_unit;
mod mode;
pub mod nexus;
pub mod opcode;
mod parameter;
mod refusal;
pub mod reply;
mod report;
pub mod reservation;
pub mod sense;
#[cfg(test)]
mod testing;
pub mod unit;

pub use action::{Action, DataOut, Parameters};
pub use cdb::Command;
pub use lba_status::{LbaStatus, Provisioning};
pub use logical_unit::{LogicalUnit, NexusHandle, TooManyNexuses};
pub use nexus::{InitiatorPort, NexusId};
pub use reply::{Reply, Status};
pub use report::{LUNS_MAX, ReportLuns, decode_lun, encode_lun, reply_without_unit};
pub use reservation::Reservations;
pub use sense::{Sense, SenseFormat, SenseKey};
pub use unit::{Access, BlockSize, Identity, Limits, Naa, Unit};
