//! Who may log in to what.

use std::{any::Any, net::IpAddr, sync::atomic::Ordering, time::Instant};

use rootstock_iscsi::{
    Account, Admission as Consent, Credentials, Digests, Established, Login, Progress, Question,
    Status,
};

use super::{
    Client, Offer, OpenUnit,
    connection::{ConnectionError, Wire, io_error},
    serve::SEGMENT_BYTES_MAX,
    shared::{Admission, SessionKey, Standing},
};
use crate::serving::transport::Wait;

/// Data of a login PDU; the standard's own limit is 8,192.
const LOGIN_BYTES_MAX: usize = 16 << 10;

/// A challenge of CHAP, in bytes.
const CHALLENGE_BYTES: usize = 32;

/// A session that has begun.
pub(super) struct Opened {
    pub(super) established: Box<Established>,
    /// What it may see in a discovery: the targets.
    pub(super) offered: Vec<String>,
    pub(super) work: Option<Work>,
}

/// What a normal session works with.
pub(super) struct Work {
    pub(super) target: String,
    pub(super) units: Vec<OpenUnit>,
    /// Where the initiator is.
    pub(super) client: String,
    pub(super) presence: Box<dyn Any + Send>,
}

/// Brings a connection to the full-feature phase; `None` when the initiator left or
/// was refused.
pub(super) fn login(
    wire: &mut Wire,
    address: IpAddr,
    client: &str,
    admission: &Admission,
) -> Result<Option<Opened>, ConnectionError> {
    let deadline = Instant::now() + admission.shared.limits.login_timeout;
    let mut desk = Desk {
        login: Login::new(SEGMENT_BYTES_MAX as u32),
        address,
        client,
        admission,
        offers: Vec::new(),
    };
    loop {
        while let Some((frame, out)) = wire.next(Digests::default(), LOGIN_BYTES_MAX)? {
            let out = &mut out.own;
            let progress = desk
                .login
                .receive(&frame, out)
                .map_err(ConnectionError::Login)?;
            let progress = match progress {
                Progress::Ask(question) => desk.answer(&question, out),
                progress => progress,
            };
            match progress {
                Progress::Done(established) => {
                    let opened = desk.open(established, out);
                    wire.send()?;
                    return Ok(opened);
                }
                Progress::Failed(status) => {
                    desk.failed(status);
                    wire.send()?;
                    return Ok(None);
                }
                Progress::More | Progress::Ask(_) => {}
            }
        }
        wire.send()?;
        let received = wire.receive(Wait::Until(deadline));
        if !received.map_err(io_error("logging in"))? {
            return Ok(None);
        }
    }
}

struct Desk<'a> {
    login: Login,
    address: IpAddr,
    client: &'a str,
    admission: &'a Admission,
    offers: Vec<Offer>,
}

