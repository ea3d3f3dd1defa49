//! Putting chunks: checked, into the open pack, and stored when it is full.

use std::{
    cell::RefCell,
    sync::{Arc, MutexGuard, PoisonError},
};

use rootstock_core::{ChunkId, FrameId, units::is_zero};
use rootstock_image::frame::{Encoder, Frame, FrameRef};

use super::{
    ChunkStore, PutError,
    index::{Location, Pack, Place},
    read::decode,
};
use crate::{
    disk::is_full,
    pack::{Entry, PackId, buffer::PackBuffer},
};

/// Packs that are being stored, or wait for it after an error, at most: with
/// the open one they bound the memory that puts take, at three packs.
pub const PACKS_IN_FLIGHT_MAX: usize = 2;

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
}

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The chunk is new (or was damaged, and is healed).
    Stored,
    /// The store has it already.
    Present,
}

/// Who made a frame, and so what has to be checked before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Anybody: it is decompressed and compared with the chunk it claims.
    Foreign,
    /// A process that could as well write the packs: it has hashed the chunk, and
    /// hashing it again would guard against nobody. Every read checks all the same.
    SameUser,
}

/// The packs that are not stored yet.
#[derive(Default)]
pub(super) struct Writer {
    /// The one being filled; never empty.
    open: Option<Open>,
    sealed: Vec<Arc<Sealed>>,
    /// Numbers of sealed packs that nobody is storing: it failed.
    failed: Vec<u32>,
}

struct Open {
    number: u32,
    buffer: Arc<PackBuffer>,
}

struct Sealed {
    number: u32,
    buffer: Arc<PackBuffer>,
    id: PackId,
    trailer: Vec<u8>,
}

type WriterGuard<'a> = MutexGuard<'a, Writer>;

impl ChunkStore {
    /// Stores a frame after checking that it decompresses to the chunk it
    /// claims. It can be read at once, and is durable after the next
    /// [`ChunkStore::flush`].
    ///
    /// # Errors
    /// [`PutError`]: the chunk was not taken. When the disk is full, packs put
    /// before wait in memory, and the next put or flush tries again.
    pub fn put(&self, frame: &Frame) -> Result<PutOutcome, PutError> {
        self.put_from(frame, Origin::Foreign)
    }

