//! What a machine keeps of the swarm on the disk that it starts from: its key and
//! certificate, and whom it knew last.
//!
//! docs/formats/start.md has the file. Nothing of it is believed that is not checked
//! again: a certificate by the site's authority, the others by theirs, chunks by their
//! ids. What cannot be read costs the swarm, never the start.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rootstock_api::boot::SiteFile;
use rootstock_api::guest::GuestOrder;
use rootstock_api::swarm::{RACK_BYTES_MAX, SwarmMode, SwarmOrder, SwarmPeer};
use rootstock_core::{Digest, PeerId};
use rootstock_peer::{Peers, certifies};
use serde::{Deserialize, Serialize};

use super::key::Key;

#[cfg(test)]
pub(crate) mod tests;

/// The format of a [`Membership`].
const FORMAT: u32 = 1;

/// The longest file, in bytes.
pub(crate) const MEMBERSHIP_BYTES_MAX: u64 = 64 << 10;

/// The most others that are kept. A machine that reaches one of them hears of the rest.
const PEERS_MAX: usize = 64;

/// A certificate that does not hold for so long any more is replaced, while a head is
/// there: half of what it holds at first.
const RENEW_BEFORE: Duration = Duration::from_secs(15 * 24 * 3600);

/// What is written before the rest: its digest in hex, and the end of the line.
const HEAD_BYTES: usize = 65;

/// This machine as a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// Who it is.
    pub(super) id: PeerId,
    /// Its rack.
    pub(super) rack: String,
    /// How it takes part.
    pub(super) order: SwarmOrder,
    /// With `tls`, what it shows for who it is.
    pub(super) credentials: Option<Credentials>,
    /// The others that it knows, no heads.
    pub(super) peers: Vec<SwarmPeer>,
}

/// A certificate of the site's authority, and its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// PEM.
    pub(super) certificate_pem: String,
    /// PKCS #8, PEM. It is this machine's alone.
    pub(super) key_pem: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// A membership as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    /// Of two files the one with the greater number is the newer.
    number: u64,
    /// The public key of the site, in hex.
    site: String,
    #[serde(flatten)]
    membership: Membership,
}

/// Only what says which format it is, and how new.
#[derive(Deserialize)]
struct Outer {
    format: u32,
    number: u64,
}

/// Why the swarm is not joined with what was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MembershipError {
    #[error("it is not whole")]
    Torn,
    #[error("it cannot be read: {what}")]
    Text { what: String },
    #[error("its format is {format}, of another release")]
    Format { format: u32 },
    #[error("it is of another site")]
    OtherSite,
    #[error("it makes no sense: {what}")]
    Senseless { what: &'static str },
    #[error("its certificate does not hold now, by this machine's clock, or is not its own")]
    Certificate,
}

/// How new a whole file is; nothing of one that is torn, or of another release.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let outer: Outer = serde_json::from_slice(whole(text)?).ok()?;
    (outer.format == FORMAT).then_some(outer.number)
}

/// What is behind the digest, if it is the digest's.
fn whole(text: &[u8]) -> Option<&[u8]> {
    let (head, body) = text.split_at_checked(HEAD_BYTES)?;
    let head = std::str::from_utf8(head).ok()?.strip_suffix('\n')?;
    (head == Digest::of(body).to_string()).then_some(body)
}

impl Membership {
    /// A machine that no head knows, by what it was given.
    pub(crate) fn of_guest(
        id: PeerId,
        rack: String,
        guest: &GuestOrder,
        peers: Vec<SwarmPeer>,
    ) -> Self {
        let credentials = guest.credentials.as_ref().map(|own| Credentials {
            certificate_pem: own.certificate_pem.clone(),
            key_pem: own.key_pem.clone(),
        });
        Self {
            id,
            rack,
            order: guest.swarm.clone(),
            credentials,
            peers,
        }
    }

    /// Whether it is such a machine.
    pub(crate) fn is_guest(&self) -> bool {
        self.id.is_guest()
    }

    /// How the machine takes part.
    pub(crate) fn order(&self) -> SwarmOrder {
        self.order.clone()
    }

    /// The bytes of a file with this number.
    pub(crate) fn encode(&self, site: &SiteFile, number: u64) -> Result<Vec<u8>, MembershipError> {
        let written = Written {
            format: FORMAT,
            number,
            site: site.public_key.clone(),
            membership: self.clone(),
        };
        let body = serde_json::to_vec(&written).map_err(|error| MembershipError::Text {
            what: error.to_string(),
        })?;
        let mut text = format!("{}\n", Digest::of(&body)).into_bytes();
        text.extend(body);
        Ok(text)
    }

    /// The membership in such bytes, if it is good for this site now.
    pub(crate) fn decode(
        text: &[u8],
        site: &SiteFile,
        now: SystemTime,
    ) -> Result<Self, MembershipError> {
        let membership = Self::parse(text, site)?;
        membership.check(&site.authority_pem, now)?;
        Ok(membership)
    }