impl Desk<'_> {
    fn failed(&self, status: Status) {
        let counters = &self.admission.shared.counters;
        counters.logins_failed.fetch_add(1, Ordering::Relaxed);
        tracing::info!(client = self.client, ?status, "an iSCSI login failed");
    }

    /// Consents or refuses. Whoever may not use a target is told that there is none.
    fn answer(&mut self, question: &Question, out: &mut Vec<u8>) -> Progress {
        let shared = &self.admission.shared;
        self.offers = shared.targets.offered(&question.initiator, self.address);
        if let Some(target) = &question.target {
            self.offers.retain(|offer| offer.target == *target);
            if self.offers.is_empty() {
                return self.login.refuse(Status::NotFound, "", out);
            }
        }
        if shared.is_stopping() {
            return self.login.refuse(Status::Unavailable, "", out);
        }
        let standing = shared.standing(&key(question), question.tsih, question.cid);
        let tsih = match standing {
            Standing::Number(tsih) => tsih,
            Standing::Unknown => return self.login.refuse(Status::NoSuchSession, "", out),
            Standing::Taken => return self.login.refuse(Status::TooManyConnections, "", out),
        };
        match self.credentials() {
            Ok(credentials) => self.login.admit(Consent { tsih, credentials }, out),
            Err(error) => {
                tracing::error!(%error, "no randomness for a CHAP challenge");
                self.login.refuse(Status::Unavailable, "", out)
            }
        }
    }

    /// What has to be proved: nothing, when something may be used without.
    fn credentials(&self) -> Result<Option<Credentials>, getrandom::Error> {
        let accounts: Option<Vec<Account>> = self
            .offers
            .iter()
            .map(|offer| offer.account.clone())
            .collect();
        let Some(accounts) = accounts.filter(|accounts| !accounts.is_empty()) else {
            return Ok(None);
        };
        let mut random = [0; CHALLENGE_BYTES + 1];
        getrandom::fill(&mut random)?;
        let [identifier, challenge @ ..] = random;
        Ok(Some(Credentials {
            accounts,
            identifier,
            challenge: challenge.to_vec(),
        }))
    }

    /// Opens what was logged in to. An older session of the same initiator ends
    /// first.
    fn open(&mut self, established: Box<Established>, out: &mut Vec<u8>) -> Option<Opened> {
        if let Some(address) = self.redirect(&established) {
            out.clear();
            tracing::info!(client = self.client, address, "an iSCSI login is sent on");
            self.login.refuse(Status::Moved, &address, out);
            return None;
        }
        match self.try_open(&established) {
            Some(work) => Some(Opened {
                offered: self.visible(&established),
                work,
                established,
            }),
            None => {
                out.clear();
                self.login.refuse(Status::Unavailable, "", out);
                self.failed(Status::Unavailable);
                None
            }
        }
    }

    /// Where the target is instead. An initiator learns it once it has proved who it is.
    fn redirect(&self, established: &Established) -> Option<String> {
        established.question.target.as_ref()?;
        // There is one offer of a target that was asked for.
        self.offers.first()?.redirect.clone()
    }

    fn try_open(&self, established: &Established) -> Option<Option<Work>> {
        let shared = &self.admission.shared;
        let question = &established.question;
        let key = key(question);
        if !shared.reinstate(self.admission, &key) {
            return None;
        }
        let work = match &question.target {
            None => None,
            Some(name) => {
                let client = Client {
                    initiator: &key.initiator,
                    isid: key.isid,
                    address: self.client,
                };
                let units = shared.targets.units(name, &client);
                if units.is_empty() {
                    return None;
                }
                Some(Work {
                    target: name.clone(),
                    units,
                    client: self.client.to_owned(),
                    presence: shared.targets.presence(name, &client),
                })
            }
        };
        let settled = self.admission.settle(key, established.tsih, question.cid);
        (settled && self.may_still(established)).then_some(work)
    }

    /// Whether what was allowed when the login began still is. Whoever forbids it looks
    /// for sessions afterwards, and finds this one by now.
    fn may_still(&self, established: &Established) -> bool {
        let question = &established.question;
        let Some(target) = &question.target else {
            return true;
        };
        let proved = established.account.and_then(|at| self.offers.get(at));
        let proved = proved.and_then(|offer| offer.account.as_ref());
        let targets = &self.admission.shared.targets;
        let offers = targets.offered(&question.initiator, self.address);
        let mut offers = offers.iter().filter(|offer| offer.target == *target);
        offers.any(|offer| match (&offer.account, proved) {
            (None, _) => true,
            (Some(account), Some(proved)) => account.secret == proved.secret,
            (Some(_), None) => false,
        })
    }

    /// In a discovery, what could be used with what was proved.
    fn visible(&self, established: &Established) -> Vec<String> {
        let proved = established.account.map(|at| self.offers.get(at));
        let secret = proved.flatten().and_then(|offer| offer.account.as_ref());
        let may = |offer: &&Offer| match (&offer.account, secret) {
            (None, _) => true,
            (Some(account), Some(proved)) => account.secret == proved.secret,
            (Some(_), None) => false,
        };
        let visible = self.offers.iter().filter(may);
        visible.map(|offer| offer.target.clone()).collect()
    }
}

fn key(question: &Question) -> SessionKey {
    SessionKey {
        initiator: question.initiator.clone(),
        isid: question.isid,
        target: question.target.clone(),
    }
}
