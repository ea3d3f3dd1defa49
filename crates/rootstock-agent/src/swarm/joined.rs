//! This machine as a member: who it is, with a head or without one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rootstock_api::boot::SiteFile;
use rootstock_api::swarm::{SwarmAnswer, SwarmMode, SwarmOrder};
use rootstock_peer::{Member, Peers, Tls, TlsError};

use super::JoinError;
use super::key::Key;
use super::membership::{Credentials, Membership};
use super::notes::Notes;
use crate::console;
use crate::local::member::MemberDisk;

/// Others that this machine knew last are looked for again so often, while nobody is
/// reached: who was not there for ten minutes is forgotten by then.
const REMEMBER_EVERY: Duration = Duration::from_secs(300);

/// This machine as a member that runs.
pub(super) struct Joined {
    pub(super) member: Arc<Member>,
    /// What it would need to be one without a head.
    pub(super) own: Membership,
    notes: Notes,
    remember_at: Instant,
    /// Whether nobody introduced it, and it was not said whether it found others.
    is_untold: bool,
}

impl Joined {
    /// A member that was started just now; `is_untold` when no head introduced it.
    pub(super) fn new(member: Arc<Member>, own: Membership, is_untold: bool) -> Self {
        let now = Instant::now();
        Self {
            member,
            own,
            notes: Notes::new(now),
            remember_at: now + REMEMBER_EVERY,
            is_untold,
        }
    }

    /// Says that others were found without a server.
    pub(super) fn tell(&mut self, peers: &Peers) {
        if self.is_untold && !peers.linked.is_empty() {
            self.is_untold = false;
            let count = peers.linked.len();
            console::info(format_args!(
                "others of the swarm are reached without a server: {count} by now"
            ));
        }
    }

    /// A head answered.
    pub(super) fn hear(&mut self, answer: &SwarmAnswer, site: &SiteFile) {
        self.is_untold = false;
        self.own.rack.clone_from(&answer.rack);
        let Some((own, pem)) = self
            .own
            .credentials
            .as_mut()
            .zip(answer.certificate_pem.as_ref())
        else {
            return;
        };
        if own.certificate_pem == *pem {
            return;
        }
        let next = Credentials {
            certificate_pem: pem.clone(),
            key_pem: own.key_pem.clone(),
        };
        match tls(&next, site) {
            Ok(tls) => {
                self.member.set_tls(tls);
                *own = next;
            }
            Err(error) => console::warn(format_args!(
                "the new certificate is not used: {}",
                console::chain(&error)
            )),
        }
    }

    /// No head answers. Who is reached tells of the rest.
    pub(super) fn remember(&mut self, peers: &Peers) {
        let now = Instant::now();
        if now < self.remember_at {
            return;
        }
        self.remember_at = now + REMEMBER_EVERY;
        if peers.linked.is_empty() {
            self.member.know(self.own.known());
        }
    }

    /// Keeps who it is and whom it knows on a disk that the machine starts from.
    pub(super) fn write_down(
        &mut self,
        site: &SiteFile,
        disk: &MemberDisk,
        order: &SwarmOrder,
        peers: &Peers,
    ) {
        let now = Instant::now();
        if !self.notes.is_time(now) {
            return;
        }
        self.own.order.clone_from(order);
        self.own.learn(peers);
        self.notes.take(now, &mut self.own, site, disk);
    }
}

/// Who a machine is that a head introduced, with its key of this boot.
pub(super) fn introduced(
    answer: &SwarmAnswer,
    key: &Key,
    order: &SwarmOrder,
) -> Result<Membership, JoinError> {
    let credentials = match order.mode {
        SwarmMode::Tls => Some(Credentials {
            certificate_pem: answer
                .certificate_pem
                .clone()
                .ok_or(JoinError::NoCertificate)?,
            key_pem: key.pem(),
        }),
        SwarmMode::Plain | SwarmMode::Off => None,
    };
    Ok(Membership {
        id: answer.me,
        rack: answer.rack.clone(),
        order: order.clone(),
        credentials,
        peers: Vec::new(),
    })
}

/// What it shows over connections.
pub(super) fn tls(own: &Credentials, site: &SiteFile) -> Result<Tls, TlsError> {
    Tls::new(&own.certificate_pem, &own.key_pem, &site.authority_pem)
}