    fn parse(text: &[u8], site: &SiteFile) -> Result<Self, MembershipError> {
        let body = whole(text).ok_or(MembershipError::Torn)?;
        let read = |error: serde_json::Error| MembershipError::Text {
            what: error.to_string(),
        };
        let outer: Outer = serde_json::from_slice(body).map_err(read)?;
        if outer.format != FORMAT {
            let format = outer.format;
            return Err(MembershipError::Format { format });
        }
        let written: Written = serde_json::from_slice(body).map_err(read)?;
        if written.site != site.public_key {
            return Err(MembershipError::OtherSite);
        }
        Ok(written.membership)
    }

    fn check(&self, authority_pem: &str, now: SystemTime) -> Result<(), MembershipError> {
        let bad = |what| Err(MembershipError::Senseless { what });
        if self.peers.len() > PEERS_MAX {
            return bad("it has more than 64 others");
        }
        let mut racks = self.peers.iter().map(|peer| &peer.rack);
        if self.rack.len() > RACK_BYTES_MAX || racks.any(|rack| rack.len() > RACK_BYTES_MAX) {
            return bad("a rack's label is longer than 64 bytes");
        }
        match (self.order.mode, &self.credentials) {
            (SwarmMode::Off, _) => bad("the machine is not in the swarm"),
            (SwarmMode::Tls, None) => bad("it has no certificate"),
            (SwarmMode::Tls, Some(own)) if own.key().is_none() => bad("it has no key"),
            (SwarmMode::Tls, Some(own)) if !own.hold(self.id, authority_pem, now) => {
                Err(MembershipError::Certificate)
            }
            (SwarmMode::Tls | SwarmMode::Plain, _) => Ok(()),
        }
    }

    /// Takes in whom the member knows by now. Who was known before stays while there is
    /// room: a machine that runs alone over a weekend does not forget its neighbours.
    pub(super) fn learn(&mut self, peers: &Peers) {
        let mut known: Vec<SwarmPeer> = Vec::new();
        for (id, address, rack, is_head) in &peers.known {
            // A head that others told of is not known as one, and has no rack.
            let is_machine = !is_head && !rack.is_empty();
            if is_machine && !peers.liars.contains(id) {
                known.push(SwarmPeer {
                    id: *id,
                    addresses: vec![address.to_string()],
                    rack: rack.clone(),
                    head: false,
                });
            }
        }
        // The own rack first; of a large one each machine keeps another part, so that
        // whoever is switched on knows somebody who is.
        known.sort_by_cached_key(|peer| (peer.rack != self.rack, spread(self.id, peer.id)));
        let before = std::mem::take(&mut self.peers);
        let honest = before.into_iter();
        let honest = honest.filter(|peer| !peers.liars.contains(&peer.id));
        self.peers = joined(known, honest);
    }

    /// Takes over whom an earlier boot wrote down, as far as there is room.
    pub(super) fn take_over(&mut self, text: &[u8], site: &SiteFile) {
        let before = Self::parse(text, site).map_or(Vec::new(), |before| before.peers);
        let now = std::mem::take(&mut self.peers);
        self.peers = joined(now, before.into_iter());
    }

    /// The others, as a member is told of them.
    pub(super) fn known(&self) -> Vec<(PeerId, SocketAddr, String, bool)> {
        let all = self.peers.iter();
        let reached = all.filter_map(|peer| {
            let address = peer.addresses.first()?.parse().ok()?;
            // Who is a head is said by heads alone.
            Some((peer.id, address, peer.rack.clone(), false))
        });
        reached.collect()
    }

    /// The key for which a head is to make a new certificate by now, as heads are told.
    pub(super) fn wants_certificate(&self, authority_pem: &str, now: SystemTime) -> Option<String> {
        let own = self.credentials.as_ref()?;
        let is_fresh = own.hold(self.id, authority_pem, now + RENEW_BEFORE);
        let key = (!is_fresh).then(|| own.key()).flatten();
        key.map(|key| key.public_hex())
    }
}

impl Credentials {
    fn key(&self) -> Option<Key> {
        Key::from_pem(&self.key_pem)
    }

    fn hold(&self, id: PeerId, authority_pem: &str, at: SystemTime) -> bool {
        certifies(&self.certificate_pem, id, authority_pem, at)
    }
}

/// These, and of the others who are not among them as many as there is room for; in an
/// order that does not change by itself.
fn joined(mut first: Vec<SwarmPeer>, others: impl Iterator<Item = SwarmPeer>) -> Vec<SwarmPeer> {
    first.truncate(PEERS_MAX);
    for peer in others {
        let is_new = first.iter().all(|known| known.id != peer.id);
        if is_new && first.len() < PEERS_MAX {
            first.push(peer);
        }
    }
    first.sort_by_key(|peer| peer.id);
    first
}

/// An order of others that is another for each machine.
fn spread(me: PeerId, other: PeerId) -> Digest {
    let mut both = me.0.to_le_bytes().to_vec();
    both.extend(other.0.to_le_bytes());
    Digest::of(&both)
}
