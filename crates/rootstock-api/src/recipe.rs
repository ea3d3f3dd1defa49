//! Recipes: how a machine that has one version fetches less of another.

use rootstock_core::VersionSpec;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// All recipes, and what becomes of those that are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipeList {
    /// Those that were made, by the version they are for.
    pub recipes: Vec<RecipeSummary>,
    /// The one that is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub making: Option<RecipeProgress>,
    /// How many more are to be made.
    pub waiting_count: u64,
    /// How much of a processor the making may take, in percent; 0 when none are made.
    pub load_percent: u32,
}

/// A recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipeSummary {
    /// The version whose blocks it takes.
    #[schema(value_type = String)]
    pub from: VersionSpec,
    /// The version whose chunks it makes.
    #[schema(value_type = String)]
    pub to: VersionSpec,
    /// How many chunks it makes.
    pub delta_count: u64,
    /// Bytes of their deltas.
    pub delta_bytes: u64,
    /// Bytes of the frames that they stand for.
    pub frame_bytes: u64,
    /// What all of it takes in the store.
    pub stored_bytes: u64,
    /// When it was made.
    pub created: String,
}

/// How far a recipe is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipeProgress {
    /// The version whose blocks it takes.
    #[schema(value_type = String)]
    pub from: VersionSpec,
    /// The version whose chunks it makes.
    #[schema(value_type = String)]
    pub to: VersionSpec,
    /// Chunks read so far; some are read twice.
    pub done_chunk_count: u64,
    /// Chunks to be read.
    pub total_chunk_count: u64,
}

/// What a recipe makes of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipeDiff {
    /// Chunks that are rebuilt.
    pub delta_count: u64,
    /// Bytes of their deltas.
    pub delta_bytes: u64,
    /// Bytes of the deltas, and of the frames of all other chunks to fetch.
    pub fetch_bytes: u64,
    /// All that a machine is sent: records of deltas and frames, of manifest pages,
    /// and the root document.
    pub wire_bytes: u64,
}
