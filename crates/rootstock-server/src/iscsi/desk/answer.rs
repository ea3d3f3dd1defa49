//! Answers. The data of a read are put where they go, or sent from where they lie.

use rootstock_iscsi::{Completion, Filled, Session};
use rootstock_scsi::{Reply, Sense, SenseFormat, Status};
use rootstock_volume::{Segment, Segments};

use super::{Desk, Flight, add};
use crate::{
    iscsi::{disk::Disk, execute::Outcome, shared::Counters},
    serving::outgoing::Outgoing,
};

/// What is shorter, in bytes, is sooner copied than sent from where it lies.
const LENT_BYTES_MIN: usize = 16 << 10;

impl Desk<'_> {
    pub(super) fn answer(
        &self,
        session: &mut Session,
        tag: u32,
        outcome: Outcome,
        flight: &Flight,
        out: &mut Outgoing,
    ) {
        let counters: &Counters = &self.admission.shared.counters;
        match outcome {
            Outcome::Reply(reply) => {
                if reply.status == Status::Good {
                    add(&counters.written_bytes, flight.written_bytes);
                }
                self.reply(
                    session,
                    tag,
                    Some(flight.lun),
                    &reply,
                    flight.length_bytes,
                    out,
                );
            }
            Outcome::Data(segments) => {
                add(&counters.read_bytes, segments.len_bytes() as u64);
                send(session, tag, &segments, out);
            }
        }
    }

    /// Keeps reservations where they survive a restart: those that hold now, since
    /// another session may have changed them since.
    pub(super) fn keep(&self, disk: &Disk, reply: Reply) -> Reply {
        let _one_at_a_time = disk.keeping();
        let state = disk.unit().reservations().clone();
        let text = match serde_json::to_string(&state) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, "reservations cannot be written");
                return Sense::INTERNAL_FAILURE.into();
            }
        };
        let targets = &self.admission.shared.targets;
        if targets.keep_reservations(disk.name(), &text) {
            reply
        } else {
            Sense::INTERNAL_FAILURE.into()
        }
    }

    pub(super) fn reply(
        &self,
        session: &mut Session,
        tag: u32,
        lun: Option<u16>,
        reply: &Reply,
        length_bytes: u64,
        out: &mut Outgoing,
    ) {
        if reply.status == Status::Good && !reply.data_in.is_empty() {
            let data = &reply.data_in;
            let fill = |out: &mut Vec<u8>, at: usize, len: usize| {
                out.extend_from_slice(data.get(at..at + len).unwrap_or_default());
                Filled::Here
            };
            return session.data_in(tag, data.len() as u64, fill, &mut out.own);
        }
        let format = self.sense_format(lun);
        let sense = reply.sense.map(|sense| sense.bytes(format));
        // After an error too, an initiator learns that it announced too little.
        let completion = Completion {
            status: reply.status as u8,
            sense: sense.as_deref().unwrap_or_default(),
            length_bytes: (reply.status == Status::Good).then_some(length_bytes),
        };
        session.respond(tag, &completion, &mut out.own);
    }

    fn sense_format(&self, lun: Option<u16>) -> SenseFormat {
        let seat = lun.and_then(|lun| self.seats.get(&lun));
        seat.map_or(SenseFormat::Fixed, |seat| {
            seat.attached.unit().sense_format()
        })
    }
}

/// Answers a read. Its parts are asked for in order.
fn send(session: &mut Session, tag: u32, segments: &Segments, out: &mut Outgoing) {
    let mut rest = Rest {
        pieces: segments.iter(),
        current: None,
    };
    // A digest is made of what is here.
    let lends = !session.digests().data && segments.len_bytes() >= LENT_BYTES_MIN;
    let (own, lent) = out.parts();
    let fill = |own: &mut Vec<u8>, _: usize, len: usize| {
        if lends {
            let at = own.len();
            rest.take(len, |piece, from, len| {
                lent.push(at, part(piece, from, len));
            });
            Filled::Beside
        } else {
            rest.take(len, |piece, from, len| match piece {
                Segment::Zero(_) => own.resize(own.len() + len, 0),
                Segment::Bytes(bytes) => own.extend_from_slice(&bytes[from..from + len]),
            });
            Filled::Here
        }
    };
    session.data_in(tag, segments.len_bytes() as u64, fill, own);
}

fn part(piece: &Segment, from: usize, len: usize) -> Segment {
    match piece {
        Segment::Zero(_) => Segment::Zero(len as u32),
        Segment::Bytes(bytes) => Segment::Bytes(bytes.slice(from..from + len)),
    }
}

/// What of a read has not been sent.
struct Rest<'a> {
    pieces: std::slice::Iter<'a, Segment>,
    /// A piece of which some was sent, and how much.
    current: Option<(&'a Segment, usize)>,
}

impl Rest<'_> {
    /// Hands out the next `len` bytes: pieces, and which part of each.
    fn take(&mut self, mut len: usize, mut each: impl FnMut(&Segment, usize, usize)) {
        while len > 0 {
            let next = self.current.take();
            let Some((piece, at)) = next.or_else(|| Some((self.pieces.next()?, 0))) else {
                return;
            };
            let part = len.min(piece.len_bytes() - at);
            each(piece, at, part);
            len -= part;
            if at + part < piece.len_bytes() {
                self.current = Some((piece, at + part));
            }
        }
    }
}
