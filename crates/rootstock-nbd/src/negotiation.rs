//! The server's side of the handshake: fixed newstyle negotiation.
//!
//! The state machine knows no exports. When it needs one it asks, and the caller
//! answers; so opening an export may take its time without this crate waiting.

use crate::{
    buffer::InputBuffer,
    proto::{
        PAYLOAD_BYTES_MAX, ReplyStyle, STRING_BYTES_MAX, allocation, export_flag, handshake_flag,
        info, magic, option, option_reply,
    },
    request::{be32, be64},
};

mod answer;
mod options;

/// The longest data of an option, in bytes; longer data is skipped and answered
/// with `NBD_REP_ERR_TOO_BIG`.
pub const OPTION_BYTES_MAX: usize = 16 << 10;

/// The block size that costs the server least, in bytes, when an export says
/// nothing else ("Block size constraints").
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// The bytes a server sends first ("Newstyle negotiation").
#[must_use]
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&magic::GREETING.to_be_bytes());
    bytes[8..16].copy_from_slice(&magic::OPTION.to_be_bytes());
    let flags = (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES) as u16;
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// Which of the protocol's TLS modes the server is in ("Server-side
/// requirements").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsOffer {
    /// NOTLS.
    Off,
    /// SELECTIVETLS, with no export that insists.
    Optional,
    /// FORCEDTLS.
    Required,
}

/// Where a negotiation stands after the bytes so far. What was written to the
/// output is to be sent in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    NeedInput,
    /// The caller must answer before more bytes are looked at.
    Ask(Question),
    /// Send the output, do the TLS handshake, call [`Negotiation::secured`].
    StartTls,
    /// The client leaves: send the output and close.
    Finished,
    /// The transmission phase begins, on the export last asked for.
    Ready(Agreement),
}

/// What only the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Which exports are there? [`Negotiation::answer_list`].
    List,
    /// Is there such an export? [`Negotiation::answer_export`].
    Export {
        /// Its name, at most [`STRING_BYTES_MAX`] bytes.
        name: String,
        /// What for.
        purpose: Purpose,
    },
}

/// What an export is asked about for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be described; it is not used yet.
    Describe,
    /// To be used: keep it open when it exists.
    Use,
}

/// An export as the negotiation describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether a flush covers all connections.
    pub multi_conn: bool,
    /// A text for people; may be empty.
    pub description: String,
}

/// Why an export cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportRefusal {
    /// There is none of that name.
    Unknown {
        /// For people.
        text: String,
    },
    /// There is one, but not for this client or not now.
    Policy {
        /// For people.
        text: String,
    },
    /// The server is going down.
    Shutdown,
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The headers.
    pub style: ReplyStyle,
    /// Whether `base:allocation` was chosen for this export.
    pub block_status: bool,
    /// The flags told to the client ([`export_flag`]).
    pub export_flags: u16,
}

/// The client broke the rules, or was refused in a way that has no answer: send
/// the output and close the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// Flags this server did not offer ("Client flags").
    #[error("the client set unknown handshake flags: {flags:#010x}")]
    ClientFlags {
        /// What it set.
        flags: u32,
    },
    /// Not an option's first bytes.
    #[error("an option began with {magic:#018x} instead of IHAVEOPT")]
    OptionMagic {
        /// What was received.
        magic: u64,
    },
    /// A client without fixed newstyle may only name an export.
    #[error("the client sent option {option} without fixed newstyle negotiation")]
    NotFixed {
        /// The option.
        option: u32,
    },
    /// `NBD_OPT_EXPORT_NAME` cannot be answered with an error.
    #[error("the client chose export '{}' with NBD_OPT_EXPORT_NAME: {reason}", name.escape_debug())]
    ExportName {
        /// The name.
        name: String,
        /// Why it cannot have it.
        reason: String,
    },
    /// Bytes behind `NBD_OPT_STARTTLS` came outside TLS and would be taken for
    /// part of what TLS protects.
    #[error("the client sent {len_bytes} bytes in the clear after NBD_OPT_STARTTLS")]
    ClearAfterStartTls {
        /// How many.
        len_bytes: usize,
    },
}

/// The server's side of a handshake, after the [`greeting`] was sent.
#[derive(Debug)]
pub struct Negotiation {
    tls: TlsOffer,
    secured: bool,
    no_zeroes: bool,
    fixed: bool,
    style: ReplyStyle,
    /// The export whose `base:allocation` was chosen last.
    context: Option<String>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    Option,
    Skip { option: u32, left: u64 },
    Asked(Asked),
    TlsPending,
    Over,
}

/// What is answered when the caller has answered.
#[derive(Debug)]
enum Asked {
    List,
    ExportName {
        name: String,
    },
    Info {
        option: u32,
        name: String,
        wanted: Wanted,
    },
    Context {
        option: u32,
        name: String,
        matched: bool,
    },
}

/// Which optional information a client asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    name: bool,
    description: bool,
}

impl Negotiation {
    /// A negotiation with a new client.
    #[must_use]
    pub const fn new(tls: TlsOffer) -> Self {
        Self {
            tls,
            secured: false,
            no_zeroes: false,
            fixed: false,
            style: ReplyStyle::Simple,
            context: None,
            phase: Phase::ClientFlags,
        }
    }

    /// Whether TLS has begun.
    #[must_use]
    pub const fn is_secured(&self) -> bool {
        self.secured
    }

    /// TLS has begun: what was agreed in the clear is forgotten
    /// ("`NBD_OPT_STARTTLS`").
    pub fn secured(&mut self) {
        debug_assert!(
            matches!(self.phase, Phase::TlsPending),
            "TLS was asked for first"
        );
        self.secured = true;
        self.style = ReplyStyle::Simple;
        self.context = None;
        self.phase = Phase::Option;
    }

