//! Roots over NFS: what machines want, what the head exports, and where a machine finds it.

use std::net::IpAddr;

use rootstock_core::{Digest, ImageName, VersionNumber, VersionSelector, VersionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a question is held for which nothing has changed, in seconds.
pub const NFS_HOLD_SECONDS: u32 = 10;

/// The most versions that one head exports at once.
pub const NFS_EXPORTS_MAX: usize = 64;

/// Whether versions of an image may be the roots of machines over NFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NfsSet {
    /// Whether they may: then the kernel of the head mounts their file systems.
    pub allowed: bool,
}

/// Where a machine mounts its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NfsPlace {
    /// The server.
    #[schema(value_type = String)]
    pub server: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// The path of the export, such as `/lab/3`.
    pub path: String,
}

/// What a head exports, as its `rootstock nfs serve` tells it; or the question what it is
/// to export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NfsState {
    /// The number of the [`NfsWanted`] that was read last; 0 before the first. A question
    /// that knows the newest one is held until there is a newer one.
    #[serde(default)]
    pub after: u64,
    /// What is exported, or failed to be. With it the answer is given at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exports: Option<Vec<NfsExport>>,
}

/// A version that a head exports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NfsExport {
    /// What it is.
    #[serde(flatten)]
    pub root: NfsRoot,
    /// The TCP port of its server.
    pub port: u16,
    /// Who may read it.
    #[schema(value_type = Vec<String>)]
    pub clients: Vec<IpAddr>,
    /// Why it cannot be read; it can when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a head is to export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NfsWanted {
    /// Another one has another number.
    pub number: u64,
    /// What machines boot from or run.
    pub exports: Vec<NfsWant>,
}

/// A version that machines want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NfsWant {
    /// What it is.
    #[serde(flatten)]
    pub root: NfsRoot,
    /// Who is to read it.
    #[schema(value_type = Vec<String>)]
    pub clients: Vec<IpAddr>,
}

/// The root file system of a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct NfsRoot {
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// Its version.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// The manifest's id.
    #[schema(value_type = String)]
    pub manifest: Digest,
    /// The number of the partition; 0 is the whole disk.
    pub partition: u32,
    /// The kernel's name of the file system, such as `ext4`.
    pub fs: String,
    /// Mount options, such as `subvol=@`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
}

impl NfsRoot {
    /// The version as it is written, such as `lab:8`.
    #[must_use]
    pub fn spec(&self) -> VersionSpec {
        VersionSpec {
            image: self.image.clone(),
            selector: VersionSelector::Number(self.version),
        }
    }

    /// The path that it is exported as, such as `/lab/8`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}/{}", self.image, self.version)
    }
}
