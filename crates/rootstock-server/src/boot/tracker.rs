//! Who is in the swarm and what they hold: soft state, which the next announcements bring
//! again. It knows no clock and no network: times and addresses come in.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use rootstock_api::swarm::{SWARM_LIARS_MAX, SWARM_VERSIONS_MAX, SwarmAnnounce, SwarmMode};
use rootstock_core::{Digest, NodeName, PeerId};

mod copies;
mod liars;
mod peers;
#[cfg(test)]
mod tests;

use liars::Liars;

/// The most members.
const MEMBERS_MAX: usize = 8192;

/// The most announcements that a head is to get in a second, about.
const ANNOUNCEMENTS_A_SECOND: usize = 50;

/// Seconds between announcements of a member, where there are few.
pub(crate) const AGAIN_SECONDS: u32 = 10;

/// Announcements that a member may miss.
const MISSED_MAX: u32 = 3;

/// The most bytes of all bitmaps together. What is beyond is not known, and not needed
/// but for what is shown.
const BITMAP_BYTES_MAX: usize = 256 << 20;

/// The longest bitmap that is asked for.
const BITMAP_LEN_BYTES_MAX: usize = 256 << 10;

/// The members, and what was said of them.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    members: HashMap<PeerId, Member>,
    liars: Liars,
    bitmap_bytes: usize,
    sent_bytes: u64,
    received_bytes: u64,
}

#[derive(Debug)]
struct Member {
    node: NodeName,
    /// Its boot: bytes are counted anew in each.
    boot: String,
    mode: SwarmMode,
    rack: String,
    /// Where it serves others, if it does.
    address: Option<SocketAddr>,
    heard: Instant,
    /// When it was to say something again.
    again: Duration,
    /// How often it asked: the others that it is told of change with that.
    asked: u64,
    sent_bytes: u64,
    received_bytes: u64,
    holdings: Vec<Holding>,
}

#[derive(Debug)]
struct Holding {
    version: Digest,
    held_chunks: u32,
    bits: Bits,
}

/// Which chunks of a version a member holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bits {
    /// It did not say.
    Unknown,
    /// These.
    Some(Arc<[u8]>),
    /// All.
    All,
}

impl Bits {
    fn len_bytes(&self) -> usize {
        match self {
            Self::Some(bytes) => bytes.len(),
            Self::Unknown | Self::All => 0,
        }
    }
}

/// A machine that announces itself, as the daemon knows it.
#[derive(Debug, Clone)]
pub(crate) struct Announcer<'a> {
    pub(crate) node: &'a NodeName,
    pub(crate) boot: &'a str,
    /// Where it asks from.
    pub(crate) address: IpAddr,
    pub(crate) mode: SwarmMode,
    pub(crate) rack: String,
}

/// Why what a machine says is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TrackerError {
    #[error("the swarm has {MEMBERS_MAX} members already")]
    Full,
    #[error("node {other} has the same peer id, {id}")]
    SameId { id: PeerId, other: NodeName },
    #[error("the machine did not announce itself, or too long ago")]
    Stranger,
    #[error("the machine holds chunks of {SWARM_VERSIONS_MAX} other versions")]
    Versions,
    #[error("what machines hold has {BITMAP_BYTES_MAX} bytes already")]
    Bitmaps,
}

/// What an announcement changed, and what it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Seconds to the next one.
    pub(crate) again_seconds: u32,
    /// Versions of which it is not known which chunks the member holds.
    pub(crate) holds_wanted: Vec<Digest>,
    /// Members that are left out from now on, with their boots.
    pub(crate) left_out: Vec<(NodeName, String)>,
}

/// A member, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) rack: String,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// For how long others are not told of it.
    pub(crate) left_out: Option<Duration>,
}

/// The swarm in figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) members: u64,
    pub(crate) left_out: u64,
    pub(crate) by_rack: BTreeMap<String, u64>,
    /// Bytes since the daemon started.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

