//! Collection: what nobody needs goes, and packs that are mostly garbage or
//! small are written anew.
//!
//! A collection works on the packs that were stored when it began; chunks put
//! later are elsewhere and safe. A chunk in those packs that is said to be
//! present meanwhile is kept as if it were marked, since a version that is
//! being committed may count on it.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher,
    ops::ControlFlow,
    sync::atomic::Ordering,
};

use rootstock_core::ChunkId;

use super::{
    ChunkStore, CollectError,
    index::{Index, Location, Pack, Place},
};
use crate::pack::{Entry, PackId, buffer::PackBuffer, read::intact_entries};

/// Index entries looked at while the index is locked once.
const BATCH_CHUNKS: usize = 8192;

/// What must be kept: the caller's mark, taken after
/// [`ChunkStore::begin_collection`]. A `HashSet` of ids takes 37 to 74 bytes
/// a chunk.
pub trait LiveSet: Sync {
    /// Whether the chunk is needed.
    fn is_live(&self, chunk: &ChunkId) -> bool;
}

impl<S: BuildHasher + Sync> LiveSet for HashSet<ChunkId, S> {
    fn is_live(&self, chunk: &ChunkId) -> bool {
        self.contains(chunk)
    }
}

/// How far a collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectProgress {
    /// Packs looked at in full.
    pub packs_done: u64,
    /// Packs that are to be deleted or written anew.
    pub packs_total: u64,
    /// What was done so far.
    pub report: CollectReport,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CollectReport {
    /// Chunks that are gone.
    pub chunks_removed: u64,
    /// Packs deleted, with or without a rest that was written anew.
    pub packs_deleted: u64,
    /// Packs made of the rests.
    pub packs_written: u64,
    /// Packs left as they are because something in them is damaged, could not
    /// be read, or was asked for meanwhile.
    pub packs_skipped: u64,
    /// Bytes of the packs deleted.
    pub deleted_bytes: u64,
    /// Bytes of the packs written.
    pub written_bytes: u64,
    /// Whether the progress function ended it early.
    pub cancelled: bool,
}

impl CollectReport {
    /// Bytes that the store takes less than before.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.deleted_bytes.saturating_sub(self.written_bytes)
    }
}

/// A collection that has begun and waits for its mark. Dropping it ends it.
pub struct Collection {
    store: ChunkStore,
    candidates: HashSet<u32>,
}

impl ChunkStore {
    /// Begins a collection: waits for all holds, then notes what is stored.
    /// The caller then gathers what is live (all versions, tags, leases and
    /// unfinished imports), and sweeps.
    ///
    /// # Errors
    /// [`CollectError::Busy`] while another one runs.
    pub fn begin_collection(&self) -> Result<Collection, CollectError> {
        let _nobody_holds = self.inner.gate.close();
        // Under the index's lock, so that "present" is said before or noted.
        let index = self.index_mut();
        if self.inner.collecting.swap(true, Ordering::AcqRel) {
            return Err(CollectError::Busy);
        }
        self.touched().clear();
        let stored = index.packs.iter().filter(|(_, pack)| pack.id().is_some());
        let candidates = stored.map(|(number, _)| *number).collect();
        drop(index);
        Ok(Collection {
            store: self.clone(),
            candidates,
        })
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        let _index = self.store.index_mut();
        self.store.inner.collecting.store(false, Ordering::Release);
        *self.store.touched() = HashSet::new();
    }
}

/// What is to be done with the candidates.
#[derive(Default)]
struct Plan {
    delete: Vec<u32>,
    rewrite: Vec<u32>,
}

impl Collection {
    /// Removes what is neither live nor asked for since the beginning, except
    /// in pinned packs. Everything else may go on meanwhile. A crash at any
    /// point loses nothing live.
    ///
    /// `progress` is called after every pack and may end the sweep early.
    ///
    /// # Errors
    /// [`CollectError::Put`] when a rest could not be stored: its packs stay.
    pub fn sweep(
        self,
        live: &dyn LiveSet,
        pinned: &HashSet<PackId>,
        progress: &mut dyn FnMut(&CollectProgress) -> ControlFlow<()>,
    ) -> Result<CollectReport, CollectError> {
        self.settle_duplicates();
        let plan = self.plan(live, pinned);
        let mut sweep = Sweep {
            store: &self.store,
            live,
            rest: Rest::new(&self.store),
            report: CollectReport::default(),
        };
        let packs_total = (plan.delete.len() + plan.rewrite.len()) as u64;
        let deletes = plan.delete.into_iter().map(|number| (number, false));
        let rewrites = plan.rewrite.into_iter().map(|number| (number, true));
        for (packs_done, (number, rewrite)) in (1..).zip(deletes.chain(rewrites)) {
            if rewrite {
                sweep.rewrite(number)?;
            } else {
                sweep.delete(number);
            }
            let now = CollectProgress {
                packs_done,
                packs_total,
                report: sweep.report,
            };
            if progress(&now).is_break() {
                sweep.report.cancelled = true;
                return Ok(sweep.report);
            }
        }
        sweep.finish_rest()?;
        Ok(sweep.report)
    }

