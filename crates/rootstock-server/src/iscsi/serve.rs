//! The full-feature phase: commands in, answers out, until either side leaves.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use rootstock_iscsi::{Command, Completion, Event, Session, TaskFunction};
use rootstock_scsi::{
    Action, DataOut, InitiatorPort, Reply, Sense, SenseFormat, Status, decode_lun,
    reply_without_unit,
};
use rootstock_volume::{Segment, Segments};

use super::{
    connection::{ConnectionError, Wire, io_error},
    disk::{Attached, Disk, TRANSFER_BYTES_MAX},
    execute::{Execution, Outcome},
    login::{Opened, Work},
    shared::{Admission, Counters},
};
use crate::nbd::transport::{Socket, Wait};

/// What a session takes in one PDU, in bytes.
pub(super) const SEGMENT_BYTES_MAX: usize = 256 << 10;

/// Answers are sent when this many bytes have gathered, even if more commands wait.
const BATCH_BYTES: usize = 1 << 20;

/// The units of each target.
const LUNS: [u16; 1] = [0];

/// Serves a session to its end.
pub(super) fn serve(
    wire: &mut Wire,
    address: IpAddr,
    admission: &Admission,
    opened: Opened,
) -> Result<(), ConnectionError> {
    let Opened {
        established,
        offered,
        work,
    } = opened;
    let question = &established.question;
    let initiator = InitiatorPort {
        name: question.initiator.clone(),
        isid: question.isid,
    };
    tracing::info!(
        initiator = initiator.name,
        target = question.target.as_deref(),
        %address,
        "an iSCSI session began"
    );
    let desk = match &work {
        Some(work) => match work.disk.attach(initiator) {
            Some(attached) => Some(Desk {
                admission,
                work,
                attached,
                pending: BTreeMap::new(),
            }),
            None => return Ok(()),
        },
        None => None,
    };
    let conversation = Conversation {
        session: Session::new(&established),
        desk,
        offered,
        portal: portal(&wire.transport.socket),
        admission,
    };
    conversation.run(wire)
}

/// The address that the initiator has reached us at.
fn portal(socket: &Socket) -> String {
    match socket {
        Socket::Tcp(stream) => stream.local_addr().map_or_else(
            |_| String::new(),
            |mut address| {
                address.set_ip(address.ip().to_canonical());
                address.to_string()
            },
        ),
        Socket::Unix(_) => String::new(),
    }
}

struct Conversation<'a> {
    session: Session,
    desk: Option<Desk<'a>>,
    offered: Vec<String>,
    portal: String,
    admission: &'a Admission,
}

/// What becomes of the connection.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Leave,
}

impl Conversation<'_> {
    fn run(mut self, wire: &mut Wire) -> Result<(), ConnectionError> {
        let shared = &self.admission.shared;
        let mut pinged = false;
        loop {
            if self.drain(wire)? == Next::Leave || shared.is_stopping() {
                return wire.send();
            }
            wire.send()?;
            let deadline = Instant::now() + shared.limits.silence;
            match wire.receive(Wait::Until(deadline)) {
                Ok(true) => pinged = false,
                Ok(false) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && pinged => {
                    return Err(ConnectionError::Silent);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    pinged = true;
                    self.session.ping(&mut wire.out);
                }
                Err(error) => return Err(io_error("receiving")(error)),
            }
        }
    }

    /// Answers all PDUs that have arrived.
    fn drain(&mut self, wire: &mut Wire) -> Result<Next, ConnectionError> {
        while let Some((frame, out)) = wire.next(self.session.digests(), SEGMENT_BYTES_MAX)? {
            let received = self.session.receive(&frame, out);
            let next = match received {
                Ok(Some(event)) => self.handle(event, out),
                Ok(None) => Next::Go,
                Err(error) => {
                    wire.send()?;
                    return Err(ConnectionError::Session(error));
                }
            };
            if next == Next::Leave {
                return Ok(next);
            }
            if wire.out.len() >= BATCH_BYTES {
                wire.send()?;
            }
        }
        Ok(Next::Go)
    }

    fn handle(&mut self, event: Event, out: &mut Vec<u8>) -> Next {
        let session = &mut self.session;
        match (event, &mut self.desk) {
            (Event::Logout, _) => return Next::Leave,
            (Event::SendTargets { tag, target }, desk) => {
                let own = desk.as_ref().map(|desk| desk.work.disk.target());
                let which = which(&self.offered, target.as_deref(), own);
                let portal = &self.portal;
                let found: Vec<_> = which.map(|name| (name.clone(), portal.clone())).collect();
                session.targets(tag, &found, out);
            }
            (Event::Command(command), Some(desk)) => desk.command(session, &command, out),
            (Event::Data { tag, data }, Some(desk)) => desk.data(session, tag, &data, out),
            (Event::Dropped(tags), Some(desk)) => desk.forget(&tags),
            (
                Event::TaskManagement {
                    tag,
                    function,
                    lun,
                    dropped,
                },
                Some(desk),
            ) => {
                desk.forget(&dropped);
                let response = desk.task_management(function, lun);
                session.task_management_done(tag, response, out);
                if function == TaskFunction::TargetColdReset {
                    return Next::Leave;
                }
            }
            // A discovery session has no commands.
            (_, None) => {}
        }
        Next::Go
    }
}

