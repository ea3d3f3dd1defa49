//! To whom a head gave what, of late: there it sends others of the same rack.

use std::collections::{BTreeMap, VecDeque};

use rootstock_core::{ChunkId, PeerId};

use crate::bugs::{self, Bug};

/// Chunks of which that is remembered.
const CHUNKS_MAX: usize = 65_536;

/// Of each, to how many: about one in each of so many racks.
const PEERS_MAX: usize = 8;

/// Who got what.
#[derive(Default)]
pub(super) struct Given {
    peers: BTreeMap<ChunkId, Vec<PeerId>>,
    /// By when they were given first.
    order: VecDeque<ChunkId>,
}

impl Given {
    /// A member is sent a chunk.
    pub(super) fn note(&mut self, chunk: ChunkId, peer: PeerId) {
        let peers = self.peers.entry(chunk).or_default();
        if peers.is_empty() {
            self.order.push_back(chunk);
        }
        peers.retain(|other| *other != peer);
        if peers.len() == PEERS_MAX {
            peers.remove(0);
        }
        peers.push(peer);
        if self.order.len() > CHUNKS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.peers.remove(&oldest);
        }
    }

    /// Who got a chunk, the last one first.
    pub(super) fn of(&self, chunk: ChunkId) -> impl Iterator<Item = PeerId> {
        let peers = self.peers.get(&chunk).map(Vec::as_slice);
        let is_minded = !bugs::made(Bug::SendsAll) && !bugs::made(Bug::OwnsAll);
        let peers = peers.filter(|_| is_minded);
        peers.unwrap_or_default().iter().rev().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_chunks_the_last_are_remembered_and_of_many_members_too() {
        let chunk = |number: usize| ChunkId::of(&number.to_le_bytes());
        let mut given = Given::default();
        for number in 0..CHUNKS_MAX + 10 {
            given.note(chunk(number), PeerId(1));
        }
        assert_eq!(given.peers.len(), CHUNKS_MAX);
        assert_eq!(given.of(chunk(9)).count(), 0);
        assert_eq!(given.of(chunk(10)).collect::<Vec<_>>(), [PeerId(1)]);
        for peer in 2..20 {
            given.note(chunk(10), PeerId(peer));
        }
        given.note(chunk(10), PeerId(15));
        let of: Vec<u64> = given.of(chunk(10)).map(|peer| peer.0).collect();
        assert_eq!(of, [15, 19, 18, 17, 16, 14, 13, 12]);
    }
}
