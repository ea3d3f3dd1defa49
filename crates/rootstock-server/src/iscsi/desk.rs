//! A session at its disk: its commands, in the order that they ask for.
//!
//! What memory answers is answered at once, and a write is a copy into the page
//! cache; whatever may wait for a disk goes to the workers, and its answer may
//! overtake others. Initiators are told so (QUEUE ALGORITHM MODIFIER 1 of the control
//! page): only ORDERED commands wait, and are waited for.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use rootstock_iscsi::{Command, Completion, Session, TaskAttribute, TaskFunction};
use rootstock_scsi::{
    Action, DataOut, Reply, Sense, SenseFormat, Status, action::Durability, decode_lun,
    reply_without_unit,
};
use rootstock_volume::{Segment, Segments};

use super::{
    disk::{Attached, Disk, TRANSFER_BYTES_MAX},
    execute::{Execution, Outcome},
    jobs::{Claim, Completions, Job},
    login::Work,
    serve::BATCH_BYTES,
    shared::{Admission, Counters},
};

/// The units of each target.
const LUNS: [u16; 1] = [0];

/// What a session's commands may hold at the workers, in bytes; a single larger
/// one is let through alone.
const CARRIED_BYTES_MAX: u64 = 32 << 20;

/// The most commands of a session that workers may have, those among them that nobody
/// waits for any more.
const JOBS_MAX: usize = 80;

/// A normal session at its disk.
pub(super) struct Desk<'a> {
    admission: &'a Admission,
    work: &'a Work,
    attached: Attached,
    /// Commands that wait for others to end, in their order.
    held: VecDeque<Held>,
    /// Commands whose data are on their way.
    pending: BTreeMap<u32, Pending>,
    /// Commands that workers have.
    flights: BTreeMap<u32, Flight>,
    /// The latest ORDERED command that was begun.
    ordered: Option<u32>,
    /// Jobs that have not come back, also those whose commands are forgotten.
    jobs: usize,
    /// The number of the latest job: an initiator may give a tag to another command
    /// while a forgotten one's job is still out.
    last_job: u64,
    carried_bytes: u64,
    completions: Arc<Completions>,
}

struct Held {
    command: Command,
    claim: Claim,
}

struct Pending {
    action: Action,
    claim: Claim,
}

struct Flight {
    job: u64,
    claim: Claim,
    /// What the command's own fields say, for the residual count.
    length_bytes: u64,
    written_bytes: u64,
}

impl<'a> Desk<'a> {
    pub(super) fn new(admission: &'a Admission, work: &'a Work, attached: Attached) -> Self {
        Self {
            admission,
            work,
            attached,
            held: VecDeque::new(),
            pending: BTreeMap::new(),
            flights: BTreeMap::new(),
            ordered: None,
            jobs: 0,
            last_job: 0,
            carried_bytes: 0,
            completions: Arc::new(Completions::new(Arc::clone(&admission.bell))),
        }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.work.disk
    }

    /// A command that has arrived.
    pub(super) fn arrived(&mut self, session: &mut Session, command: Command, out: &mut Vec<u8>) {
        self.give_up_aborted(session, out);
        let at_once = command.attribute == TaskAttribute::HeadOfQueue
            || (self.held.is_empty() && !self.must_wait(command.attribute));
        let claim = self.attached.claim();
        if at_once {
            self.begin(session, &command, claim, out);
        } else {
            self.held.push_back(Held { command, claim });
        }
    }

    /// SAM-5 8.6: an ORDERED command begins when all before it have ended, and
    /// those after it begin when it has.
    fn must_wait(&self, attribute: TaskAttribute) -> bool {
        let runs = |tag: u32| self.pending.contains_key(&tag) || self.flights.contains_key(&tag);
        let busy = !self.pending.is_empty() || !self.flights.is_empty();
        self.ordered.is_some_and(runs) || (attribute == TaskAttribute::Ordered && busy)
    }

