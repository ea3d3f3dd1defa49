//! TFTP's packets as bytes (RFC 1350, section 5, and RFC 2347).

use std::fmt;

/// The most options of a packet that are read; what follows them is ignored.
pub const OPTIONS_MAX: usize = 16;

/// The longest message of an error that is written, in bytes. It has to fit a
/// firmware's line.
const MESSAGE_BYTES_MAX: usize = 200;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS_ACK: u16 = 6;

/// Why bytes are no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Fewer bytes than the packet's kind has.
    #[error("the TFTP packet ends too early")]
    Short,
    /// No operation of the standards.
    #[error("TFTP has no operation {0}")]
    Operation(u16),
}

/// What went wrong, as a number (RFC 1350, appendix; RFC 2347).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// Not defined: the message says it.
    pub const OTHER: Self = Self(0);
    /// There is no such file.
    pub const NOT_FOUND: Self = Self(1);
    /// The client may not have it.
    pub const ACCESS: Self = Self(2);
    /// The operation is not served.
    pub const ILLEGAL: Self = Self(4);
    /// The options are not what the client can do, or it only wanted to see them.
    pub const OPTIONS: Self = Self(8);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A request to read or write, as its sender wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file's name.
    pub name: &'a [u8],
    /// The transfer mode.
    pub mode: &'a [u8],
    /// Names of options, each with its value.
    pub options: Vec<(&'a [u8], &'a [u8])>,
}

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ.
    Read(Request<'a>),
    /// WRQ.
    Write(Request<'a>),
    /// A block of the file.
    Data {
        /// Its number, from 1, modulo 65,536.
        block: u16,
        /// Its bytes: fewer than the block size make it the last.
        bytes: &'a [u8],
    },
    /// Everything up to a block has come.
    Ack {
        /// Its number.
        block: u16,
    },
    /// The end of the transfer.
    Error {
        /// Why.
        code: ErrorCode,
        /// Why, for people.
        message: &'a [u8],
    },
    /// OACK: the options that the server agrees to.
    OptionsAck(Vec<(&'a [u8], &'a [u8])>),
}

impl<'a> Packet<'a> {
    /// Reads a packet. What stands behind its last complete field is ignored: there
    /// is firmware that sends its whole buffer.
    ///
    /// # Errors
    /// When a field that its kind must have is missing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (operation, rest) = number(bytes)?;
        Ok(match operation {
            READ => Self::Read(request(rest)?),
            WRITE => Self::Write(request(rest)?),
            DATA => {
                let (block, bytes) = number(rest)?;
                Self::Data { block, bytes }
            }
            ACK => Self::Ack {
                block: number(rest)?.0,
            },
            ERROR => {
                let (code, rest) = number(rest)?;
                // Not every sender ends its message with the NUL.
                let message = text(rest).map_or(rest, |(message, _)| message);
                Self::Error {
                    code: ErrorCode(code),
                    message,
                }
            }
            OPTIONS_ACK => Self::OptionsAck(options(rest)),
            other => return Err(PacketError::Operation(other)),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let operation = match self {
            Self::Read(_) => READ,
            Self::Write(_) => WRITE,
            Self::Data { .. } => DATA,
            Self::Ack { .. } => ACK,
            Self::Error { .. } => ERROR,
            Self::OptionsAck(_) => OPTIONS_ACK,
        };
        bytes.extend(operation.to_be_bytes());
        match self {
            Self::Read(request) | Self::Write(request) => {
                put(&mut bytes, request.name);
                put(&mut bytes, request.mode);
                put_pairs(&mut bytes, &request.options);
            }
            Self::Data { block, bytes: data } => {
                bytes.extend(block.to_be_bytes());
                bytes.extend(*data);
            }
            Self::Ack { block } => bytes.extend(block.to_be_bytes()),
            Self::Error { code, message } => {
                bytes.extend(code.0.to_be_bytes());
                put(&mut bytes, message);
            }
            Self::OptionsAck(pairs) => put_pairs(&mut bytes, pairs),
        }
        bytes
    }
}

/// The four bytes before a block's data.
#[must_use]
pub(super) fn data_header(block: u16) -> [u8; 4] {
    let (operation, block) = (DATA.to_be_bytes(), block.to_be_bytes());
    [operation[0], operation[1], block[0], block[1]]
}

/// An error packet whose message any screen can show.
#[must_use]
pub(super) fn error(code: ErrorCode, message: &str) -> Vec<u8> {
    let shown = |byte: u8| match byte {
        b' '..=b'~' => byte,
        _ => b'?',
    };
    let message: Vec<u8> = message.bytes().map(shown).take(MESSAGE_BYTES_MAX).collect();
    let message = &message;
    Packet::Error { code, message }.encode()
}

fn number(bytes: &[u8]) -> Result<(u16, &[u8]), PacketError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(PacketError::Short)?;
    Ok((u16::from_be_bytes(*number), rest))
}

/// A field up to its NUL, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn request(bytes: &[u8]) -> Result<Request<'_>, PacketError> {
    let (name, rest) = text(bytes).ok_or(PacketError::Short)?;
    let (mode, rest) = text(rest).ok_or(PacketError::Short)?;
    Ok(Request {
        name,
        mode,
        options: options(rest),
    })
}

fn options(mut bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut pairs = Vec::new();
    while pairs.len() < OPTIONS_MAX
        && let Some((name, rest)) = text(bytes)
        && let Some((value, rest)) = text(rest)
        && !name.is_empty()
    {
        pairs.push((name, value));
        bytes = rest;
    }
    pairs
}

/// A field ends at its first NUL, also when its maker did not know.
fn put(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.extend(field.iter().take_while(|byte| **byte != 0));
    bytes.push(0);
}

fn put_pairs(bytes: &mut Vec<u8>, pairs: &[(&[u8], &[u8])]) {
    for (name, value) in pairs.iter().take(OPTIONS_MAX) {
        put(bytes, name);
        put(bytes, value);
    }
}
