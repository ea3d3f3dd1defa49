//! A recipe in memory: which chunks have a delta, and where it is.

use std::collections::HashMap;

use bytes::Bytes;
use rootstock_api::ProblemCode;
use rootstock_core::{ChunkId, Digest};
use rootstock_image::recipe::{Recipe, RecipeError, RecipePage};
use rootstock_store::{ChunkStore, ReadError};

use crate::http::{ApiError, chain};

/// The entries of a recipe.
#[derive(Debug)]
pub(crate) struct Index {
    root: Digest,
    pieces: Vec<ChunkId>,
    places: HashMap<ChunkId, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    piece: u32,
    offset_bytes: u32,
    len_bytes: u32,
}

/// Where a delta is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The chunk of the store that holds it.
    pub(crate) piece: ChunkId,
    pub(crate) offset_bytes: u32,
    pub(crate) len_bytes: u32,
}

impl Index {
    /// Reads the recipe between two manifests.
    pub(super) fn read(
        store: &ChunkStore,
        root: Digest,
        (from, to): (Digest, Digest),
    ) -> Result<Self, ApiError> {
        let recipe = read_root(store, root)?;
        if (recipe.from, recipe.to) != (from, to) {
            return Err(ApiError::damaged(format!(
                "recipe {root} is of other versions"
            )));
        }
        let mut index = Self {
            root,
            pieces: Vec::new(),
            places: HashMap::with_capacity(recipe.delta_count as usize),
        };
        for id in recipe.pages {
            let page = read_page(store, id)?;
            let first = index.pieces.len() as u32;
            index.pieces.extend(page.pieces);
            for delta in page.deltas {
                let entry = Entry {
                    piece: first + delta.piece,
                    offset_bytes: delta.offset_bytes,
                    len_bytes: delta.len_bytes,
                };
                index.places.insert(delta.chunk, entry);
            }
        }
        Ok(index)
    }

    /// The chunk id of its root document.
    pub(crate) fn root(&self) -> Digest {
        self.root
    }

    /// Where the delta of a chunk is, if it has one.
    pub(crate) fn place(&self, chunk: ChunkId) -> Option<Place> {
        let entry = self.places.get(&chunk)?;
        Some(Place {
            piece: *self.pieces.get(entry.piece as usize)?,
            offset_bytes: entry.offset_bytes,
            len_bytes: entry.len_bytes,
        })
    }
}

impl Place {
    /// The delta's bytes, out of its piece.
    pub(crate) fn of(&self, piece: &Bytes) -> Result<Bytes, ApiError> {
        let start = self.offset_bytes as usize;
        let end = start + self.len_bytes as usize;
        if end > piece.len() {
            let detail = format!("piece {} of a recipe is too short", self.piece);
            return Err(ApiError::damaged(detail));
        }
        Ok(piece.slice(start..end))
    }
}

/// Every part of a recipe: root, pages and pieces.
pub(super) fn parts(store: &ChunkStore, root: Digest) -> Result<Vec<ChunkId>, ApiError> {
    let mut parts = vec![ChunkId(root)];
    for id in read_root(store, root)?.pages {
        parts.push(id);
        parts.extend(read_page(store, id)?.pieces);
    }
    Ok(parts)
}

fn read_root(store: &ChunkStore, root: Digest) -> Result<Recipe, ApiError> {
    let bytes = read_part(store, ChunkId(root))?;
    Recipe::decode(&bytes).map_err(|error| cannot_be_used(ChunkId(root), &error))
}

fn read_page(store: &ChunkStore, id: ChunkId) -> Result<RecipePage, ApiError> {
    let bytes = read_part(store, id)?;
    RecipePage::decode(&bytes).map_err(|error| cannot_be_used(id, &error))
}

fn read_part(store: &ChunkStore, id: ChunkId) -> Result<Bytes, ApiError> {
    store.read(id).map_err(|error| match error {
        ReadError::Missing { .. } => ApiError::damaged(format!("part {id} of a recipe is lost")),
        error => error.into(),
    })
}

fn cannot_be_used(id: ChunkId, error: &RecipeError) -> ApiError {
    let detail = format!("part {id} of a recipe cannot be used: {}", chain(error));
    ApiError::new(ProblemCode::Damaged, detail)
}
