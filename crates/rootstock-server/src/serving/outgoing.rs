//! What is to be sent: bytes that are written here, and between them bytes that stay where
//! they lie.

use std::io::{self, IoSlice};

use rootstock_volume::{
    Segment,
    device::{ZEROES, ZEROES_BYTES},
};

use super::transport::{More, Transport};

/// It is to be sent when this many bytes have gathered, even if more could be added.
const ENOUGH_BYTES: usize = 1 << 20;

/// Slices in one send; the system's limit is 1024.
const SLICES_MAX: usize = 64;

/// What is kept of the memory for bytes of its own.
const KEPT_BYTES: usize = 4 << 20;

/// What will be sent together.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// What is written here.
    pub(crate) own: Vec<u8>,
    lent: Lent,
}

/// What lies elsewhere, in the order in which it is sent.
#[derive(Default)]
pub(crate) struct Lent {
    /// Each behind so many of the own bytes.
    segments: Vec<(usize, Segment)>,
    len_bytes: usize,
}

impl Lent {
    /// Behind `at` own bytes, which are no fewer than the last time.
    pub(crate) fn push(&mut self, at: usize, segment: Segment) {
        debug_assert!(self.segments.last().is_none_or(|(last, _)| *last <= at));
        self.len_bytes += segment.len_bytes();
        self.segments.push((at, segment));
    }
}

impl Outgoing {
    pub(crate) fn len_bytes(&self) -> usize {
        self.own.len() + self.lent.len_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len_bytes() == 0
    }

    pub(crate) fn is_enough(&self) -> bool {
        self.len_bytes() >= ENOUGH_BYTES
    }

    /// Adds what lies elsewhere.
    pub(crate) fn lend(&mut self, segment: Segment) {
        self.lent.push(self.own.len(), segment);
    }

    /// Both kinds of bytes, for who writes some of each.
    pub(crate) fn parts(&mut self) -> (&mut Vec<u8>, &mut Lent) {
        (&mut self.own, &mut self.lent)
    }

    /// Sends everything and is empty again, whatever the outcome.
    pub(crate) fn send(&mut self, transport: &mut Transport) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let sent = self.send_slices(transport);
        self.own.clear();
        self.own.shrink_to(KEPT_BYTES);
        self.lent.segments.clear();
        self.lent.len_bytes = 0;
        sent
    }

    fn send_slices(&self, transport: &mut Transport) -> io::Result<()> {
        let mut sender = Sender {
            transport,
            slices: [IoSlice::new(&[]); SLICES_MAX],
            count: 0,
            left: self.len_bytes(),
        };
        let mut sent = 0;
        for (at, segment) in &self.lent.segments {
            sender.add(&self.own[sent..*at])?;
            sent = *at;
            match segment {
                Segment::Bytes(bytes) => sender.add(bytes)?,
                Segment::Zero(len) => {
                    let mut len = *len as usize;
                    while len > 0 {
                        let zeroes = &ZEROES[..len.min(ZEROES_BYTES)];
                        sender.add(zeroes)?;
                        len -= zeroes.len();
                    }
                }
            }
        }
        sender.add(&self.own[sent..])
    }
}

struct Sender<'a, 'b> {
    transport: &'a mut Transport,
    slices: [IoSlice<'b>; SLICES_MAX],
    count: usize,
    /// Bytes that are still to be added.
    left: usize,
}

impl<'b> Sender<'_, 'b> {
    fn add(&mut self, slice: &'b [u8]) -> io::Result<()> {
        if slice.is_empty() {
            return Ok(());
        }
        self.left -= slice.len();
        self.slices[self.count] = IoSlice::new(slice);
        self.count += 1;
        if self.count < SLICES_MAX && self.left > 0 {
            return Ok(());
        }
        let more = match self.left {
            0 => More::Nothing,
            _ => More::Follows,
        };
        let slices = &mut self.slices[..self.count];
        self.count = 0;
        self.transport.send(slices, more)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream, sync::Arc, thread};

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::serving::transport::Socket;

    proptest! {
        #[test]
        fn all_is_sent_in_the_order_in_which_it_was_added(
            parts in prop::collection::vec((0_u8..3, 0_usize..9000), 0..150),
        ) {
            let (here, mut there) = UnixStream::pair().unwrap();
            let receiver = thread::spawn(move || {
                let mut all = Vec::new();
                there.read_to_end(&mut all).unwrap();
                all
            });
            let mut transport = Transport::new(Arc::new(Socket::Unix(here)));
            let mut outgoing = Outgoing::default();
            let mut expected = Vec::new();
            for (number, (kind, len)) in parts.iter().enumerate() {
                let bytes = vec![number as u8; *len];
                match kind {
                    0 => outgoing.own.extend_from_slice(&bytes),
                    1 => outgoing.lend(Segment::Bytes(Bytes::from(bytes.clone()))),
                    _ => outgoing.lend(Segment::Zero(*len as u32)),
                }
                expected.extend(if *kind == 2 { vec![0; *len] } else { bytes });
                prop_assert_eq!(outgoing.len_bytes(), expected.len());
            }
            outgoing.send(&mut transport).unwrap();
            prop_assert!(outgoing.is_empty());
            outgoing.own.extend_from_slice(b"end");
            outgoing.send(&mut transport).unwrap();
            drop(transport);
            expected.extend_from_slice(b"end");
            prop_assert!(receiver.join().unwrap() == expected);
        }
    }
}
