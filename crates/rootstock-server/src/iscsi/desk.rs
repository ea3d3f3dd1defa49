//! A session at its disks: its commands, in the order that they ask for.
//!
//! What memory answers is answered at once, and a write is a copy into the page
//! cache; whatever may wait for a disk goes to the workers, and its answer may
//! overtake others. Initiators are told so (QUEUE ALGORITHM MODIFIER 1 of the control
//! page): only ORDERED commands wait, and are waited for.

mod answer;
mod streamed;

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use rootstock_iscsi::{Command, Session, TaskAttribute, TaskFunction};
use rootstock_scsi::{
    Action, DataOut, InitiatorPort, Reply, Sense, Status, action::Durability, decode_lun,
    reply_without_unit,
};
use rootstock_volume::BlockDevice;

use super::{
    Client, OpenUnit,
    disk::{Attached, Disk, TRANSFER_BYTES_MAX},
    execute::{Execution, Outcome},
    jobs::{Claim, Completions, Job},
    login::Work,
    shared::Admission,
};
use crate::serving::outgoing::Outgoing;
use streamed::Streamed;

/// What a session's commands may hold at the workers, in bytes; a single larger
/// one is let through alone.
const CARRIED_BYTES_MAX: u64 = 32 << 20;

/// What the commands of all sessions may hold at the workers, in bytes; each session
/// has one command there all the same.
const CARRIED_BYTES_MAX_OF_ALL: u64 = 1 << 30;

/// A write that is longer than this, in bytes, is not gathered first: what comes of it is
/// written as it comes.
const GATHERED_BYTES_MAX: u64 = 64 << 10;

const REPORT_LUNS: u8 = 0xa0;

/// The most commands of a session that workers may have, those among them that nobody
/// waits for any more.
const JOBS_MAX: usize = 80;

/// A normal session at its disk.
pub(super) struct Desk<'a> {
    admission: &'a Admission,
    target: String,
    initiator: InitiatorPort,
    /// Where the initiator is.
    client: String,
    /// The disks, by their numbers.
    seats: BTreeMap<u16, Seat>,
    /// What commands for disks that are not there are begun by: nobody ends them.
    nobody: Arc<AtomicU64>,
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
    _presence: Box<dyn Any + Send>,
}

/// A session's place at a disk. Dropped in this order.
struct Seat {
    attached: Attached,
    device: Arc<dyn BlockDevice>,
    _lease: Box<dyn Any + Send>,
}

struct Held {
    command: Command,
    claim: Claim,
}

struct Pending {
    lun: u16,
    action: Action,
    claim: Claim,
    streamed: Streamed,
}

struct Flight {
    lun: u16,
    job: u64,
    claim: Claim,
    /// What the command's own fields say, for the residual count.
    length_bytes: u64,
    written_bytes: u64,
}

impl<'a> Desk<'a> {
    /// None when there is no room for another session at any of the disks.
    pub(super) fn new(
        admission: &'a Admission,
        work: Work,
        initiator: InitiatorPort,
    ) -> Option<Self> {
        let mut desk = Self {
            admission,
            target: work.target,
            initiator,
            client: work.client,
            seats: BTreeMap::new(),
            nobody: Arc::default(),
            held: VecDeque::new(),
            pending: BTreeMap::new(),
            flights: BTreeMap::new(),
            ordered: None,
            jobs: 0,
            last_job: 0,
            carried_bytes: 0,
            completions: Arc::new(Completions::new(Arc::clone(&admission.bell))),
            _presence: work.presence,
        };
        for unit in work.units {
            desk.sit_down(unit);
        }
        (!desk.seats.is_empty()).then_some(desk)
    }

    /// Takes a place at a disk, if there is one.
    fn sit_down(&mut self, unit: OpenUnit) {
        let shared = &self.admission.shared;
        let disk = shared
            .disks
            .open(&self.target, &unit, shared.targets.as_ref());
        let Some(attached) = disk.attach(self.initiator.clone()) else {
            tracing::warn!(disk = unit.name, "too many sessions of an iSCSI disk");
            return;
        };
        let seat = Seat {
            attached,
            device: unit.device,
            _lease: unit.lease,
        };
        self.seats.insert(unit.lun, seat);
    }

    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// Whichever disk was asked, or none of them.
    fn luns_told(&self) {
        for seat in self.seats.values() {
            seat.attached.unit().luns_told(seat.attached.handle);
        }
    }

