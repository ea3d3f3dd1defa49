//! Images, their versions, tags and history.

use rootstock_core::{Digest, ImageName, TagName, VersionNumber, VersionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{RecipeDiff, RecipeSummary, share::Share, swarm::LiveCopies};

/// All images, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images.
    pub images: Vec<ImageSummary>,
}

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSummary {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ImageName,
    /// How many versions it has.
    pub version_count: u32,
    /// Its newest version.
    pub latest: Option<VersionSummary>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// When it was made.
    pub created: String,
}

/// An image with its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageDetail {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ImageName,
    /// When it was made.
    pub created: String,
    /// Whether its versions may be roots over NFS.
    #[serde(default)]
    pub nfs: bool,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its versions, oldest first.
    pub versions: Vec<VersionSummary>,
}

/// A tag and the version it points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tag {
    /// Its name.
    #[schema(value_type = String)]
    pub name: TagName,
    /// The version.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
}

/// Points a tag at a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TagTarget {
    /// The version: a number, `latest` or `@tag`.
    pub version: String,
}

/// A tag that was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TagSet {
    /// The version it points at now.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// The version it pointed at before.
    #[schema(value_type = Option<u32>)]
    pub before: Option<VersionNumber>,
}

/// A version in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionSummary {
    /// Its number.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// When it was committed.
    pub created: String,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of the disk in chunks that are not all zero.
    pub used_bytes: u64,
    /// Bytes of frames that were new to the store when it came.
    pub added_bytes: u64,
    /// What its author said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Tags that point at it.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub tags: Vec<TagName>,
}

/// A version in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionDetail {
    /// Its image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// What a list says of it.
    #[serde(flatten)]
    pub summary: VersionSummary,
    /// The manifest's id: BLAKE3 of its root document.
    #[schema(value_type = String)]
    pub manifest: Digest,
    /// The site's signature on name, number and manifest, in hex.
    pub seal: String,
    /// What it was made from: a file, a device, a volume.
    pub source: String,
    /// The version it was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<VersionSpec>,
    /// How many bytes it needs, and how many of them it alone needs.
    pub size: VersionSize,
    /// What is on the disk.
    pub facts: ImageFacts,
    /// Volumes made from it.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// The iSCSI name of its target.
    #[serde(default)]
    pub target: String,
    /// The initiators that may read it over iSCSI.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Recipes for it, by the version whose blocks they take.
    #[serde(default)]
    pub recipes: Vec<RecipeSummary>,
    /// What its boots read, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_set: Option<BootSet>,
    /// How many copies machines of the swarm hold of it, when some do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_copies: Option<LiveCopies>,
}

/// What the boots of a version read: what a machine is sent first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct BootSet {
    /// Different chunks.
    pub chunk_count: u64,
    /// Their raw bytes.
    pub raw_bytes: u64,
    /// Bytes of their frames: what goes over the network.
    pub frame_bytes: u64,
    /// How many boots it was learnt from.
    pub boots: u64,
    /// The version it was carried over from, while it has no boots of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub source: Option<VersionSpec>,
}

/// What a version weighs in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionSize {
    /// Different chunks it is made of.
    pub chunk_count: u64,
    /// Raw bytes of chunks that no other version has.
    pub unique_bytes: u64,
    /// Raw bytes of chunks that another version has too.
    pub shared_bytes: u64,
    /// Bytes of the frames of all its chunks and pages.
    pub stored_bytes: u64,
    /// Bytes of the frames that deleting it would free.
    pub stored_unique_bytes: u64,
}

/// What is on a disk, as far as the importer could tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFacts {
    /// The partition table: `none`, `mbr` or `gpt`.
    #[serde(default)]
    pub table: String,
    /// Partitions by place on the disk; for an unpartitioned disk, one with
    /// number 0 when there is a file system on it.
    #[serde(default)]
    pub partitions: Vec<PartitionFacts>,
    /// Versions of the Linux kernels found.
    #[serde(default)]
    pub kernels: Vec<String>,
    /// The operating system by its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Bytes that the file systems said are free and that read as zero now.
    #[serde(default)]
    pub dropped_free_bytes: u64,
    /// What boots from it: the daemon's own finding, which an import does not send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<ImageBootFacts>,
}

/// What boots from a version, or why nothing does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageBootFacts {
    /// The version of the kernel that boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The partition of the root; 0 is the whole disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The kernel's name of the root's file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<String>,
    /// The length of the first stage, once it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_bytes: Option<u64>,
    /// Whether the image's own initrd can log in to its disk over iSCSI, where it has one
    /// that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_initiator: Option<bool>,
    /// Why nothing boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionFacts {
    /// Its number in the table.
    pub number: u32,
    /// Where it begins.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// What the table says it is for.
    pub type_name: String,
    /// Its name (GPT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsFacts>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FsFacts {
    /// Its kind: `ext4`, `vfat`, `swap`…
    pub kind: String,
    /// Its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its UUID or serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Bytes in use, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Bytes free, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Why its free space was kept as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_whole_because: Option<String>,
    /// The volumes in it: the logical ones of LVM, or the contents of an array.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeFacts>,
}

/// A volume within a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeFacts {
    /// Its name.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// Its file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub fs: Option<FsFacts>,
}

/// What a holder of one version must fetch for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffReport {
    /// The version that is there.
    #[schema(value_type = String)]
    pub from: VersionSpec,
    /// The version that is wanted.
    #[schema(value_type = String)]
    pub to: VersionSpec,
    /// Chunk positions of `to` that hold something else than in `from`.
    pub changed_chunk_count: u64,
    /// Bytes of the disk at those positions.
    pub changed_bytes: u64,
    /// Different chunks that `from` has nowhere.
    pub fetch_chunk_count: u64,
    /// Their raw bytes.
    pub fetch_raw_bytes: u64,
    /// Bytes of their frames: what goes over the network.
    pub fetch_bytes: u64,
    /// Bytes of manifest pages to fetch.
    pub fetch_page_bytes: u64,
    /// All that a machine is sent without a recipe: records of frames, of manifest
    /// pages, and the root document.
    #[serde(default)]
    pub wire_bytes: u64,
    /// What the recipe makes of it, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<RecipeDiff>,
    /// Size of the disk in `from`.
    pub from_disk_bytes: u64,
    /// Size of the disk in `to`.
    pub to_disk_bytes: u64,
}

/// What happened to an image, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryList {
    /// The events.
    pub entries: Vec<HistoryEntry>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryEntry {
    /// When.
    pub time: String,
    /// What.
    pub event: HistoryEvent,
    /// The version it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub version: Option<VersionNumber>,
    /// The tag it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tag: Option<TagName>,
    /// More: a source, a message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Who: `local` for the Unix socket, or the token's name.
    pub actor: String,
}

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryEvent {
    /// A version came by import.
    Imported,
    /// A version came from a volume.
    Committed,
    /// A tag was pointed at a version.
    Tagged,
    /// A tag was taken away.
    Untagged,
    /// A version was deleted.
    Deleted,
    /// Its versions may be roots over NFS, or may not any more.
    NfsSet,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}
