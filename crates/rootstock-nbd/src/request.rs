//! Requests of the transmission phase: decoding, and what makes one valid.

use crate::{
    buffer::InputBuffer,
    proto::{Command, ErrorCode, PAYLOAD_BYTES_MAX, ReplyStyle, command_flag, magic},
    reply::Tag,
};

/// Pieces of a long write end at multiples of this many bytes of the device, so
/// that no block is written twice.
pub const PIECE_ALIGN_BYTES: u64 = 4096;

/// The longest payload that is read and thrown away to keep the stream in step,
/// in bytes; a longer claim ends the connection. Compact headers cannot claim
/// more.
pub const DRAIN_BYTES_MAX: u64 = u32::MAX as u64;

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// "Command flags".
    pub flags: u16,
    /// The client's own mark, repeated in the reply.
    pub cookie: u64,
    /// The first byte concerned.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Request {
    /// What the reply repeats.
    #[must_use]
    pub const fn tag(&self) -> Tag {
        Tag {
            cookie: self.cookie,
            offset: self.offset,
        }
    }

    /// Whether a flag of [`command_flag`] is set.
    #[must_use]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether a device of `size_bytes` can be asked this ("Request types" and
    /// "Error values"); the size is the device's at this moment, so a resize
    /// needs no new connection.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn check(&self, terms: &Terms) -> Result<(), ErrorCode> {
        if self.flags & !self.flags_allowed(terms) != 0 {
            return Err(ErrorCode::Inval);
        }
        let inside = self
            .offset
            .checked_add(self.len)
            .is_some_and(|end| end <= terms.size_bytes);
        match self.command {
            Command::Read if self.len > u64::from(PAYLOAD_BYTES_MAX) => {
                if self.has(command_flag::DF) {
                    return Err(ErrorCode::Overflow);
                }
                return Err(ErrorCode::Inval);
            }
            Command::Write | Command::Trim | Command::WriteZeroes if terms.read_only => {
                return Err(ErrorCode::Perm);
            }
            Command::Write | Command::WriteZeroes if !inside => return Err(ErrorCode::NoSpace),
            Command::Read | Command::Trim | Command::Cache if !inside => {
                return Err(ErrorCode::Inval);
            }
            Command::BlockStatus if !inside || self.len == 0 || !terms.block_status => {
                return Err(ErrorCode::Inval);
            }
            Command::Other(_) => return Err(ErrorCode::Inval),
            // A flush's range is reserved; what it holds does not matter.
            _ => {}
        }
        Ok(())
    }

    fn flags_allowed(&self, terms: &Terms) -> u16 {
        // FUA must be accepted on every command once it is offered.
        let own = match self.command {
            Command::Read if terms.style != ReplyStyle::Simple => command_flag::DF,
            Command::Write if terms.style == ReplyStyle::Extended => command_flag::PAYLOAD_LEN,
            Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            Command::BlockStatus => command_flag::REQ_ONE,
            _ => 0,
        };
        own | command_flag::FUA
    }
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The device's size now.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether `base:allocation` was chosen.
    pub block_status: bool,
    /// The agreed headers.
    pub style: ReplyStyle,
}

/// What a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A request without a payload.
    Request(Request),
    /// A write, or a piece of one: pieces come in order, without gaps.
    Write {
        /// The whole request.
        request: Request,
        /// Where this piece goes.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
        /// Whether the write is complete: time for its reply.
        last: bool,
    },
    /// A request that cannot be served; its payload is gone from the stream.
    Refused {
        /// The request.
        request: Request,
        /// What to answer.
        code: ErrorCode,
    },
}

/// The stream is out of step: close the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a request's first bytes.
    #[error("a request began with {magic:#010x} instead of {expected:#010x}")]
    Magic {
        /// What was received.
        magic: u32,
        /// What the agreed headers begin with.
        expected: u32,
    },
    /// A payload beyond reason.
    #[error("a request claims a payload of {len} bytes, and the limit is {DRAIN_BYTES_MAX}")]
    Payload {
        /// What it claims.
        len: u64,
    },
}

/// Divides the received bytes into requests.
#[derive(Debug)]
pub struct RequestDecoder {
    extended: bool,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Payload {
        request: Request,
        done: u64,
    },
    Drain {
        request: Request,
        left: u64,
        code: ErrorCode,
    },
}

impl RequestDecoder {
    /// A decoder for the agreed headers.
    #[must_use]
    pub const fn new(style: ReplyStyle) -> Self {
        Self {
            extended: matches!(style, ReplyStyle::Extended),
            state: State::Header,
        }
    }