impl Member {
    fn is_there(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) <= self.again * MISSED_MAX + self.again / 2
    }

    fn bitmap_bytes(&self) -> usize {
        let bytes = self.holdings.iter().map(|holding| holding.bits.len_bytes());
        bytes.sum()
    }
}

impl Tracker {
    /// Takes an announcement. `count_of` says how many chunks and pages a version has, and
    /// nothing for one that there is not, which is ignored then.
    pub(crate) fn announce(
        &mut self,
        who: Announcer<'_>,
        said: &SwarmAnnounce,
        count_of: impl Fn(Digest) -> Option<u32>,
        now: Instant,
    ) -> Result<Announced, TrackerError> {
        let id = PeerId::of(who.node.as_str());
        self.admit(id, who.node, now)?;
        let before = self.remove(id);
        let asked = before.as_ref().map_or(0, |before| before.asked + 1);
        self.count_bytes(&who, said, before.as_ref());
        let known = before.map(|before| before.holdings).unwrap_or_default();
        let again_seconds = self.again_seconds();
        let member = Member {
            node: who.node.clone(),
            boot: who.boot.to_owned(),
            mode: who.mode,
            rack: who.rack,
            address: (said.port != 0).then(|| SocketAddr::new(who.address, said.port)),
            heard: now,
            again: Duration::from_secs(again_seconds.into()),
            asked,
            sent_bytes: said.sent_bytes,
            received_bytes: said.received_bytes,
            holdings: holdings(said, known, count_of),
        };
        let is_room = self.bitmap_bytes + BITMAP_LEN_BYTES_MAX <= BITMAP_BYTES_MAX;
        let is_unknown = |holding: &&Holding| {
            is_room && holding.held_chunks > 0 && holding.bits == Bits::Unknown
        };
        let unknown = member.holdings.iter().filter(is_unknown);
        let holds_wanted = unknown.map(|holding| holding.version).collect();
        self.bitmap_bytes += member.bitmap_bytes();
        self.members.insert(id, member);
        Ok(Announced {
            again_seconds,
            holds_wanted,
            left_out: self.accused(id, &said.liars, now),
        })
    }

    /// Keeps which of a version's `count` chunks and pages a member holds; the bits after
    /// those are clear.
    pub(crate) fn holds(
        &mut self,
        id: PeerId,
        version: Digest,
        bitmap: Vec<u8>,
        count: u32,
    ) -> Result<(), TrackerError> {
        let held = bitmap.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let bits = match held >= count {
            true => Bits::All,
            false => Bits::Some(bitmap.into()),
        };
        let member = self.members.get_mut(&id).ok_or(TrackerError::Stranger)?;
        let at = member
            .holdings
            .iter()
            .position(|one| one.version == version);
        let freed = at.map_or(0, |at| member.holdings[at].bits.len_bytes());
        let bytes = self.bitmap_bytes - freed + bits.len_bytes();
        if at.is_none() && member.holdings.len() >= SWARM_VERSIONS_MAX {
            return Err(TrackerError::Versions);
        }
        if bytes > BITMAP_BYTES_MAX {
            return Err(TrackerError::Bitmaps);
        }
        self.bitmap_bytes = bytes;
        let holding = Holding {
            version,
            held_chunks: held,
            bits,
        };
        match at {
            Some(at) => member.holdings[at] = holding,
            None => member.holdings.push(holding),
        }
        Ok(())
    }

    /// A member goes, of this boot.
    pub(crate) fn leave(&mut self, node: &NodeName, boot: &str) {
        let id = PeerId::of(node.as_str());
        let member = self.members.get(&id);
        if member.is_some_and(|member| member.boot == boot) {
            self.remove(id);
        }
    }

    /// Forgets who did not announce itself, and what is not held against anybody now.
    pub(crate) fn tidy(&mut self, now: Instant) {
        self.members.retain(|_, member| member.is_there(now));
        let bytes = self.members.values().map(Member::bitmap_bytes);
        self.bitmap_bytes = bytes.sum();
        self.liars.tidy(now);
    }