    /// Begins what does not have to wait any more, as far as there is room for it: it
    /// goes on when workers have finished, or when what is to be sent was.
    fn release(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        while let Some(held) = self.held.front() {
            let has_room = !self.is_crowded() && out.len() < BATCH_BYTES;
            if !has_room || self.must_wait(held.command.attribute) {
                return;
            }
            if let Some(held) = self.held.pop_front() {
                self.begin(session, &held.command, held.claim, out);
            }
        }
    }

    fn begin(&mut self, session: &mut Session, command: &Command, claim: Claim, out: &mut Vec<u8>) {
        // Another session's reset has ended it while it was held.
        if claim.is_void() {
            return session.abort(command.tag, out);
        }
        if command.attribute == TaskAttribute::Ordered {
            self.ordered = Some(command.tag);
        } else if self.ordered == Some(command.tag) {
            // The tag is another command's now.
            self.ordered = None;
        }
        if decode_lun(command.lun).is_none_or(|lun| !LUNS.contains(&lun)) {
            let reply = reply_without_unit(&command.cdb, &LUNS);
            return self.reply(session, command.tag, &reply, 0, out);
        }
        let action = {
            let size_bytes = self.work.device.size_bytes();
            let mut unit = self.work.disk.unit();
            unit.resize(size_bytes / Disk::block_bytes());
            unit.start(self.attached.handle, &command.cdb)
        };
        let wanted = action.data_out();
        if is_empty_comparison(command, wanted) {
            let reply = Reply::from(Sense::INVALID_FIELD_IN_CDB);
            return self.reply(session, command.tag, &reply, 0, out);
        }
        let pending = Pending { action, claim };
        if wanted == DataOut::None {
            return self.go_on(session, command.tag, pending, Vec::new(), out);
        }
        let announced = if command.writes {
            u64::from(command.expected_bytes)
        } else {
            0
        };
        let refused = matches!(wanted, DataOut::Exactly(bytes) if bytes != announced)
            || wanted.bytes() > 2 * u64::from(TRANSFER_BYTES_MAX);
        if refused {
            let reply = Reply::from(Sense::INVALID_FIELD_IN_CDB);
            return self.reply(session, command.tag, &reply, wanted.bytes(), out);
        }
        match session.gather(command.tag, wanted.bytes() as usize, out) {
            Some(data) => self.go_on(session, command.tag, pending, data, out),
            None => {
                self.pending.insert(command.tag, pending);
            }
        }
    }

    /// A command's data are complete.
    pub(super) fn data(
        &mut self,
        session: &mut Session,
        tag: u32,
        data: Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        self.give_up_aborted(session, out);
        if let Some(pending) = self.pending.remove(&tag) {
            self.go_on(session, tag, pending, data, out);
            self.release(session, out);
        }
    }

    /// Forgets what others' resets have ended; they are not answered (SAM-5,
    /// section 5.6, with TAS 0). What workers have of it they bring back first.
    fn give_up_aborted(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        let void = self.pending.iter().filter(|(_, it)| it.claim.is_void());
        let mut aborted: Vec<u32> = void.map(|(tag, _)| *tag).collect();
        let void = self.held.iter().filter(|held| held.claim.is_void());
        aborted.extend(void.map(|held| held.command.tag));
        self.forget(&aborted);
        for tag in aborted {
            session.abort(tag, out);
        }
        self.release(session, out);
    }

    /// Tasks have ended otherwise.
    pub(super) fn dropped(&mut self, session: &mut Session, tags: &[u32], out: &mut Vec<u8>) {
        self.forget(tags);
        self.release(session, out);
    }

    fn forget(&mut self, tags: &[u32]) {
        for tag in tags {
            self.pending.remove(tag);
            self.flights.remove(tag);
        }
        self.held.retain(|held| !tags.contains(&held.command.tag));
    }

