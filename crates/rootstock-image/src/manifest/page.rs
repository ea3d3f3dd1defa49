//! A page: up to 4,096 ids of chunks or of pages below it.

use rootstock_core::{ChunkId, Digest, units::is_zero};

use super::{DEPTH_MAX, PAGE_ENTRIES};

const MAGIC: [u8; 8] = *b"RSTKPAGE";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;

/// Why bytes are not a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It ends too early, or goes on after its end.
    #[error("a page of {len_bytes} bytes was expected to have {expected_bytes}")]
    Length {
        /// How many bytes there are.
        len_bytes: usize,
        /// How many its own fields ask for.
        expected_bytes: usize,
    },
    /// It begins with something else.
    #[error("these bytes are not a manifest page: they do not begin with its magic")]
    Magic,
    /// A version of the format that this release does not know.
    #[error("page format {version} is not known here: a newer release wrote it")]
    Version {
        /// The version it claims.
        version: u16,
    },
    /// A field has a value that it cannot have.
    #[error("the page's {field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A page of zeros: its parent has to say so by a zero id.
    #[error("the page holds zeros only, which no page may")]
    Zero,
    /// A page of another level or another number of entries.
    #[error(
        "the page has {count} entries of level {level}, and {expected_count} of level {expected_level} belong there"
    )]
    Place {
        /// Its level.
        level: u8,
        /// Its entries.
        count: usize,
        /// The level of its place in the tree.
        expected_level: u8,
        /// The entries of its place in the tree.
        expected_count: usize,
    },
}

/// A decoded page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    level: u8,
    ids: Vec<ChunkId>,
}

impl Page {
    /// A page of these ids; level 1 holds chunks, a higher one holds pages.
    pub(super) fn new(level: u8, ids: Vec<ChunkId>) -> Self {
        debug_assert!((1..=DEPTH_MAX).contains(&level));
        debug_assert!(!ids.is_empty() && ids.len() as u64 <= PAGE_ENTRIES);
        Self { level, ids }
    }

    /// 1 for a page of chunks, one more for each level above.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// What it holds: chunks at level 1, pages of the level below otherwise.
    #[must_use]
    pub fn ids(&self) -> &[ChunkId] {
        &self.ids
    }

    /// What it holds, without a copy.
    pub(super) fn into_ids(self) -> Vec<ChunkId> {
        self.ids
    }

    /// The page's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.ids.len() * Digest::LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([self.level, 0]);
        bytes.extend((self.ids.len() as u32).to_le_bytes());
        for id in &self.ids {
            bytes.extend(id.as_bytes());
        }
        bytes
    }

    /// The page in these bytes.
    ///
    /// # Errors
    /// [`PageError`] for anything that [`Page::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let length = |expected_bytes| PageError::Length {
            len_bytes: bytes.len(),
            expected_bytes,
        };
        let (header, entries) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or_else(|| length(HEADER_BYTES))?;
        if header[..8] != MAGIC {
            return Err(PageError::Magic);
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(PageError::Version { version });
        }
        let count = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        let fields = [
            ("level", u64::from(header[10]), 1..=u64::from(DEPTH_MAX)),
            ("reserved byte", u64::from(header[11]), 0..=0),
            ("number of entries", u64::from(count), 1..=PAGE_ENTRIES),
        ];
        for (field, value, allowed) in fields {
            if !allowed.contains(&value) {
                return Err(PageError::Field { field, value });
            }
        }
        if entries.len() != count as usize * Digest::LEN {
            return Err(length(HEADER_BYTES + count as usize * Digest::LEN));
        }
        if is_zero(entries) {
            return Err(PageError::Zero);
        }
        let (entries, _) = entries.as_chunks::<{ Digest::LEN }>();
        let ids = entries.iter().map(|id| ChunkId::from_bytes(*id)).collect();
        Ok(Self::new(header[10], ids))
    }

    /// The page, if it has this level and this many entries.
    pub(super) fn at_place(self, level: u8, count: usize) -> Result<Self, PageError> {
        if self.level == level && self.ids.len() == count {
            return Ok(self);
        }
        Err(PageError::Place {
            level: self.level,
            count: self.ids.len(),
            expected_level: level,
            expected_count: count,
        })
    }
}
