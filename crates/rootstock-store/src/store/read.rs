//! Reading chunks: by the index, checked, and never wrong.

use std::{cell::RefCell, io};

use bytes::Bytes;
use rootstock_core::{ChunkId, FrameId};
use rootstock_image::frame::{Codec, Decoder, FrameError, FrameRef};

use super::{
    ChunkStore, Damage, DamageKind, ReadError,
    index::{Location, Place},
};
use crate::{
    pack::{Entry, PackId, RECORD_BYTES},
    recycle::Recycler,
};

/// A collection may move a chunk while it is read, but hardly that often.
const TRIES_MAX: u32 = 16;

thread_local! {
    /// A decompressor's tables cost more to make than a small chunk to read.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new());
}

/// The raw bytes of a frame, by this thread's decoder.
pub(super) fn decode(recycler: &Recycler, frame: FrameRef<'_>) -> Result<Bytes, FrameError> {
    frame.check_bounds()?;
    let mut raw = recycler.buffer(frame.raw_bytes as usize);
    DECODER.with_borrow_mut(|decoder| {
        decoder.decode_to(frame.chunk, frame.codec, frame.bytes, &mut raw)
    })?;
    Ok(raw.freeze())
}

/// A frame as stored, its id checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFrame {
    /// How the bytes hold the chunk.
    pub codec: Codec,
    /// Length of the chunk's raw bytes.
    pub raw_bytes: u32,
    /// BLAKE3 of `bytes`.
    pub frame_id: FrameId,
    /// The frame.
    pub bytes: Bytes,
}

/// Why a place did not give its chunk.
enum Fault {
    Damage(PackId, DamageKind),
    Io(PackId, io::Error),
    /// The pack is not in the index any more: the place is out of date.
    Moved,
}

impl ChunkStore {
    /// The frame of a chunk, its frame id checked. One read of the disk.
    ///
    /// # Errors
    /// [`ReadError`]; damage is remembered, and a later put heals it.
    pub fn frame(&self, chunk: ChunkId) -> Result<StoredFrame, ReadError> {
        self.checked(chunk, |_, frame| Ok(frame.clone()))
    }

