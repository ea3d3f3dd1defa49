//! The login of one connection (sections 6.3 and 11.12), from the initiator's side.
//!
//! It asks for a normal session with one disk, proves a secret when it has one, and
//! offers what Linux's initiator can do. Numbers of commands and answers are not set
//! here: whoever sends the PDUs knows them.

use thiserror::Error;

use crate::chap::{Algorithm, Exchange, binary, to_text};
use crate::frame::{DATA_BYTES_MAX, Digests, Frame, HEADER_BYTES};
use crate::operational::{Operational, SEGMENT_BYTES_MIN};
use crate::pdu::{CONTINUE, FINAL, Header, opcode};
use crate::text::{TextWriter, number, pairs};

/// The text of one answer, which may come in several PDUs.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Answers of one login; targets need at most eight.
const ANSWERS_MAX: u32 = 32;
/// What one PDU of a login carries (section 13.12's default).
const LOGIN_SEGMENT_BYTES: usize = 8192;

/// What the initiator takes in one PDU, and in one burst.
const SEGMENT_BYTES: u32 = 262_144;
const BURST_BYTES: u32 = 16_776_192;
const FIRST_BURST_BYTES: u32 = 262_144;

/// What both hash CHAP with, the better one first.
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Md5];

/// Who logs in, and to what.
#[derive(Clone)]
pub struct Wish {
    /// The initiator's name.
    pub initiator: String,
    /// The target's name.
    pub target: String,
    /// Tells sessions of one initiator apart (section 11.12.5).
    pub isid: [u8; 6],
    /// The session that the connection belongs to, 0 for a new one (section 11.12.6).
    pub tsih: u16,
    /// User name and secret, if it may have to prove one.
    pub secret: Option<(String, Vec<u8>)>,
}

/// What a login came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// What both agreed on.
    pub operational: Operational,
    /// What the target takes in one PDU (section 13.12).
    pub target_segment_bytes_max: u32,
    /// The session's number at the target.
    pub tsih: u16,
    /// The target's portal group.
    pub portal_group: u16,
    /// The number that the target's next answer has.
    pub status_number: u32,
}

/// What comes after an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Another request.
    Send(Request),
    /// The full-feature phase.
    Done(Box<Agreed>),
}

/// A login request; its sender fills in its numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The basic header.
    pub header: [u8; HEADER_BYTES],
    /// The text.
    pub text: Vec<u8>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text may have what proves a secret.
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InitiatorError {
    /// The target is at another portal (section 11.13.5).
    #[error("the target is at {address}")]
    Moved {
        /// `HOST:PORT`, as the target wrote it.
        address: String,
    },
    /// The target says no.
    #[error("the target refused the login: {}", meaning(*class, *detail))]
    Refused {
        /// The status' class: 2 is this side's fault, 3 the target's.
        class: u8,
        /// The status' detail.
        detail: u8,
    },
    /// It has to prove a secret, and has none.
    #[error("the target asks for a secret (CHAP), and there is none")]
    NoSecret,
    /// The target does not keep to the standard.
    #[error("the target's answer is against the standard: {0}")]
    Broken(&'static str),
}

impl InitiatorError {
    /// Whether another try may go well.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Moved { .. } | Self::Refused { class: 3, .. })
    }
}

/// The words of section 11.13.5.
fn meaning(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (2, 0) => "initiator error",
        (2, 1) => "authentication failure",
        (2, 2) => "authorization failure",
        (2, 3) => "target not found",
        (2, 4) => "target removed",
        (2, 5) => "unsupported version",
        (2, 6) => "too many connections",
        (2, 7) => "missing parameter",
        (2, 8) => "can't include in session",
        (2, 9) => "session type not supported",
        (2, 10) => "session does not exist",
        (2, 11) => "invalid during login",
        (3, 0) => "target error",
        (3, 1) => "service unavailable",
        (3, 2) => "out of resources",
        _ => "an unknown status",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The method is being chosen.
    Method,
    /// The algorithm is.
    Algorithm,
    /// The secret was proved.
    Proved,
    /// The operational keys are being negotiated.
    Operational,
}

/// A login in progress.
pub struct Initiator {
    wish: Wish,
    stage: Stage,
    answers: u32,
    gathered: Vec<u8>,
    portal_group: u16,
    operational: Operational,
    target_segment_bytes_max: u32,
}