    /// Decides between the places of chunks that were found twice, so that a
    /// pack is not deleted that holds the only good one.
    fn settle_duplicates(&self) {
        let store = &self.store;
        let doubled: Vec<ChunkId> = store.index().duplicates.keys().copied().collect();
        for chunk in doubled {
            let at = store.index().chunks.get(chunk);
            if let Some(at) = at
                && !store.is_good(chunk, at)
            {
                // Whether one was good or none: the search has used them up.
                store.use_duplicate(chunk, at);
            }
            store.index_mut().duplicates.remove(&chunk);
        }
    }

    fn plan(&self, live: &dyn LiveSet, pinned: &HashSet<PackId>) -> Plan {
        let live_bytes = self.live_bytes(live);
        let index = self.store.index();
        let options = &self.store.inner.options;
        let small_bytes =
            u64::from(options.pack_bytes) * u64::from(options.merge_below_percent) / 100;
        let damaged: HashSet<PackId> = index.damaged.values().map(|d| d.pack).collect();
        let mut plan = Plan::default();
        let mut sparse: Vec<(u64, u32)> = Vec::new();
        let mut small: Vec<u32> = Vec::new();
        for number in &self.candidates {
            let Some((pack, id)) = index.packs.get(number).and_then(|p| Some((p, p.id()?))) else {
                continue;
            };
            if pinned.contains(&id) {
                continue;
            }
            let live_bytes = live_bytes.get(number).copied().unwrap_or(0);
            let live_percent = live_bytes * 100 / pack.record_bytes.max(1);
            if live_bytes == 0 {
                plan.delete.push(*number);
            } else if damaged.contains(&id) {
                // Its bytes may be wanted for a repair by hand.
            } else if pack.trailer_damaged
                || live_percent < u64::from(options.rewrite_below_percent)
            {
                sparse.push((live_percent, *number));
            } else if pack.len_bytes < small_bytes {
                small.push(*number);
            }
        }
        sparse.sort_unstable();
        plan.rewrite = sparse.into_iter().map(|(_, number)| number).collect();
        // One small pack alone would only be copied.
        if small.len() + plan.rewrite.len() > 1 {
            small.sort_unstable();
            plan.rewrite.extend(small);
        }
        plan.delete.sort_unstable();
        plan
    }

    /// Bytes of the live records in each candidate.
    fn live_bytes(&self, live: &dyn LiveSet) -> HashMap<u32, u64> {
        let mut live_bytes = HashMap::new();
        let mut start = 0;
        loop {
            let index = self.store.index();
            let batch = index.chunks.batch(start, BATCH_CHUNKS);
            if batch.is_empty() {
                return live_bytes;
            }
            start += batch.len();
            for (chunk, at) in batch {
                if self.candidates.contains(&at.pack) && live.is_live(chunk) {
                    *live_bytes.entry(at.pack).or_insert(0) += at.record_bytes();
                }
            }
        }
    }
}

/// A sweep under way.
struct Sweep<'a> {
    store: &'a ChunkStore,
    live: &'a dyn LiveSet,
    rest: Rest,
    report: CollectReport,
}

/// Chunks on their way from old packs to a new one.
struct Rest {
    buffer: PackBuffer,
    /// Where each was, and its entry in the buffer.
    moved: Vec<(Location, Entry)>,
    /// Packs of which nothing live is left once the buffer is stored.
    sources: Vec<u32>,
}

impl Rest {
    fn new(store: &ChunkStore) -> Self {
        Self {
            buffer: store.pack_buffer(),
            moved: Vec::new(),
            sources: Vec::new(),
        }
    }
}