    /// The response of RFC 7143, section 11.6.1. What it ended is over when it is
    /// answered.
    pub(super) fn task_management(
        &mut self,
        session: &mut Session,
        function: TaskFunction,
        lun: [u8; 8],
        dropped: &[u32],
        out: &mut Vec<u8>,
    ) -> u8 {
        self.forget(dropped);
        let of_target = matches!(
            function,
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset
        );
        if !of_target && decode_lun(lun).is_none_or(|lun| !LUNS.contains(&lun)) {
            return 2;
        }
        while self.jobs > 0 {
            self.completions.wait();
            self.collect(session, out);
        }
        self.release(session, out);
        let disk = &self.work.disk;
        match function {
            TaskFunction::AbortTask | TaskFunction::AbortTaskSet => {}
            TaskFunction::ClearTaskSet => {
                disk.abort_others(self.attached.handle);
                disk.unit().commands_cleared(self.attached.handle);
            }
            TaskFunction::LogicalUnitReset
            | TaskFunction::TargetWarmReset
            | TaskFunction::TargetColdReset => {
                disk.abort_others(self.attached.handle);
                disk.unit().reset();
            }
        }
        0
    }

    /// Carries a command out that has all it needs, or hands it to the workers.
    fn go_on(
        &mut self,
        session: &mut Session,
        tag: u32,
        pending: Pending,
        data: Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        let length_bytes = pending.action.data_out().bytes();
        let action = match pending.action {
            Action::Parameters(waiting) => {
                let mut unit = self.work.disk.unit();
                unit.parameters(self.attached.handle, waiting, &data)
            }
            action => action,
        };
        add(&self.admission.shared.counters.commands, 1);
        let flight = Flight {
            job: 0,
            claim: pending.claim,
            length_bytes,
            written_bytes: written_bytes(&action, &data),
        };
        let reply = match action {
            Action::Done(reply) => reply,
            Action::ReportLuns(report) => report.reply(&LUNS),
            Action::Persist { reply, abort, .. } => {
                self.work.disk.abort(&abort);
                self.keep(reply)
            }
            action => return self.carry_out(session, tag, action, data, flight, out),
        };
        self.reply(session, tag, &reply, length_bytes, out);
    }

    fn carry_out(
        &mut self,
        session: &mut Session,
        tag: u32,
        action: Action,
        data: Vec<u8>,
        flight: Flight,
        out: &mut Vec<u8>,
    ) {
        let execution = Execution {
            disk: &self.work.disk,
            device: self.work.device.as_ref(),
            data: &data,
            claim: &flight.claim,
        };
        match execution.begin(&action) {
            None => self.hand_over(tag, action, data, flight),
            Some(Outcome::Reply(reply)) if is_forced(&action, &reply) => {
                // Only the flush is left, which needs no data.
                self.hand_over(tag, Action::Flush, Vec::new(), flight);
            }
            Some(outcome) => self.answer(session, tag, outcome, &flight, out),
        }
    }

    fn hand_over(&mut self, tag: u32, action: Action, data: Vec<u8>, mut flight: Flight) {
        self.last_job += 1;
        flight.job = self.last_job;
        let job = Job {
            number: self.last_job,
            tag,
            action,
            data,
            claim: flight.claim.clone(),
            disk: Arc::clone(&self.work.disk),
            device: Arc::clone(&self.work.device),
        };
        self.jobs += 1;
        self.carried_bytes += job.carried_bytes();
        self.flights.insert(tag, flight);
        let completions = Arc::clone(&self.completions);
        let run = Box::new(move || job.run(&completions));
        self.admission.shared.pool.submit(self.admission.id, run);
    }

    /// Whether workers are to finish something before more is taken on.
    pub(super) fn is_crowded(&self) -> bool {
        self.jobs > JOBS_MAX || (self.jobs > 1 && self.carried_bytes > CARRIED_BYTES_MAX)
    }

    /// Waits for a worker, without looking at the socket.
    pub(super) fn wait(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        self.completions.wait();
        self.collect(session, out);
        self.release(session, out);
    }

    /// Answers what workers have finished, and begins what waited for it.
    pub(super) fn finished(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        if self.jobs > 0 {
            self.collect(session, out);
        }
        self.release(session, out);
    }

    /// Waits for all that workers have; nobody hears of it any more.
    pub(super) fn settle(&mut self) {
        while self.jobs > 0 {
            self.completions.wait();
            self.jobs -= self.completions.take().len();
        }
    }

