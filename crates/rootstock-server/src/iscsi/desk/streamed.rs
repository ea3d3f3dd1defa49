//! Writes whose data are written as they come.

use std::sync::Arc;

use rootstock_iscsi::Session;
use rootstock_scsi::{Action, Reply, Sense};

use super::{Desk, Flight, Pending, add, is_forced};
use crate::{
    iscsi::execute::{Execution, Outcome},
    serving::outgoing::Outgoing,
};

/// What became of the data that were written as they came.
#[derive(Default)]
pub(super) struct Streamed {
    written_bytes: u64,
    failed: Option<Sense>,
}

impl Desk<'_> {
    /// The next data of a command that writes them as they come.
    pub(in crate::iscsi) fn part(
        &mut self,
        session: &mut Session,
        tag: u32,
        offset: u64,
        data: &[u8],
        last: bool,
        out: &mut Outgoing,
    ) {
        self.give_up_aborted(session, out);
        self.write_part(session, tag, offset, data, last, out);
        if last {
            self.release(session, out);
        }
    }

    pub(super) fn write_part(
        &mut self,
        session: &mut Session,
        tag: u32,
        offset: u64,
        data: &[u8],
        last: bool,
        out: &mut Outgoing,
    ) {
        let Some(pending) = self.pending.get_mut(&tag) else {
            return;
        };
        let (Some(seat), Action::Write { range, .. }) =
            (self.seats.get(&pending.lun), &pending.action)
        else {
            return;
        };
        let execution = Execution {
            disk: &seat.attached.disk,
            device: seat.device.as_ref(),
            data,
            claim: &pending.claim,
        };
        let streamed = &mut pending.streamed;
        if streamed.failed.is_none() {
            match execution.write_at(range.start + offset) {
                Ok(()) => streamed.written_bytes += data.len() as u64,
                Err(sense) => streamed.failed = Some(sense),
            }
        }
        if last && let Some(pending) = self.pending.remove(&tag) {
            self.streamed(session, tag, pending, out);
        }
    }

    /// Ends a command that has written its data as they came.
    fn streamed(&mut self, session: &mut Session, tag: u32, pending: Pending, out: &mut Outgoing) {
        let Some(seat) = self.seats.get(&pending.lun) else {
            return session.abort(tag, &mut out.own);
        };
        add(&self.admission.shared.counters.commands, 1);
        let flight = Flight {
            lun: pending.lun,
            job: 0,
            claim: pending.claim,
            length_bytes: pending.action.data_out().bytes(),
            written_bytes: pending.streamed.written_bytes,
        };
        let reply = pending.streamed.failed.map_or(Reply::good(), Reply::from);
        if is_forced(&pending.action, &reply) {
            let place = (Arc::clone(&seat.attached.disk), Arc::clone(&seat.device));
            return self.hand_over(tag, Action::Flush, Vec::new(), flight, place);
        }
        self.answer(session, tag, Outcome::Reply(reply), &flight, out);
    }
}