    /// Understands as much of `input` as it can, writing replies to `out`.
    ///
    /// # Errors
    /// [`NegotiationError`]: close the connection once `out` is sent.
    pub fn advance(
        &mut self,
        input: &mut InputBuffer,
        out: &mut Vec<u8>,
    ) -> Result<Progress, NegotiationError> {
        loop {
            let progress = match &mut self.phase {
                Phase::ClientFlags => {
                    let Some(bytes) = input.peek::<4>() else {
                        return Ok(Progress::NeedInput);
                    };
                    let flags = u32::from_be_bytes(*bytes);
                    input.take(4);
                    self.client_flags(flags)?;
                    None
                }
                Phase::Option => {
                    if !self.option(input, out)? {
                        return Ok(Progress::NeedInput);
                    }
                    self.progress(input)?
                }
                Phase::Skip { option, left } => {
                    let len = (*left).min(input.len() as u64);
                    input.take(len as usize);
                    *left -= len;
                    if *left > 0 {
                        return Ok(Progress::NeedInput);
                    }
                    let option = *option;
                    self.phase = Phase::Option;
                    let text = "the option's data is longer than this server reads";
                    answer::error(out, option, option_reply::ERR_TOO_BIG, text);
                    None
                }
                Phase::Asked(_) | Phase::TlsPending | Phase::Over => self.progress(input)?,
            };
            if let Some(progress) = progress {
                return Ok(progress);
            }
        }
    }

    /// What the phase means to the caller, when it is its turn.
    fn progress(&self, input: &InputBuffer) -> Result<Option<Progress>, NegotiationError> {
        Ok(match &self.phase {
            Phase::Asked(asked) => Some(Progress::Ask(asked.question())),
            Phase::TlsPending if !input.is_empty() => {
                return Err(NegotiationError::ClearAfterStartTls {
                    len_bytes: input.len(),
                });
            }
            Phase::TlsPending => Some(Progress::StartTls),
            Phase::Over => Some(Progress::Finished),
            Phase::ClientFlags | Phase::Option | Phase::Skip { .. } => None,
        })
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), NegotiationError> {
        if flags & !(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES) != 0 {
            return Err(NegotiationError::ClientFlags { flags });
        }
        self.fixed = flags & handshake_flag::FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & handshake_flag::NO_ZEROES != 0;
        self.phase = Phase::Option;
        Ok(())
    }

    /// One option's header and data; `false` when they are not all here.
    fn option(
        &mut self,
        input: &mut InputBuffer,
        out: &mut Vec<u8>,
    ) -> Result<bool, NegotiationError> {
        let Some(header) = input.peek::<16>() else {
            return Ok(false);
        };
        let (magic, option, len) = (be64(header), be32(&header[8..]), be32(&header[12..]));
        if magic != magic::OPTION {
            return Err(NegotiationError::OptionMagic { magic });
        }
        if !self.fixed && option != option::EXPORT_NAME {
            return Err(NegotiationError::NotFixed { option });
        }
        let len_bytes = len as usize;
        if len_bytes > OPTION_BYTES_MAX {
            input.take(16);
            if option == option::EXPORT_NAME {
                return Err(NegotiationError::ExportName {
                    name: String::new(),
                    reason: format!("the name has {len_bytes} bytes"),
                });
            }
            self.phase = Phase::Skip {
                option,
                left: len.into(),
            };
            return Ok(true);
        }
        if input.len() < 16 + len_bytes {
            return Ok(false);
        }
        let data = &input.take(16 + len_bytes)[16..];
        self.handle(option, data, out)?;
        Ok(true)
    }

    fn agreement(&self, name: &str, export: &ExportInfo) -> Agreement {
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_CACHE;
        if export.read_only {
            flags |= export_flag::READ_ONLY;
        } else {
            flags |= export_flag::SEND_TRIM
                | export_flag::SEND_WRITE_ZEROES
                | export_flag::SEND_FAST_ZERO;
        }
        if export.multi_conn {
            flags |= export_flag::CAN_MULTI_CONN;
        }
        if self.style != ReplyStyle::Simple {
            flags |= export_flag::SEND_DF;
        }
        Agreement {
            style: self.style,
            // "`NBD_OPT_SET_META_CONTEXT`": only for the same export, and never
            // with simple replies.
            block_status: self.context.as_deref() == Some(name),
            export_flags: flags,
        }
    }
}

impl Asked {
    fn question(&self) -> Question {
        match self {
            Self::List => Question::List,
            Self::ExportName { name } => Question::Export {
                name: name.clone(),
                purpose: Purpose::Use,
            },
            Self::Info { option, name, .. } => Question::Export {
                name: name.clone(),
                purpose: if *option == option::GO {
                    Purpose::Use
                } else {
                    Purpose::Describe
                },
            },
            Self::Context { name, .. } => Question::Export {
                name: name.clone(),
                purpose: Purpose::Describe,
            },
        }
    }
}

impl ExportRefusal {
    fn text(&self) -> &str {
        match self {
            Self::Unknown { text } | Self::Policy { text } => text,
            Self::Shutdown => "the server is shutting down",
        }
    }

    const fn reply(&self) -> u32 {
        match self {
            Self::Unknown { .. } => option_reply::ERR_UNKNOWN,
            Self::Policy { .. } => option_reply::ERR_POLICY,
            Self::Shutdown => option_reply::ERR_SHUTDOWN,
        }
    }
}

#[cfg(test)]
mod tests;
