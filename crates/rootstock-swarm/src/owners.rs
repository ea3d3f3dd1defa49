//! Which members of a rack answer for a chunk: highest random weight (Thaler and
//! Ravishankar, 1998). Who joins or leaves moves only what becomes or was its own.

use rootstock_core::{ChunkId, PeerId};

use crate::rng::mix;

/// The owners of a chunk among `members`, first owner first, `copies` at most.
pub fn owners(
    chunk: ChunkId,
    members: impl IntoIterator<Item = PeerId>,
    copies: usize,
) -> Vec<PeerId> {
    let mut best: Vec<(u64, PeerId)> = Vec::with_capacity(copies + 1);
    for member in members {
        let weight = weight(chunk, member);
        let at = best.partition_point(|(other, id)| (*other, *id) > (weight, member));
        if at < copies {
            best.insert(at, (weight, member));
            best.truncate(copies);
        }
    }
    best.into_iter().map(|(_, member)| member).collect()
}

fn weight(chunk: ChunkId, member: PeerId) -> u64 {
    mix(first_word(chunk) ^ mix(member.0))
}

/// Ids are digests: any eight bytes of them are spread evenly.
pub(crate) fn first_word(chunk: ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&chunk.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u64) -> ChunkId {
        ChunkId::of(&number.to_le_bytes())
    }

    fn members(count: u64) -> Vec<PeerId> {
        (0..count).map(|n| PeerId::of(&format!("n{n}"))).collect()
    }

    #[test]
    fn a_member_that_leaves_moves_what_was_its_own_and_nothing_else() {
        let all = members(40);
        let left = &all[..39];
        for number in 0..500 {
            let before = owners(chunk(number), all.iter().copied(), 2);
            let after = owners(chunk(number), left.iter().copied(), 2);
            let stays: Vec<PeerId> = before.iter().copied().filter(|id| *id != all[39]).collect();
            assert_eq!(after[..stays.len()], stays[..], "chunk {number}");
            assert_eq!(after.len(), 2);
        }
    }

    #[test]
    fn everybody_owns_about_as_much() {
        let all = members(32);
        let mut counts = vec![0; 32];
        for number in 0..32_000 {
            let first = owners(chunk(number), all.iter().copied(), 1)[0];
            counts[all.iter().position(|id| *id == first).expect("a member")] += 1;
        }
        // Six standard deviations around 1000.
        assert!(counts.iter().all(|n| (810..1190).contains(n)), "{counts:?}");
    }

    #[test]
    fn nobody_owns_where_nobody_is() {
        assert!(owners(chunk(1), [], 2).is_empty());
        assert!(owners(chunk(1), members(3), 0).is_empty());
        assert_eq!(owners(chunk(1), members(1), 2).len(), 1);
    }
}
