//! A pack in memory: records that are added, read at once, and stored together.

use std::{
    io,
    io::IoSlice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{Entry, HEADER_BYTES, PackId, RECORD_BYTES, Trailer, header};
use crate::objects::Objects;

/// A pack that is not stored yet.
#[derive(Default)]
pub(crate) struct PackBuffer {
    records: Mutex<Vec<Record>>,
}

struct Record {
    entry: Entry,
    header: [u8; RECORD_BYTES],
    frame: Bytes,
}

impl PackBuffer {
    /// Adds a record; `offset_bytes` of the entry is set to its place.
    pub(crate) fn push(&self, mut entry: Entry, frame: Bytes) -> Entry {
        let mut records = self.lock();
        entry.offset_bytes = end_bytes(&records);
        records.push(Record {
            entry,
            header: entry.encode_record(),
            frame,
        });
        entry
    }

    /// Bytes of the header and all records.
    pub(crate) fn len_bytes(&self) -> u32 {
        end_bytes(&self.lock())
    }

    /// The record that begins at this place.
    pub(crate) fn record(&self, offset_bytes: u32) -> Option<(Entry, Bytes)> {
        let records = self.lock();
        let found = records.binary_search_by_key(&offset_bytes, |r| r.entry.offset_bytes);
        let record = &records[found.ok()?];
        Some((record.entry, record.frame.clone()))
    }

    /// The index and footer for the records so far.
    pub(crate) fn trailer(&self) -> Trailer {
        Trailer::new(self.lock().iter().map(|record| &record.entry))
    }

    /// Stores the pack; records must not be added any more.
    pub(crate) fn put(&self, objects: &dyn Objects, id: PackId, trailer: &[u8]) -> io::Result<()> {
        let header = header();
        // Frames are shared, not copied; the lock must not be held meanwhile.
        let records: Vec<([u8; RECORD_BYTES], Bytes)> = {
            let records = self.lock();
            let shared = records.iter().map(|r| (r.header, r.frame.clone()));
            shared.collect()
        };
        let mut parts = Vec::with_capacity(2 + 2 * records.len());
        parts.push(IoSlice::new(&header));
        for (header, frame) in &records {
            parts.push(IoSlice::new(header));
            parts.push(IoSlice::new(frame));
        }
        parts.push(IoSlice::new(trailer));
        objects.put(&id.key(), &parts)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end_bytes(records: &[Record]) -> u32 {
    records.last().map_or(HEADER_BYTES as u32, |last| {
        last.entry.offset_bytes + last.entry.record_bytes()
    })
}
