//! The state document: what the machine remembers of its versions and boots.

use std::io;
use std::sync::atomic::Ordering;

use rootstock_core::Digest;
use rootstock_store::disk::DiskFile;

use super::{Cache, CacheError, IO_BYTES};
use crate::label::{
    Label, STATE_BYTES_MAX, STATE_HEAD_BYTES, STATE_PLACE_BYTES, STATE_PLACES, u32_at, u64_at,
};

const MAGIC: &[u8; 4] = b"RSTS";
const DIGEST_AT: usize = STATE_HEAD_BYTES - Digest::LEN;

impl Cache {
    /// The state document that was set last; empty when none was.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        self.lock_written().state.clone()
    }

    /// Sets the state document, durably: after a power cut it is this one or the
    /// one before, whole.
    ///
    /// # Errors
    /// [`CacheError`]: the cache is only read from then on.
    ///
    /// # Panics
    /// When it is longer than [`STATE_BYTES_MAX`].
    pub fn set_state(&self, document: &[u8]) -> Result<(), CacheError> {
        assert!(document.len() <= STATE_BYTES_MAX, "a document that fits");
        let mut written = self.lock_written();
        if self.failed.load(Ordering::Relaxed) {
            return Err(CacheError::Failed);
        }
        let generation = written.state_generation + 1;
        let place = written.state_place ^ 1;
        let at = STATE_PLACES[place];
        let bytes = encode(&self.label, generation, document);
        let result = self.file.write_at(at, &bytes);
        if let Err(source) = result.and_then(|()| self.file.sync_data()) {
            self.failed.store(true, Ordering::Relaxed);
            return Err(CacheError::Io {
                doing: "write its state",
                offset_bytes: at,
                source,
            });
        }
        written.state_generation = generation;
        written.state_place = place;
        written.state = document.to_vec();
        Ok(())
    }
}

/// The newer document that holds, its place and its generation.
pub(super) fn read(file: &dyn DiskFile, label: &Label) -> io::Result<(Vec<u8>, usize, u64)> {
    let mut newest = (Vec::new(), 1, 0);
    for (place, at) in STATE_PLACES.into_iter().enumerate() {
        let mut bytes = vec![0; STATE_PLACE_BYTES as usize];
        file.read_at(at, &mut bytes)?;
        if let Some((generation, document)) = decode(label, &bytes)
            && generation > newest.2
        {
            newest = (document.to_vec(), place, generation);
        }
    }
    Ok(newest)
}

fn encode(label: &Label, generation: u64, document: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; STATE_HEAD_BYTES];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..8].copy_from_slice(&(document.len() as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes[16..32].copy_from_slice(&label.id);
    bytes.extend_from_slice(document);
    let digest = Digest::of(&bytes);
    bytes[DIGEST_AT..STATE_HEAD_BYTES].copy_from_slice(digest.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(IO_BYTES), 0);
    bytes
}

fn decode<'a>(label: &Label, bytes: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let len = u32_at(bytes, 4) as usize;
    if &bytes[..4] != MAGIC || bytes[16..32] != label.id || len > STATE_BYTES_MAX {
        return None;
    }
    // The digest is of everything, with zeros in its own place.
    let mut signed = bytes[..STATE_HEAD_BYTES + len].to_vec();
    signed[DIGEST_AT..STATE_HEAD_BYTES].fill(0);
    let holds = Digest::of(&signed).as_bytes() == &bytes[DIGEST_AT..STATE_HEAD_BYTES];
    holds.then(|| (u64_at(bytes, 8), &bytes[STATE_HEAD_BYTES..][..len]))
}
