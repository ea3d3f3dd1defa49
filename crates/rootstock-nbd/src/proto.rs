//! The protocol's numbers: magics, options, flags, commands and errors.

/// The largest payload of a read or a write, in bytes: what every client may
/// count on and this server grants ("Block size constraints": 2^25).
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// The longest string, in bytes ("Conventions").
pub const STRING_BYTES_MAX: usize = 4096;

/// Magic numbers.
pub mod magic {
    /// `NBDMAGIC`, the first of the greeting ("Newstyle negotiation").
    pub const GREETING: u64 = 0x4e42_444d_4147_4943;
    /// `IHAVEOPT`, the second of the greeting, and of each option.
    pub const OPTION: u64 = 0x4948_4156_454f_5054;
    /// A reply to an option ("Fixed newstyle negotiation").
    pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    /// `NBD_REQUEST_MAGIC` ("Request message").
    pub const REQUEST: u32 = 0x2560_9513;
    /// `NBD_SIMPLE_REPLY_MAGIC` ("Simple reply message").
    pub const SIMPLE_REPLY: u32 = 0x6744_6698;
    /// `NBD_STRUCTURED_REPLY_MAGIC` ("Structured reply chunk message").
    pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
    /// `NBD_EXTENDED_REQUEST_MAGIC` (`EXTENDED_HEADERS`).
    pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
    /// `NBD_EXTENDED_REPLY_MAGIC` (`EXTENDED_HEADERS`).
    pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
}

/// "Handshake flags" and "Client flags": both sides use the same bits.
pub mod handshake_flag {
    /// `NBD_FLAG_FIXED_NEWSTYLE`.
    pub const FIXED_NEWSTYLE: u32 = 1;
    /// `NBD_FLAG_NO_ZEROES`.
    pub const NO_ZEROES: u32 = 2;
}

/// "Transmission flags".
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_CMD_FLUSH` is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_FUA` is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `NBD_CMD_TRIM` is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_CMD_WRITE_ZEROES` is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_CMD_FLAG_DF` is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `NBD_CMD_CACHE` is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `NBD_CMD_FLAG_FAST_ZERO` is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// "Option types".
pub mod option {
    /// Choose an export, without a way to say no.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Go on in TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// "Option reply types".
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit of every error.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The server's policy forbids it.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data is wrong.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Only inside TLS.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    /// Structured replies are refused once extended headers are agreed.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Information types of `NBD_REP_INFO`.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// "Block size constraints".
    pub const BLOCK_SIZE: u16 = 3;
}

/// "Command flags".
pub mod command_flag {
    /// On stable storage before the reply.
    pub const FUA: u16 = 1;
    /// Zeros with their space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One content chunk in the reply.
    pub const DF: u16 = 1 << 2;
    /// One extent in the reply.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros quickly or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is a payload's (`EXTENDED_HEADERS`).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// "Structured reply types" and their flag.
pub mod chunk {
    /// `NBD_REPLY_FLAG_DONE`: the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1;
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Bytes.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents with 32-bit lengths.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64-bit lengths (`EXTENDED_HEADERS`).
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The bit of every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// The one metadata context of the standard ("The `base:` metadata namespace").
pub mod allocation {
    /// Its name.
    pub const NAME: &str = "base:allocation";
    /// The id this server gives it.
    pub const CONTEXT_ID: u32 = 1;
    /// `NBD_STATE_HOLE`: nothing is allocated.
    pub const STATE_HOLE: u32 = 1;
    /// `NBD_STATE_ZERO`: reads as zeros.
    pub const STATE_ZERO: u32 = 2;
}

/// "Request types".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Give bytes.
    Read,
    /// Take bytes.
    Write,
    /// Leave, without a reply.
    Disconnect,
    /// Make everything answered so far durable.
    Flush,
    /// The bytes are not needed any more.
    Trim,
    /// The bytes will be read soon.
    Cache,
    /// Make the bytes zero.
    WriteZeroes,
    /// Say what is allocated.
    BlockStatus,
    /// Something this release does not know.
    Other(u16),
}

impl Command {
    /// The command with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Other(other),
        }
    }

    /// The command's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Other(number) => number,
        }
    }
}

/// "Error values".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum ErrorCode {
    /// The export is read-only.
    #[error("operation not permitted")]
    Perm = 1,
    /// The storage failed.
    #[error("input/output error")]
    Io = 5,
    /// The server's memory is short.
    #[error("out of memory")]
    NoMem = 12,
    /// The request makes no sense here.
    #[error("invalid argument")]
    Inval = 22,
    /// No space, or past the end of the device.
    #[error("no space left on device")]
    NoSpace = 28,
    /// Too long to answer in one chunk.
    #[error("value too large")]
    Overflow = 75,
    /// Not faster than a write.
    #[error("operation not supported")]
    NotSup = 95,
    /// The server is going down.
    #[error("server is shutting down")]
    Shutdown = 108,
}

impl ErrorCode {
    /// The error with this number; what is unexpected counts as
    /// [`ErrorCode::Inval`] ("Error values").
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        }
    }

    /// The error's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// Which headers both sides use in the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplyStyle {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests, extended replies.
    Extended,
}
