//! The other end of the kernel's nbd driver: its requests against a block device.
//!
//! The reading thread answers at once what needs no waiting, in the order it
//! comes; the rest goes to a pool, and its replies overtake others. The kernel's
//! driver speaks compact requests and simple replies ("Simple reply message" of
//! the NBD protocol) and never negotiates.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rootstock_core::BLOCK_BYTES;
use rootstock_nbd::proto::export_flag;
use rootstock_nbd::request::Terms;
use rootstock_nbd::{
    Command, ErrorCode, InputBuffer, Message, ReplyStyle, Request, RequestDecoder, reply,
};
use rootstock_volume::{BlockDevice, BlockError, Segments, Zero};

use crate::console;
use crate::pool::Pool;
use crate::stats::Stats;

pub(crate) mod ahead;
#[cfg(test)]
mod tests;

use ahead::Streams;

/// What the kernel is told that the device can do. One connection needs no
/// CAN_MULTI_CONN, and flush is answered by what was answered before it.
pub(crate) const FLAGS: u16 = export_flag::HAS_FLAGS
    | export_flag::SEND_FLUSH
    | export_flag::SEND_TRIM
    | export_flag::SEND_WRITE_ZEROES;

/// Threads that wait for chunks or for the server of a volume.
pub(crate) const WORKERS: usize = 16;

/// Threads that wait for writes.
const WRITERS: usize = 8;

/// What is read from the kernel at once: a write of the largest request it sends.
const INPUT_BYTES: usize = 1 << 20;

/// Slices in one system call: below the system's limit (`IOV_MAX`, 1024).
const SLICES_MAX: usize = 512;

/// Where writes are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// By the reading thread, unless a block is written in part: they go to memory.
    AtOnce,
    /// By threads of their own: they wait for a server, or a disk.
    Pooled,
}

/// Serves a device to one kernel.
pub(crate) struct Engine {
    device: Arc<dyn BlockDevice>,
    stats: Arc<Stats>,
    pool: Pool,
    /// For what changes the disk: reads may wait for a server that is away.
    writers: Pool,
    writes: Writes,
    output: Mutex<UnixStream>,
    streams: Mutex<Streams>,
}

