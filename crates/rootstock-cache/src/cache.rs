//! The cache: reads that are checked, writes that wait for a checkpoint.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_store::disk::DiskFile;

use crate::label::{Label, LabelError};
use crate::slots::Slots;
use crate::table::{Entry, PAGE_BYTES, Page};

mod format;
mod open;
mod state;

pub use format::FormatError;
pub use open::OpenError;

/// What disks write at once; reads and writes are of whole blocks of it.
pub(crate) const IO_BYTES: usize = 4096;

/// What failed on the disk.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It did not do what it was asked.
    #[error("the cache's disk cannot {doing} at byte {offset_bytes}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where on it.
        offset_bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An earlier checkpoint failed: what the disk holds since is not known.
    #[error("the cache's disk failed before, and is only read now")]
    Failed,
}

/// Why a chunk was not put.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// It is empty, or longer than a slot.
    #[error("a chunk of {len_bytes} B does not fit into a slot")]
    Length {
        /// Its length.
        len_bytes: usize,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] CacheError),
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is in this slot, for good after the next checkpoint.
    Stored {
        /// The slot.
        slot: u32,
    },
    /// It was there.
    Present,
    /// There is no room: see [`Cache::make_room`].
    Full,
}

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u32,
}

/// How full a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Slots that may hold chunks.
    pub slots_max: u64,
    /// Slots that do.
    pub slots_used: u64,
    /// Slots where the disk failed.
    pub slots_broken: u64,
    /// The length of a slot in bytes.
    pub slot_bytes: u32,
}

/// Chunks on a disk.
pub struct Cache {
    file: Box<dyn DiskFile>,
    label: Label,
    slots: Mutex<Slots>,
    written: Mutex<Written>,
    /// Whether a checkpoint failed.
    failed: AtomicBool,
}

/// What was written outside the slots. Held through a checkpoint.
struct Written {
    /// The last checkpoint.
    generation: u64,
    /// Which copy of each page is the newer.
    newer: Vec<u8>,
    /// The state document, and in which place it is.
    state: Vec<u8>,
    state_place: usize,
    state_generation: u64,
}

