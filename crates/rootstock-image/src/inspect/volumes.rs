//! Volumes within a partition: what lies in pieces is read as if it lay in one.

use rootstock_core::{ByteRange, Extents};
use serde::{Deserialize, Serialize};

use super::{Found, FsReport, Refusal, Walk, file_system, free::FreeSet, kept};
use crate::read_at::{ReadAt, Window};

/// How many layers of volumes may lie in one another: LVM on an array, and one more.
const LAYERS_MAX: usize = 3;

/// The most volumes that are listed for one disk.
const VOLUMES_MAX: usize = 256;

/// A logical volume, or the contents of an array.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// The file system found in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsReport>,
}

/// A volume, by where its bytes are in what holds it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) name: String,
    /// In the order of the volume, none of them empty.
    pieces: Vec<Piece>,
    len_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// Where it begins in the volume.
    start_bytes: u64,
    /// Where it lies in what holds the volume.
    place: ByteRange,
}

impl Volume {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Goes on with these bytes of what holds it.
    pub(super) fn push(&mut self, place: ByteRange) {
        self.pieces.push(Piece {
            start_bytes: self.len_bytes,
            place,
        });
        self.len_bytes = self.len_bytes.saturating_add(place.len);
    }

    /// Where its bytes are.
    pub(super) fn places(&self) -> impl Iterator<Item = ByteRange> {
        self.pieces.iter().map(|piece| piece.place)
    }

    /// Where a part of it is, piece by piece.
    fn within(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let first = self
            .pieces
            .partition_point(|piece| piece.start_bytes + piece.place.len <= range.start);
        let rest = self.pieces.get(first..).unwrap_or_default();
        rest.iter()
            .take_while(move |piece| piece.start_bytes < range.end())
            .map(move |piece| {
                let from = range.start.max(piece.start_bytes);
                let to = range.end().min(piece.start_bytes + piece.place.len);
                ByteRange::new(piece.place.start + (from - piece.start_bytes), to - from)
            })
    }
}

/// A volume as a disk.
struct Joined<'a> {
    window: &'a Window<'a>,
    volume: &'a Volume,
}

impl ReadAt for Joined<'_> {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let len = buffer.len() as u64;
        let end = offset_bytes.checked_add(len);
        if end.is_none_or(|end| end > self.volume.len_bytes) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = buffer;
        for place in self.volume.within(ByteRange::new(offset_bytes, len)) {
            let (now, later) = rest.split_at_mut(place.len as usize);
            self.window.read_exact_at(place.start, now)?;
            rest = later;
        }
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.volume.len_bytes
    }
}

/// Reads what is in the volumes of a partition: they go into the report, and what
/// is free in them is free in the partition.
pub(super) fn read(
    window: &Window<'_>,
    volumes: &[Volume],
    walk: &mut Walk,
    found: &mut Found,
) -> Result<(), Refusal> {
    if walk.layers >= LAYERS_MAX {
        return kept("it lies in too many layers of volumes");
    }
    if walk.volumes + volumes.len() > VOLUMES_MAX {
        return kept(format!(
            "the disk has more than {VOLUMES_MAX} logical volumes"
        ));
    }
    walk.volumes += volumes.len();
    walk.layers += 1;
    for volume in volumes {
        let disk = Joined { window, volume };
        let inner = Window::new(&disk, 0, volume.len_bytes);
        let inside = file_system(&inner, walk).map_err(Refusal::Io)?;
        if let Some(inside) = &inside {
            found.free.absorb_moved(&inside.free, |range, free| {
                volume.within(range).for_each(|place| free.insert(place));
            });
        }
        found.report.volumes.push(VolumeReport {
            name: volume.name.clone(),
            len_bytes: volume.len_bytes,
            fs: inside.map(|inside| inside.report),
        });
    }
    walk.layers -= 1;
    Ok(())
}

/// What no volume has of a range, and how much that is.
pub(super) fn unused(all: ByteRange, used: &Extents) -> (FreeSet, u64) {
    let mut free = FreeSet::new();
    let (mut at, mut total) = (all.start, 0);
    let end = ByteRange::new(all.end(), 0);
    for range in used.within(all).chain([end]) {
        let gap = range.start.saturating_sub(at);
        if gap > 0 {
            free.insert(ByteRange::new(at, gap));
            total += gap;
        }
        at = range.end();
    }
    (free, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_in_the_volume_s_order() {
        let disk: Vec<u8> = (0..100).collect();
        let window = Window::new(&disk, 0, 100);
        let mut volume = Volume::new("home");
        volume.push(ByteRange::new(50, 10));
        volume.push(ByteRange::new(20, 5));
        volume.push(ByteRange::new(60, 10));
        let joined = Joined {
            window: &window,
            volume: &volume,
        };
        let all: Vec<u8> = (50..60).chain(20..25).chain(60..70).collect();
        for start in 0..=25 {
            for len in 0..=25 - start {
                let mut bytes = vec![0; len];
                joined
                    .read_exact_at(start as u64, &mut bytes)
                    .expect("reads");
                assert_eq!(bytes, all[start..start + len]);
            }
        }
        assert!(joined.read_exact_at(20, &mut [0; 6]).is_err());
        assert!(joined.read_exact_at(u64::MAX, &mut [0; 6]).is_err());
    }

    #[test]
    fn gaps_are_unused() {
        let mut used = Extents::new();
        used.insert(ByteRange::new(10, 5));
        used.insert(ByteRange::new(30, 5));
        let (free, total) = unused(ByteRange::new(5, 35), &used);
        let gaps: Vec<_> = free
            .into_extents()
            .iter()
            .map(|r| (r.start, r.len))
            .collect();
        assert_eq!((gaps, total), (vec![(5, 5), (15, 15), (35, 5)], 25));
    }
}