    fn luns(&self) -> Vec<u16> {
        self.seats.keys().copied().collect()
    }

    /// Looks which disks there are now. Commands for those that went end without an
    /// answer, and what came or went is announced by all that are there (SPC-4 6.33).
    pub(super) fn look_again(&mut self, session: &mut Session, out: &mut Outgoing) {
        let client = Client {
            initiator: &self.initiator.name,
            isid: self.initiator.isid,
            address: &self.client,
        };
        let units = self.admission.shared.targets.units(&self.target, &client);
        let named = units.iter().map(|unit| (unit.lun, unit.name.as_str()));
        let seats = self.seats.iter();
        let seated = seats.map(|(lun, seat)| (*lun, seat.attached.disk.name()));
        if named.clone().eq(seated.clone()) {
            return;
        }
        let stays = |lun: u16, name: &str| named.clone().any(|it| it == (lun, name));
        let gone: Vec<u16> = seated
            .filter(|(lun, name)| !stays(*lun, name))
            .map(|(lun, _)| lun)
            .collect();
        self.finish_jobs(session, out);
        self.leave(session, &gone, out);
        for unit in units {
            if !self.seats.contains_key(&unit.lun) {
                self.sit_down(unit);
            }
        }
        for seat in self.seats.values() {
            seat.attached.unit().luns_changed(seat.attached.handle);
        }
        self.release(session, out);
    }

    fn leave(&mut self, session: &mut Session, luns: &[u16], out: &mut Outgoing) {
        let pending = self.pending.iter().filter(|(_, it)| luns.contains(&it.lun));
        let mut ended: Vec<u32> = pending.map(|(tag, _)| *tag).collect();
        let is_its =
            |held: &&Held| decode_lun(held.command.lun).is_some_and(|lun| luns.contains(&lun));
        ended.extend(self.held.iter().filter(is_its).map(|held| held.command.tag));
        self.forget(&ended);
        for tag in ended {
            session.abort(tag, &mut out.own);
        }
        self.seats.retain(|lun, _| !luns.contains(lun));
    }

    /// Waits for all that workers have, and answers it.
    fn finish_jobs(&mut self, session: &mut Session, out: &mut Outgoing) {
        while self.jobs > 0 {
            self.completions.wait();
            self.collect(session, out);
        }
    }

    fn seat(&self, lun: [u8; 8]) -> Option<(u16, &Seat)> {
        let lun = decode_lun(lun)?;
        Some((lun, self.seats.get(&lun)?))
    }

