//! Volumes: writable clones of versions.

use rootstock_core::{Digest, ImageName, TagName, VersionNumber, VersionSpec, VolumeName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::import::Outcome;

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
    /// The initiators that may use it over iSCSI.
    #[serde(default)]
    pub shares: Vec<VolumeShare>,
}

/// An initiator that may use a volume over iSCSI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeShare {
    /// Its iSCSI name.
    pub initiator: String,
    /// The network that it must come from, if from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it must prove.
    pub chap: ChapMode,
}

/// What is proved by a CHAP secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChapMode {
    /// Nothing.
    #[default]
    None,
    /// The initiator that it is who it says.
    OneWay,
    /// Both, to each other.
    Mutual,
}

impl ChapMode {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::OneWay => "one-way",
            Self::Mutual => "mutual",
        }
    }
}

/// Shares a volume with an initiator over iSCSI, or changes how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeShareSet {
    /// Its iSCSI name: `iqn.…`, `eui.…` or `naa.…`.
    pub initiator: String,
    /// The network that it must come from: `10.0.0.0/24`, or one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it must prove; the secrets are made anew.
    #[serde(default)]
    pub chap: ChapMode,
}

/// Ends a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeUnshare {
    /// The initiator's iSCSI name.
    pub initiator: String,
}

/// A volume that is shared. The secrets are shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeShared {
    /// The target's iSCSI name.
    pub target: String,
    /// Where it is found; nowhere when the daemon serves no iSCSI.
    pub addresses: Vec<String>,
    /// With whom it is shared.
    pub share: VolumeShare,
    /// What the initiator must know; its user name may be any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// What the target proves to know; its user name is the target's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_secret: Option<String>,
}

impl std::fmt::Debug for VolumeShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeShared")
            .field("target", &self.target)
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
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
