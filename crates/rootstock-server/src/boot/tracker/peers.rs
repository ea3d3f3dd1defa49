//! Whom a member is told of: all of its rack, and some of every other.

use std::time::Instant;

use rootstock_api::swarm::{SWARM_PEERS_MAX, SwarmPeer};
use rootstock_core::PeerId;

use super::{Member, Tracker};

/// The most of the own rack. It is the same part of a larger one for all who are in it,
/// so that they agree on who owns a chunk.
const RACK_PEERS_MAX: usize = 384;

/// The most of other racks. It is another part of them at each question.
const OTHER_PEERS_MAX: usize = 64;

/// Leaves room for the heads.
const _: () = assert!(RACK_PEERS_MAX + OTHER_PEERS_MAX < SWARM_PEERS_MAX);

impl Tracker {
    /// Whom a member is told of: those that can be reached as it is itself and are not
    /// left out, its own rack first.
    pub(crate) fn peers(&self, asker: PeerId, now: Instant) -> Vec<SwarmPeer> {
        let Some(asking) = self.members.get(&asker) else {
            return Vec::new();
        };
        let is_meant = |(id, member): &(&PeerId, &Member)| {
            **id != asker
                && member.address.is_some()
                && member.mode == asking.mode
                && member.is_there(now)
                && self.liars.left_out(**id, now).is_none()
        };
        let mut rack = Vec::new();
        let mut others = Vec::new();
        let seed = mixed(asker.0 ^ asking.asked);
        for (id, member) in self.members.iter().filter(is_meant) {
            if member.rack == asking.rack {
                rack.push((mixed(id.0), *id, member));
            } else {
                others.push((member.rack.as_str(), mixed(id.0 ^ seed), *id, member));
            }
        }
        rack.sort_unstable_by_key(|(order, id, _)| (*order, *id));
        rack.truncate(RACK_PEERS_MAX);
        let rack = rack.into_iter().map(|(_, id, member)| peer(id, member));
        rack.chain(spread(others)).collect()
    }
}

/// The first of each rack, the second of each, and so on.
fn spread(mut others: Vec<(&str, u64, PeerId, &Member)>) -> impl Iterator<Item = SwarmPeer> {
    others.sort_unstable_by_key(|(rack, order, id, _)| (*rack, *order, *id));
    let mut ranked = Vec::with_capacity(others.len());
    let mut last = None;
    let mut rank = 0;
    for (rack, order, id, member) in others {
        rank = if last == Some(rack) { rank + 1 } else { 0_u32 };
        last = Some(rack);
        ranked.push((rank, order, id, member));
    }
    ranked.sort_unstable_by_key(|(rank, order, id, _)| (*rank, *order, *id));
    ranked.truncate(OTHER_PEERS_MAX);
    ranked
        .into_iter()
        .map(|(_, _, id, member)| peer(id, member))
}

fn peer(id: PeerId, member: &Member) -> SwarmPeer {
    SwarmPeer {
        id,
        addresses: member.address.iter().map(ToString::to_string).collect(),
        rack: member.rack.clone(),
        head: false,
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): neighbours come far apart.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
