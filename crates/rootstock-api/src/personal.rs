//! Personal machines: where their writes are, and how those become a version.

use std::{fmt, str::FromStr};

use rootstock_core::{Digest, ImageName, NodeName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::volume::VolumeCommitted;

/// Which of these chunks of a commit the server lacks: `?commit=ID`; ids, and a bit for
/// each.
pub const COMMIT_LACKING: &str = "/node/v1/commit/lacking";

/// Takes chunks of a commit: `?commit=ID`, and records.
pub const COMMIT_CHUNKS: &str = "/node/v1/commit/chunks";

/// Tells how far a commit is: `?commit=ID`, and a [`CommitTold`].
pub const COMMIT: &str = "/node/v1/commit";

/// How often a machine goes over all that it wrote, when the server misses chunks at the
/// end of a commit.
pub const COMMIT_PASSES_MAX: u32 = 3;

/// Bodies of chunks that a machine sends at once for a commit.
pub const COMMIT_BODIES_MAX: usize = 2;

/// Where a personal machine's writes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PersonalPlace {
    /// In a volume of its own on the server.
    #[default]
    Server,
    /// On a disk of the machine's own.
    Disk,
}

impl fmt::Display for PersonalPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Server => "server",
            Self::Disk => "disk",
        })
    }
}

impl FromStr for PersonalPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "server" => Ok(Self::Server),
            "disk" => Ok(Self::Disk),
            _ => Err("write server or disk".to_owned()),
        }
    }
}

/// What becomes of writes over a version when the machine runs another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OtherWrites {
    /// They stay, and are there again when it goes back to that version.
    #[default]
    Keep,
    /// They are dropped.
    Drop,
}

impl fmt::Display for OtherWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
        })
    }
}

impl FromStr for OtherWrites {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "drop" => Ok(Self::Drop),
            _ => Err("write keep or drop".to_owned()),
        }
    }
}

/// How a machine keeps what it writes on a disk of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PersonalOrder {
    /// Higher each time that an administrator has the writes dropped. What was written
    /// when it was lower is dropped.
    pub resets: u32,
    /// What becomes of writes over other versions.
    pub others: OtherWrites,
}

/// That a machine is to send what it wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommitOrder {
    /// What it is called in requests.
    pub commit: String,
}

/// What a machine tells of a commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommitProgress {
    /// Bytes of chunks gone through.
    pub done_bytes: u64,
    /// Bytes of chunks to go through.
    pub total_bytes: u64,
    /// Bytes of frames that were sent.
    pub sent_bytes: u64,
}

/// How far a machine is with a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum CommitTold {
    /// It goes on.
    Going(CommitProgress),
    /// All chunks were sent: the manifest's id.
    Sent {
        /// The root document, which was sent as a chunk.
        #[schema(value_type = String)]
        manifest: Digest,
    },
    /// It cannot be done.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Where a commit of a node's writes is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeCommitState {
    /// The machine was not heard of it yet.
    #[default]
    Waiting,
    /// The machine sends what it wrote.
    Going,
    /// There is a version, or was one already.
    Done,
    /// There is none.
    Failed,
}

/// A commit of what a node wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCommit {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// The image that gets the version.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// When it was asked for.
    pub begun: String,
    /// Where it is.
    pub state: NodeCommitState,
    /// How far it is.
    pub progress: CommitProgress,
    /// `done`: the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<VolumeCommitted>,
    /// `failed`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
