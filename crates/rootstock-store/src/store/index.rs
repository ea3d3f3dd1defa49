//! Where each chunk is, in memory.
//!
//! A chunk takes 48 bytes in a list, and 6 to 12 in a hash table of places in
//! that list: 60 at most, 15 MB for 64 GiB of raw data. (A table of the entries
//! themselves is half empty after each growth and would take up to 110.)

use std::collections::HashMap;

use hashbrown::HashTable;
use rootstock_core::ChunkId;

use super::{Damage, StoreStats};
use crate::{
    pack::{Entry, PackId, RECORD_BYTES, buffer::PackBuffer},
    store::Arc,
};

/// Where a chunk's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// A pack's number in [`Index::packs`].
    pub(super) pack: u32,
    pub(super) offset_bytes: u32,
    pub(super) frame_bytes: u32,
    pub(super) raw_bytes: u32,
}

impl Location {
    pub(super) fn new(pack: u32, entry: &Entry) -> Self {
        Self {
            pack,
            offset_bytes: entry.offset_bytes,
            frame_bytes: entry.frame_bytes,
            raw_bytes: entry.raw_bytes,
        }
    }

    pub(super) fn record_bytes(&self) -> u64 {
        RECORD_BYTES as u64 + u64::from(self.frame_bytes)
    }
}

/// Where a pack is.
#[derive(Clone)]
pub(super) enum Place {
    /// Being filled, or waiting to be stored.
    Memory(Arc<PackBuffer>),
    /// An object.
    Stored(PackId),
}

/// A pack that the index points into.
pub(super) struct Pack {
    pub(super) place: Place,
    /// Chunks whose place is this pack.
    pub(super) chunks: u32,
    /// Bytes of all its records, used or not.
    pub(super) record_bytes: u64,
    /// Bytes of the stored pack, with header, index and footer; 0 before.
    pub(super) len_bytes: u64,
    /// The trailer is damaged: a collection should write the pack anew.
    pub(super) trailer_damaged: bool,
}

impl Pack {
    pub(super) fn new(place: Place, record_bytes: u64, len_bytes: u64) -> Self {
        Self {
            place,
            chunks: 0,
            record_bytes,
            len_bytes,
            trailer_damaged: false,
        }
    }

    pub(super) fn id(&self) -> Option<PackId> {
        match self.place {
            Place::Stored(id) => Some(id),
            Place::Memory(_) => None,
        }
    }
}

/// All that is known of what is stored.
#[derive(Default)]
pub(super) struct Index {
    pub(super) chunks: ChunkMap,
    pub(super) packs: HashMap<u32, Pack>,
    /// Further places of chunks that were found twice at open.
    pub(super) duplicates: HashMap<ChunkId, Vec<Location>>,
    pub(super) damaged: HashMap<ChunkId, Damage>,
    next_pack: u32,
    raw_bytes: u64,
    frame_bytes: u64,
}

impl Index {
    /// Adds a pack and gives its number.
    pub(super) fn add_pack(&mut self, pack: Pack) -> u32 {
        while self.packs.contains_key(&self.next_pack) {
            self.next_pack = self.next_pack.wrapping_add(1);
        }
        let number = self.next_pack;
        self.packs.insert(number, pack);
        self.next_pack = number.wrapping_add(1);
        number
    }

    /// Sets a chunk's place, whatever it was; what was known of damage is past.
    pub(super) fn set(&mut self, chunk: ChunkId, at: Location) {
        let before = self.chunks.insert(chunk, at);
        if let Some(before) = before {
            self.uncount(before);
        }
        self.raw_bytes += u64::from(at.raw_bytes);
        self.frame_bytes += u64::from(at.frame_bytes);
        if let Some(pack) = self.packs.get_mut(&at.pack) {
            pack.chunks += 1;
        }
        self.damaged.remove(&chunk);
    }

    /// Forgets a chunk.
    pub(super) fn remove(&mut self, chunk: ChunkId) {
        if let Some(before) = self.chunks.remove(chunk) {
            self.uncount(before);
        }
        self.damaged.remove(&chunk);
    }