    /// Stores a frame after the checks that its origin needs.
    ///
    /// # Errors
    /// As [`ChunkStore::put`].
    pub fn put_from<'a>(
        &self,
        frame: impl Into<FrameRef<'a>>,
        origin: Origin,
    ) -> Result<PutOutcome, PutError> {
        let frame = frame.into();
        let chunk = frame.chunk;
        if !chunk.is_zero() && self.contains(chunk) {
            return Ok(PutOutcome::Present);
        }
        let checked = match origin {
            Origin::Foreign => decode(&self.inner.recycler, frame).map(drop),
            Origin::SameUser => frame.check_bounds(),
        };
        checked.map_err(|source| PutError::Frame { chunk, source })?;
        self.append(frame)
    }

    /// Compresses and stores raw bytes, 1 to 256 KiB of them: pages and what a
    /// commit changed. Zeros are the marker, and not stored.
    ///
    /// # Errors
    /// As [`ChunkStore::put`].
    ///
    /// # Panics
    /// When `raw` is empty or longer than a chunk.
    pub fn put_raw(&self, raw: &[u8]) -> Result<ChunkId, PutError> {
        if is_zero(raw) {
            return Ok(ChunkId::ZERO);
        }
        let chunk = ChunkId::of(raw);
        if !self.contains(chunk) {
            let frame = ENCODER.with_borrow_mut(|encoder| encoder.encode(chunk, raw));
            self.append(frame.borrowed())?;
        }
        Ok(chunk)
    }

    /// Returns when all chunks put before are durable.
    ///
    /// # Errors
    /// [`PutError`]: they are not, but can be read, and the next flush tries
    /// again.
    pub fn flush(&self) -> Result<(), PutError> {
        let mut writer = self.writer();
        let mut wanted: Vec<u32> = writer.sealed.iter().map(|sealed| sealed.number).collect();
        wanted.extend(writer.open.as_ref().map(|open| open.number));
        loop {
            let open = writer.open.as_ref().map(|open| open.number);
            let sealed = |sealed: &Arc<Sealed>| wanted.contains(&sealed.number);
            if open.is_some_and(|number| wanted.contains(&number)) {
                writer = self.make_room(writer)?;
            } else if !writer.sealed.iter().any(sealed) {
                // Imports end so: no more packs are expected soon.
                self.inner.spare.clear();
                return Ok(());
            } else if let Some(failed) = writer.take_failed() {
                writer = self.store(writer, &failed)?;
            } else {
                writer = self.wait(writer);
            }
        }
    }

    fn append(&self, frame: FrameRef<'_>) -> Result<PutOutcome, PutError> {
        let chunk = frame.chunk;
        let entry = Entry {
            chunk,
            frame: FrameId::of(frame.bytes),
            offset_bytes: 0,
            frame_bytes: frame.bytes.len() as u32,
            raw_bytes: frame.raw_bytes,
            codec: frame.codec,
        };
        let mut writer = self.writer();
        loop {
            // Another thread may have put it since the caller looked.
            if self.contains(chunk) {
                return Ok(PutOutcome::Present);
            }
            if writer.fits(&entry, self.inner.options.pack_bytes) {
                self.push(&mut writer, entry, frame.bytes);
                return Ok(PutOutcome::Stored);
            }
            writer = self.make_room(writer)?;
        }
    }

    fn push(&self, writer: &mut Writer, entry: Entry, frame: &[u8]) {
        let open = writer.open.get_or_insert_with(|| {
            let buffer = Arc::new(self.pack_buffer());
            let place = Place::Memory(Arc::clone(&buffer));
            let number = self.index_mut().add_pack(Pack::new(place, 0, 0));
            Open { number, buffer }
        });
        // The one copy, while readers of the index go on.
        let entry = open.buffer.push(entry, frame);
        let mut index = self.index_mut();
        if let Some(pack) = index.packs.get_mut(&open.number) {
            pack.record_bytes += u64::from(entry.record_bytes());
        }
        index.set(entry.chunk, Location::new(open.number, &entry));
    }

    /// One step towards an empty open pack: tries a failed one again, or seals
    /// and stores the open one, or waits for another thread to store one.
    fn make_room<'a>(&'a self, mut writer: WriterGuard<'a>) -> Result<WriterGuard<'a>, PutError> {
        if let Some(failed) = writer.take_failed() {
            return self.store(writer, &failed);
        }
        if writer.sealed.len() >= PACKS_IN_FLIGHT_MAX {
            return Ok(self.wait(writer));
        }
        match writer.seal() {
            Some(sealed) => self.store(writer, &sealed),
            None => Ok(writer),
        }
    }

    /// Stores a sealed pack, without any lock; on an error it stays in memory.
    fn store<'a>(
        &'a self,
        writer: WriterGuard<'a>,
        sealed: &Arc<Sealed>,
    ) -> Result<WriterGuard<'a>, PutError> {
        drop(writer);
        let result = self.put_pack(&sealed.buffer, sealed.id, &sealed.trailer, |index, len| {
            if let Some(pack) = index.packs.get_mut(&sealed.number) {
                pack.place = Place::Stored(sealed.id);
                pack.len_bytes = len;
            }
        });
        let mut writer = self.writer();
        match &result {
            Ok(()) => writer.sealed.retain(|s| s.number != sealed.number),
            Err(_) => writer.failed.push(sealed.number),
        }
        self.inner.writer_changed.notify_all();
        result.map(|()| writer)
    }

    /// Puts a pack and then changes the index, while nobody puts or deletes a
    /// pack with the same id.
    pub(super) fn put_pack(
        &self,
        buffer: &PackBuffer,
        id: PackId,
        trailer: &[u8],
        then: impl FnOnce(&mut super::index::Index, u64),
    ) -> Result<(), PutError> {
        let _busy = self.busy(id);
        let len_bytes = u64::from(buffer.len_bytes()) + trailer.len() as u64;
        buffer
            .put(self.objects(), id, trailer)
            .map_err(|source| match is_full(&source) {
                true => PutError::NoSpace { pack: id, source },
                false => PutError::Io { pack: id, source },
            })?;
        then(&mut self.index_mut(), len_bytes);
        Ok(())
    }

    /// Memory for a new pack.
    pub(super) fn pack_buffer(&self) -> PackBuffer {
        PackBuffer::new(self.inner.options.pack_bytes as usize, &self.inner.spare)
    }

    /// Waits until nobody else puts or deletes a pack with this id.
    pub(super) fn busy(&self, id: PackId) -> Busy<'_> {
        let busy = &self.inner.busy_packs;
        let mut packs = busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !packs.insert(id) {
            let changed = &self.inner.busy_changed;
            packs = changed.wait(packs).unwrap_or_else(PoisonError::into_inner);
        }
        Busy { store: self, id }
    }

    fn writer(&self) -> WriterGuard<'_> {
        let writer = self.inner.writer.lock();
        writer.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, writer: WriterGuard<'a>) -> WriterGuard<'a> {
        let changed = self.inner.writer_changed.wait(writer);
        changed.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn fits(&self, entry: &Entry, pack_bytes: u32) -> bool {
        self.open.as_ref().is_none_or(|open| {
            let len = u64::from(open.buffer.len_bytes()) + u64::from(entry.record_bytes());
            len <= u64::from(pack_bytes)
        })
    }

    /// Closes the open pack; the caller stores it.
    fn seal(&mut self) -> Option<Arc<Sealed>> {
        let Open { number, buffer } = self.open.take()?;
        let trailer = buffer.trailer();
        let sealed = Arc::new(Sealed {
            number,
            buffer,
            id: trailer.id,
            trailer: trailer.bytes,
        });
        self.sealed.push(Arc::clone(&sealed));
        Some(sealed)
    }

    /// A sealed pack whose storing failed; the caller tries again.
    fn take_failed(&mut self) -> Option<Arc<Sealed>> {
        let number = self.failed.pop()?;
        let sealed = self.sealed.iter().find(|s| s.number == number);
        sealed.map(Arc::clone)
    }
}

/// While it lives, its owner alone puts or deletes the pack.
pub(super) struct Busy<'a> {
    store: &'a ChunkStore,
    id: PackId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let busy = &self.store.inner.busy_packs;
        let mut packs = busy.lock().unwrap_or_else(PoisonError::into_inner);
        packs.remove(&self.id);
        self.store.inner.busy_changed.notify_all();
    }
}
