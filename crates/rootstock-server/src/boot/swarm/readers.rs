//! Which members may have which chunks of the daemon: those of the versions that their
//! sessions read over HTTP, and of no others.
//!
//! Ids are digests that nobody guesses, but members tell each other which versions they
//! hold, and a version's id leads to its root document, from there to its pages and to
//! all of its chunks. So the id alone is not enough. What a member may read is found out
//! when it announces itself, under its session; here it is only looked up, since the loop
//! that moves everybody's bytes waits for the answer.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rootstock_api::swarm::SwarmMode;
use rootstock_core::{ChunkId, Digest, PeerId};
use rootstock_peer::Proof;

use crate::boot::version_ids::short;

/// How long it is remembered what a member may read. That is longer than it is believed
/// to be there: a head that is slow to take announcements would else send everybody to
/// its own HTTP service.
const READS_LIFE: Duration = Duration::from_secs(600);

/// The ids of a version's chunks and pages, in short.
pub(crate) type Ids = Arc<HashSet<u64>>;

/// Members, and what they may read.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    by_id: Mutex<HashMap<PeerId, Reader>>,
    refused: AtomicU64,
}

/// A member that announced itself.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub(crate) boot: String,
    /// Where it announced itself from.
    pub(crate) address: IpAddr,
    pub(crate) mode: SwarmMode,
    /// The version that it runs, and the one that comes next.
    pub(crate) versions: Vec<(Digest, Ids)>,
    pub(crate) heard: Instant,
}

impl Reader {
    fn has(&self, version: Digest) -> bool {
        self.versions.iter().any(|(known, _)| *known == version)
    }
}

impl Readers {
    /// A member announced itself.
    pub(super) fn enter(&self, id: PeerId, reader: Reader) {
        self.by_id().insert(id, reader);
    }

    /// A member says that it goes, of this boot.
    pub(super) fn leave(&self, id: PeerId, boot: &str) {
        let mut by_id = self.by_id();
        if by_id.get(&id).is_some_and(|reader| reader.boot == boot) {
            by_id.remove(&id);
        }
    }

    /// Forgets who did not announce itself for long.
    pub(super) fn tidy(&self, now: Instant) {
        let is_young = |heard| now.saturating_duration_since(heard) < READS_LIFE;
        self.by_id().retain(|_, reader| is_young(reader.heard));
    }

    /// The ids of a version, where another member has them: they are in memory once.
    pub(super) fn ids(&self, version: Digest) -> Option<Ids> {
        let by_id = self.by_id();
        let mut all = by_id.values().flat_map(|reader| &reader.versions);
        let found = all.find(|(known, _)| *known == version);
        found.map(|(_, ids)| Arc::clone(ids))
    }

    /// Whether a member of this boot is known, and may not read this version yet.
    pub(super) fn lacks(&self, id: PeerId, boot: &str, version: Digest) -> bool {
        let by_id = self.by_id();
        let reader = by_id.get(&id).filter(|reader| reader.boot == boot);
        reader.is_some_and(|reader| !reader.has(version))
    }

    /// From now on this is what comes next for a member.
    pub(super) fn set_next(&self, id: PeerId, version: Digest, ids: Ids) {
        if let Some(reader) = self.by_id().get_mut(&id)
            && !reader.has(version)
        {
            reader.versions.truncate(1);
            reader.versions.push((version, ids));
        }
    }

    /// Whether somebody is spoken to. A certificate says for itself who shows it; without
    /// one, it is somebody whose setting is `plain`, and who asks from the address at
    /// which that member's session is used.
    pub(super) fn admits(&self, id: PeerId, address: IpAddr, proof: Proof) -> bool {
        let by_id = self.by_id();
        let is_plain =
            |reader: &Reader| reader.mode == SwarmMode::Plain && reader.address == address;
        proof == Proof::Certificate || by_id.get(&id).is_some_and(is_plain)
    }

