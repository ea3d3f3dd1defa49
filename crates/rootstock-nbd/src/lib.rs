//! The NBD protocol as a state machine without I/O: bytes come in, bytes and
//! decisions go out.
//!
//! Sections in quotes are those of the protocol's own document, `doc/proto.md`
//! of the NBD project; `EXTENDED_HEADERS` is that document's extension of the
//! same name. What is supported is written in `docs/formats/nbd.md`.
//!
//! A server makes a [`Negotiation`], feeds it an [`InputBuffer`], answers its
//! questions, and goes on with a [`RequestDecoder`] and the writers in
//! [`reply`]. Nothing here allocates in proportion to what a peer claims: an
//! input buffer has one size, a write is handed on in pieces of it.

pub mod buffer;
pub mod client;
pub mod negotiation;
pub mod proto;
pub mod reply;
pub mod request;

#[cfg(test)]
mod loopback;

pub use buffer::InputBuffer;
pub use negotiation::{
    Agreement, ExportInfo, ExportRefusal, Negotiation, NegotiationError, Progress, Purpose,
    Question, TlsOffer,
};
pub use proto::{Command, ErrorCode, PAYLOAD_BYTES_MAX, ReplyStyle};
pub use request::{Message, Request, RequestDecoder, RequestError};