    fn uncount(&mut self, before: Location) {
        self.raw_bytes -= u64::from(before.raw_bytes);
        self.frame_bytes -= u64::from(before.frame_bytes);
        if let Some(pack) = self.packs.get_mut(&before.pack) {
            pack.chunks -= 1;
        }
    }

    pub(super) fn stats(&self) -> StoreStats {
        let mut stats = StoreStats {
            chunks: self.chunks.len() as u64,
            raw_bytes: self.raw_bytes,
            frame_bytes: self.frame_bytes,
            damaged: self.damaged.len() as u64,
            ..StoreStats::default()
        };
        for pack in self.packs.values() {
            match pack.place {
                Place::Stored(_) => {
                    stats.packs += 1;
                    stats.pack_bytes += pack.len_bytes;
                }
                Place::Memory(_) => stats.unstored_bytes += pack.record_bytes,
            }
        }
        stats
    }
}

/// A map from chunk ids to locations that stays small.
#[derive(Default)]
pub(super) struct ChunkMap {
    slots: Vec<(ChunkId, Location)>,
    /// Indices into `slots`.
    table: HashTable<u32>,
}

impl ChunkMap {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, chunk: ChunkId) -> Option<Location> {
        let slot = self.slot(chunk)?;
        Some(self.slots[slot as usize].1)
    }

    /// Sets a chunk's location and gives the one it had.
    fn insert(&mut self, chunk: ChunkId, at: Location) -> Option<Location> {
        if let Some(slot) = self.slot(chunk) {
            return Some(std::mem::replace(&mut self.slots[slot as usize].1, at));
        }
        let slot = self.slots.len() as u32;
        self.slots.push((chunk, at));
        let slots = &self.slots;
        self.table
            .insert_unique(hash(chunk), slot, |slot| hash(slots[*slot as usize].0));
        None
    }

    fn remove(&mut self, chunk: ChunkId) -> Option<Location> {
        let slots = &self.slots;
        let entry = self
            .table
            .find_entry(hash(chunk), |slot| slots[*slot as usize].0 == chunk);
        let (slot, _) = entry.ok()?.remove();
        let (_, at) = self.slots.swap_remove(slot as usize);
        // The last chunk took the place of the one that went.
        if let Some((moved, _)) = self.slots.get(slot as usize) {
            let last = self.slots.len() as u32;
            let found = self.table.find_mut(hash(*moved), |slot| *slot == last);
            if let Some(found) = found {
                *found = slot;
            }
        }
        Some(at)
    }

    /// Up to `count` chunks from place `start` on; chunks added meanwhile come
    /// last, and removing one moves the last into its place.
    pub(super) fn batch(&self, start: usize, count: usize) -> &[(ChunkId, Location)] {
        let end = start.saturating_add(count).min(self.slots.len());
        self.slots.get(start..end).unwrap_or_default()
    }

    fn slot(&self, chunk: ChunkId) -> Option<u32> {
        let same = |slot: &u32| self.slots[*slot as usize].0 == chunk;
        self.table.find(hash(chunk), same).copied()
    }
}

/// An id is a hash already.
fn hash(chunk: ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&chunk.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(pack: u32) -> Location {
        Location {
            pack,
            offset_bytes: 16,
            frame_bytes: 1,
            raw_bytes: 1,
        }
    }

    #[test]
    fn a_chunk_takes_48_bytes_and_its_place() {
        assert_eq!(size_of::<(ChunkId, Location)>(), 48);
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in prop::collection::vec((any::<bool>(), 0_u8..24, any::<u32>()), 0..200)) {
            let mut map = ChunkMap::default();
            let mut model = BTreeMap::new();
            for (insert, chunk, pack) in steps {
                let chunk = ChunkId::of(&[chunk]);
                if insert {
                    prop_assert_eq!(map.insert(chunk, at(pack)), model.insert(chunk, at(pack)));
                } else {
                    prop_assert_eq!(map.remove(chunk), model.remove(&chunk));
                }
                prop_assert_eq!(map.len(), model.len());
                let all: BTreeMap<_, _> = map.batch(0, 1000).iter().copied().collect();
                prop_assert!(all.iter().all(|(chunk, at)| map.get(*chunk) == Some(*at)));
                prop_assert_eq!(&all, &model);
            }
        }
    }
}
