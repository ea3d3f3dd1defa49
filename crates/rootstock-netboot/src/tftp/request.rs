//! What is asked for, by clients of every degree of care, and why it may be refused.

use super::packet::{self, ErrorCode, Packet, Request};

/// The range of block sizes (RFC 2348), in bytes.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 8..=65_464;

/// The range of window sizes (RFC 7440, section 3), in blocks.
const WINDOW_BLOCKS: std::ops::RangeInclusive<u32> = 1..=65_535;

/// The range of time-outs (RFC 2349), in seconds.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<u32> = 1..=255;

/// What a packet to the well-known port means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// A file is asked for.
    Read(ReadRequest),
    /// Something that is not served: the answer is [`Refusal::packet`].
    Refused(Refusal),
    /// Nothing that has an answer.
    Ignored,
}

/// A request for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// The file's name: parts with single slashes between them, none at either end.
    pub name: String,
    /// The options it came with.
    pub wanted: Wanted,
}

/// The options of a request that mean something here. One with a value that its
/// standard does not allow counts as not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `blksize` (RFC 2348), in bytes.
    pub block_bytes: Option<u16>,
    /// `windowsize` (RFC 7440), in blocks.
    pub window_blocks: Option<u16>,
    /// `timeout` (RFC 2349), in seconds.
    pub timeout_seconds: Option<u8>,
    /// `tsize` (RFC 2349): the client wants to know the file's size.
    pub asks_size: bool,
    /// There were options at all: a client of RFC 2347, not of 1350 alone.
    pub has_options: bool,
}

/// Why a file is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client wants to write.
    #[error("this server only sends files")]
    Write,
    /// A mode that would change the file's bytes, or none of the standard's.
    #[error("transfer mode {mode} is not served: use octet (binary)")]
    Mode {
        /// The mode.
        mode: String,
    },
    /// No name, or no mode.
    #[error("the request is not complete")]
    Malformed,
    /// There is no such file.
    #[error("there is no boot file {name}")]
    NotFound {
        /// Its name.
        name: String,
    },
    /// It is another machine's.
    #[error("boot file {name} is another machine's")]
    Denied {
        /// Its name.
        name: String,
    },
    /// More blocks than the client can count.
    #[error(
        "{len_bytes} bytes do not fit in 65535 blocks of {block_bytes}: ask with a blksize, or use HTTP"
    )]
    TooManyBlocks {
        /// The file's length.
        len_bytes: u64,
        /// The block size that the client understands.
        block_bytes: u16,
    },
    /// The disk does not give it.
    #[error("the server could not read the file")]
    Unreadable,
    /// The server ends.
    #[error("the server is stopping: ask again")]
    Stopping,
}

impl Refusal {
    /// The packet that says so.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let code = match self {
            Self::Write | Self::Mode { .. } | Self::Malformed => ErrorCode::ILLEGAL,
            Self::NotFound { .. } => ErrorCode::NOT_FOUND,
            Self::Denied { .. } => ErrorCode::ACCESS,
            Self::TooManyBlocks { .. } | Self::Unreadable | Self::Stopping => ErrorCode::OTHER,
        };
        packet::error(code, &self.to_string())
    }
}

impl First {
    /// Reads a packet that came to the well-known port.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match Packet::parse(bytes) {
            Ok(Packet::Read(request)) => read(&request),
            Ok(Packet::Write(_)) => Self::Refused(Refusal::Write),
            Ok(_) => Self::Ignored,
            // Only a request is worth an answer: two servers must not play ball.
            Err(_) if bytes.starts_with(&[0, 1]) => Self::Refused(Refusal::Malformed),
            Err(_) => Self::Ignored,
        }
    }
}

fn read(request: &Request<'_>) -> First {
    let name = normalised(request.name);
    if name.is_empty() {
        return First::Refused(Refusal::Malformed);
    }
    // Netascii rewrites line ends, mail has been obsolete since RFC 1350.
    if !request.mode.eq_ignore_ascii_case(b"octet") {
        let mode = String::from_utf8_lossy(request.mode);
        let mode = mode.chars().take(32).collect();
        return First::Refused(Refusal::Mode { mode });
    }
    First::Read(ReadRequest {
        name,
        wanted: wanted(&request.options),
    })
}

fn wanted(options: &[(&[u8], &[u8])]) -> Wanted {
    let find = |name: &str| {
        let mut found = options.iter();
        found.find(|option| option.0.eq_ignore_ascii_case(name.as_bytes()))
    };
    let number = |name: &str, range: std::ops::RangeInclusive<u32>| {
        let text = std::str::from_utf8(find(name)?.1).ok()?;
        // `parse` would take a plus sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits)?;
        range.contains(&number).then_some(number)
    };
    // The ranges fit the types.
    let short = |name, range| number(name, range).and_then(|number| u16::try_from(number).ok());
    let seconds = number("timeout", TIMEOUT_SECONDS);
    Wanted {
        block_bytes: short("blksize", BLOCK_BYTES),
        window_blocks: short("windowsize", WINDOW_BLOCKS),
        timeout_seconds: seconds.and_then(|seconds| u8::try_from(seconds).ok()),
        asks_size: find("tsize").is_some(),
        has_options: !options.is_empty(),
    }
}

/// A name as the table of files has it. Firmware puts slashes or backslashes before
/// it, and adds what stood in memory behind an option 67 without its NUL: 0xFF and
/// more (netboot.xyz's notes on TFTP file names list such machines, a Lenovo T460
/// among them). No letter of UTF-8 has that byte, so the name ends there. `..`
/// cannot lead above the root.
fn normalised(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0xFF);
    let name = &name[..end.unwrap_or(name.len())];
    let junk = |byte: &u8| !byte.is_ascii_graphic();
    let graphic = name.iter().rposition(|byte| !junk(byte));
    let name = String::from_utf8_lossy(&name[..graphic.map_or(0, |last| last + 1)]);
    let mut parts = Vec::new();
    for part in name.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
