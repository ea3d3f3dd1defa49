//! The login of one connection (sections 6.3 and 11.12), from the target's side.
//!
//! The state machine decides all that the standard settles. Who may log in, with
//! which secret, and what happens to an older session, it asks of its driver once,
//! when the initiator has said who it is and what it wants.

use thiserror::Error;

use crate::chap::{Algorithm, Exchange, binary, to_text};
use crate::frame::{Digests, Frame};
use crate::name::{NAME_BYTES_MAX, normalized};
use crate::operational::{Negotiation, Operational};
use crate::pdu::{CONTINUE, FINAL, Header, opcode};
use crate::session::WINDOW_COMMANDS;
use crate::text::{TextWriter, pairs};

/// The text of one step, which may come in several PDUs.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Requests of one login; initiators need at most six.
const REQUESTS_MAX: u32 = 32;
/// The only portal group there is.
const PORTAL_GROUP: &str = "1";

/// Why a login fails, or where it is to go on (section 11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The target is elsewhere for now; the answer says where.
    Moved,
    /// The initiator broke the protocol.
    InitiatorError,
    /// It is not who it says.
    AuthenticationFailure,
    /// It may not use this target.
    Forbidden,
    /// There is no such target.
    NotFound,
    /// None of its protocol versions is known here.
    UnsupportedVersion,
    /// A session has one connection here.
    TooManyConnections,
    /// It did not say who it is, or what it wants.
    MissingParameter,
    /// Neither a normal nor a discovery session.
    SessionType,
    /// There is no session to reinstate.
    NoSuchSession,
    /// The target cannot be used now.
    Unavailable,
    /// There is no room for another session.
    OutOfResources,
}

impl Status {
    fn code(self) -> [u8; 2] {
        match self {
            Self::Moved => [1, 1],
            Self::InitiatorError => [2, 0],
            Self::AuthenticationFailure => [2, 1],
            Self::Forbidden => [2, 2],
            Self::NotFound => [2, 3],
            Self::UnsupportedVersion => [2, 5],
            Self::TooManyConnections => [2, 6],
            Self::MissingParameter => [2, 7],
            Self::SessionType => [2, 9],
            Self::NoSuchSession => [2, 0x0a],
            Self::Unavailable => [3, 1],
            Self::OutOfResources => [3, 2],
        }
    }
}

/// Who wants to log in, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The initiator's name, as it says, normalized.
    pub initiator: String,
    /// Tells sessions of one initiator apart (section 11.12.5).
    pub isid: [u8; 6],
    /// The session that the connection is to belong to, 0 for a new one (section 11.12.6).
    pub tsih: u16,
    /// The connection's number within its session (section 11.12.7).
    pub cid: u16,
    /// The target's name, normalized; none for a discovery session.
    pub target: Option<String>,
}

/// A secret that an initiator may know, and one that it may ask for.
#[derive(Clone)]
pub struct Account {
    /// What the initiator proves to know; its user name may be any.
    pub secret: Vec<u8>,
    /// Name and secret with which the target answers a challenge, if it can.
    pub mutual: Option<(String, Vec<u8>)>,
}

/// Secrets of which the initiator has to know one.
#[derive(Clone)]
pub struct Credentials {
    /// The secrets.
    pub accounts: Vec<Account>,
    /// A number and bytes that nobody can foresee.
    pub identifier: u8,
    /// As above, at least 16 bytes.
    pub challenge: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The driver's consent.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The session's number, not 0.
    pub tsih: u16,
    /// None when a name and an address are enough.
    pub credentials: Option<Credentials>,
}

/// A login that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// Who logged in to what.
    pub question: Question,
    /// The session's number.
    pub tsih: u16,
    /// Which of the accounts it proved to know.
    pub account: Option<usize>,
    /// What both agreed on.
    pub operational: Operational,
    /// The first command's number.
    pub command_number: u32,
    /// The next answer's number.
    pub status_number: u32,
}

/// What comes after a PDU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The next request.
    More,
    /// [`Login::admit`] or [`Login::refuse`] before anything else.
    Ask(Question),
    /// The full-feature phase, once the answer is sent.
    Done(Box<Established>),
    /// The end of the connection, once the answer is sent.
    Failed(Status),
}

/// What a login cannot even be answered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LoginError {
    /// Another PDU than a login request (section 6.3).
    #[error("a PDU with opcode {opcode:#04x} before the login was over")]
    NoLogin {
        /// What it was.
        opcode: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Security,
    Operational,
}

/// How far the authentication is.
#[derive(Debug)]
enum Proof {
    /// Nothing was agreed on.
    Open,
    /// CHAP was; the algorithm is not.
    Chap,
    /// The challenge was sent.
    Challenged(Exchange),
    /// Nothing more is needed; of CHAP, with the account that was proved.
    Given(Option<usize>),
}