impl Engine {
    /// An engine that answers on `output`.
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        stats: Arc<Stats>,
        writes: Writes,
        output: UnixStream,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            device,
            stats,
            pool: Pool::new(WORKERS)?,
            writers: Pool::new(WRITERS)?,
            writes,
            output: Mutex::new(output),
            streams: Mutex::default(),
        }))
    }

    /// Serves until the kernel closes its end.
    ///
    /// # Errors
    /// When the connection fails, or what comes over it is not NBD.
    pub(crate) fn run(self: &Arc<Self>, mut input: UnixStream) -> io::Result<()> {
        let mut buffer = InputBuffer::new(INPUT_BYTES.max(InputBuffer::CAPACITY_BYTES_MIN));
        let mut decoder = RequestDecoder::new(ReplyStyle::Simple);
        let mut gathered = Vec::new();
        let mut failure = None;
        loop {
            let len = match input.read(buffer.spare()) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            buffer.filled(len);
            loop {
                let message = decoder.next(&mut buffer).map_err(io::Error::other)?;
                match message {
                    None => break,
                    Some(Message::Request(request)) if request.command == Command::Disconnect => {
                        return Ok(());
                    }
                    Some(Message::Request(request)) => self.request(request)?,
                    Some(Message::Refused { request, code }) => self.answer(&request, Err(code))?,
                    Some(Message::Write {
                        request,
                        offset,
                        data,
                        last,
                    }) => {
                        if let Err(code) = request.check(&self.terms()) {
                            failure = Some(code);
                        } else if self.waits(&request) {
                            gathered.extend_from_slice(data);
                        } else if failure.is_none() {
                            failure = self.device.write(offset, data).err().as_ref().map(code_of);
                        }
                        if last {
                            let data = std::mem::take(&mut gathered);
                            match failure.take() {
                                Some(code) => self.answer(&request, Err(code))?,
                                None if self.waits(&request) => self.write_later(request, data),
                                None => self.answer(&request, Ok(()))?,
                            }
                        }
                    }
                }
            }
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            size_bytes: self.device.size_bytes(),
            read_only: self.device.read_only(),
            block_status: false,
            style: ReplyStyle::Simple,
        }
    }

    /// Whether a write may have to wait: for a server, or for the rest of a block
    /// that it writes in part.
    fn waits(&self, request: &Request) -> bool {
        self.writes == Writes::Pooled
            || !request.offset.is_multiple_of(BLOCK_BYTES)
            || !request.len.is_multiple_of(BLOCK_BYTES)
    }

    fn request(self: &Arc<Self>, request: Request) -> io::Result<()> {
        if let Err(code) = request.check(&self.terms()) {
            return self.answer(&request, Err(code));
        }
        match request.command {
            Command::Read => self.read(request),
            _ if self.writes == Writes::AtOnce && !self.waits(&request) => {
                self.answer(&request, self.change(&request))
            }
            _ => {
                let engine = Arc::clone(self);
                self.writers.now(move || {
                    let result = engine.change(&request);
                    engine.answer_or_say(&request, result);
                });
                Ok(())
            }
        }
    }

    fn change(&self, request: &Request) -> Result<(), ErrorCode> {
        let (offset, len) = (request.offset, request.len);
        let result = match request.command {
            Command::Flush => self.device.flush(),
            Command::Trim => self.device.discard(offset, len),
            Command::WriteZeroes => self.device.write_zeroes(offset, len, Zero::MayPunch),
            // To bring in what will be read soon is advice.
            Command::Cache => Ok(()),
            _ => return Err(ErrorCode::Inval),
        };
        result.map_err(|error| code_of(&error))
    }

    fn write_later(self: &Arc<Self>, request: Request, data: Vec<u8>) {
        let engine = Arc::clone(self);
        self.writers.now(move || {
            let result = engine.device.write(request.offset, &data);
            engine.answer_or_say(&request, result.map_err(|error| code_of(&error)));
        });
    }

    fn read(self: &Arc<Self>, request: Request) -> io::Result<()> {
        self.fetch_ahead(&request);
        self.stats.trace.read(request.offset, request.len);
        // The protocol's bound on a payload, which `check` has seen to.
        let len = request.len as u32;
        let mut segments = Segments::new();
        match self.device.try_read(request.offset, len, &mut segments) {
            Ok(true) => {
                self.stats.hit(request.len);
                self.answer_read(&request, &segments)
            }
            Ok(false) => {
                let engine = Arc::clone(self);
                let asked = Instant::now();
                self.pool.now(move || engine.read_waiting(&request, asked));
                Ok(())
            }
            Err(error) => self.refuse_read(&request, &error),
        }
    }

    fn read_waiting(&self, request: &Request, asked: Instant) {
        let mut segments = Segments::new();
        let read = self
            .device
            .read(request.offset, request.len as u32, &mut segments);
        self.stats.waited(request.len, asked.elapsed());
        let sent = match read {
            Ok(()) => self.answer_read(request, &segments),
            Err(error) => self.refuse_read(request, &error),
        };
        if let Err(error) = sent {
            console::error(format_args!("the kernel's connection failed: {error}"));
        }
    }

    fn fetch_ahead(self: &Arc<Self>, request: &Request) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((from, len)) = streams.note(request.offset, request.len) else {
            return;
        };
        drop(streams);
        let size = self.device.size_bytes();
        // A chunk each, so that several connections share them.
        let mut at = from;
        while at < (from + len).min(size) {
            let end = (at / rootstock_core::CHUNK_BYTES + 1) * rootstock_core::CHUNK_BYTES;
            let part = end.min(from + len).min(size) - at;
            let device = Arc::clone(&self.device);
            self.pool.ahead(move || device.prefetch(at, part));
            at += part;
        }
    }

    fn refuse_read(&self, request: &Request, error: &BlockError) -> io::Result<()> {
        console::error(format_args!(
            "the root device cannot be read: {}",
            console::chain(error)
        ));
        self.answer(request, Err(code_of(error)))
    }

    fn answer_or_say(&self, request: &Request, result: Result<(), ErrorCode>) {
        if let Err(error) = self.answer(request, result) {
            console::error(format_args!("the kernel's connection failed: {error}"));
        }
    }

    fn answer(&self, request: &Request, result: Result<(), ErrorCode>) -> io::Result<()> {
        let mut header = Vec::with_capacity(reply::HEADER_BYTES_MAX);
        let (style, tag) = (ReplyStyle::Simple, request.tag());
        match result {
            Ok(()) => reply::done(&mut header, style, tag),
            Err(code) => reply::error(&mut header, style, tag, request.command, code, ""),
        }
        self.send(&[IoSlice::new(&header)])
    }

    fn answer_read(&self, request: &Request, segments: &Segments) -> io::Result<()> {
        let mut header = Vec::with_capacity(reply::HEADER_BYTES_MAX);
        reply::read_simple(&mut header, request.tag());
        let mut slices = vec![IoSlice::new(&header)];
        segments.io_slices(&mut slices);
        self.send(&slices)
    }

    /// Sends a whole reply; no other comes between.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest: VecDeque<IoSlice<'_>> = slices.iter().copied().collect();
        while !rest.is_empty() {
            let slices = rest.make_contiguous();
            let count = slices.len().min(SLICES_MAX);
            let mut sent = match output.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            while let Some(slice) = rest.front_mut() {
                if sent < slice.len() {
                    slice.advance(sent);
                    break;
                }
                sent -= slice.len();
                rest.pop_front();
            }
        }
        Ok(())
    }
}

/// The protocol's number for a failure ("Error values").
fn code_of(error: &BlockError) -> ErrorCode {
    match error {
        BlockError::OutOfRange { .. } => ErrorCode::Inval,
        BlockError::ReadOnly => ErrorCode::Perm,
        BlockError::NoSpace { .. } => ErrorCode::NoSpace,
        BlockError::Damaged { .. } | BlockError::Io { .. } => ErrorCode::Io,
    }
}
