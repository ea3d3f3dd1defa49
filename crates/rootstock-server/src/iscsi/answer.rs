//! The data of a read, put where they go.

use rootstock_iscsi::Session;
use rootstock_volume::{Segment, Segments};

/// Answers a read. Its parts are asked for in order.
pub(super) fn send(session: &mut Session, tag: u32, segments: &Segments, out: &mut Vec<u8>) {
    let mut rest = Rest {
        pieces: segments.iter(),
        current: None,
    };
    let fill = |out: &mut Vec<u8>, _: usize, len: usize| rest.append(out, len);
    session.data_in(tag, segments.len_bytes() as u64, fill, out);
}

/// What of a read has not been sent.
struct Rest<'a> {
    pieces: std::slice::Iter<'a, Segment>,
    /// A piece of which some was sent, and how much.
    current: Option<(&'a Segment, usize)>,
}

impl Rest<'_> {
    fn append(&mut self, out: &mut Vec<u8>, mut len: usize) {
        while len > 0 {
            let next = self.current.take();
            let Some((piece, at)) = next.or_else(|| Some((self.pieces.next()?, 0))) else {
                return;
            };
            let part = len.min(piece.len_bytes() - at);
            match piece {
                Segment::Zero(_) => out.resize(out.len() + part, 0),
                Segment::Bytes(bytes) => out.extend_from_slice(&bytes[at..at + part]),
            }
            len -= part;
            if at + part < piece.len_bytes() {
                self.current = Some((piece, at + part));
            }
        }
    }
}
