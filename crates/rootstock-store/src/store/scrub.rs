//! Scrubbing: reading again what is stored, before somebody needs it.

use super::{ChunkStore, Damage};
use crate::pack::{FORMAT, HEADER_BYTES, PackId, header_format, read::intact_entries};

/// What a scrub of one pack found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubReport {
    /// The pack.
    pub pack: PackId,
    /// Bytes read, for the caller to pace itself by.
    pub read_bytes: u64,
    /// Chunks checked.
    pub chunks: u64,
    /// Chunks that are not what was put.
    pub damage: Vec<Damage>,
    /// Whether the pack's header or index is damaged: no chunk is lost by that,
    /// and the next collection writes the pack anew.
    pub ends_damaged: bool,
}

impl ChunkStore {
    /// Reads a stored pack from the disk, not from its cache, and checks both
    /// ids of every chunk in use; `None` when the pack is gone by now. The
    /// caller paces: it knows the time and [`ScrubReport::read_bytes`].
    #[must_use]
    pub fn scrub_pack(&self, pack: PackId) -> Option<ScrubReport> {
        let (number, len_bytes) = {
            let index = self.index();
            let found = index.packs.iter().find(|(_, p)| p.id() == Some(pack));
            found.map(|(number, p)| (*number, p.len_bytes))?
        };
        self.objects().forget_cached(&pack.key());
        let ends_damaged = !self.ends_are_intact(pack, len_bytes);
        if ends_damaged && let Some(pack) = self.index_mut().packs.get_mut(&number) {
            pack.trailer_damaged = true;
        }
        let mut report = ScrubReport {
            pack,
            read_bytes: 0,
            chunks: 0,
            damage: Vec::new(),
            ends_damaged,
        };
        for (chunk, at) in self.chunks_in(number) {
            report.read_bytes += at.record_bytes();
            report.chunks += 1;
            report.damage.extend(self.damage_at(chunk, at));
        }
        Some(report)
    }

    fn ends_are_intact(&self, pack: PackId, len_bytes: u64) -> bool {
        let header = self.objects().get_range(&pack.key(), 0, HEADER_BYTES);
        let trailer = intact_entries(self.objects(), pack, len_bytes);
        header.is_ok_and(|bytes| header_format(&bytes) == Some(FORMAT))
            && matches!(trailer, Ok(Some(_)))
    }
}