    /// How a node takes part, if it does.
    pub(crate) fn view(&self, node: &NodeName, now: Instant) -> Option<View> {
        let id = PeerId::of(node.as_str());
        let member = self.members.get(&id)?;
        let is_it = member.node == *node && member.is_there(now);
        is_it.then(|| View {
            rack: member.rack.clone(),
            sent_bytes: member.sent_bytes,
            received_bytes: member.received_bytes,
            left_out: self.liars.left_out(id, now),
        })
    }

    /// The swarm in figures.
    pub(crate) fn figures(&self, now: Instant) -> Figures {
        let mut figures = Figures {
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            ..Figures::default()
        };
        for (id, member) in &self.members {
            if member.is_there(now) {
                figures.members += 1;
                *figures.by_rack.entry(member.rack.clone()).or_default() += 1;
                figures.left_out += u64::from(self.liars.left_out(*id, now).is_some());
            }
        }
        figures
    }

    /// Whether there is a place for a member, and nobody else has its id.
    fn admit(&mut self, id: PeerId, node: &NodeName, now: Instant) -> Result<(), TrackerError> {
        if let Some(member) = self.members.get(&id) {
            if member.node != *node && member.is_there(now) {
                let other = member.node.clone();
                return Err(TrackerError::SameId { id, other });
            }
            return Ok(());
        }
        if self.members.len() >= MEMBERS_MAX {
            self.tidy(now);
        }
        match self.members.len() < MEMBERS_MAX {
            true => Ok(()),
            false => Err(TrackerError::Full),
        }
    }

    fn remove(&mut self, id: PeerId) -> Option<Member> {
        let member = self.members.remove(&id)?;
        self.bitmap_bytes -= member.bitmap_bytes();
        Some(member)
    }

    /// Adds what members moved since they said so last.
    fn count_bytes(&mut self, who: &Announcer<'_>, said: &SwarmAnnounce, before: Option<&Member>) {
        let before = before.filter(|before| before.boot == who.boot);
        let (sent, received) = before.map_or((0, 0), |b| (b.sent_bytes, b.received_bytes));
        let add = |sum: u64, now: u64, before| sum.saturating_add(now.saturating_sub(before));
        self.sent_bytes = add(self.sent_bytes, said.sent_bytes, sent);
        self.received_bytes = add(self.received_bytes, said.received_bytes, received);
    }

    /// Seconds between announcements, so that all of them together are not too many.
    fn again_seconds(&self) -> u32 {
        let seconds = self.members.len().div_ceil(ANNOUNCEMENTS_A_SECOND);
        // At most as many as members.
        AGAIN_SECONDS.max(seconds as u32)
    }

    fn accused(&mut self, by: PeerId, liars: &[PeerId], now: Instant) -> Vec<(NodeName, String)> {
        let mut left_out = Vec::new();
        for liar in liars.iter().take(SWARM_LIARS_MAX) {
            let Some(member) = self.members.get(liar) else {
                continue;
            };
            if self.liars.accuse(*liar, by, now) {
                left_out.push((member.node.clone(), member.boot.clone()));
            }
        }
        left_out
    }
}

/// What a member holds by its announcement, with what is known of that.
fn holdings(
    said: &SwarmAnnounce,
    mut known: Vec<Holding>,
    count_of: impl Fn(Digest) -> Option<u32>,
) -> Vec<Holding> {
    let mut holdings: Vec<Holding> = Vec::new();
    for one in said.holds.iter().take(SWARM_VERSIONS_MAX) {
        let is_new = holdings.iter().all(|other| other.version != one.version);
        let Some(count) = count_of(one.version).filter(|_| is_new) else {
            continue;
        };
        let at = known.iter().position(|known| known.version == one.version);
        let bits = match at.map(|at| known.swap_remove(at).bits) {
            _ if one.held_chunks >= count => Bits::All,
            Some(Bits::Some(bits)) => Bits::Some(bits),
            Some(Bits::All | Bits::Unknown) | None => Bits::Unknown,
        };
        holdings.push(Holding {
            version: one.version,
            held_chunks: one.held_chunks,
            bits,
        });
    }
    holdings
}