    /// The raw bytes of a chunk, both ids checked.
    ///
    /// # Errors
    /// [`ReadError`]; damage is remembered, and a later put heals it.
    pub fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        self.checked(chunk, self.raw())
    }

    /// The first place of the chunk that passes `check`.
    fn checked<T>(
        &self,
        chunk: ChunkId,
        check: impl Fn(ChunkId, &StoredFrame) -> Result<T, DamageKind>,
    ) -> Result<T, ReadError> {
        let missing = ReadError::Missing { chunk };
        for _ in 0..TRIES_MAX {
            let Some(at) = self.index().chunks.get(chunk) else {
                return Err(missing);
            };
            let fault = match self.at(chunk, at, &check) {
                Ok(value) => {
                    self.forget_damage(chunk, at);
                    return Ok(value);
                }
                Err(fault) => fault,
            };
            if self.index().chunks.get(chunk) != Some(at) {
                continue;
            }
            let offset_bytes = u64::from(at.offset_bytes);
            match fault {
                Fault::Moved => {}
                Fault::Io(pack, source) => {
                    return Err(ReadError::Io {
                        chunk,
                        pack,
                        offset_bytes,
                        source,
                    });
                }
                Fault::Damage(pack, kind) => {
                    let damage = Damage {
                        chunk,
                        pack,
                        offset_bytes,
                        kind,
                    };
                    if !self.use_duplicate(chunk, at) {
                        self.remember_damage(at, damage);
                        return Err(ReadError::Damaged(damage));
                    }
                }
            }
        }
        Err(missing)
    }

    /// What is at this place, if it is the chunk.
    fn at<T>(
        &self,
        chunk: ChunkId,
        at: Location,
        check: impl Fn(ChunkId, &StoredFrame) -> Result<T, DamageKind>,
    ) -> Result<T, Fault> {
        let place = self.index().packs.get(&at.pack).map(|p| p.place.clone());
        let (id, entry, bytes) = match place {
            None => return Err(Fault::Moved),
            Some(Place::Memory(buffer)) => {
                let (entry, frame) = buffer.record(at.offset_bytes).ok_or(Fault::Moved)?;
                (None, entry, frame)
            }
            Some(Place::Stored(id)) => {
                let (entry, frame) = self.stored_record(id, at)?;
                (Some(id), entry, frame)
            }
        };
        let checked = if entry.chunk == chunk && entry.raw_bytes == at.raw_bytes {
            frame_of(&entry, bytes).and_then(|frame| check(chunk, &frame))
        } else {
            Err(DamageKind::Header)
        };
        checked.map_err(|kind| match id {
            Some(id) => Fault::Damage(id, kind),
            None => Fault::Moved,
        })
    }

    fn stored_record(&self, id: PackId, at: Location) -> Result<(Entry, Bytes), Fault> {
        let offset = u64::from(at.offset_bytes);
        let len = at.record_bytes() as usize;
        let record =
            self.objects()
                .get_range(&id.key(), offset, len)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
                        Fault::Damage(id, DamageKind::Lost)
                    }
                    _ => Fault::Io(id, error),
                })?;
        let entry = Entry::decode_record(&record, at.offset_bytes)
            .filter(|entry| entry.frame_bytes == at.frame_bytes)
            .ok_or(Fault::Damage(id, DamageKind::Header))?;
        Ok((entry, record.slice(RECORD_BYTES..)))
    }

    /// Makes raw bytes of a frame, if they are the chunk.
    fn raw(&self) -> impl Fn(ChunkId, &StoredFrame) -> Result<Bytes, DamageKind> {
        |chunk, stored| {
            let frame = FrameRef {
                chunk,
                raw_bytes: stored.raw_bytes,
                codec: stored.codec,
                bytes: &stored.bytes,
            };
            decode(&self.inner.recycler, frame).map_err(|_| DamageKind::Raw)
        }
    }

    /// Checks a chunk where the index says it is; an error of the disk counts
    /// as damage. `None` when all is well or the chunk is elsewhere by now.
    pub(super) fn damage_at(&self, chunk: ChunkId, at: Location) -> Option<Damage> {
        let (pack, kind) = match self.at(chunk, at, self.raw()) {
            Ok(_) => {
                self.forget_damage(chunk, at);
                return None;
            }
            Err(Fault::Moved) => return None,
            Err(Fault::Damage(pack, kind)) => (pack, kind),
            Err(Fault::Io(pack, _)) => (pack, DamageKind::Unreadable),
        };
        let damage = Damage {
            chunk,
            pack,
            offset_bytes: u64::from(at.offset_bytes),
            kind,
        };
        if self.use_duplicate(chunk, at) {
            return None;
        }
        self.remember_damage(at, damage).then_some(damage)
    }

    /// Whether a place gives the chunk, whatever else the index knows.
    pub(super) fn is_good(&self, chunk: ChunkId, at: Location) -> bool {
        self.at(chunk, at, self.raw()).is_ok()
    }

    /// Turns to another place of the chunk when its first one is bad, if one
    /// was found at open.
    pub(super) fn use_duplicate(&self, chunk: ChunkId, bad: Location) -> bool {
        loop {
            let other = {
                let index = self.index();
                index.duplicates.get(&chunk).and_then(|d| d.last().copied())
            };
            let Some(other) = other else {
                return false;
            };
            let good = self.is_good(chunk, other);
            let mut index = self.index_mut();
            if index.chunks.get(chunk) != Some(bad) {
                return true;
            }
            if let Some(others) = index.duplicates.get_mut(&chunk) {
                others.retain(|place| *place != other);
                if others.is_empty() {
                    index.duplicates.remove(&chunk);
                }
            }
            if good && index.packs.contains_key(&other.pack) {
                index.set(chunk, other);
                return true;
            }
        }
    }

    /// Whether the damage is where the chunk still is.
    fn remember_damage(&self, at: Location, damage: Damage) -> bool {
        let mut index = self.index_mut();
        let current = index.chunks.get(damage.chunk) == Some(at);
        if current && index.damaged.insert(damage.chunk, damage).is_none() {
            tracing::error!(
                chunk = %damage.chunk,
                pack = %damage.pack,
                offset_bytes = damage.offset_bytes,
                kind = %damage.kind,
                "chunk damaged"
            );
        }
        current
    }

    /// A disk may fail for a while: what reads well again is well.
    fn forget_damage(&self, chunk: ChunkId, at: Location) {
        if !self.index().damaged.contains_key(&chunk) {
            return;
        }
        let mut index = self.index_mut();
        if index.chunks.get(chunk) == Some(at) {
            index.damaged.remove(&chunk);
        }
    }
}

fn frame_of(entry: &Entry, bytes: Bytes) -> Result<StoredFrame, DamageKind> {
    if FrameId::of(&bytes) != entry.frame {
        return Err(DamageKind::Frame);
    }
    Ok(StoredFrame {
        codec: entry.codec,
        raw_bytes: entry.raw_bytes,
        frame_id: entry.frame,
        bytes,
    })
}
