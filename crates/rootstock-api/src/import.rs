//! Imports: how a client turns a disk into a version.
//!
//! Create an import; ask which chunks the store lacks, and send those; send the
//! manifest's pages and its root document as chunks too; commit by naming the
//! root document. Until the commit nothing of it is visible as a version, and
//! what was sent stays for a client that comes back.

use rootstock_core::{ChunkId, Digest, ImageName, TagName, VersionNumber, VersionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::image::ImageFacts;

/// Opens an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportCreate {
    /// The image that gets the version; made when it does not exist.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// What it is made from, as the user named it.
    pub source: String,
}

/// Open imports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportList {
    /// The imports, oldest first.
    pub imports: Vec<Import>,
}

/// An open import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Import {
    /// Its id.
    pub id: String,
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// What it is made from.
    pub source: String,
    /// When it was opened.
    pub created: String,
    /// When something last came for it.
    pub active: String,
    /// When it expires if nothing comes.
    pub expires: String,
    /// Chunks that were new to the store.
    pub added_chunk_count: u64,
    /// Bytes of their frames.
    pub added_bytes: u64,
}

/// The answer to a body of chunk records. They are readable at once, and
/// durable when the import is committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportReceipt {
    /// Chunks that were new.
    pub stored_count: u64,
    /// Chunks that the store had.
    pub present_count: u64,
    /// Bytes of the new ones' frames.
    pub stored_bytes: u64,
}

/// Makes an import a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportCommit {
    /// The root document's id, which was sent as a chunk.
    #[schema(value_type = String)]
    pub manifest: Digest,
    /// A tag to point at the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tag: Option<TagName>,
    /// What its author says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What is on the disk.
    #[serde(default)]
    pub facts: ImageFacts,
}

/// A version that was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportCommitted {
    /// Whether there is a new version.
    pub outcome: Outcome,
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// The version: the new one, or the newest, which is the same.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// Its manifest.
    #[schema(value_type = String)]
    pub manifest: Digest,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of the disk in chunks that are not all zero.
    pub used_bytes: u64,
    /// Chunks that were new to the store.
    pub added_chunk_count: u64,
    /// Bytes of their frames: what the version cost.
    pub added_bytes: u64,
    /// The version before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<VersionSpec>,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A new version.
    Created,
    /// The image's newest version is the same: there is no new one.
    Unchanged,
}

/// A manifest's id as the id of the chunk that holds its root document: both are
/// BLAKE3 of the same bytes.
#[must_use]
pub const fn manifest_chunk(manifest: Digest) -> ChunkId {
    ChunkId(manifest)
}
