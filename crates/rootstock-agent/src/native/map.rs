//! Which stretches of the root the kernel reads straight from the disk.

use rootstock_core::CHUNK_BYTES;

use crate::mapper::{DeviceNumber, Kind, SECTOR_BYTES, Target};

/// Where a stretch of the version is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it is zeros.
    Zero,
    /// On the machine's disk, from this byte on.
    Disk(u64),
    /// From the agent.
    Agent,
}

/// Stretches that follow each other, with their lengths in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Map {
    stretches: Vec<(u64, Place)>,
}

impl Map {
    /// All of it from the agent.
    pub(crate) fn of_agent(len_bytes: u64) -> Self {
        let mut map = Self::default();
        map.push(len_bytes, Place::Agent);
        map
    }

    /// Appends a stretch of whole sectors.
    pub(crate) fn push(&mut self, len_bytes: u64, place: Place) {
        if len_bytes == 0 {
            return;
        }
        let goes_on = match (self.stretches.last(), place) {
            (Some((_, Place::Zero)), Place::Zero) | (Some((_, Place::Agent)), Place::Agent) => true,
            (Some((len, Place::Disk(start))), Place::Disk(next)) => start + len == next,
            _ => false,
        };
        match self.stretches.last_mut() {
            Some((len, _)) if goes_on => *len += len_bytes,
            _ => self.stretches.push((len_bytes, place)),
        }
    }

    /// The bytes that are read without the agent.
    pub(crate) fn native_bytes(&self) -> u64 {
        let native = self
            .stretches
            .iter()
            .filter(|(_, place)| *place != Place::Agent);
        native.map(|(len, _)| len).sum()
    }

    /// The same with fewer stretches: the shortest are the agent's.
    pub(crate) fn limited(self, count_max: usize) -> Self {
        let mut map = self;
        let mut shortest = 2 * CHUNK_BYTES;
        while map.stretches.len() > count_max {
            let mut fewer = Self::default();
            for (len, place) in map.stretches {
                let place = if len < shortest { Place::Agent } else { place };
                fewer.push(len, place);
            }
            map = fewer;
            shortest *= 2;
        }
        map
    }

    /// The device mapper's table: `agent` is as long as all of it.
    pub(crate) fn table(&self, agent: DeviceNumber, disk: DeviceNumber) -> Vec<Target> {
        let mut at = 0;
        let targets = self.stretches.iter();
        targets
            .map(|&(len, place)| {
                let linear = |device, start_bytes: u64| Kind::Linear {
                    device,
                    start_sectors: start_bytes / SECTOR_BYTES,
                };
                let kind = match place {
                    Place::Zero => Kind::Zero,
                    Place::Disk(start_bytes) => linear(disk, start_bytes),
                    Place::Agent => linear(agent, at),
                };
                at += len;
                Target {
                    sectors: len / SECTOR_BYTES,
                    kind,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AGENT: DeviceNumber = DeviceNumber(43, 1);
    const DISK: DeviceNumber = DeviceNumber(8, 0);

    fn place() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Zero),
            (0..8_u64).prop_map(|slot| Place::Disk((4 + slot) * CHUNK_BYTES)),
            Just(Place::Agent),
        ]
    }

    /// Where each chunk of a table is read.
    fn chunks(table: &[Target]) -> Vec<(Option<DeviceNumber>, u64)> {
        let chunk = CHUNK_BYTES / SECTOR_BYTES;
        let each = table.iter().flat_map(|target| {
            (0..target.sectors / chunk).map(|number| match target.kind {
                Kind::Linear {
                    device,
                    start_sectors,
                } => (Some(device), start_sectors + number * chunk),
                _ => (None, 0),
            })
        });
        each.collect()
    }

    proptest! {
        #[test]
        fn every_chunk_is_read_where_it_is(places in prop::collection::vec(place(), 1..60)) {
            let mut map = Map::default();
            for place in &places {
                map.push(CHUNK_BYTES, *place);
            }
            let native = places.iter().filter(|place| **place != Place::Agent).count();
            prop_assert_eq!(map.native_bytes(), native as u64 * CHUNK_BYTES);
            let expected: Vec<_> = places.iter().enumerate().map(|(at, place)| match place {
                Place::Zero => (None, 0),
                Place::Disk(start) => (Some(DISK), start / SECTOR_BYTES),
                Place::Agent => (Some(AGENT), at as u64 * CHUNK_BYTES / SECTOR_BYTES),
            }).collect();
            prop_assert_eq!(chunks(&map.table(AGENT, DISK)), expected);
        }

        #[test]
        fn a_table_with_a_limit_is_still_right(
            places in prop::collection::vec(place(), 1..60), count_max in 1..20_usize,
        ) {
            let mut map = Map::default();
            places.iter().for_each(|place| map.push(CHUNK_BYTES, *place));
            let limited = map.limited(count_max);
            prop_assert!(limited.stretches.len() <= count_max);
            let found = chunks(&limited.table(AGENT, DISK));
            for (at, (place, found)) in places.iter().zip(found).enumerate() {
                let agents = (Some(AGENT), at as u64 * CHUNK_BYTES / SECTOR_BYTES);
                let own = match place {
                    Place::Zero => (None, 0),
                    Place::Disk(start) => (Some(DISK), start / SECTOR_BYTES),
                    Place::Agent => agents,
                };
                prop_assert!(found == own || found == agents, "{found:?}");
            }
        }
    }

    #[test]
    fn runs_become_one_stretch() {
        let mut map = Map::default();
        for slot in [4, 5, 6, 9] {
            map.push(CHUNK_BYTES, Place::Disk(slot * CHUNK_BYTES));
        }
        map.push(512, Place::Zero);
        assert_eq!(
            map.stretches,
            [
                (3 * CHUNK_BYTES, Place::Disk(4 * CHUNK_BYTES)),
                (CHUNK_BYTES, Place::Disk(9 * CHUNK_BYTES)),
                (512, Place::Zero)
            ]
        );
    }
}
