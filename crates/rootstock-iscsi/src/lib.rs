//! The iSCSI protocol of a target, without I/O: bytes come in, bytes and
//! decisions go out.
//!
//! Sections are those of RFC 7143. So far the crate has the framing of PDUs
//! with their digests ([`frame`]), the format of text ([`text`]), the
//! negotiation of the operational keys ([`operational`]), and CHAP ([`chap`]).
//! Login phases, the full-feature phase and SCSI are not written yet, and
//! nothing uses it.

pub mod chap;
pub mod frame;
pub mod operational;
pub mod text;

pub use chap::{Algorithm, Exchange, Reflected};
pub use frame::{Digests, Frame, FrameError, HEADER_BYTES, decode, encode};
pub use operational::{Operational, OperationalError};
pub use text::{TextError, TextWriter, pairs};
