//! A page of the table: which chunk each of its slots holds.

use rootstock_core::{ChunkId, Digest};

use crate::label::{Label, u32_at, u64_at};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Entries of a page.
pub(crate) const PAGE_ENTRIES: usize = (DIGEST_AT - HEAD_BYTES) / ENTRY_BYTES;

const MAGIC: &[u8; 4] = b"RSTP";
const HEAD_BYTES: usize = 32;
const ENTRY_BYTES: usize = Digest::LEN + 4;
const DIGEST_AT: usize = PAGE_BYTES - Digest::LEN;

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The chunk.
    pub(crate) chunk: ChunkId,
    /// Its length in bytes; 0 when the slot is free.
    pub(crate) len_bytes: u32,
}

impl Entry {
    /// A slot that holds nothing.
    pub(crate) const FREE: Self = Self {
        chunk: ChunkId::ZERO,
        len_bytes: 0,
    };
}

/// A page as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// The checkpoint that wrote it.
    pub(crate) generation: u64,
    /// Its slots, in order.
    pub(crate) entries: Vec<Entry>,
}

impl Page {
    /// The page's bytes, as number `number` of the cache with this label.
    pub(crate) fn encode(&self, label: &Label, number: usize) -> Vec<u8> {
        debug_assert!(self.entries.len() <= PAGE_ENTRIES, "one page's entries");
        let mut bytes = vec![0; PAGE_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..32].copy_from_slice(&label.id);
        let places = bytes[HEAD_BYTES..DIGEST_AT].chunks_exact_mut(ENTRY_BYTES);
        for (place, entry) in places.zip(&self.entries) {
            let (chunk, len) = place.split_at_mut(Digest::LEN);
            chunk.copy_from_slice(entry.chunk.as_bytes());
            len.copy_from_slice(&entry.len_bytes.to_le_bytes());
        }
        let digest = Digest::of(&bytes[..DIGEST_AT]);
        bytes[DIGEST_AT..].copy_from_slice(digest.as_bytes());
        bytes
    }

    /// The page in these bytes, if it is number `number` of the cache with this
    /// label, whole.
    pub(crate) fn decode(bytes: &[u8], label: &Label, number: usize) -> Option<Self> {
        if bytes.len() != PAGE_BYTES
            || &bytes[..4] != MAGIC
            || u32_at(bytes, 4) as usize != number
            || bytes[16..32] != label.id
            || Digest::of(&bytes[..DIGEST_AT]).as_bytes() != &bytes[DIGEST_AT..]
        {
            return None;
        }
        let slots = label.slot_count - (number * PAGE_ENTRIES) as u64;
        let count = slots.min(PAGE_ENTRIES as u64) as usize;
        let places = bytes[HEAD_BYTES..DIGEST_AT].chunks_exact(ENTRY_BYTES);
        let entries: Vec<Entry> = places.take(count).map(entry).collect();
        let fits = |entry: &Entry| entry.len_bytes <= label.slot_bytes;
        entries.iter().all(fits).then_some(Self {
            generation: u64_at(bytes, 8),
            entries,
        })
    }
}

fn entry(place: &[u8]) -> Entry {
    let mut digest = [0; Digest::LEN];
    digest.copy_from_slice(&place[..Digest::LEN]);
    let chunk = ChunkId::from_bytes(digest);
    match u32_at(place, Digest::LEN) {
        0 => Entry::FREE,
        // The chunk of zeros is never stored.
        _ if chunk.is_zero() => Entry::FREE,
        len_bytes => Entry { chunk, len_bytes },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_and_back() {
        let label = Label::with_slots([3; 16], 2 << 20, 4096).expect("room");
        let last = label.page_count() as usize - 1;
        let slots = label.slot_count as usize - last * PAGE_ENTRIES;
        let mut entries = vec![Entry::FREE; slots];
        entries[1] = Entry {
            chunk: ChunkId::of(b"chunk"),
            len_bytes: 4096,
        };
        let page = Page {
            generation: 9,
            entries,
        };
        let bytes = page.encode(&label, last);
        assert_eq!(Page::decode(&bytes, &label, last), Some(page.clone()));
        assert_eq!(Page::decode(&bytes, &label, last + 1), None);
        let other = Label {
            id: [4; 16],
            ..label
        };
        assert_eq!(Page::decode(&bytes, &other, last), None);
        for at in [0, 9, 40, PAGE_BYTES - 1] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(Page::decode(&bytes, &label, last), None, "{at}");
        }
        let mut long = page;
        long.entries[0] = Entry {
            chunk: ChunkId::of(b"long"),
            len_bytes: label.slot_bytes + 1,
        };
        assert_eq!(Page::decode(&long.encode(&label, last), &label, last), None);
    }
}
