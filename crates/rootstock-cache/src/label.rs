//! The label: what a disk begins with that is a cache, and where its parts lie.

use rootstock_core::{CHUNK_BYTES, Digest};

use crate::table::{PAGE_BYTES, PAGE_ENTRIES};

/// Bytes of a label. It is this long so that whatever else begins to use the disk
/// damages it, and the disk is no cache any more: partition tables, LVM and file
/// systems write into the first 4 KiB, bcache and md at 4 KiB, ZFS at 16 KiB, Btrfs
/// at 64 KiB.
pub const LABEL_BYTES: usize = 256 << 10;

/// The longest state document, in bytes: what is left of its place beside its head.
pub const STATE_BYTES_MAX: usize = STATE_PLACE_BYTES as usize - STATE_HEAD_BYTES;

/// Bytes of a state document's head and digest.
pub(crate) const STATE_HEAD_BYTES: usize = 64;

/// Bytes of each of the two places of the state document.
pub(crate) const STATE_PLACE_BYTES: u64 = 256 << 10;

/// Where the two places of the state document are.
pub(crate) const STATE_PLACES: [u64; 2] =
    [LABEL_BYTES as u64, LABEL_BYTES as u64 + STATE_PLACE_BYTES];

/// Where the table begins.
pub(crate) const TABLE_START_BYTES: u64 = LABEL_BYTES as u64 + 2 * STATE_PLACE_BYTES;

/// What the first slot is aligned to, in bytes: an erase block of most disks.
const SLOTS_ALIGN_BYTES: u64 = 1 << 20;

/// The most slots: 64 TiB of chunks.
const SLOTS_MAX: u64 = 1 << 28;

/// The smallest slot: a page of the kernel.
const SLOT_BYTES_MIN: u32 = 4096;

const MAGIC: &[u8; 8] = b"RSTKCACH";
const VERSION: u32 = 1;
const DIGEST_AT: usize = LABEL_BYTES - Digest::LEN;

/// Why bytes are no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// They do not begin as one does.
    #[error("this disk is not prepared as a cache")]
    Magic,
    /// A version of the format that this release does not know.
    #[error(
        "the cache's format is {version}, which this release does not know: use a newer agent, \
         or prepare the disk anew, which only costs fetching its chunks again"
    )]
    Version {
        /// The version that it claims.
        version: u32,
    },
    /// Its digest does not hold, or its fields contradict each other.
    #[error("the cache's label is damaged: prepare the disk anew")]
    Damaged,
    /// There is no room for a useful cache.
    #[error("{disk_bytes} B are too few for a cache: at least {needed_bytes} B are needed")]
    TooSmall {
        /// The disk.
        disk_bytes: u64,
        /// What it would have to be.
        needed_bytes: u64,
    },
}

/// Where the parts of a cache lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// A number drawn for this cache: pages of an earlier one are not taken for its own.
    pub id: [u8; 16],
    /// The length of a slot in bytes.
    pub slot_bytes: u32,
    /// How many slots there are.
    pub slot_count: u64,
}

impl Label {
    /// The label of a cache that fills a disk.
    ///
    /// # Errors
    /// [`LabelError::TooSmall`].
    pub fn for_disk(id: [u8; 16], disk_bytes: u64) -> Result<Self, LabelError> {
        Self::with_slots(id, disk_bytes, CHUNK_BYTES as u32)
    }

    /// As [`Label::for_disk`], with slots of another length: a power of two from 4 KiB.
    ///
    /// # Errors
    /// [`LabelError::TooSmall`], or [`LabelError::Damaged`] for a length that no slot has.
    pub fn with_slots(id: [u8; 16], disk_bytes: u64, slot_bytes: u32) -> Result<Self, LabelError> {
        if slot_bytes < SLOT_BYTES_MIN || !slot_bytes.is_power_of_two() {
            return Err(LabelError::Damaged);
        }
        let mut label = Self {
            id,
            slot_bytes,
            slot_count: (disk_bytes / u64::from(slot_bytes)).min(SLOTS_MAX),
        };
        // The table takes some of the slots' room; a page covers far more than it takes.
        while label.slot_count > 0 && label.end_bytes() > disk_bytes {
            let over = (label.end_bytes() - disk_bytes).div_ceil(u64::from(slot_bytes));
            label.slot_count = label.slot_count.saturating_sub(over);
        }
        if label.slot_count == 0 {
            label.slot_count = 1;
            return Err(LabelError::TooSmall {
                disk_bytes,
                needed_bytes: label.end_bytes(),
            });
        }
        Ok(label)
    }

