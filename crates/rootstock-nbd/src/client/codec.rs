//! The client's messages, encoded and decoded.

use crate::{
    proto::{ErrorCode, allocation, chunk, magic, option_reply},
    reply::Extent,
    request::{be16, be32, be64},
};

/// The longest data of an answer to an option this client reads, in bytes.
pub const OPTION_REPLY_BYTES_MAX: usize = 16 << 10;

/// One answer to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionReply {
    /// See [`option_reply`].
    pub kind: u32,
    /// What came with it.
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Why the option was refused, for people.
    #[must_use]
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.data);
        let name = match self.kind {
            option_reply::ERR_UNSUP => "not supported",
            option_reply::ERR_POLICY => "forbidden by the server's policy",
            option_reply::ERR_INVALID => "invalid",
            option_reply::ERR_TLS_REQD => "TLS is required",
            option_reply::ERR_UNKNOWN => "no such export",
            option_reply::ERR_SHUTDOWN => "the server is shutting down",
            option_reply::ERR_TOO_BIG => "too big",
            _ => "refused",
        };
        if text.is_empty() {
            name.to_owned()
        } else {
            format!("{name} ({text})")
        }
    }
}

/// A reply's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// See [`chunk`]; a simple reply counts as [`chunk::NONE`].
    pub kind: u16,
    /// Whether it is the last of its reply.
    pub done: bool,
    /// Bytes that follow.
    pub len: u32,
    /// The error of a simple reply.
    pub simple_error: Option<ErrorCode>,
}

impl Chunk {
    /// The error of a simple reply, with the text it cannot have.
    pub(super) fn failure(&self) -> Option<(ErrorCode, String)> {
        self.simple_error.map(|code| (code, String::new()))
    }
}

/// A reply's header and its cookie: 16 bytes of a simple reply, 20 of a
/// structured one. `None` when it is neither.
#[must_use]
pub fn chunk(header: &[u8; 20]) -> Option<(Chunk, u64)> {
    let cookie = be64(&header[8..]);
    match be32(header) {
        magic::SIMPLE_REPLY => {
            let simple_error = match be32(&header[4..]) {
                0 => None,
                number => Some(ErrorCode::from_number(number)),
            };
            let chunk = Chunk {
                kind: chunk::NONE,
                done: true,
                len: 0,
                simple_error,
            };
            Some((chunk, cookie))
        }
        magic::STRUCTURED_REPLY => {
            let chunk = Chunk {
                kind: be16(&header[6..]),
                done: be16(&header[4..]) & chunk::FLAG_DONE != 0,
                len: be32(&header[16..]),
                simple_error: None,
            };
            Some((chunk, cookie))
        }
        _ => None,
    }
}

/// The error and the text of an error chunk.
#[must_use]
pub fn error(payload: &[u8]) -> Option<(ErrorCode, String)> {
    let (head, tail) = payload.split_first_chunk::<6>()?;
    let text = tail.get(..be16(&head[4..]) as usize)?;
    let text = String::from_utf8_lossy(text).into_owned();
    Some((ErrorCode::from_number(be32(head)), text))
}

/// The extents of a block status chunk, cut at `len_bytes`.
///
/// The context's id is the server's choice, and with one context there is
/// nothing to tell apart.
#[must_use]
pub fn block_status(payload: &[u8], len_bytes: u64) -> Option<Vec<Extent>> {
    let (_, descriptors) = payload.split_first_chunk::<4>()?;
    if descriptors.is_empty() || !descriptors.len().is_multiple_of(8) {
        return None;
    }
    let mut extents = Vec::with_capacity(descriptors.len() / 8);
    let mut left = len_bytes;
    for descriptor in descriptors.chunks_exact(8) {
        let len = u64::from(be32(descriptor));
        if len == 0 {
            return None;
        }
        let flags = be32(&descriptor[4..]);
        if left > 0 {
            extents.push(Extent {
                len: len.min(left),
                hole: flags & allocation::STATE_HOLE != 0,
                zero: flags & allocation::STATE_ZERO != 0,
            });
        }
        left = left.saturating_sub(len);
    }
    Some(extents)
}

/// Writes an option.
pub fn put_option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.extend_from_slice(&magic::OPTION.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// Writes a string behind its length.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
