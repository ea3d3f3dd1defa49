//! A chunk on its way, or here.

use super::{Payload, Whole};
use crate::bugs::{self, Bug};
use crate::wire::{CHUNK_BYTES_MAX, PIECE_BYTES_MAX};

/// Who passes on what is not checked yet keeps the end back until it is: nobody who
/// is honest ever sends all of a wrong chunk.
const HELD_BACK_BYTES: u32 = 4096;

/// Bytes of a chunk, as far as they are here.
#[derive(Debug, Clone)]
pub(super) struct Body<P> {
    pub(super) codec: u8,
    pub(super) raw_bytes: u32,
    pub(super) wire_bytes: u32,
    pub(super) got: u32,
    pub(super) is_checked: bool,
    pub(super) pieces: Vec<P>,
}

impl<P: Payload> Body<P> {
    pub(super) fn new(codec: u8, raw_bytes: u32, wire_bytes: u32) -> Self {
        Self {
            codec,
            raw_bytes,
            wire_bytes,
            got: 0,
            is_checked: false,
            pieces: Vec::new(),
        }
    }

    pub(super) fn whole(whole: Whole<P>) -> Self {
        let wire_bytes = whole.data.len() as u32;
        Self {
            codec: whole.codec,
            raw_bytes: whole.raw_bytes,
            wire_bytes,
            got: wire_bytes,
            is_checked: true,
            pieces: vec![whole.data],
        }
    }

    /// Whether its sizes are those of a chunk.
    pub(super) fn is_sound(&self) -> bool {
        let fits = |bytes| (1..=CHUNK_BYTES_MAX).contains(&bytes);
        fits(self.raw_bytes) && fits(self.wire_bytes)
    }

    /// Takes the next bytes; whether they belong to it.
    pub(super) fn push(&mut self, data: P) -> bool {
        let got = self.got as usize + data.len();
        if data.is_empty() || got > self.wire_bytes as usize {
            return false;
        }
        self.got = got as u32;
        self.pieces.push(data);
        true
    }

    pub(super) fn is_complete(&self) -> bool {
        self.got == self.wire_bytes
    }

    /// The next bytes to pass on, when so many were sent.
    pub(super) fn next(&self, sent: u32) -> Option<P> {
        let end = if self.is_checked || bugs::made(Bug::SendsUnchecked) {
            self.got
        } else {
            let kept_back = self.wire_bytes.saturating_sub(HELD_BACK_BYTES);
            self.got.min(kept_back)
        };
        let mut at = 0;
        for piece in &self.pieces {
            let next = at + piece.len() as u32;
            if sent < next {
                let until = next.min(end).min(sent + PIECE_BYTES_MAX as u32);
                let part = (sent - at) as usize..until.saturating_sub(at) as usize;
                return (sent < until).then(|| piece.slice(part));
            }
            at = next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_end_of_what_is_not_checked_is_kept_back() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mut body = Body::new(0, 100_000, 100_000);
        let mut sent = Vec::new();
        let mut send = |body: &Body<Bytes>| {
            while let Some(part) = body.next(sent.len() as u32) {
                assert!(part.len() <= PIECE_BYTES_MAX);
                sent.extend_from_slice(&part);
            }
            sent.len()
        };
        for part in bytes.chunks(30_000) {
            assert!(body.push(Bytes::copy_from_slice(part)));
            let expected = body.got.min(100_000 - HELD_BACK_BYTES);
            assert_eq!(send(&body), expected as usize);
        }
        assert!(body.is_complete());
        assert!(!body.push(Bytes::from_static(b"more")));
        body.is_checked = true;
        assert_eq!(send(&body), 100_000);
        assert_eq!(sent, bytes);
    }
}
