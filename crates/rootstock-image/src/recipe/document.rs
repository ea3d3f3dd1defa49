//! A recipe's bytes: a root document, pages that say where each delta is, pieces.
//!
//! All of them are stored as chunks. A page names its own pieces, so that a recipe
//! is written in one go in the memory of one page and one piece.

use rootstock_core::{ChunkId, Digest, units::CHUNK_BYTES};

use crate::fields::Fields;

const MAGIC: [u8; 8] = *b"RSTKRCPE";
const PAGE_MAGIC: [u8; 8] = *b"RSTKRCPP";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
const PAGE_HEADER_BYTES: usize = 24;
const ENTRY_BYTES: usize = 44;

/// The most deltas that a page names. With a piece for each of them it still fits
/// a chunk.
pub const DELTAS_PER_PAGE_MAX: usize = 2048;

/// The most pages of a recipe, so that its root fits a chunk: 16 million deltas,
/// for 4 TiB of new chunks.
pub const RECIPE_PAGES_MAX: usize = (CHUNK_BYTES as usize - HEADER_BYTES) / Digest::LEN;

/// Why bytes are not a recipe's root or one of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// They end too early, or go on after their end.
    #[error("a part of a recipe of {len_bytes} bytes was expected to have {expected_bytes}")]
    Length {
        /// How many bytes there are.
        len_bytes: usize,
        /// How many their own fields ask for.
        expected_bytes: usize,
    },
    /// They begin with something else.
    #[error("these bytes are not a recipe's: they do not begin with its magic")]
    Magic,
    /// A version of the format that this release does not know.
    #[error("recipe format {version} is not known here: a newer release wrote it")]
    Version {
        /// The version they claim.
        version: u32,
    },
    /// A field has a value that it cannot have.
    #[error("the recipe's {field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// The root document of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The manifest of the version whose blocks are copied.
    pub from: Digest,
    /// The manifest of the version whose chunks are rebuilt.
    pub to: Digest,
    /// How many deltas it has.
    pub delta_count: u64,
    /// Their bytes.
    pub delta_bytes: u64,
    /// Its pages, in the order in which they were written.
    pub pages: Vec<ChunkId>,
}

impl Recipe {
    /// The document's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.pages.len() * Digest::LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.pages.len() as u32).to_le_bytes());
        bytes.extend(self.from.as_bytes());
        bytes.extend(self.to.as_bytes());
        bytes.extend(self.delta_count.to_le_bytes());
        bytes.extend(self.delta_bytes.to_le_bytes());
        for page in &self.pages {
            bytes.extend(page.as_bytes());
        }
        bytes
    }

    /// The root document in these bytes.
    ///
    /// # Errors
    /// [`RecipeError`] for anything that [`Recipe::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecipeError> {
        let mut fields = header(bytes, HEADER_BYTES, MAGIC)?;
        let page_count = fields.u32() as usize;
        if page_count > RECIPE_PAGES_MAX {
            return Err(field("number of pages", page_count as u64));
        }
        require_length(bytes, HEADER_BYTES + page_count * Digest::LEN)?;
        let from = Digest::from_bytes(fields.array());
        let to = Digest::from_bytes(fields.array());
        let delta_count = fields.u64();
        let delta_bytes = fields.u64();
        let most = page_count as u64 * DELTAS_PER_PAGE_MAX as u64;
        if !(page_count as u64..=most).contains(&delta_count) {
            return Err(field("number of deltas", delta_count));
        }
        if delta_bytes > delta_count * CHUNK_BYTES {
            return Err(field("number of bytes", delta_bytes));
        }
        let pages = (0..page_count).map(|_| ChunkId::from_bytes(fields.array()));
        Ok(Self {
            from,
            to,
            delta_count,
            delta_bytes,
            pages: pages.collect(),
        })
    }
}

/// Where a delta is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaPlace {
    /// The chunk that it rebuilds.
    pub chunk: ChunkId,
    /// Its piece, in the list of its page.
    pub piece: u32,
    /// Where it begins in the piece.
    pub offset_bytes: u32,
    /// Its length.
    pub len_bytes: u32,
}

/// A page of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecipePage {
    /// Its pieces: chunks that hold deltas one after another.
    pub pieces: Vec<ChunkId>,
    /// Its deltas, in the order in which they were written.
    pub deltas: Vec<DeltaPlace>,
}

impl RecipePage {
    /// The page's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(page_bytes(self.pieces.len(), self.deltas.len()));
        bytes.extend(PAGE_MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.pieces.len() as u32).to_le_bytes());
        bytes.extend((self.deltas.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        for piece in &self.pieces {
            bytes.extend(piece.as_bytes());
        }
        for delta in &self.deltas {
            bytes.extend(delta.chunk.as_bytes());
            bytes.extend(delta.piece.to_le_bytes());
            bytes.extend(delta.offset_bytes.to_le_bytes());
            bytes.extend(delta.len_bytes.to_le_bytes());
        }
        bytes
    }

    /// The page in these bytes.
    ///
    /// # Errors
    /// [`RecipeError`] for anything that [`RecipePage::encode`] would not have
    /// written, and for a delta outside its piece.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecipeError> {
        let mut fields = header(bytes, PAGE_HEADER_BYTES, PAGE_MAGIC)?;
        let piece_count = fields.u32() as usize;
        let delta_count = fields.u32() as usize;
        let reserved = fields.u32();
        if reserved != 0 {
            return Err(field("reserved bytes", reserved.into()));
        }
        if !(1..=DELTAS_PER_PAGE_MAX).contains(&delta_count) {
            return Err(field("number of deltas", delta_count as u64));
        }
        if !(1..=delta_count).contains(&piece_count) {
            return Err(field("number of pieces", piece_count as u64));
        }
        require_length(bytes, page_bytes(piece_count, delta_count))?;
        let mut page = Self::default();
        for _ in 0..piece_count {
            page.pieces.push(ChunkId::from_bytes(fields.array()));
        }
        for _ in 0..delta_count {
            let delta = DeltaPlace {
                chunk: ChunkId::from_bytes(fields.array()),
                piece: fields.u32(),
                offset_bytes: fields.u32(),
                len_bytes: fields.u32(),
            };
            check(&delta, piece_count)?;
            page.deltas.push(delta);
        }
        Ok(page)
    }
}

