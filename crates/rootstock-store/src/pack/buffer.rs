//! A pack in memory: records that are added, read at once, and stored together.

use std::{
    io,
    io::IoSlice,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;

use super::{Entry, HEADER_BYTES, PackId, RECORD_BYTES, Trailer, header};
use crate::objects::Objects;

/// What the disk wants addresses of large writes to be multiples of, in bytes.
const ALIGN_BYTES: usize = 4096;

/// Memory that is kept for the next packs, at most, in buffers.
const SPARE_COUNT_MAX: usize = 2;

/// A pack that is not stored yet. Its bytes lie as they will lie on the disk, so
/// that a frame is copied once, and the disk can take them from here.
pub(crate) struct PackBuffer {
    contents: RwLock<Contents>,
    spare: Arc<Spare>,
}

struct Contents {
    entries: Vec<Entry>,
    memory: Memory,
}

/// Memory of packs that are stored, for the next ones: pages that the process
/// has are much cheaper than fresh ones.
#[derive(Default)]
pub(crate) struct Spare {
    buffers: Mutex<Vec<Memory>>,
}

/// Growing bytes whose first one is at an aligned address.
#[derive(Default)]
struct Memory {
    /// All initialised; more than `start + len_bytes` of them.
    bytes: Vec<u8>,
    start: usize,
    len_bytes: usize,
}

impl PackBuffer {
    /// An empty pack, expected to grow to `capacity_bytes`.
    pub(crate) fn new(capacity_bytes: usize, spare: &Arc<Spare>) -> Self {
        let mut memory = spare.take(capacity_bytes);
        memory.extend(&header());
        Self {
            contents: RwLock::new(Contents {
                entries: Vec::new(),
                memory,
            }),
            spare: Arc::clone(spare),
        }
    }

    /// Adds a record; `offset_bytes` of the entry is set to its place.
    pub(crate) fn push(&self, mut entry: Entry, frame: &[u8]) -> Entry {
        let mut contents = self.write();
        entry.offset_bytes = contents.end_bytes();
        contents.memory.extend(&entry.encode_record());
        contents.memory.extend(frame);
        contents.entries.push(entry);
        entry
    }

    /// Bytes of the header and all records.
    pub(crate) fn len_bytes(&self) -> u32 {
        self.read().end_bytes()
    }

    /// The record that begins at this place.
    pub(crate) fn record(&self, offset_bytes: u32) -> Option<(Entry, Bytes)> {
        let contents = self.read();
        let entries = &contents.entries;
        let found = entries.binary_search_by_key(&offset_bytes, |entry| entry.offset_bytes);
        let entry = entries[found.ok()?];
        let start = offset_bytes as usize + RECORD_BYTES;
        let frame = &contents.memory.filled()[start..start + entry.frame_bytes as usize];
        Some((entry, Bytes::copy_from_slice(frame)))
    }

    /// The index and footer for the records so far.
    pub(crate) fn trailer(&self) -> Trailer {
        Trailer::new(self.read().entries.iter())
    }

    /// Stores the pack; records must not be added any more.
    pub(crate) fn put(&self, objects: &dyn Objects, id: PackId, trailer: &[u8]) -> io::Result<()> {
        // Others may read meanwhile.
        let contents = self.read();
        let parts = [
            IoSlice::new(contents.memory.filled()),
            IoSlice::new(trailer),
        ];
        objects.put(&id.key(), &parts)
    }

    fn read(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Contents> {
        let contents = self.contents.write();
        contents.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PackBuffer {
    fn drop(&mut self) {
        let contents = self.contents.get_mut();
        let contents = contents.unwrap_or_else(PoisonError::into_inner);
        self.spare.give(std::mem::take(&mut contents.memory));
    }
}

impl Contents {
    fn end_bytes(&self) -> u32 {
        self.entries.last().map_or(HEADER_BYTES as u32, |last| {
            last.offset_bytes + last.record_bytes()
        })
    }
}

impl Spare {
    /// Gives the memory back to the system: no more packs are expected soon.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn take(&self, capacity_bytes: usize) -> Memory {
        let spare = self.lock().pop();
        spare.unwrap_or_else(|| Memory::new(capacity_bytes))
    }

    fn give(&self, mut memory: Memory) {
        memory.len_bytes = 0;
        let mut buffers = self.lock();
        if buffers.len() < SPARE_COUNT_MAX && !memory.bytes.is_empty() {
            buffers.push(memory);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Memory>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn new(capacity_bytes: usize) -> Self {
        // Zeros come from the system: what is not filled takes no memory.
        let bytes = vec![0; capacity_bytes + ALIGN_BYTES];
        let start = bytes.as_ptr().align_offset(ALIGN_BYTES);
        Self {
            bytes,
            start,
            len_bytes: 0,
        }
    }

    fn extend(&mut self, more: &[u8]) {
        let at = self.start + self.len_bytes;
        let end = at + more.len();
        if end > self.bytes.len() {
            // A pack of one record that is larger than a pack. Its memory may
            // move and lose its alignment, which costs speed and nothing else.
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(more);
        self.len_bytes += more.len();
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len_bytes]
    }
}