/// RFC 7143, appendix C: all, one, or (with an empty value) the session's own.
fn which<'a>(
    offered: &'a [String],
    asked: Option<&'a str>,
    own: Option<&'a str>,
) -> impl Iterator<Item = &'a String> {
    let asked = match asked {
        Some("") => own,
        asked => asked,
    };
    offered
        .iter()
        .filter(move |name| asked.is_none_or(|asked| asked == name.as_str()))
}

/// A normal session at its disk.
struct Desk<'a> {
    admission: &'a Admission,
    work: &'a Work,
    attached: Attached,
    /// Commands whose data are on their way.
    pending: BTreeMap<u32, Pending>,
}

struct Pending {
    action: Action,
    epoch: u64,
}

impl Desk<'_> {
    fn command(&mut self, session: &mut Session, command: &Command, out: &mut Vec<u8>) {
        self.give_up_aborted(session, out);
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
        if wanted == DataOut::None {
            return self.finish(session, command.tag, action, &[], out);
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
            Some(data) => self.finish(session, command.tag, action, &data, out),
            None => {
                let epoch = self.attached.epoch();
                self.pending.insert(command.tag, Pending { action, epoch });
            }
        }
    }

    fn data(&mut self, session: &mut Session, tag: u32, data: &[u8], out: &mut Vec<u8>) {
        self.give_up_aborted(session, out);
        if let Some(pending) = self.pending.remove(&tag) {
            self.finish(session, tag, pending.action, data, out);
        }
    }

    /// Forgets what others' resets have ended; they are not answered (SAM-5,
    /// section 5.6, with TAS 0).
    fn give_up_aborted(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        let epoch = self.attached.epoch();
        let aborted = self.pending.iter().filter(|(_, it)| it.epoch != epoch);
        let aborted: Vec<u32> = aborted.map(|(tag, _)| *tag).collect();
        for tag in aborted {
            self.pending.remove(&tag);
            session.abort(tag, out);
        }
    }

    fn forget(&mut self, tags: &[u32]) {
        for tag in tags {
            self.pending.remove(tag);
        }
    }

    /// The response of RFC 7143, section 11.6.1.
    fn task_management(&mut self, function: TaskFunction, lun: [u8; 8]) -> u8 {
        let of_target = matches!(
            function,
            TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset
        );
        if !of_target && decode_lun(lun).is_none_or(|lun| !LUNS.contains(&lun)) {
            return 2;
        }
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

    /// Carries a command out and answers it.
    fn finish(
        &mut self,
        session: &mut Session,
        tag: u32,
        action: Action,
        data: &[u8],
        out: &mut Vec<u8>,
    ) {
        let length = action.data_out().bytes();
        let action = match action {
            Action::Parameters(waiting) => {
                let mut unit = self.work.disk.unit();
                unit.parameters(self.attached.handle, waiting, data)
            }
            action => action,
        };
        let counters = &self.admission.shared.counters;
        add(&counters.commands, 1);
        let reply = match action {
            Action::Persist {
                state,
                reply,
                abort,
            } => {
                self.work.disk.abort(&abort);
                self.keep(&state, reply)
            }
            Action::ReportLuns(report) => report.reply(&LUNS),
            action => {
                let execution = Execution {
                    disk: &self.work.disk,
                    device: self.work.device.as_ref(),
                    data,
                };
                match execution.run(&action) {
                    Outcome::Reply(reply) => {
                        count_written(counters, &action, data, &reply);
                        reply
                    }
                    Outcome::Data(segments) => {
                        add(&counters.read_bytes, segments.len_bytes() as u64);
                        return send(session, tag, &segments, out);
                    }
                }
            }
        };
        self.reply(session, tag, &reply, length, out);
    }

    /// Keeps reservations where they survive a restart.
    fn keep(&self, state: &rootstock_scsi::Reservations, reply: Reply) -> Reply {
        let text = match serde_json::to_string(state) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, "reservations cannot be written");
                return Sense::INTERNAL_FAILURE.into();
            }
        };
        let target = self.work.disk.target();
        if self
            .admission
            .shared
            .targets
            .keep_reservations(target, &text)
        {
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
        length: u64,
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
            length_bytes: (reply.status == Status::Good).then_some(length),
        };
        session.respond(tag, &completion, out);
    }

    fn sense_format(&self) -> SenseFormat {
        self.work.disk.unit().sense_format()
    }
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

fn count_written(counters: &Counters, action: &Action, data: &[u8], reply: &Reply) {
    let writes = matches!(
        action,
        Action::Write { .. } | Action::WriteAndVerify { .. } | Action::CompareAndWrite { .. }
    );
    if writes && reply.status == Status::Good {
        add(&counters.written_bytes, data.len() as u64);
    }
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