impl Initiator {
    /// Begins, and gives the first request.
    #[must_use]
    pub fn begin(wish: Wish) -> (Self, Request) {
        let login = Self {
            wish,
            stage: Stage::Method,
            answers: 0,
            gathered: Vec::new(),
            portal_group: 1,
            operational: Operational {
                initiator_segment_bytes_max: SEGMENT_BYTES,
                ..Operational::default()
            },
            target_segment_bytes_max: LOGIN_SEGMENT_BYTES as u32,
        };
        let mut text = TextWriter::default();
        text.push("InitiatorName", &login.wish.initiator);
        text.push("TargetName", &login.wish.target);
        text.push("SessionType", "Normal");
        let request = if login.wish.secret.is_some() {
            text.push("AuthMethod", "CHAP,None");
            login.request(0, text)
        } else {
            text.push("AuthMethod", "None");
            login.request(FINAL | 1, text)
        };
        (login, request)
    }

    /// Takes an answer.
    ///
    /// # Errors
    /// When there will be no session.
    pub fn receive(&mut self, frame: &Frame<'_>) -> Result<Step, InitiatorError> {
        self.answers += 1;
        if frame.opcode() != opcode::LOGIN_RESPONSE {
            return Err(InitiatorError::Broken("another PDU before the login's end"));
        }
        if self.answers > ANSWERS_MAX || self.gathered.len() + frame.data.len() > TEXT_BYTES_MAX {
            return Err(InitiatorError::Broken("a login without end"));
        }
        self.gathered.extend_from_slice(frame.data);
        let flags = frame.flags();
        if flags & CONTINUE != 0 {
            return Ok(Step::Send(self.request(self.bits(), TextWriter::default())));
        }
        let text = std::mem::take(&mut self.gathered);
        let text = pairs(&text).map_err(|_| InitiatorError::Broken("text that is no pairs"))?;
        self.check(frame, &text)?;
        let transit = (flags & FINAL != 0).then_some(flags & 3);
        match self.stage {
            Stage::Method => self.method(&text, transit),
            Stage::Algorithm => self.prove(&text),
            Stage::Proved => self.proved(transit),
            Stage::Operational => self.negotiate(frame, &text, transit),
        }
    }

    /// Says what the status means.
    fn check(&mut self, frame: &Frame<'_>, text: &[(&str, &str)]) -> Result<(), InitiatorError> {
        match [frame.header[36], frame.header[37]] {
            [0, _] => Ok(()),
            [1, _] => {
                let address = find(text, "TargetAddress").unwrap_or_default();
                // The portal group is not a part of where it is.
                let address = address.split(',').next().unwrap_or_default();
                if address.is_empty() {
                    return Err(InitiatorError::Broken("moved, and not said where to"));
                }
                let address = address.to_owned();
                Err(InitiatorError::Moved { address })
            }
            [class, detail] => Err(InitiatorError::Refused { class, detail }),
        }
    }

    fn method(
        &mut self,
        text: &[(&str, &str)],
        transit: Option<u8>,
    ) -> Result<Step, InitiatorError> {
        if let Some(group) = find(text, "TargetPortalGroupTag").and_then(number) {
            let group = u16::try_from(group);
            self.portal_group =
                group.map_err(|_| InitiatorError::Broken("a portal group that is none"))?;
        }
        match (find(text, "AuthMethod"), &self.wish.secret) {
            (Some("CHAP"), Some(_)) => {
                let numbers = ALGORITHMS.map(|one| one.number().to_string());
                let mut text = TextWriter::default();
                text.push("CHAP_A", &numbers.join(","));
                self.stage = Stage::Algorithm;
                Ok(Step::Send(self.request(0, text)))
            }
            (Some("CHAP"), None) => Err(InitiatorError::NoSecret),
            // A target that asks for nothing may go on at once.
            (Some("None") | None, _) if transit == Some(1) => self.offer(),
            (Some("None") | None, _) => {
                self.stage = Stage::Proved;
                Ok(Step::Send(self.request(FINAL | 1, TextWriter::default())))
            }
            _ => Err(InitiatorError::Broken("a method that was not offered")),
        }
    }

    fn prove(&mut self, text: &[(&str, &str)]) -> Result<Step, InitiatorError> {
        let algorithm = find(text, "CHAP_A").and_then(Algorithm::choose);
        let identifier = find(text, "CHAP_I").and_then(number);
        let identifier = identifier.and_then(|number| u8::try_from(number).ok());
        let challenge = find(text, "CHAP_C").and_then(binary);
        let (Some(algorithm), Some(identifier), Some(challenge)) =
            (algorithm, identifier, challenge)
        else {
            return Err(InitiatorError::Broken("no challenge"));
        };
        let Some((name, secret)) = &self.wish.secret else {
            return Err(InitiatorError::NoSecret);
        };
        let exchange = Exchange {
            algorithm,
            identifier,
            challenge,
        };
        let mut text = TextWriter::default();
        text.push("CHAP_N", name);
        text.push("CHAP_R", &to_text(&exchange.respond(secret)));
        self.stage = Stage::Proved;
        Ok(Step::Send(self.request(FINAL | 1, text)))
    }

