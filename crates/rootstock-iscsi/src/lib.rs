//! The iSCSI protocol of a target, and an initiator's login, without I/O: bytes come in,
//! bytes and decisions go out.
//!
//! Sections are those of RFC 7143. The crate has the framing of PDUs with their
//! digests ([`frame`]), the format of text ([`text`]), names ([`name`]), the
//! negotiation of the operational keys ([`operational`]), CHAP ([`chap`]), and two state machines:
//! [`Login`] until a connection is in the full-feature phase, [`Session`] from then
//! on. What a SCSI command means it does not know: command blocks, data and
//! status pass through. Error recovery level 0, one connection per session.

pub mod chap;
pub mod frame;
pub mod initiator;
pub mod login;
pub mod name;
pub mod operational;
pub mod pdu;
pub mod session;
pub mod text;

pub use chap::{Algorithm, Exchange, Reflected};
pub use frame::{Digests, Frame, FrameError, HEADER_BYTES, decode, encode};
pub use login::{
    Account, Admission, Credentials, Established, Login, LoginError, Progress, Question, Status,
};
pub use operational::{Operational, OperationalError};
pub use session::{
    Command, Completion, Event, Filled, RejectReason, Session, SessionError, TaskAttribute,
    TaskFunction,
};
pub use text::{TextError, TextWriter, pairs};
