//! A small client: one request at a time over any stream of bytes.
//!
//! It reads foreign disk images through `qemu-nbd --read-only --socket`, so it
//! knows reads and block status, and nothing that writes.

use std::io::{self, Read, Write};

use rootstock_core::{ByteRange, Extents};

use crate::{
    proto::{
        Command, ErrorCode, PAYLOAD_BYTES_MAX, ReplyStyle, STRING_BYTES_MAX, allocation, chunk,
        export_flag, handshake_flag, info, magic, option, option_reply,
    },
    reply::Extent,
    request::{Request, be16, be32, be64, encode},
};

pub mod codec;

use codec::{Chunk, OptionReply};

/// Extents in one block status reply this client accepts.
pub const EXTENTS_MAX: usize = 1 << 16;

/// Replies to one option this client reads before it gives up.
const OPTION_REPLIES_MAX: usize = 1 << 10;

/// Chunks in the reply to one read this client accepts.
const CHUNKS_MAX: usize = 1 << 17;

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The stream failed.
    #[error("the connection to the NBD server failed while {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server does not speak the protocol, or too old a form of it.
    #[error("the NBD server broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// The export cannot be had.
    #[error("the NBD server refused export '{}': {reason}", export.escape_debug())]
    Refused {
        /// The export.
        export: String,
        /// What the server said.
        reason: String,
    },
    /// A request failed; the connection is still good.
    #[error("the NBD server could not {doing} {len_bytes} B at byte {offset_bytes}: {code}{text}")]
    Failed {
        /// What was asked.
        doing: &'static str,
        /// From where.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
        /// The server's error.
        code: ErrorCode,
        /// The server's words, if any, after a colon.
        text: String,
    },
}

