//! TFTP: boot programs for firmware that knows nothing better, as a state machine.
//!
//! Read-only, after RFC 1350 with the options of RFC 2347, 2348 (`blksize`),
//! 2349 (`timeout`, `tsize`) and 7440 (`windowsize`). [`First::of`] reads what
//! comes to the well-known port; each file that is sent is a [`Transfer`] with a
//! port of its own, which tells its driver what to send and when to look again.
//! The driver reads the file. A name is only ever compared with names: what it is
//! looked up in is the driver's.

mod packet;
mod request;
mod transfer;

#[cfg(test)]
mod tests;

pub use packet::{ErrorCode, OPTIONS_MAX, Packet, PacketError, Request};
pub use request::{First, ReadRequest, Refusal, Wanted};
pub use transfer::{
    Action, BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX, Outcome, TIMEOUT, TIMEOUT_SECONDS_MAX, TRIES_MAX,
    Transfer, WINDOW_BLOCKS_MAX,
};

/// The port that requests come to (RFC 1350, section 4).
pub const PORT: u16 = 69;

/// The longest packet that a client may send, in bytes. RFC 2347 allows requests of
/// 512; some firmware sends a little more.
pub const PACKET_BYTES_MAX: usize = 1500;
