//! The full-feature phase: commands in, answers out, until either side leaves.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use rootstock_iscsi::{Event, Session, TaskFunction};
use rootstock_scsi::InitiatorPort;

use super::{
    connection::{ConnectionError, Received, Wire, io_error},
    desk::Desk,
    login::Opened,
    shared::Admission,
};
use crate::serving::{outgoing::Outgoing, transport::Socket};

/// What a session takes in one PDU, in bytes.
pub(super) const SEGMENT_BYTES_MAX: usize = 256 << 10;

/// How long an initiator may take to leave once the daemon stops.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

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
    let desk = match work {
        Some(work) => match Desk::new(admission, work, initiator) {
            Some(desk) => Some(desk),
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
        let mut leave_by = None;
        loop {
            // Before commands that were sent in the knowledge of it.
            if let Some(desk) = &mut self.desk
                && self.admission.must_look()
            {
                desk.look_again(&mut self.session, &mut wire.out);
            }
            if self.drain(wire)? == Next::Leave {
                return wire.send();
            }
            if shared.is_stopping() && leave_by.is_none() {
                if self.desk.is_none() {
                    return wire.send();
                }
                let seconds = LEAVE_WITHIN.as_secs() as u16;
                self.session.ask_to_leave(seconds, &mut wire.out.own);
                leave_by = Some(Instant::now() + LEAVE_WITHIN);
            }
            if self.admission.must_ask() {
                self.session.ping(&mut wire.out.own);
            }
            wire.send()?;
            let silence = Instant::now() + shared.limits.silence;
            let deadline = leave_by.map_or(silence, |leave_by| silence.min(leave_by));
            match wire.receive_or_ring(&self.admission.bell, deadline) {
                Ok(Received::Bytes) => {
                    self.admission.heard();
                    pinged = false;
                }
                Ok(Received::Ring) => {}
                Ok(Received::End) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::TimedOut => {
                    return Err(io_error("receiving")(error));
                }
                Err(_) if leave_by.is_some() => return Ok(()),
                Err(_) if pinged => return Err(ConnectionError::Silent),
                Err(_) => {
                    pinged = true;
                    self.session.ping(&mut wire.out.own);
                }
            }
        }
    }

    /// Answers all PDUs that have arrived, and all that workers have finished.
    fn drain(&mut self, wire: &mut Wire) -> Result<Next, ConnectionError> {
        while let Some((frame, out)) = wire.next(self.session.digests(), SEGMENT_BYTES_MAX)? {
            let received = self.session.receive(&frame, &mut out.own);
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
            if wire.out.is_enough() {
                wire.send()?;
            }
            self.make_room(wire)?;
        }
        while let Some(desk) = &mut self.desk {
            desk.finished(&mut self.session, &mut wire.out);
            if !wire.out.is_enough() {
                break;
            }
            wire.send()?;
        }
        Ok(Next::Go)
    }

    fn make_room(&mut self, wire: &mut Wire) -> Result<(), ConnectionError> {
        while let Some(desk) = self.desk.as_mut().filter(|desk| desk.is_crowded()) {
            wire.send()?;
            desk.wait(&mut self.session, &mut wire.out);
        }
        Ok(())
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Outgoing) -> Next {
        let session = &mut self.session;
        match (event, &mut self.desk) {
            (Event::Logout, desk) => {
                // What it has begun is over when it hears that it is out.
                if let Some(desk) = desk {
                    desk.settle();
                }
                return Next::Leave;
            }
            (Event::SendTargets { tag, target }, desk) => {
                let own = desk.as_ref().map(Desk::target);
                let which = which(&self.offered, target.as_deref(), own);
                let portal = &self.portal;
                let found: Vec<_> = which.map(|name| (name.clone(), portal.clone())).collect();
                session.targets(tag, &found, &mut out.own);
            }
            (Event::Command(command), Some(desk)) => desk.arrived(session, command, out),
            (Event::Data { tag, data }, Some(desk)) => desk.data(session, tag, data, out),
            (
                Event::Part {
                    tag,
                    offset,
                    data,
                    last,
                },
                Some(desk),
            ) => desk.part(session, tag, offset, &data, last, out),
            (Event::Dropped(tags), Some(desk)) => desk.dropped(session, &tags, out),
            (
                Event::TaskManagement {
                    tag,
                    function,
                    lun,
                    dropped,
                },
                Some(desk),
            ) => {
                let response = desk.task_management(session, function, lun, &dropped, out);
                session.task_management_done(tag, response, &mut out.own);
                if function == TaskFunction::TargetColdReset {
                    // Section 11.5.1: as when the power goes.
                    let shared = &self.admission.shared;
                    shared.expel_others(self.admission, desk.target());
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