impl ClientError {
    fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> ClientError {
    move |source| ClientError::Io { doing, source }
}

/// A connection to one export.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    size_bytes: u64,
    export_flags: u16,
    structured: bool,
    block_status: bool,
    cookie: u64,
    scratch: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    /// Negotiates `export` with structured replies and `base:allocation`, and
    /// does without them when the server does not know them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(stream: S, export: &str) -> Result<Self, ClientError> {
        let mut client = Self {
            stream,
            size_bytes: 0,
            export_flags: 0,
            structured: false,
            block_status: false,
            cookie: 0,
            scratch: Vec::new(),
        };
        client.greet()?;
        client.structured = client
            .option(option::STRUCTURED_REPLY, &[], export, |_| Ok(()))?
            .is_ok();
        if client.structured {
            client.choose_context(export)?;
        }
        client.go(export)?;
        Ok(client)
    }

    /// The export's size in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether [`Client::block_status`] can be asked.
    #[must_use]
    pub const fn has_block_status(&self) -> bool {
        self.block_status
    }

    /// Whether several connections may be used at once.
    #[must_use]
    pub const fn multi_conn(&self) -> bool {
        self.export_flags & export_flag::CAN_MULTI_CONN != 0
    }

    /// Fills `buffer` from `offset_bytes`.
    ///
    /// # Errors
    /// [`ClientError::Failed`] when the server says so; the connection is then
    /// still good. After any other error it is not.
    pub fn read_exact_at(
        &mut self,
        offset_bytes: u64,
        buffer: &mut [u8],
    ) -> Result<(), ClientError> {
        let mut offset = offset_bytes;
        for part in buffer.chunks_mut(PAYLOAD_BYTES_MAX as usize) {
            self.read_part(offset, part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// What lies from `offset_bytes` on: at least one extent, and none that
    /// passes `len_bytes`.
    ///
    /// # Errors
    /// As [`Client::read_exact_at`], and when `base:allocation` was not agreed.
    pub fn block_status(
        &mut self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<Extent>, ClientError> {
        if !self.block_status {
            return Err(ClientError::protocol("base:allocation was not agreed"));
        }
        let len_bytes = len_bytes.min(crate::reply::COMPACT_EXTENT_BYTES_MAX);
        let request = self.send(Command::BlockStatus, offset_bytes, len_bytes)?;
        let mut extents = Vec::new();
        let mut failure = None;
        loop {
            let chunk = self.chunk(request.cookie)?;
            match chunk.kind {
                chunk::NONE => failure = chunk.failure().or(failure),
                chunk::BLOCK_STATUS => {
                    let payload = self.payload(chunk.len, 4 + 8 * EXTENTS_MAX)?;
                    extents = codec::block_status(payload, len_bytes)
                        .ok_or_else(|| ClientError::protocol("a malformed block status"))?;
                }
                kind if kind & chunk::ERROR_BIT != 0 => failure = Some(self.error(chunk.len)?),
                kind => return Err(unexpected(kind)),
            }
            if chunk.done {
                break;
            }
        }
        if let Some((code, text)) = failure {
            return Err(failed("say what is in", &request, code, text));
        }
        if extents.is_empty() {
            return Err(ClientError::protocol("a block status without extents"));
        }
        Ok(extents)
    }

    /// Says goodbye and gives the stream back ("Terminating the transmission
    /// phase").
    ///
    /// # Errors
    /// When the stream fails.
    pub fn disconnect(mut self) -> Result<S, ClientError> {
        self.send(Command::Disconnect, 0, 0)?;
        Ok(self.stream)
    }

    fn greet(&mut self) -> Result<(), ClientError> {
        let mut greeting = [0; 18];
        self.stream
            .read_exact(&mut greeting)
            .map_err(io("reading the greeting"))?;
        let flags = u32::from(be16(&greeting[16..]));
        if be64(&greeting) != magic::GREETING
            || be64(&greeting[8..]) != magic::OPTION
            || flags & handshake_flag::FIXED_NEWSTYLE == 0
        {
            return Err(ClientError::protocol("it does not offer fixed newstyle"));
        }
        let flags = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        self.write(&flags.to_be_bytes())
    }

    fn choose_context(&mut self, export: &str) -> Result<(), ClientError> {
        let mut data = Vec::new();
        codec::put_string(&mut data, export);
        data.extend_from_slice(&1_u32.to_be_bytes());
        codec::put_string(&mut data, allocation::NAME);
        let mut chosen = false;
        let answer = self.option(option::SET_META_CONTEXT, &data, export, |reply| {
            chosen |= reply.kind == option_reply::META_CONTEXT
                && reply.data.get(4..) == Some(allocation::NAME.as_bytes());
            Ok(())
        })?;
        self.block_status = answer.is_ok() && chosen;
        Ok(())
    }

    fn go(&mut self, export: &str) -> Result<(), ClientError> {
        let mut data = Vec::new();
        codec::put_string(&mut data, export);
        data.extend_from_slice(&1_u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        let mut told = None;
        let answer = self.option(option::GO, &data, export, |reply| {
            if reply.kind == option_reply::INFO && be16(&reply.data) == info::EXPORT {
                let [_, _, fields @ ..] = reply.data.as_slice() else {
                    return Err(ClientError::protocol("information cut short"));
                };
                if fields.len() != 10 {
                    return Err(ClientError::protocol("information of a wrong length"));
                }
                told = Some((be64(fields), be16(&fields[8..])));
            }
            Ok(())
        })?;
        if let Err(reason) = answer {
            let export = export.to_owned();
            return Err(ClientError::Refused { export, reason });
        }
        let (size_bytes, export_flags) =
            told.ok_or_else(|| ClientError::protocol("it did not tell the export's size"))?;
        self.size_bytes = size_bytes;
        self.export_flags = export_flags;
        Ok(())
    }

    /// Sends an option and shows each reply before the last to `each`. The inner
    /// error is the server's refusal.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        export: &str,
        mut each: impl FnMut(&OptionReply) -> Result<(), ClientError>,
    ) -> Result<Result<(), String>, ClientError> {
        if export.len() > STRING_BYTES_MAX {
            return Err(ClientError::Refused {
                export: export.chars().take(64).collect(),
                reason: format!("the name is longer than {STRING_BYTES_MAX} bytes"),
            });
        }
        let mut message = Vec::new();
        codec::put_option(&mut message, option, data);
        self.write(&message)?;
        for _ in 0..OPTION_REPLIES_MAX {
            let reply = self.option_reply(option)?;
            if reply.kind == option_reply::ACK {
                return Ok(Ok(()));
            }
            if reply.kind & option_reply::ERROR != 0 {
                return Ok(Err(reply.reason()));
            }
            each(&reply)?;
        }
        Err(ClientError::protocol("too many replies to one option"))
    }

    fn option_reply(&mut self, option: u32) -> Result<OptionReply, ClientError> {
        let mut header = [0; 20];
        let doing = "reading the answer to an option";
        self.stream.read_exact(&mut header).map_err(io(doing))?;
        if be64(&header) != magic::OPTION_REPLY || be32(&header[8..]) != option {
            return Err(ClientError::protocol("an answer to no question"));
        }
        let kind = be32(&header[12..]);
        let len = be32(&header[16..]) as usize;
        if len > codec::OPTION_REPLY_BYTES_MAX {
            return Err(ClientError::protocol("an answer beyond all bounds"));
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).map_err(io(doing))?;
        Ok(OptionReply { kind, data })
    }

    fn read_part(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let request = self.send(Command::Read, offset, buffer.len() as u64)?;
        if !self.structured {
            return self.read_simple(&request, buffer);
        }
        let mut filled = Extents::new();
        let mut failure = None;
        for _ in 0..CHUNKS_MAX {
            let chunk = self.chunk(request.cookie)?;
            match chunk.kind {
                chunk::NONE => failure = chunk.failure().or(failure),
                chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                    self.content(&chunk, offset, buffer, &mut filled)?;
                }
                kind if kind & chunk::ERROR_BIT != 0 => failure = Some(self.error(chunk.len)?),
                kind => return Err(unexpected(kind)),
            }
            if !chunk.done {
                continue;
            }
            if let Some((code, text)) = failure {
                return Err(failed("read", &request, code, text));
            }
            if !filled.contains(ByteRange::new(0, buffer.len() as u64)) {
                return Err(ClientError::protocol("a read answered in part"));
            }
            return Ok(());
        }
        Err(ClientError::protocol("a read answered in too many chunks"))
    }

    fn read_simple(&mut self, request: &Request, buffer: &mut [u8]) -> Result<(), ClientError> {
        let chunk = self.chunk(request.cookie)?;
        if let Some(code) = chunk.simple_error {
            return Err(failed("read", request, code, String::new()));
        }
        self.stream
            .read_exact(buffer)
            .map_err(io("reading the bytes of a read"))
    }

    /// Reads one content chunk of a read into its place.
    fn content(
        &mut self,
        chunk: &Chunk,
        start: u64,
        buffer: &mut [u8],
        filled: &mut Extents,
    ) -> Result<(), ClientError> {
        let mut head = [0; 12];
        let head_len = if chunk.kind == chunk::OFFSET_DATA {
            8
        } else {
            12
        };
        if (chunk.len as usize) < head_len
            || (chunk.kind == chunk::OFFSET_HOLE && chunk.len as usize != head_len)
        {
            return Err(ClientError::protocol("a content chunk of a wrong length"));
        }
        self.stream
            .read_exact(&mut head[..head_len])
            .map_err(io("reading a chunk"))?;
        let len = match chunk.kind {
            chunk::OFFSET_DATA => u64::from(chunk.len) - 8,
            _ => u64::from(be32(&head[8..])),
        };
        let place = be64(&head)
            .checked_sub(start)
            .filter(|at| {
                at.checked_add(len)
                    .is_some_and(|end| end <= buffer.len() as u64)
            })
            .filter(|at| filled.within(ByteRange::new(*at, len)).next().is_none())
            .ok_or_else(|| ClientError::protocol("bytes outside what was asked"))?;
        filled.insert(ByteRange::new(place, len));
        let target = &mut buffer[place as usize..(place + len) as usize];
        if chunk.kind == chunk::OFFSET_HOLE {
            target.fill(0);
            return Ok(());
        }
        self.stream
            .read_exact(target)
            .map_err(io("reading the bytes of a read"))
    }

    fn error(&mut self, len: u32) -> Result<(ErrorCode, String), ClientError> {
        let payload = self.payload(len, 14 + STRING_BYTES_MAX)?;
        codec::error(payload).ok_or_else(|| ClientError::protocol("a malformed error"))
    }

    fn payload(&mut self, len: u32, len_max: usize) -> Result<&[u8], ClientError> {
        let len = len as usize;
        if len > len_max {
            return Err(ClientError::protocol("a chunk beyond all bounds"));
        }
        self.scratch.resize(len, 0);
        self.stream
            .read_exact(&mut self.scratch)
            .map_err(io("reading a chunk"))?;
        Ok(&self.scratch)
    }

    /// The next reply header; there is one request at a time, so it is its own.
    fn chunk(&mut self, cookie: u64) -> Result<Chunk, ClientError> {
        let mut header = [0; 20];
        let doing = "reading a reply";
        self.stream
            .read_exact(&mut header[..16])
            .map_err(io(doing))?;
        if be32(&header) == magic::STRUCTURED_REPLY {
            self.stream
                .read_exact(&mut header[16..])
                .map_err(io(doing))?;
        }
        match codec::chunk(&header) {
            Some((chunk, got)) if got == cookie => Ok(chunk),
            Some(_) => Err(ClientError::protocol("a reply to no request")),
            None => Err(ClientError::protocol("a reply with a wrong magic")),
        }
    }

    fn send(&mut self, command: Command, offset: u64, len: u64) -> Result<Request, ClientError> {
        self.cookie += 1;
        let request = Request {
            command,
            flags: 0,
            cookie: self.cookie,
            offset,
            len,
        };
        let mut message = Vec::with_capacity(28);
        encode(&mut message, ReplyStyle::Simple, &request);
        self.write(&message)?;
        Ok(request)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let doing = "sending";
        self.stream.write_all(bytes).map_err(io(doing))?;
        self.stream.flush().map_err(io(doing))
    }
}

fn unexpected(kind: u16) -> ClientError {
    ClientError::protocol(format!("a chunk of unexpected type {kind}"))
}

fn failed(doing: &'static str, request: &Request, code: ErrorCode, text: String) -> ClientError {
    ClientError::Failed {
        doing,
        offset_bytes: request.offset,
        len_bytes: request.len,
        code,
        text: if text.is_empty() {
            text
        } else {
            format!(": {text}")
        },
    }
}

#[cfg(test)]
mod tests;
