//! Recipes: how chunks of one version are made of 4 KiB blocks of another.
//!
//! A **delta** rebuilds one chunk: blocks copied from chunks of the other version,
//! blocks of zeros, and literal blocks that are carried along. A **recipe** is the
//! deltas of all chunks of a version that the other one lacks and that are clearly
//! smaller than their frames. Files lie at multiples of 4 KiB in a file system, so
//! that what moved is found wherever it went; finer or content-defined borders
//! find no more. `docs/formats/recipe.md` has the bytes.

use rootstock_core::units::{BLOCK_BYTES, CHUNK_BYTES};

mod delta;
mod document;
mod find;
mod rebuild;
#[cfg(test)]
mod tests;

pub use delta::{Delta, DeltaError, Op};
pub use document::{
    DELTAS_PER_PAGE_MAX, DeltaPlace, RECIPE_PAGES_MAX, Recipe, RecipeError, RecipePage,
    RecipeWriter,
};
pub use find::{Finder, PLACES_MAX, WANTED_BLOCKS_MAX};
pub use rebuild::{RebuildError, Rebuilder};

/// The most blocks of a chunk.
pub const BLOCKS_MAX: usize = (CHUNK_BYTES / BLOCK_BYTES) as usize;

/// The most chunks that a delta copies from: a node reads each of them whole, so
/// that rebuilding a chunk costs it at most 8 MiB of its disk.
pub const SOURCES_MAX: usize = 32;

/// Whether a delta is clearly smaller than the frame it stands for: by a
/// sixteenth. Rebuilding costs a node reads of its own disk, which a smaller gain
/// on the network is not worth.
#[must_use]
pub const fn is_worth(delta_bytes: usize, frame_bytes: usize) -> bool {
    delta_bytes <= frame_bytes - frame_bytes.div_ceil(16)
}

/// How many blocks this many raw bytes have; the last one may be short.
const fn block_count(raw_bytes: usize) -> usize {
    raw_bytes.div_ceil(BLOCK_BYTES as usize)
}