/// One request, taken apart.
#[derive(Debug, Default)]
struct Request {
    transit: Option<u8>,
    text: Vec<u8>,
}

/// A login in progress.
#[derive(Debug)]
pub struct Login {
    requests: u32,
    stage: Option<Stage>,
    proof: Proof,
    question: Option<Question>,
    admission: Option<Admission>,
    negotiation: Negotiation,
    gathered: Vec<u8>,
    held: Option<Request>,
    /// Of the latest request, for its answer.
    isid: [u8; 6],
    tag: u32,
    stage_bits: u8,
    command_number: u32,
    status_number: u32,
    portal_group_told: bool,
}

impl Login {
    /// Begins; the target takes `segment_bytes_max` of data in one PDU.
    #[must_use]
    pub fn new(segment_bytes_max: u32) -> Self {
        Self {
            requests: 0,
            stage: None,
            proof: Proof::Open,
            question: None,
            admission: None,
            negotiation: Negotiation::new(segment_bytes_max),
            gathered: Vec::new(),
            held: None,
            isid: [0; 6],
            tag: 0,
            stage_bits: 0,
            command_number: 0,
            status_number: 0,
            portal_group_told: false,
        }
    }

    /// Takes a request and writes its answer, unless the driver is asked first.
    ///
    /// # Errors
    /// When it is no login request; the connection is to end without an answer.
    pub fn receive(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, LoginError> {
        if frame.opcode() != opcode::LOGIN {
            return Err(LoginError::NoLogin {
                opcode: frame.opcode(),
            });
        }
        Ok(match self.take(frame, out) {
            Ok(progress) => progress,
            Err(status) => self.fail(status, "", out),
        })
    }

    /// Goes on with the driver's consent.
    pub fn admit(&mut self, admission: Admission, out: &mut Vec<u8>) -> Progress {
        self.admission = Some(admission);
        let request = self.held.take().unwrap_or_default();
        match self.proceed(&request, out) {
            Ok(progress) => progress,
            Err(status) => self.fail(status, "", out),
        }
    }

    /// Ends the login; with [`Status::Moved`] `address` says where to go.
    pub fn refuse(&mut self, status: Status, address: &str, out: &mut Vec<u8>) -> Progress {
        self.fail(status, address, out)
    }

    fn take(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<Progress, Status> {
        let first = self.requests == 0;
        self.requests += 1;
        self.note(frame, first)?;
        let flags = frame.flags();
        let (more, transit) = (flags & CONTINUE != 0, flags & FINAL != 0);
        let next = flags & 3;
        let stage = match (flags >> 2) & 3 {
            0 => Stage::Security,
            1 => Stage::Operational,
            _ => return Err(Status::InitiatorError),
        };
        let known = *self.stage.get_or_insert(stage);
        // Section 6.3: to a later stage, and never while text goes on.
        let later = matches!(
            (stage, next),
            (Stage::Security, 1 | 3) | (Stage::Operational, 3)
        );
        if known != stage || (more && transit) || (transit && !later) {
            return Err(Status::InitiatorError);
        }
        if self.gathered.len() + frame.data.len() > TEXT_BYTES_MAX {
            return Err(Status::InitiatorError);
        }
        self.gathered.extend_from_slice(frame.data);
        if more {
            self.answer(None, &[], out);
            return Ok(Progress::More);
        }
        let request = Request {
            transit: transit.then_some(next),
            text: std::mem::take(&mut self.gathered),
        };
        if self.admission.is_none() {
            let question = self.question_in(frame, &request.text)?;
            self.question = Some(question.clone());
            self.held = Some(request);
            return Ok(Progress::Ask(question));
        }
        self.proceed(&request, out)
    }

    /// Checks and keeps what every request says anew.
    fn note(&mut self, frame: &Frame<'_>, first: bool) -> Result<(), Status> {
        let mut isid = [0; 6];
        isid.copy_from_slice(&frame.header[8..14]);
        self.tag = frame.initiator_task_tag();
        self.stage_bits = frame.flags() & 0x0f;
        if first {
            self.isid = isid;
            self.command_number = frame.word(24);
            self.status_number = frame.word(28);
        }
        // Version 0 is the only one there is (section 11.12.4).
        if frame.header[3] > 0 {
            return Err(Status::UnsupportedVersion);
        }
        let over = self.requests > REQUESTS_MAX || self.isid != isid;
        if over || self.held.is_some() || !frame.additional.is_empty() {
            return Err(Status::InitiatorError);
        }
        Ok(())
    }

    /// The first request names both sides (section 6.3).
    fn question_in(&self, frame: &Frame<'_>, text: &[u8]) -> Result<Question, Status> {
        let pairs = pairs(text).map_err(|_| Status::InitiatorError)?;
        let find = |name: &str| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| *value)
        };
        let named = |name: &str| match find(name) {
            Some(value) if value.is_empty() || value.len() > NAME_BYTES_MAX => {
                Err(Status::InitiatorError)
            }
            Some(value) => Ok(normalized(value)),
            None => Err(Status::MissingParameter),
        };
        let target = match find("SessionType") {
            None | Some("Normal") => Some(named("TargetName")?),
            Some("Discovery") => None,
            Some(_) => return Err(Status::SessionType),
        };
        Ok(Question {
            initiator: named("InitiatorName")?,
            isid: self.isid,
            tsih: frame.half(14),
            cid: frame.half(20),
            target,
        })
    }