    /// Pages of the table, each of which is there twice.
    pub(crate) fn page_count(&self) -> u64 {
        self.slot_count.div_ceil(PAGE_ENTRIES as u64)
    }

    /// Where a copy of a page is.
    pub(crate) fn page_at(&self, page: usize, copy: usize) -> u64 {
        TABLE_START_BYTES + (2 * page + copy) as u64 * PAGE_BYTES as u64
    }

    /// Where a slot is.
    pub(crate) fn slot_at(&self, slot: u32) -> u64 {
        self.slots_start_bytes() + u64::from(slot) * u64::from(self.slot_bytes)
    }

    fn slots_start_bytes(&self) -> u64 {
        let table = 2 * self.page_count() * PAGE_BYTES as u64;
        (TABLE_START_BYTES + table).next_multiple_of(SLOTS_ALIGN_BYTES)
    }

    /// Where the last slot ends.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        self.slots_start_bytes() + self.slot_count * u64::from(self.slot_bytes)
    }

    /// The label's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; LABEL_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.slot_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.slot_count.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.id);
        let digest = Digest::of(&bytes[..DIGEST_AT]);
        bytes[DIGEST_AT..].copy_from_slice(digest.as_bytes());
        bytes
    }

    /// Whether bytes begin as a label does: what does not is not worth reading on.
    #[must_use]
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// The label in a disk's first bytes.
    ///
    /// # Errors
    /// [`LabelError`] when they are none, or one of another release.
    pub fn decode(bytes: &[u8]) -> Result<Self, LabelError> {
        if bytes.len() < LABEL_BYTES || !Self::begins(bytes) {
            return Err(LabelError::Magic);
        }
        let bytes = &bytes[..LABEL_BYTES];
        if Digest::of(&bytes[..DIGEST_AT]).as_bytes() != &bytes[DIGEST_AT..] {
            return Err(LabelError::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(LabelError::Version { version });
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[24..40]);
        let label = Self {
            id,
            slot_bytes: u32_at(bytes, 12),
            slot_count: u64_at(bytes, 16),
        };
        let sound = label.slot_bytes >= SLOT_BYTES_MIN
            && u64::from(label.slot_bytes) <= CHUNK_BYTES
            && label.slot_bytes.is_power_of_two()
            && (1..=SLOTS_MAX).contains(&label.slot_count)
            && bytes[40..DIGEST_AT].iter().all(|byte| *byte == 0);
        sound.then_some(label).ok_or(LabelError::Damaged)
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_label_and_back() {
        let label = Label::for_disk([7; 16], 100 << 30).expect("room");
        let bytes = label.encode();
        assert_eq!(Label::decode(&bytes), Ok(label));
        for at in [8, 12, 16, 24, 1080, 65_600, LABEL_BYTES - 1] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(Label::decode(&bytes), Err(LabelError::Damaged), "{at}");
        }
        assert_eq!(Label::decode(&bytes[1..]), Err(LabelError::Magic));
        let mut newer = bytes;
        newer[8] = 2;
        let digest = Digest::of(&newer[..DIGEST_AT]);
        newer[DIGEST_AT..].copy_from_slice(digest.as_bytes());
        assert_eq!(
            Label::decode(&newer),
            Err(LabelError::Version { version: 2 })
        );
    }

    #[test]
    fn a_disk_is_used_to_its_end() {
        for disk_bytes in [16 << 20, (20 << 30) + 12345, 2 << 40] {
            let label = Label::for_disk([0; 16], disk_bytes).expect("room");
            assert!(label.end_bytes() <= disk_bytes);
            let more = Label {
                slot_count: label.slot_count + 5,
                ..label
            };
            assert!(more.end_bytes() > disk_bytes, "{disk_bytes}");
        }
        for disk_bytes in [0, 4096, 1 << 20] {
            let error = Label::for_disk([0; 16], disk_bytes).expect_err("too small");
            assert!(
                matches!(error, LabelError::TooSmall { needed_bytes, .. } if needed_bytes > disk_bytes)
            );
        }
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), magic: bool) {
            let mut bytes = bytes;
            bytes.resize(LABEL_BYTES, 0);
            if magic {
                bytes[..8].copy_from_slice(MAGIC);
            }
            let _ = Label::decode(&bytes);
        }
    }
}