    /// Whether the last message was complete: a connection that ends here was
    /// not cut in the middle of one.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header)
    }

    /// The next message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`RequestError`] when the stream makes no sense any more.
    pub fn next<'a>(
        &mut self,
        input: &'a mut InputBuffer,
    ) -> Result<Option<Message<'a>>, RequestError> {
        if matches!(self.state, State::Header) {
            let Some(request) = self.header(input)? else {
                return Ok(None);
            };
            match self.payload_bytes(&request) {
                0 if self.extended && request.command == Command::Write && request.len > 0 => {
                    // Without the payload flag there is no payload, and a write
                    // without one is refused.
                    let code = ErrorCode::Inval;
                    return Ok(Some(Message::Refused { request, code }));
                }
                0 if request.command != Command::Write => {
                    return Ok(Some(Message::Request(request)));
                }
                len if request.command == Command::Write && len <= PAYLOAD_BYTES_MAX.into() => {
                    self.state = State::Payload { request, done: 0 };
                }
                len if len <= DRAIN_BYTES_MAX => {
                    self.state = State::Drain {
                        request,
                        left: len,
                        code: ErrorCode::Inval,
                    };
                }
                len => return Err(RequestError::Payload { len }),
            }
        }
        Ok(self.payload(input))
    }

    fn payload<'a>(&mut self, input: &'a mut InputBuffer) -> Option<Message<'a>> {
        match self.state {
            State::Header => None,
            State::Payload { request, done } => {
                let left = request.len - done;
                let offset = request.offset.wrapping_add(done);
                let len = piece_bytes(input, offset, left)?;
                let last = len as u64 == left;
                self.state = if last {
                    State::Header
                } else {
                    let done = done + len as u64;
                    State::Payload { request, done }
                };
                Some(Message::Write {
                    request,
                    offset,
                    data: input.take(len),
                    last,
                })
            }
            State::Drain {
                request,
                left,
                code,
            } => {
                let len = left.min(input.len() as u64);
                input.take(len as usize);
                if len == left {
                    self.state = State::Header;
                    return Some(Message::Refused { request, code });
                }
                let left = left - len;
                self.state = State::Drain {
                    request,
                    left,
                    code,
                };
                None
            }
        }
    }

    fn header(&self, input: &mut InputBuffer) -> Result<Option<Request>, RequestError> {
        if self.extended {
            let Some(bytes) = input.peek::<EXTENDED_BYTES>() else {
                return Ok(None);
            };
            let request = request(bytes, magic::EXTENDED_REQUEST, be64(&bytes[24..]))?;
            input.take(EXTENDED_BYTES);
            Ok(Some(request))
        } else {
            let Some(bytes) = input.peek::<COMPACT_BYTES>() else {
                return Ok(None);
            };
            let request = request(bytes, magic::REQUEST, be32(&bytes[24..]).into())?;
            input.take(COMPACT_BYTES);
            Ok(Some(request))
        }
    }

    fn payload_bytes(&self, request: &Request) -> u64 {
        let has_payload = if self.extended {
            request.has(command_flag::PAYLOAD_LEN)
        } else {
            request.command == Command::Write
        };
        if has_payload { request.len } else { 0 }
    }
}

/// Bytes of a compact request header ("Request message").
pub const COMPACT_BYTES: usize = 28;

/// Bytes of an extended request header (`EXTENDED_HEADERS`).
pub const EXTENDED_BYTES: usize = 32;

/// Writes a request's header, as a client does.
pub fn encode(out: &mut Vec<u8>, style: ReplyStyle, request: &Request) {
    let extended = style == ReplyStyle::Extended;
    let magic = if extended {
        magic::EXTENDED_REQUEST
    } else {
        magic::REQUEST
    };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&request.flags.to_be_bytes());
    out.extend_from_slice(&request.command.number().to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
    out.extend_from_slice(&request.offset.to_be_bytes());
    if extended {
        out.extend_from_slice(&request.len.to_be_bytes());
    } else {
        out.extend_from_slice(&(request.len as u32).to_be_bytes());
    }
}

fn request(bytes: &[u8], expected: u32, len: u64) -> Result<Request, RequestError> {
    let magic = be32(bytes);
    if magic != expected {
        return Err(RequestError::Magic { magic, expected });
    }
    Ok(Request {
        flags: be16(&bytes[4..]),
        command: Command::from_number(be16(&bytes[6..])),
        cookie: be64(&bytes[8..]),
        offset: be64(&bytes[16..]),
        len,
    })
}

/// How much of a write can be handed on now: all that is left, or as much as
/// the buffer can hold, ending at a block of the device.
fn piece_bytes(input: &InputBuffer, offset: u64, left: u64) -> Option<usize> {
    let received = input.len() as u64;
    if received >= left {
        return Some(left as usize);
    }
    let piece_max = input.capacity_bytes() as u64 / 2;
    if received < piece_max {
        return None;
    }
    let beyond = offset.wrapping_add(received) % PIECE_ALIGN_BYTES;
    Some((received - beyond) as usize)
}

pub(crate) fn be16(bytes: &[u8]) -> u16 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

pub(crate) fn be64(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
