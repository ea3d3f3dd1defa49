//! Opening a cache: which copy of each page holds.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use rootstock_store::disk::DiskFile;

use super::{Cache, Written, read_label, state};
use crate::label::{Label, LabelError};
use crate::slots::Slots;
use crate::table::{Entry, PAGE_BYTES, PAGE_ENTRIES, Page};

/// What is read of the table at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Why a disk is not opened as a cache.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is none, or one that this release cannot use.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// It is shorter than its label says.
    #[error("the cache needs {needed_bytes} B and its disk has {disk_bytes} B: prepare it anew")]
    Short {
        /// The disk.
        disk_bytes: u64,
        /// What the label says.
        needed_bytes: u64,
    },
    /// It cannot be read.
    #[error("the cache's disk cannot be read")]
    Io(#[source] io::Error),
}

impl Cache {
    /// Opens what [`Cache::format`] made. Nothing is written.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(file: Box<dyn DiskFile>) -> Result<Self, OpenError> {
        let label = Self::label_of(&*file)?;
        let disk_bytes = file.len().map_err(OpenError::Io)?;
        let needed_bytes = label.end_bytes();
        if needed_bytes > disk_bytes {
            return Err(OpenError::Short {
                disk_bytes,
                needed_bytes,
            });
        }
        let table = Table::read(&*file, &label).map_err(OpenError::Io)?;
        let (state, state_place, state_generation) =
            state::read(&*file, &label).map_err(OpenError::Io)?;
        let slots = Slots::new(table.entries);
        let written = Written {
            generation: table.newest,
            newer: table.newer,
            state,
            state_place,
            state_generation,
        };
        Ok(Self {
            slots: Mutex::new(slots),
            file,
            label,
            written: Mutex::new(written),
            failed: AtomicBool::new(false),
        })
    }

    /// The label of a disk, without opening it.
    ///
    /// # Errors
    /// [`OpenError::Label`] when it is no cache, [`OpenError::Io`].
    pub fn label_of(file: &dyn DiskFile) -> Result<Label, OpenError> {
        Ok(read_label(file).map_err(OpenError::Io)??)
    }
}

/// The table as it was found.
struct Table {
    entries: Vec<Entry>,
    newer: Vec<u8>,
    /// The last checkpoint that any page is of.
    newest: u64,
}

impl Table {
    fn read(file: &dyn DiskFile, label: &Label) -> io::Result<Self> {
        let count = label.page_count() as usize;
        let mut table = Self {
            entries: Vec::with_capacity(label.slot_count as usize),
            newer: Vec::with_capacity(count),
            newest: 0,
        };
        let at_once = READ_BYTES / (2 * PAGE_BYTES);
        let mut bytes = vec![0; READ_BYTES];
        for first in (0..count).step_by(at_once) {
            let pages = at_once.min(count - first);
            let part = &mut bytes[..pages * 2 * PAGE_BYTES];
            file.read_at(label.page_at(first, 0), part)?;
            for (number, copies) in (first..).zip(part.chunks_exact(2 * PAGE_BYTES)) {
                table.add(label, number, copies);
            }
        }
        Ok(table)
    }

    fn add(&mut self, label: &Label, number: usize, copies: &[u8]) {
        let (a, b) = copies.split_at(PAGE_BYTES);
        let [a, b] = [a, b].map(|bytes| Page::decode(bytes, label, number));
        let newer = match (&a, &b) {
            (Some(a), Some(b)) => u8::from(b.generation > a.generation),
            (a, _) => u8::from(a.is_none()),
        };
        self.newer.push(newer);
        let slots = label.slot_count - (number * PAGE_ENTRIES) as u64;
        let slots = slots.min(PAGE_ENTRIES as u64) as usize;
        match [a, b].into_iter().nth(usize::from(newer)).flatten() {
            Some(page) => {
                self.newest = self.newest.max(page.generation);
                self.entries.extend(page.entries);
            }
            // Both are gone: nothing is known of its slots, so they are free.
            None => self.entries.resize(self.entries.len() + slots, Entry::FREE),
        }
    }
}