    /// Whether a member may have a chunk or page. Ids are told apart as those that
    /// sessions ask for are.
    pub(super) fn may_have(&self, id: PeerId, chunk: ChunkId) -> bool {
        let chunk = short(chunk);
        let may = self.by_id().get(&id).is_some_and(|reader| {
            let mut all = reader.versions.iter();
            all.any(|(_, ids)| ids.contains(&chunk))
        });
        self.refused.fetch_add(u64::from(!may), Relaxed);
        may
    }

    /// How many questions were for what the member may not have.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn by_id(&self) -> MutexGuard<'_, HashMap<PeerId, Reader>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u8) -> ChunkId {
        ChunkId::of(&[number])
    }

    fn version(number: u8) -> Digest {
        Digest::of(&[number])
    }

    /// A version that has one chunk of the same number.
    fn ids(number: u8) -> Ids {
        Arc::new(HashSet::from([short(chunk(number))]))
    }

    fn reader(mode: SwarmMode, heard: Instant) -> Reader {
        Reader {
            boot: "boot".to_owned(),
            address: "10.0.0.7".parse().expect("an address"),
            mode,
            versions: vec![(version(1), ids(1))],
            heard,
        }
    }

    #[test]
    fn who_shows_nothing_is_a_plain_member_at_its_address() {
        let readers = Readers::default();
        let now = Instant::now();
        let (plain, secret, nobody) = (PeerId(1), PeerId(2), PeerId(3));
        readers.enter(plain, reader(SwarmMode::Plain, now));
        readers.enter(secret, reader(SwarmMode::Tls, now));
        for (id, address, proof, expected) in [
            (plain, "10.0.0.7", Proof::Nothing, true),
            (plain, "10.0.0.8", Proof::Nothing, false),
            (secret, "10.0.0.7", Proof::Nothing, false),
            (nobody, "10.0.0.7", Proof::Nothing, false),
            (secret, "10.0.0.8", Proof::Certificate, true),
            // It may have no chunk yet, and need not begin anew once it may.
            (nobody, "10.0.0.8", Proof::Certificate, true),
        ] {
            let address = address.parse().expect(address);
            let admitted = readers.admits(id, address, proof);
            assert_eq!(admitted, expected, "{id} {address} {proof:?}");
        }
    }

    #[test]
    fn a_member_reads_what_it_runs_and_what_comes_next() {
        let readers = Readers::default();
        let me = PeerId(1);
        let may = |expected: [bool; 3]| {
            let found = [1, 2, 3].map(|number| readers.may_have(me, chunk(number)));
            assert_eq!(found, expected);
        };
        may([false; 3]);
        readers.enter(me, reader(SwarmMode::Tls, Instant::now()));
        may([true, false, false]);
        assert!(readers.lacks(me, "boot", version(2)));
        assert!(!readers.lacks(me, "an earlier boot", version(2)));
        readers.set_next(me, version(2), ids(2));
        assert!(!readers.lacks(me, "boot", version(2)));
        may([true, true, false]);
        readers.set_next(me, version(3), ids(3));
        readers.set_next(me, version(1), ids(1));
        may([true, false, true]);
        assert_eq!(readers.refused(), 3 + 2 + 1 + 1);
    }

    #[test]
    fn members_share_ids_and_are_forgotten() {
        let readers = Readers::default();
        let now = Instant::now();
        readers.enter(PeerId(1), reader(SwarmMode::Tls, now));
        readers.enter(PeerId(2), reader(SwarmMode::Tls, now + READS_LIFE));
        let shared = readers.ids(version(1)).expect("is known");
        assert_eq!(shared, ids(1));
        assert_eq!(readers.ids(version(2)), None);
        readers.tidy(now + READS_LIFE);
        assert!(!readers.may_have(PeerId(1), chunk(1)));
        readers.leave(PeerId(2), "an earlier boot");
        assert!(readers.may_have(PeerId(2), chunk(1)));
        readers.leave(PeerId(2), "boot");
        assert!(!readers.may_have(PeerId(2), chunk(1)));
    }
}