impl Cache {
    /// Where its parts lie.
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let slots = self.lock();
        Usage {
            slots_max: slots.used_max(),
            slots_used: slots.used_count(),
            slots_broken: slots.broken_count(),
            slot_bytes: self.label.slot_bytes,
        }
    }

    /// Bounds what its chunks may take. What is above is forgotten as room is made.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        let slots_max = bytes_max / u64::from(self.label.slot_bytes);
        self.lock().set_used_max(slots_max);
    }

    /// All chunks that are there, in no order.
    #[must_use]
    pub fn chunks(&self) -> Vec<ChunkId> {
        self.lock().chunks()
    }

    /// Whether a chunk is there. It may still turn out to be damaged.
    #[must_use]
    pub fn has(&self, chunk: ChunkId) -> bool {
        self.lock().find(chunk).is_some()
    }

    /// A chunk's raw bytes, checked; `None` when it is not there, or was damaged
    /// and is now forgotten.
    ///
    /// # Errors
    /// [`CacheError::Io`]; the slot is not used again.
    pub fn read(&self, chunk: ChunkId) -> Result<Option<Bytes>, CacheError> {
        let Some((slot, len_bytes)) = self.lock().find(chunk) else {
            return Ok(None);
        };
        let offset_bytes = self.label.slot_at(slot);
        let mut raw = vec![0; (len_bytes as usize).next_multiple_of(IO_BYTES)];
        if let Err(source) = self.file.read_at(offset_bytes, &mut raw) {
            self.lock().break_slot(slot);
            return Err(CacheError::Io {
                doing: "read a chunk",
                offset_bytes,
                source,
            });
        }
        raw.truncate(len_bytes as usize);
        if ChunkId::of(&raw) == chunk {
            self.lock().checked(slot, chunk);
            return Ok(Some(raw.into()));
        }
        // Also when another chunk was put here meanwhile; then it is not forgotten.
        self.lock().forget(slot, chunk);
        Ok(None)
    }

    /// Puts a chunk, whose id the caller has checked, into slot `want` or one near it.
    ///
    /// # Errors
    /// [`PutError`]; the cache goes on working without the slot.
    pub fn put(&self, chunk: ChunkId, raw: &[u8], want: u32) -> Result<Put, PutError> {
        let len_bytes = raw.len();
        if len_bytes == 0 || len_bytes > self.label.slot_bytes as usize || chunk.is_zero() {
            return Err(PutError::Length { len_bytes });
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(CacheError::Failed.into());
        }
        let slot = {
            let mut slots = self.lock();
            if slots.find(chunk).is_some() {
                return Ok(Put::Present);
            }
            match slots.reserve(want) {
                Some(slot) => slot,
                None => return Ok(Put::Full),
            }
        };
        if let Err(source) = self.write_slot(slot, raw) {
            self.lock().break_slot(slot);
            return Err(PutError::Disk(CacheError::Io {
                doing: "write a chunk",
                offset_bytes: self.label.slot_at(slot),
                source,
            }));
        }
        let entry = Entry {
            chunk,
            len_bytes: len_bytes as u32,
        };
        Ok(if self.lock().enter(slot, entry) {
            Put::Stored { slot }
        } else {
            Put::Present
        })
    }

    fn write_slot(&self, slot: u32, raw: &[u8]) -> io::Result<()> {
        let offset_bytes = self.label.slot_at(slot);
        if raw.len().is_multiple_of(IO_BYTES) {
            return self.file.write_at(offset_bytes, raw);
        }
        let mut padded = raw.to_vec();
        padded.resize(raw.len().next_multiple_of(IO_BYTES), 0);
        self.file.write_at(offset_bytes, &padded)
    }

    /// Where a chunk lies, if nothing but the disk's own failure can change that it
    /// is there: it was checkpointed, and was written or read, and so checked, since
    /// this was opened. Its slot is not written again while this is open, whatever
    /// becomes of the chunk: others may read it past this cache.
    #[must_use]
    pub fn pin(&self, chunk: ChunkId) -> Option<Extent> {
        let mut slots = self.lock();
        let (slot, len_bytes) = slots.find(chunk)?;
        if !slots.is_kept(slot) || !slots.is_seen(slot) {
            return None;
        }
        slots.pin(slot);
        Some(Extent {
            start_bytes: self.label.slot_at(slot),
            len_bytes,
        })
    }

    /// Whether a chunk that was pinned turned out to be damaged, or cannot be read.
    #[must_use]
    pub fn has_lost_pinned(&self) -> bool {
        self.lock().has_lost_pinned()
    }

    /// Whether a chunk is there that was neither written nor checked since this was
    /// opened.
    #[must_use]
    pub fn is_unseen(&self, chunk: ChunkId) -> bool {
        let slots = self.lock();
        slots
            .find(chunk)
            .is_some_and(|(slot, _)| !slots.is_seen(slot))
    }

    /// The slot of a chunk, as a hint for its neighbours.
    #[must_use]
    pub fn slot(&self, chunk: ChunkId) -> Option<u32> {
        self.lock().find(chunk).map(|(slot, _)| slot)
    }

    /// Says which chunks are needed, of all versions that stay here; others are
    /// forgotten when room is made. What is put later counts as needed.
    pub fn set_needed(&self, chunks: impl IntoIterator<Item = ChunkId>) {
        self.lock().set_needed(chunks);
    }

    /// Forgets up to `count` chunks that nobody needs, durably, so that as many can
    /// be put; how many it were.
    ///
    /// # Errors
    /// As [`Cache::checkpoint`].
    pub fn make_room(&self, count: u64) -> Result<u64, CacheError> {
        let forgotten = self.lock().forget_unneeded(count);
        self.checkpoint()?;
        Ok(forgotten)
    }

    /// Makes everything that was put so far durable, and the slots of what was
    /// forgotten free.
    ///
    /// # Errors
    /// [`CacheError`]: the cache is only read from then on.
    pub fn checkpoint(&self) -> Result<(), CacheError> {
        let mut written = self.lock_written();
        if self.failed.load(Ordering::Relaxed) {
            return Err(CacheError::Failed);
        }
        let round = self.lock().begin_round();
        if round.pages.is_empty() {
            return Ok(());
        }
        let generation = written.generation + 1;
        let result = self.write_round(&written, generation, &round.pages);
        if let Err(error) = result {
            self.failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
        for (page, _) in &round.pages {
            written.newer[*page] ^= 1;
        }
        written.generation = generation;
        self.lock().settle(&round);
        Ok(())
    }

    /// Chunks first, then the pages that name them, each over its older copy.
    fn write_round(
        &self,
        written: &Written,
        generation: u64,
        pages: &[(usize, Vec<Entry>)],
    ) -> Result<(), CacheError> {
        let io = |doing, offset_bytes| {
            move |source| CacheError::Io {
                doing,
                offset_bytes,
                source,
            }
        };
        self.file
            .sync_data()
            .map_err(io("keep chunks", self.label.slot_at(0)))?;
        for (number, entries) in pages {
            let page = Page {
                generation,
                entries: entries.clone(),
            };
            let older = usize::from(written.newer[*number] ^ 1);
            let at = self.label.page_at(*number, older);
            let bytes = page.encode(&self.label, *number);
            debug_assert_eq!(bytes.len(), PAGE_BYTES);
            self.file
                .write_at(at, &bytes)
                .map_err(io("write its table", at))?;
        }
        let table = self.label.page_at(0, 0);
        self.file.sync_data().map_err(io("keep its table", table))
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the label of a disk.
///
/// # Errors
/// The disk's own, or [`LabelError`] inside `Ok` when the disk is no cache.
fn read_label(file: &dyn DiskFile) -> io::Result<Result<Label, LabelError>> {
    if file.len()? < crate::LABEL_BYTES as u64 {
        return Ok(Err(LabelError::Magic));
    }
    // What is not ours is not read on.
    let mut head = vec![0; IO_BYTES];
    file.read_at(0, &mut head)?;
    if !Label::begins(&head) {
        return Ok(Err(LabelError::Magic));
    }
    let mut bytes = vec![0; crate::LABEL_BYTES];
    file.read_at(0, &mut bytes)?;
    Ok(Label::decode(&bytes))
}
