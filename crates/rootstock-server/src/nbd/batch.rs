//! Replies on their way out: headers in one buffer, bytes where they lie.

use std::io::{self, IoSlice};

use bytes::Bytes;
use rootstock_nbd::{
    ErrorCode, ReplyStyle, Request,
    proto::command_flag,
    reply::{self, Extent, Last},
};
use rootstock_volume::{
    Segment, Segments,
    device::{ZEROES, ZEROES_BYTES},
};

use super::transport::{More, Transport};

/// Replies are sent when this many bytes have gathered, even if more requests
/// wait to be looked at.
const BATCH_BYTES: usize = 1 << 20;

/// Zeros shorter than this, in bytes, are sent as they are: a chunk of their own
/// would cost the client more.
const HOLE_BYTES_MIN: u32 = 4096;

/// Slices in one send; the system's limit is 1024.
const SLICES_MAX: usize = 64;

/// Replies that will be sent together.
pub(super) struct Batch {
    style: ReplyStyle,
    headers: Vec<u8>,
    parts: Vec<Part>,
    len_bytes: usize,
}

enum Part {
    /// The next bytes of `headers`.
    Header(usize),
    Bytes(Bytes),
    Zeros(usize),
}

impl Batch {
    pub(super) const fn new(style: ReplyStyle) -> Self {
        Self {
            style,
            headers: Vec::new(),
            parts: Vec::new(),
            len_bytes: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len_bytes >= BATCH_BYTES
    }

    pub(super) fn done(&mut self, request: &Request) {
        let style = self.style;
        self.header(|out| reply::done(out, style, request.tag()));
    }

    pub(super) fn error(&mut self, request: &Request, code: ErrorCode, text: &str) {
        let style = self.style;
        self.header(|out| {
            reply::error(out, style, request.tag(), request.command, code, text);
        });
    }

    pub(super) fn block_status(&mut self, request: &Request, extents: &[Extent]) {
        let style = self.style;
        self.header(|out| reply::block_status(out, style, request.tag(), extents));
    }

    /// The reply to a read ("`NBD_CMD_READ`").
    pub(super) fn read(&mut self, request: &Request, segments: &Segments) {
        let (style, tag) = (self.style, request.tag());
        debug_assert_eq!(segments.len_bytes() as u64, request.len);
        if segments.is_empty() {
            return self.header(|out| reply::read_done(out, style, tag));
        }
        if style == ReplyStyle::Simple {
            self.header(|out| reply::read_simple(out, tag));
            return self.bytes(segments.iter());
        }
        let is_hole =
            |segment: &Segment| matches!(segment, Segment::Zero(len) if *len >= HOLE_BYTES_MIN);
        if request.has(command_flag::DF) || !segments.iter().any(is_hole) {
            let len = request.len as u32;
            self.header(|out| reply::data(out, style, tag, Last::Done, request.offset, len));
            return self.bytes(segments.iter());
        }
        self.read_in_chunks(request, segments, is_hole);
    }

    fn read_in_chunks(
        &mut self,
        request: &Request,
        segments: &Segments,
        is_hole: impl Fn(&Segment) -> bool,
    ) {
        let (style, tag) = (self.style, request.tag());
        let end = request.offset + request.len;
        let mut offset = request.offset;
        let mut rest = segments.iter().peekable();
        while let Some(first) = rest.next() {
            let hole = is_hole(first);
            let mut run = vec![first];
            let mut len = first.len_bytes() as u32;
            while let Some(next) = rest.next_if(|next| !hole && !is_hole(next)) {
                run.push(next);
                len += next.len_bytes() as u32;
            }
            let last = if offset + u64::from(len) == end {
                Last::Done
            } else {
                Last::More
            };
            if hole {
                self.header(|out| reply::hole(out, style, tag, last, offset, len));
            } else {
                self.header(|out| reply::data(out, style, tag, last, offset, len));
                self.bytes(run.into_iter());
            }
            offset += u64::from(len);
        }
    }

    fn header(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.headers.len();
        write(&mut self.headers);
        let len = self.headers.len() - before;
        self.len_bytes += len;
        match self.parts.last_mut() {
            Some(Part::Header(last)) => *last += len,
            _ => self.parts.push(Part::Header(len)),
        }
    }

    fn bytes<'a>(&mut self, segments: impl Iterator<Item = &'a Segment>) {
        for segment in segments {
            let len = segment.len_bytes();
            self.len_bytes += len;
            self.parts.push(match segment {
                Segment::Zero(_) => Part::Zeros(len),
                Segment::Bytes(bytes) => Part::Bytes(bytes.clone()),
            });
        }
    }

    /// Sends everything and is empty again, whatever the outcome.
    pub(super) fn send(&mut self, transport: &mut Transport) -> io::Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let sent = self.send_parts(transport);
        self.headers.clear();
        self.parts.clear();
        self.len_bytes = 0;
        sent
    }

    fn send_parts(&self, transport: &mut Transport) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut headers = self.headers.as_slice();
        let mut left = self.len_bytes;
        for part in &self.parts {
            let mut part_left = match part {
                Part::Header(len) | Part::Zeros(len) => *len,
                Part::Bytes(bytes) => bytes.len(),
            };
            while part_left > 0 {
                let slice = match part {
                    Part::Header(len) => {
                        let (head, tail) = headers.split_at(*len);
                        headers = tail;
                        head
                    }
                    Part::Bytes(bytes) => bytes,
                    Part::Zeros(_) => &ZEROES[..part_left.min(ZEROES_BYTES)],
                };
                part_left -= slice.len();
                left -= slice.len();
                slices[count] = IoSlice::new(slice);
                count += 1;
                if count == SLICES_MAX || left == 0 {
                    let more = if left > 0 {
                        More::Follows
                    } else {
                        More::Nothing
                    };
                    transport.send(&mut slices[..count], more)?;
                    count = 0;
                }
            }
        }
        Ok(())
    }
}
