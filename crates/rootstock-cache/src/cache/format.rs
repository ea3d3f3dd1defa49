//! Preparing a disk.

use std::io;

use rootstock_store::disk::DiskFile;

use super::Cache;
use crate::label::{LABEL_BYTES, Label, LabelError, STATE_PLACES};
use crate::table::{Entry, PAGE_BYTES, PAGE_ENTRIES, Page};

/// What is written of the table at once, in bytes.
const WRITE_BYTES: usize = 1 << 20;

/// Why a disk was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is too small for the label.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// It failed.
    #[error("the disk cannot be written")]
    Io(#[source] io::Error),
}

impl Cache {
    /// Prepares a disk as an empty cache. What was on it is lost. The label comes
    /// last: cut short, the disk is no cache.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn format(file: &dyn DiskFile, label: &Label) -> Result<(), FormatError> {
        let disk_bytes = file.len().map_err(FormatError::Io)?;
        if label.end_bytes() > disk_bytes {
            return Err(FormatError::Label(LabelError::TooSmall {
                disk_bytes,
                needed_bytes: label.end_bytes(),
            }));
        }
        write(file, label).map_err(FormatError::Io)
    }
}

fn write(file: &dyn DiskFile, label: &Label) -> io::Result<()> {
    file.write_at(0, &vec![0; LABEL_BYTES])?;
    file.sync_data()?;
    for place in STATE_PLACES {
        file.write_at(place, &vec![0; super::IO_BYTES])?;
    }
    let mut bytes = Vec::with_capacity(WRITE_BYTES);
    let mut at = label.page_at(0, 0);
    for number in 0..label.page_count() as usize {
        let slots = label.slot_count - (number * PAGE_ENTRIES) as u64;
        let count = slots.min(PAGE_ENTRIES as u64) as usize;
        let page = Page {
            generation: 0,
            entries: vec![Entry::FREE; count],
        };
        let page = page.encode(label, number);
        bytes.extend_from_slice(&page);
        bytes.extend_from_slice(&page);
        if bytes.len() + 2 * PAGE_BYTES > WRITE_BYTES {
            file.write_at(at, &bytes)?;
            at += bytes.len() as u64;
            bytes.clear();
        }
    }
    if !bytes.is_empty() {
        file.write_at(at, &bytes)?;
    }
    file.sync_data()?;
    file.write_at(0, &label.encode())?;
    file.sync_data()
}