    fn collect(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        for done in self.completions.take() {
            self.jobs -= 1;
            self.carried_bytes -= done.carried_bytes;
            let is_its = |flight: &Flight| flight.job == done.number;
            if !self.flights.get(&done.tag).is_some_and(is_its) {
                continue;
            }
            match self.flights.remove(&done.tag) {
                Some(flight) if flight.claim.is_void() => session.abort(done.tag, out),
                Some(flight) => self.answer(session, done.tag, done.outcome, &flight, out),
                None => {}
            }
        }
    }

    fn answer(
        &self,
        session: &mut Session,
        tag: u32,
        outcome: Outcome,
        flight: &Flight,
        out: &mut Vec<u8>,
    ) {
        let counters: &Counters = &self.admission.shared.counters;
        match outcome {
            Outcome::Reply(reply) => {
                if reply.status == Status::Good {
                    add(&counters.written_bytes, flight.written_bytes);
                }
                self.reply(session, tag, &reply, flight.length_bytes, out);
            }
            Outcome::Data(segments) => {
                add(&counters.read_bytes, segments.len_bytes() as u64);
                send(session, tag, &segments, out);
            }
        }
    }

    /// Keeps reservations where they survive a restart: those that hold now, since
    /// another session may have changed them since.
    fn keep(&self, reply: Reply) -> Reply {
        let _one_at_a_time = self.work.disk.keeping();
        let state = self.work.disk.unit().reservations().clone();
        let text = match serde_json::to_string(&state) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, "reservations cannot be written");
                return Sense::INTERNAL_FAILURE.into();
            }
        };
        let targets = &self.admission.shared.targets;
        if targets.keep_reservations(self.work.disk.target(), &text) {
            reply
        } else {
            Sense::INTERNAL_FAILURE.into()
        }
    }

    fn reply(
        &self,
        session: &mut Session,
        tag: u32,
        reply: &Reply,
        length_bytes: u64,
        out: &mut Vec<u8>,
    ) {
        if reply.status == Status::Good && !reply.data_in.is_empty() {
            let data = &reply.data_in;
            let fill = |out: &mut Vec<u8>, at: usize, len: usize| {
                out.extend_from_slice(data.get(at..at + len).unwrap_or_default());
            };
            return session.data_in(tag, data.len() as u64, fill, out);
        }
        let format = self.sense_format();
        let sense = reply.sense.map(|sense| sense.bytes(format));
        // After an error too, an initiator learns that it announced too little.
        let completion = Completion {
            status: reply.status as u8,
            sense: sense.as_deref().unwrap_or_default(),
            length_bytes: (reply.status == Status::Good).then_some(length_bytes),
        };
        session.respond(tag, &completion, out);
    }

    fn sense_format(&self) -> SenseFormat {
        self.work.disk.unit().sense_format()
    }
}

impl Drop for Desk<'_> {
    /// Whoever sees the session's end may delete the volume, or log in again.
    fn drop(&mut self) {
        self.settle();
    }
}

/// A write that is done and whose answer waits for a flush.
fn is_forced(action: &Action, reply: &Reply) -> bool {
    let forced = matches!(
        action,
        Action::Write {
            durability: Durability::Forced,
            ..
        }
    );
    forced && reply.status == Status::Good
}

/// A COMPARE AND WRITE of no blocks whose initiator means to send some: their
/// number did not fit its one byte.
fn is_empty_comparison(command: &Command, wanted: DataOut) -> bool {
    const COMPARE_AND_WRITE: u8 = 0x89;
    let opcode = command.cdb.first();
    opcode == Some(&COMPARE_AND_WRITE)
        && wanted == DataOut::None
        && command.writes
        && command.expected_bytes > 0
}

fn written_bytes(action: &Action, data: &[u8]) -> u64 {
    let writes = matches!(
        action,
        Action::Write { .. } | Action::WriteAndVerify { .. } | Action::CompareAndWrite { .. }
    );
    if writes { data.len() as u64 } else { 0 }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Answers a read. Its parts are asked for in order.
fn send(session: &mut Session, tag: u32, segments: &Segments, out: &mut Vec<u8>) {
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