    fn proved(&mut self, transit: Option<u8>) -> Result<Step, InitiatorError> {
        match transit {
            Some(1) => self.offer(),
            Some(_) => Err(InitiatorError::Broken("a stage that was not asked for")),
            None => Ok(Step::Send(self.request(FINAL | 1, TextWriter::default()))),
        }
    }

    fn offer(&mut self) -> Result<Step, InitiatorError> {
        let mut text = TextWriter::default();
        for (key, value) in [
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("MaxConnections", "1"),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("DefaultTime2Wait", "2"),
            ("DefaultTime2Retain", "0"),
            ("MaxOutstandingR2T", "1"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
            ("ErrorRecoveryLevel", "0"),
        ] {
            text.push(key, value);
        }
        for (key, value) in [
            ("MaxRecvDataSegmentLength", SEGMENT_BYTES),
            ("MaxBurstLength", BURST_BYTES),
            ("FirstBurstLength", FIRST_BURST_BYTES),
        ] {
            text.push(key, &value.to_string());
        }
        self.stage = Stage::Operational;
        Ok(Step::Send(self.request(FINAL | 4 | 3, text)))
    }

    fn negotiate(
        &mut self,
        frame: &Frame<'_>,
        text: &[(&str, &str)],
        transit: Option<u8>,
    ) -> Result<Step, InitiatorError> {
        for (key, value) in text {
            self.settle(key, value)
                .ok_or(InitiatorError::Broken("a value that was not offered"))?;
        }
        if transit != Some(3) {
            let request = self.request(FINAL | 4 | 3, TextWriter::default());
            return Ok(Step::Send(request));
        }
        let mut operational = self.operational;
        operational.first_burst_bytes_max = operational
            .first_burst_bytes_max
            .min(operational.burst_bytes_max);
        let tsih = frame.half(14);
        if tsih == 0 {
            return Err(InitiatorError::Broken("a session without a number"));
        }
        Ok(Step::Done(Box::new(Agreed {
            operational,
            target_segment_bytes_max: self.target_segment_bytes_max,
            tsih,
            portal_group: self.portal_group,
            status_number: frame.word(24).wrapping_add(1),
        })))
    }

    /// Takes the outcome of one key; none when it cannot be one of what was offered.
    fn settle(&mut self, key: &str, value: &str) -> Option<()> {
        let within = |least: u32, most: u32| {
            let range = least..=most;
            number(value).filter(|number| range.contains(number))
        };
        let is_yes = || match value {
            "Yes" => Some(true),
            "No" => Some(false),
            _ => None,
        };
        let agreed = &mut self.operational;
        match key {
            "MaxRecvDataSegmentLength" => {
                self.target_segment_bytes_max = within(SEGMENT_BYTES_MIN, DATA_BYTES_MAX as u32)?;
            }
            "InitialR2T" => agreed.initial_r2t = is_yes()?,
            "ImmediateData" => agreed.immediate_data = is_yes()?,
            "MaxBurstLength" => agreed.burst_bytes_max = within(SEGMENT_BYTES_MIN, BURST_BYTES)?,
            "FirstBurstLength" => {
                agreed.first_burst_bytes_max = within(SEGMENT_BYTES_MIN, FIRST_BURST_BYTES)?;
            }
            "DefaultTime2Wait" => agreed.time_to_wait_seconds = within(2, 3600)?,
            "DefaultTime2Retain" => agreed.time_to_retain_seconds = within(0, 0)?,
            "MaxConnections" | "MaxOutstandingR2T" => {
                within(1, 1)?;
            }
            "ErrorRecoveryLevel" => {
                within(0, 0)?;
            }
            "HeaderDigest" | "DataDigest" if value != "None" => return None,
            // What a target says besides decides nothing here.
            _ => {}
        }
        Some(())
    }

    fn bits(&self) -> u8 {
        match self.stage {
            Stage::Operational => 4,
            _ => 0,
        }
    }

    fn request(&self, flags: u8, text: TextWriter) -> Request {
        let text = text.into_bytes();
        let len = text.len() as u32;
        // Immediate, as every login request is (section 11.12).
        let header = Header::new(opcode::LOGIN | 0x40, flags)
            .word(4, len)
            .bytes(8, &self.wish.isid)
            .half(14, self.wish.tsih)
            .array();
        Request { header, text }
    }
}

impl Request {
    /// The request as it goes over the wire, with these numbers.
    #[must_use]
    pub fn to_bytes(&self, command_number: u32, status_number: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header::of(self.header)
            .word(24, command_number)
            .word(28, status_number);
        header.write(&self.text, Digests::default(), &mut bytes);
        bytes
    }
}

fn find<'a>(text: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    let found = text.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| *value)
}

#[cfg(test)]
mod tests;
