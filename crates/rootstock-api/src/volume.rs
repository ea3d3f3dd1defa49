//! Volumes: writable clones of versions.

use rootstock_core::{Digest, ImageName, TagName, VersionNumber, VersionSpec, VolumeName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{import::Outcome, share::Share};

/// All volumes, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// The volumes.
    pub volumes: Vec<Volume>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VolumeName,
    /// The version it is a clone of.
    #[schema(value_type = String)]
    pub base: VersionSpec,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of its own writes, as stored.
    pub used_bytes: u64,
    /// Whether its writes are dropped when its last client leaves.
    pub ephemeral: bool,
    /// The logical blocks of its disk over iSCSI: 512 or 4,096 bytes.
    #[serde(default = "block_bytes")]
    pub block_bytes: u32,
    /// When it was made.
    pub created: String,
    /// The name to open over NBD.
    pub export: String,
    /// Addresses of the clients that have it open.
    #[serde(default)]
    pub clients: Vec<String>,
    /// The iSCSI name of its target.
    #[serde(default)]
    pub target: String,
    /// Its number there.
    #[serde(default)]
    pub lun: u16,
    /// The initiators that may use it over iSCSI.
    #[serde(default)]
    pub shares: Vec<Share>,
}

/// Makes a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VolumeName,
    /// The version to clone: `lab`, `lab:3` or `lab@production`; an empty disk when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub from: Option<VersionSpec>,
    /// Its size, when it is to be larger than the version's disk; an empty disk needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether its writes are dropped when its last client leaves.
    #[serde(default)]
    pub ephemeral: bool,
    /// The logical blocks of its disk over iSCSI: 512 bytes unless it says 4,096.
    #[serde(default = "block_bytes")]
    pub block_bytes: u32,
}

const fn block_bytes() -> u32 {
    512
}

/// Makes a volume larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// The new size.
    pub size_bytes: u64,
}

/// Copies a volume, as it is now, into a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSnapshot {
    /// The new volume's name.
    #[schema(value_type = String)]
    pub name: VolumeName,
}

/// Makes a volume's contents a new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCommit {
    /// The image that gets the version; made when it does not exist.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// A tag to point at the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tag: Option<TagName>,
    /// What its author says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A volume that became a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeCommitted {
    /// Whether there is a new version.
    pub outcome: Outcome,
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// The version.
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
    /// Bytes of their frames.
    pub added_bytes: u64,
}