fn check(delta: &DeltaPlace, piece_count: usize) -> Result<(), RecipeError> {
    if delta.piece as usize >= piece_count {
        return Err(field("piece of a delta", delta.piece.into()));
    }
    let end = u64::from(delta.offset_bytes) + u64::from(delta.len_bytes);
    if delta.len_bytes == 0 || end > CHUNK_BYTES {
        return Err(field("end of a delta", end));
    }
    Ok(())
}

const fn page_bytes(piece_count: usize, delta_count: usize) -> usize {
    PAGE_HEADER_BYTES + piece_count * Digest::LEN + delta_count * ENTRY_BYTES
}

const _: () = assert!(page_bytes(DELTAS_PER_PAGE_MAX, DELTAS_PER_PAGE_MAX) as u64 <= CHUNK_BYTES);

/// The fields after magic and version.
fn header(bytes: &[u8], min_bytes: usize, magic: [u8; 8]) -> Result<Fields<'_>, RecipeError> {
    if bytes.len() < min_bytes {
        return Err(RecipeError::Length {
            len_bytes: bytes.len(),
            expected_bytes: min_bytes,
        });
    }
    let mut fields = Fields::new(bytes);
    if fields.array() != magic {
        return Err(RecipeError::Magic);
    }
    match fields.u32() {
        VERSION => Ok(fields),
        version => Err(RecipeError::Version { version }),
    }
}

fn require_length(bytes: &[u8], expected_bytes: usize) -> Result<(), RecipeError> {
    if bytes.len() == expected_bytes {
        return Ok(());
    }
    Err(RecipeError::Length {
        len_bytes: bytes.len(),
        expected_bytes,
    })
}

fn field(field: &'static str, value: u64) -> RecipeError {
    RecipeError::Field { field, value }
}

/// Writes a recipe: at most one page and one piece are in memory, and the ids of
/// the pages before.
#[derive(Debug)]
pub struct RecipeWriter {
    recipe: Recipe,
    page: RecipePage,
    piece: Vec<u8>,
}

impl RecipeWriter {
    /// A recipe of one manifest's chunks out of another's.
    #[must_use]
    pub fn new(from: Digest, to: Digest) -> Self {
        Self {
            recipe: Recipe {
                from,
                to,
                delta_count: 0,
                delta_bytes: 0,
                pages: Vec::new(),
            },
            page: RecipePage::default(),
            piece: Vec::new(),
        }
    }

    /// Adds a chunk's delta. `sink` stores bytes as a chunk. A recipe that has
    /// [`RECIPE_PAGES_MAX`] pages takes no more: what is left out has its frame.
    ///
    /// # Errors
    /// Whatever the sink refuses; the recipe cannot be finished then.
    ///
    /// # Panics
    /// When the delta is empty or longer than a chunk.
    pub fn push<S>(
        &mut self,
        chunk: ChunkId,
        delta: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<ChunkId, S>,
    ) -> Result<(), S> {
        assert!(
            !delta.is_empty() && delta.len() as u64 <= CHUNK_BYTES,
            "a delta has 1 B to 256 KiB"
        );
        if (self.piece.len() + delta.len()) as u64 > CHUNK_BYTES {
            self.end_piece(&mut sink)?;
        }
        if self.page.deltas.len() == DELTAS_PER_PAGE_MAX {
            self.end_page(&mut sink)?;
        }
        if self.recipe.pages.len() == RECIPE_PAGES_MAX {
            return Ok(());
        }
        self.page.deltas.push(DeltaPlace {
            chunk,
            piece: self.page.pieces.len() as u32,
            offset_bytes: self.piece.len() as u32,
            len_bytes: delta.len() as u32,
        });
        self.piece.extend_from_slice(delta);
        self.recipe.delta_count += 1;
        self.recipe.delta_bytes += delta.len() as u64;
        Ok(())
    }

    /// Stores what is left, and the root document last. Answers its id.
    ///
    /// # Errors
    /// Whatever the sink refuses.
    pub fn finish<S>(
        mut self,
        mut sink: impl FnMut(&[u8]) -> Result<ChunkId, S>,
    ) -> Result<(ChunkId, Recipe), S> {
        self.end_page(&mut sink)?;
        let id = sink(&self.recipe.encode())?;
        Ok((id, self.recipe))
    }

    fn end_piece<S>(
        &mut self,
        sink: &mut impl FnMut(&[u8]) -> Result<ChunkId, S>,
    ) -> Result<(), S> {
        if !self.piece.is_empty() {
            self.page.pieces.push(sink(&self.piece)?);
            self.piece.clear();
        }
        Ok(())
    }

    fn end_page<S>(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<ChunkId, S>) -> Result<(), S> {
        self.end_piece(sink)?;
        if !self.page.deltas.is_empty() {
            let page = std::mem::take(&mut self.page);
            self.recipe.pages.push(sink(&page.encode())?);
        }
        Ok(())
    }
}