    fn proceed(&mut self, request: &Request, out: &mut Vec<u8>) -> Result<Progress, Status> {
        let pairs = pairs(&request.text).map_err(|_| Status::InitiatorError)?;
        let mut answer = TextWriter::default();
        let normal = self
            .question
            .as_ref()
            .is_some_and(|question| question.target.is_some());
        if normal && !self.portal_group_told {
            // Section 13.9: with the first answer.
            answer.push("TargetPortalGroupTag", PORTAL_GROUP);
            self.portal_group_told = true;
        }
        match self.stage {
            Some(Stage::Operational) => self.negotiate(&pairs, &mut answer)?,
            _ => self.authenticate(&pairs, request.transit.is_some(), &mut answer)?,
        }
        let text = answer.into_bytes();
        let secure = matches!(self.proof, Proof::Given(_));
        let Some(next) = request.transit.filter(|_| secure) else {
            self.answer(None, &text, out);
            return Ok(Progress::More);
        };
        self.answer(Some(next), &text, out);
        if next != 3 {
            self.stage = Some(Stage::Operational);
            return Ok(Progress::More);
        }
        self.established()
    }

    fn established(&mut self) -> Result<Progress, Status> {
        let (Some(question), Some(admission)) = (self.question.clone(), &self.admission) else {
            return Err(Status::InitiatorError);
        };
        let negotiation = std::mem::replace(&mut self.negotiation, Negotiation::new(0));
        Ok(Progress::Done(Box::new(Established {
            question,
            tsih: admission.tsih,
            account: match self.proof {
                Proof::Given(account) => account,
                _ => None,
            },
            operational: negotiation.finish(),
            command_number: self.command_number,
            status_number: self.status_number,
        })))
    }

    fn credentials(&self) -> Option<&Credentials> {
        let admission = self.admission.as_ref();
        admission.and_then(|admission| admission.credentials.as_ref())
    }

    fn negotiate(&mut self, pairs: &[(&str, &str)], answer: &mut TextWriter) -> Result<(), Status> {
        if !matches!(self.proof, Proof::Given(_)) {
            // It came here without the security stage.
            if self.credentials().is_some() {
                return Err(Status::AuthenticationFailure);
            }
            self.proof = Proof::Given(None);
        }
        for (key, value) in pairs {
            self.operational_key(key, value, answer)?;
        }
        Ok(())
    }

    fn operational_key(
        &mut self,
        key: &str,
        value: &str,
        answer: &mut TextWriter,
    ) -> Result<(), Status> {
        match key {
            "InitiatorName" | "TargetName" | "SessionType" | "InitiatorAlias" => {}
            // Section 13.25 wants an answer to keys that it took away.
            "IFMarker" | "OFMarker" => answer.push(key, "No"),
            "IFMarkInt" | "OFMarkInt" => answer.push(key, "Reject"),
            _ => {
                let known = self
                    .negotiation
                    .offer(key, value, answer)
                    .map_err(|_| Status::InitiatorError)?;
                if !known {
                    // Section 6.2.
                    answer.push(key, "NotUnderstood");
                }
            }
        }
        Ok(())
    }

    /// The security stage (section 12.1).
    fn authenticate(
        &mut self,
        pairs: &[(&str, &str)],
        transit: bool,
        answer: &mut TextWriter,
    ) -> Result<(), Status> {
        let mut said = Said::default();
        for (key, value) in pairs {
            match *key {
                "AuthMethod" => self.choose_method(value, answer)?,
                "CHAP_A" => self.challenge(value, answer)?,
                // Any name: the secret tells who it is.
                "CHAP_N" => {}
                "CHAP_R" => said.response = Some(value),
                "CHAP_I" => said.identifier = Some(value),
                "CHAP_C" => said.challenge = Some(value),
                _ => self.operational_key(key, value, answer)?,
            }
        }
        if said.response.is_some() {
            self.prove(&said, answer)?;
        }
        if transit && matches!(self.proof, Proof::Open) {
            // It wants to go on and offered nothing.
            if self.credentials().is_some() {
                return Err(Status::AuthenticationFailure);
            }
            self.proof = Proof::Given(None);
        }
        Ok(())
    }