    /// A command that has arrived.
    pub(super) fn arrived(&mut self, session: &mut Session, command: Command, out: &mut Outgoing) {
        self.give_up_aborted(session, out);
        let at_once = command.attribute == TaskAttribute::HeadOfQueue
            || (self.held.is_empty() && !self.must_wait(command.attribute));
        let seat = self.seat(command.lun);
        let claim = match seat {
            Some((_, seat)) => seat.attached.claim(),
            None => Claim::new(&self.nobody),
        };
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
    fn release(&mut self, session: &mut Session, out: &mut Outgoing) {
        while let Some(held) = self.held.front() {
            let has_room = !self.is_crowded() && !out.is_enough();
            if !has_room || self.must_wait(held.command.attribute) {
                return;
            }
            if let Some(held) = self.held.pop_front() {
                self.begin(session, &held.command, held.claim, out);
            }
        }
    }

    fn begin(
        &mut self,
        session: &mut Session,
        command: &Command,
        claim: Claim,
        out: &mut Outgoing,
    ) {
        // Another session's reset has ended it while it was held.
        if claim.is_void() {
            return session.abort(command.tag, &mut out.own);
        }
        if command.attribute == TaskAttribute::Ordered {
            self.ordered = Some(command.tag);
        } else if self.ordered == Some(command.tag) {
            // The tag is another command's now.
            self.ordered = None;
        }
        let Some((lun, seat)) = self.seat(command.lun) else {
            let reply = reply_without_unit(&command.cdb, &self.luns());
            if command.cdb.first() == Some(&REPORT_LUNS) {
                self.luns_told();
            }
            return self.reply(session, command.tag, None, &reply, 0, out);
        };
        let action = {
            let size_bytes = seat.device.size_bytes();
            let mut unit = seat.attached.unit();
            unit.resize(size_bytes / seat.attached.disk.block_bytes());
            unit.start(seat.attached.handle, &command.cdb)
        };
        let block_bytes = seat.attached.disk.block_bytes();
        let wanted = action.data_out();
        if is_empty_comparison(command, &action) {
            let reply = Reply::from(Sense::INVALID_FIELD_IN_CDB);
            return self.reply(session, command.tag, Some(lun), &reply, 0, out);
        }
        let streams = matches!(action, Action::Write { .. }) && wanted.bytes() > GATHERED_BYTES_MAX;
        let pending = Pending {
            lun,
            action,
            claim,
            streamed: Streamed::default(),
        };
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
            return self.reply(session, command.tag, Some(lun), &reply, wanted.bytes(), out);
        }
        if streams {
            // Whole blocks, should the initiator send less than it is to write.
            let whole = announced / block_bytes * block_bytes;
            let wanted = wanted.bytes().min(whole) as usize;
            self.pending.insert(command.tag, pending);
            if let Some((data, last)) = session.stream(command.tag, wanted, &mut out.own) {
                self.write_part(session, command.tag, 0, &data, last, out);
            }
            return;
        }
        match session.gather(command.tag, wanted.bytes() as usize, &mut out.own) {
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
        out: &mut Outgoing,
    ) {
        self.give_up_aborted(session, out);
        if let Some(pending) = self.pending.remove(&tag) {
            self.go_on(session, tag, pending, data, out);
            self.release(session, out);
        }
    }

    /// Forgets what others' resets have ended; they are not answered (SAM-5,
    /// section 5.6, with TAS 0). What workers have of it they bring back first.
    fn give_up_aborted(&mut self, session: &mut Session, out: &mut Outgoing) {
        let void = self.pending.iter().filter(|(_, it)| it.claim.is_void());
        let mut aborted: Vec<u32> = void.map(|(tag, _)| *tag).collect();
        let void = self.held.iter().filter(|held| held.claim.is_void());
        aborted.extend(void.map(|held| held.command.tag));
        self.forget(&aborted);
        for tag in aborted {
            session.abort(tag, &mut out.own);
        }
        self.release(session, out);
    }

    /// Tasks have ended otherwise.
    pub(super) fn dropped(&mut self, session: &mut Session, tags: &[u32], out: &mut Outgoing) {
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
        out: &mut Outgoing,
    ) -> u8 {
        self.forget(dropped);
        let of_target = matches!(
            function,
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset
        );
        if !of_target && self.seat(lun).is_none() {
            return 2;
        }
        self.finish_jobs(session, out);
        self.release(session, out);
        let one = self.seat(lun).map(|(_, seat)| seat);
        match function {
            TaskFunction::AbortTask | TaskFunction::AbortTaskSet => {}
            TaskFunction::ClearTaskSet => {
                if let Some(seat) = one {
                    let handle = seat.attached.handle;
                    seat.attached.disk.abort_others(handle);
                    seat.attached.unit().commands_cleared(handle);
                }
            }
            TaskFunction::LogicalUnitReset => one.into_iter().for_each(reset),
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset => {
                self.seats.values().for_each(reset);
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
        out: &mut Outgoing,
    ) {
        let lun = pending.lun;
        let Some(seat) = self.seats.get(&lun) else {
            return session.abort(tag, &mut out.own);
        };
        let length_bytes = pending.action.data_out().bytes();
        let action = match pending.action {
            Action::Parameters(waiting) => {
                let mut unit = seat.attached.unit();
                unit.parameters(seat.attached.handle, waiting, &data)
            }
            action => action,
        };
        add(&self.admission.shared.counters.commands, 1);
        let flight = Flight {
            lun,
            job: 0,
            claim: pending.claim,
            length_bytes,
            written_bytes: written_bytes(&action, &data),
        };
        let reply = match action {
            Action::Done(reply) => reply,
            Action::ReportLuns(report) => {
                self.luns_told();
                report.reply(&self.luns())
            }
            Action::Persist { reply, abort, .. } => {
                let disk = &seat.attached.disk;
                disk.abort(&abort);
                self.keep(disk, reply)
            }
            action => return self.carry_out(session, tag, action, data, flight, out),
        };
        self.reply(session, tag, Some(lun), &reply, length_bytes, out);
    }

    fn carry_out(
        &mut self,
        session: &mut Session,
        tag: u32,
        action: Action,
        data: Vec<u8>,
        flight: Flight,
        out: &mut Outgoing,
    ) {
        let Some(seat) = self.seats.get(&flight.lun) else {
            return session.abort(tag, &mut out.own);
        };
        let (disk, device) = (Arc::clone(&seat.attached.disk), Arc::clone(&seat.device));
        let execution = Execution {
            disk: &disk,
            device: device.as_ref(),
            data: &data,
            claim: &flight.claim,
        };
        match execution.begin(&action) {
            None => self.hand_over(tag, action, data, flight, (disk, device)),
            Some(Outcome::Reply(reply)) if is_forced(&action, &reply) => {
                // Only the flush is left, which needs no data.
                self.hand_over(tag, Action::Flush, Vec::new(), flight, (disk, device));
            }
            Some(outcome) => self.answer(session, tag, outcome, &flight, out),
        }
    }

    fn hand_over(
        &mut self,
        tag: u32,
        action: Action,
        data: Vec<u8>,
        mut flight: Flight,
        (disk, device): (Arc<Disk>, Arc<dyn BlockDevice>),
    ) {
        self.last_job += 1;
        flight.job = self.last_job;
        let job = Job {
            number: self.last_job,
            tag,
            action,
            data,
            claim: flight.claim.clone(),
            disk,
            device,
        };
        self.carry(job.carried_bytes());
        self.flights.insert(tag, flight);
        let completions = Arc::clone(&self.completions);
        let run = Box::new(move || job.run(&completions));
        self.admission.shared.pool.submit(self.admission.id, run);
    }

    /// Whether workers are to finish something before more is taken on.
    pub(super) fn is_crowded(&self) -> bool {
        let all = self.admission.shared.carried_bytes.load(Ordering::Relaxed);
        let much = self.carried_bytes > CARRIED_BYTES_MAX || all > CARRIED_BYTES_MAX_OF_ALL;
        self.jobs > JOBS_MAX || (self.jobs > 1 && much)
    }

    fn carry(&mut self, bytes: u64) {
        self.jobs += 1;
        self.carried_bytes += bytes;
        add(&self.admission.shared.carried_bytes, bytes);
    }

    fn put_down(&mut self, bytes: u64) {
        self.jobs -= 1;
        self.carried_bytes -= bytes;
        let all = &self.admission.shared.carried_bytes;
        all.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits for a worker, without looking at the socket.
    pub(super) fn wait(&mut self, session: &mut Session, out: &mut Outgoing) {
        self.completions.wait();
        self.collect(session, out);
        self.release(session, out);
    }

    /// Answers what workers have finished, and begins what waited for it.
    pub(super) fn finished(&mut self, session: &mut Session, out: &mut Outgoing) {
        if self.jobs > 0 {
            self.collect(session, out);
        }
        self.release(session, out);
    }

    /// Waits for all that workers have; nobody hears of it any more.
    pub(super) fn settle(&mut self) {
        while self.jobs > 0 {
            self.completions.wait();
            for done in self.completions.take() {
                self.put_down(done.carried_bytes);
            }
        }
    }

    fn collect(&mut self, session: &mut Session, out: &mut Outgoing) {
        for done in self.completions.take() {
            self.put_down(done.carried_bytes);
            let is_its = |flight: &Flight| flight.job == done.number;
            if !self.flights.get(&done.tag).is_some_and(is_its) {
                continue;
            }
            match self.flights.remove(&done.tag) {
                Some(flight) if flight.claim.is_void() => session.abort(done.tag, &mut out.own),
                Some(flight) => self.answer(session, done.tag, done.outcome, &flight, out),
                None => {}
            }
        }
    }
}

impl Drop for Desk<'_> {
    /// Whoever sees the session's end may delete the volume, or log in again.
    fn drop(&mut self) {
        self.settle();
    }
}

/// A disk is as if it had just been switched on, for all who use it.
fn reset(seat: &Seat) {
    seat.attached.disk.abort_others(seat.attached.handle);
    seat.attached.unit().reset();
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

/// A COMPARE AND WRITE of no blocks, which would be done already, whose initiator means
/// to send some: their number did not fit its one byte.
fn is_empty_comparison(command: &Command, action: &Action) -> bool {
    const COMPARE_AND_WRITE: u8 = 0x89;
    let is_done = matches!(action, Action::Done(reply) if reply.status == Status::Good);
    command.cdb.first() == Some(&COMPARE_AND_WRITE)
        && is_done
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