impl Sweep<'_> {
    /// Copies what is needed of a pack to the rest.
    fn rewrite(&mut self, number: u32) -> Result<(), CollectError> {
        for (chunk, at) in self.store.chunks_in(number) {
            if !self.live.is_live(&chunk) && !self.store.touched().contains(&chunk) {
                continue;
            }
            // The frame's id is enough: the raw one was checked when it was put.
            let Ok(frame) = self.store.frame(chunk) else {
                self.report.packs_skipped += 1;
                return Ok(());
            };
            let entry = Entry {
                chunk,
                frame: frame.frame_id,
                offset_bytes: 0,
                frame_bytes: frame.bytes.len() as u32,
                raw_bytes: frame.raw_bytes,
                codec: frame.codec,
            };
            let len = u64::from(self.rest.buffer.len_bytes()) + u64::from(entry.record_bytes());
            if len > u64::from(self.store.inner.options.pack_bytes) {
                self.finish_rest()?;
            }
            let entry = self.rest.buffer.push(entry, &frame.bytes);
            self.rest.moved.push((at, entry));
        }
        self.rest.sources.push(number);
        Ok(())
    }

    /// Stores the rest, turns the index to it, and deletes what it came from.
    fn finish_rest(&mut self) -> Result<(), CollectError> {
        let rest = std::mem::replace(&mut self.rest, Rest::new(self.store));
        if !rest.moved.is_empty() {
            let trailer = rest.buffer.trailer();
            let turn = |index: &mut Index, len_bytes: u64| {
                let records = rest.moved.iter();
                let record_bytes = records.map(|(at, _)| at.record_bytes()).sum();
                let pack = Pack::new(Place::Stored(trailer.id), record_bytes, len_bytes);
                let number = index.add_pack(pack);
                for (before, entry) in &rest.moved {
                    if index.chunks.get(entry.chunk) == Some(*before) {
                        index.set(entry.chunk, Location::new(number, entry));
                    }
                }
            };
            self.store
                .put_pack(&rest.buffer, trailer.id, &trailer.bytes, turn)?;
            self.report.packs_written += 1;
            self.report.written_bytes +=
                u64::from(rest.buffer.len_bytes()) + trailer.bytes.len() as u64;
        }
        for number in rest.sources {
            self.delete(number);
        }
        Ok(())
    }

    /// Deletes a pack, unless something in it is needed after all.
    fn delete(&mut self, number: u32) {
        match self.forget(number) {
            Some((pack, chunks)) => {
                self.report.chunks_removed += chunks;
                self.report.packs_deleted += 1;
                self.report.deleted_bytes += pack.len_bytes;
                if let Some(id) = pack.id() {
                    self.store.delete_pack(id);
                }
            }
            None => self.report.packs_skipped += 1,
        }
    }

    /// Takes a pack and its chunks out of the index, all or none.
    fn forget(&self, number: u32) -> Option<(Pack, u64)> {
        let chunks = self.store.chunks_in(number);
        let _nobody_holds = self.store.inner.gate.close();
        let mut index = self.store.index_mut();
        let touched = self.store.touched();
        let here: Vec<ChunkId> = chunks
            .iter()
            .filter(|(chunk, at)| index.chunks.get(*chunk) == Some(*at))
            .map(|(chunk, _)| *chunk)
            .collect();
        let all = index.packs.get(&number)?.chunks as usize == here.len();
        let needed = |chunk: &ChunkId| self.live.is_live(chunk) || touched.contains(chunk);
        if !all || here.iter().any(needed) {
            return None;
        }
        for chunk in &here {
            index.remove(*chunk);
        }
        let pack = index.packs.remove(&number)?;
        Some((pack, here.len() as u64))
    }
}

impl ChunkStore {
    /// The chunks whose place is this stored pack.
    pub(super) fn chunks_in(&self, number: u32) -> Vec<(ChunkId, Location)> {
        let Some((id, len_bytes)) = ({
            let index = self.index();
            let pack = index.packs.get(&number);
            pack.and_then(|pack| Some((pack.id()?, pack.len_bytes)))
        }) else {
            return Vec::new();
        };
        match intact_entries(self.objects(), id, len_bytes) {
            Ok(Some(entries)) => {
                let index = self.index();
                let places = entries
                    .iter()
                    .map(|entry| (entry.chunk, Location::new(number, entry)));
                places
                    .filter(|(chunk, at)| index.chunks.get(*chunk) == Some(*at))
                    .collect()
            }
            // Slower, but the index knows it too.
            _ => self.chunks_by_index(number),
        }
    }

    fn chunks_by_index(&self, number: u32) -> Vec<(ChunkId, Location)> {
        let mut chunks = Vec::new();
        let mut start = 0;
        loop {
            let index = self.index();
            let batch = index.chunks.batch(start, BATCH_CHUNKS);
            if batch.is_empty() {
                return chunks;
            }
            start += batch.len();
            chunks.extend(batch.iter().filter(|(_, at)| at.pack == number));
        }
    }

    /// Deletes a pack's object, unless the same pack was stored again. An error
    /// leaves garbage that the next start finds and the next collection takes.
    fn delete_pack(&self, id: PackId) {
        let _busy = self.busy(id);
        let again = self.index().packs.values().any(|p| p.id() == Some(id));
        if again {
            return;
        }
        if let Err(error) = self.objects().delete(&id.key()) {
            tracing::warn!(pack = %id, %error, "pack not deleted");
        }
    }
}