    fn choose_method(&mut self, list: &str, answer: &mut TextWriter) -> Result<(), Status> {
        if !matches!(self.proof, Proof::Open) {
            return Err(Status::InitiatorError);
        }
        let offered = |method: &str| list.split(',').any(|word| word == method);
        let (method, proof) = if self.credentials().is_some() {
            ("CHAP", Proof::Chap)
        } else {
            ("None", Proof::Given(None))
        };
        if !offered(method) {
            return Err(Status::AuthenticationFailure);
        }
        answer.push("AuthMethod", method);
        self.proof = proof;
        Ok(())
    }

    fn challenge(&mut self, list: &str, answer: &mut TextWriter) -> Result<(), Status> {
        let (Proof::Chap, Some(credentials)) = (&self.proof, self.credentials()) else {
            return Err(Status::InitiatorError);
        };
        let algorithm = Algorithm::choose(list).ok_or(Status::AuthenticationFailure)?;
        let exchange = Exchange {
            algorithm,
            identifier: credentials.identifier,
            challenge: credentials.challenge.clone(),
        };
        answer.push("CHAP_A", &algorithm.number().to_string());
        answer.push("CHAP_I", &exchange.identifier.to_string());
        answer.push("CHAP_C", &to_text(&exchange.challenge));
        self.proof = Proof::Challenged(exchange);
        Ok(())
    }

    fn prove(&mut self, said: &Said<'_>, answer: &mut TextWriter) -> Result<(), Status> {
        let refused = Status::AuthenticationFailure;
        let (Proof::Challenged(exchange), Some(credentials)) = (&self.proof, self.credentials())
        else {
            return Err(Status::InitiatorError);
        };
        let response = said.response.and_then(binary).ok_or(refused)?;
        let mut accounts = credentials.accounts.iter();
        let proved = accounts
            .position(|account| exchange.verify(&account.secret, &response))
            .ok_or(refused)?;
        if let (Some(identifier), Some(challenge)) = (said.identifier, said.challenge) {
            let mutual = &credentials.accounts[proved].mutual;
            let (name, secret) = mutual.as_ref().ok_or(refused)?;
            let identifier = identifier.parse().map_err(|_| refused)?;
            let challenge = binary(challenge).ok_or(refused)?;
            let response = exchange
                .answer(secret, identifier, &challenge)
                .map_err(|_| refused)?;
            answer.push("CHAP_N", name);
            answer.push("CHAP_R", &to_text(&response));
        }
        self.proof = Proof::Given(Some(proved));
        Ok(())
    }

    /// Writes an answer, with a transition or without.
    fn answer(&mut self, next: Option<u8>, text: &[u8], out: &mut Vec<u8>) {
        let flags = match next {
            Some(next) => FINAL | (self.stage_bits & 0x0c) | next,
            None => self.stage_bits & 0x0c,
        };
        // The session's number is told at the end (section 11.13.3).
        let tsih = match (&self.admission, next) {
            (Some(admission), Some(3)) => admission.tsih,
            _ => self.question.as_ref().map_or(0, |question| question.tsih),
        };
        self.header(flags, tsih, [0, 0])
            .write(text, Digests::default(), out);
        self.status_number = self.status_number.wrapping_add(1);
    }

    fn fail(&mut self, status: Status, address: &str, out: &mut Vec<u8>) -> Progress {
        let mut text = TextWriter::default();
        if status == Status::Moved {
            text.push("TargetAddress", address);
        }
        self.header(0, 0, status.code())
            .write(&text.into_bytes(), Digests::default(), out);
        Progress::Failed(status)
    }

    fn header(&self, flags: u8, tsih: u16, status: [u8; 2]) -> Header {
        let last = self.command_number.wrapping_add(WINDOW_COMMANDS - 1);
        Header::new(opcode::LOGIN_RESPONSE, flags)
            .bytes(8, &self.isid)
            .half(14, tsih)
            .word(16, self.tag)
            .word(24, self.status_number)
            .word(28, self.command_number)
            .word(32, last)
            .bytes(36, &status)
    }
}

/// What the initiator says of itself in one step of CHAP.
#[derive(Default)]
struct Said<'a> {
    response: Option<&'a str>,
    identifier: Option<&'a str>,
    challenge: Option<&'a str>,
}

#[cfg(test)]
mod tests;
