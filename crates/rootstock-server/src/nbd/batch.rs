//! Replies on their way out.

use std::io;

use rootstock_nbd::{
    ErrorCode, ReplyStyle, Request,
    proto::command_flag,
    reply::{self, Extent, Last},
};
use rootstock_volume::{Segment, Segments};

use crate::serving::{outgoing::Outgoing, transport::Transport};

/// Zeros shorter than this, in bytes, are sent as they are: a chunk of their own
/// would cost the client more.
const HOLE_BYTES_MIN: u32 = 4096;

/// Replies that will be sent together.
pub(super) struct Batch {
    style: ReplyStyle,
    out: Outgoing,
}

impl Batch {
    pub(super) fn new(style: ReplyStyle) -> Self {
        Self {
            style,
            out: Outgoing::default(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.out.is_enough()
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
        write(&mut self.out.own);
    }

    fn bytes<'a>(&mut self, segments: impl Iterator<Item = &'a Segment>) {
        for segment in segments {
            self.out.lend(segment.clone());
        }
    }

    /// Sends everything and is empty again, whatever the outcome.
    pub(super) fn send(&mut self, transport: &mut Transport) -> io::Result<()> {
        self.out.send(transport)
    }
}
