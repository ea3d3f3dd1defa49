//! Rollouts: a version brought to many nodes, a few at first.

use rootstock_core::{HostList, NodeName, ProfileName, VersionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::node::NodeState;

/// When machines that have the version are started anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutReboot {
    /// As soon as nobody is logged in.
    #[default]
    Idle,
    /// At once, whoever is logged in.
    Now,
    /// By whoever uses them: the version comes with their next boot.
    No,
}

/// Begins a rollout: of the nodes that are named, or of those that inherit their
/// image from a profile, which has the version itself at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutStart {
    /// The version, as `lab:8` or `lab@test`: what it is now.
    #[schema(value_type = String)]
    pub version: VersionSpec,
    /// The profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub profile: Option<ProfileName>,
    /// The nodes, as a host list: `n[001-300],m5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub nodes: Option<HostList>,
    /// Nodes that must come up with it before all others; 0 for none.
    #[serde(default = "canary_count")]
    pub canary_count: u32,
    /// Nodes that are under way at once after that.
    #[serde(default = "batch_count")]
    pub batch_count: u32,
    /// Failures after the canaries that do not stop it.
    #[serde(default = "failures_max")]
    pub failures_max: u32,
    /// When machines that have the version are started anew.
    #[serde(default)]
    pub reboot: RolloutReboot,
    /// The time of the day before which it does nothing, as `02:00`, by the site's
    /// clock; at once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Whether machines that are off are woken.
    #[serde(default)]
    pub wake: bool,
    /// Whether it is only worked out.
    #[serde(default)]
    pub dry_run: bool,
}

const fn canary_count() -> u32 {
    1
}

const fn batch_count() -> u32 {
    20
}

const fn failures_max() -> u32 {
    3
}

/// What a rollout does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStarted {
    /// Its number; absent when it was only worked out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<u64>,
    /// The version, by its number.
    #[schema(value_type = String)]
    pub version: VersionSpec,
    /// It does nothing before.
    pub starts: String,
    /// Its nodes.
    pub nodes: Vec<RolloutForecast>,
    /// Nodes of the profile that it leaves alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<RolloutLeft>,
}

/// What a rollout means to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutForecast {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// How it does now.
    pub state: NodeState,
    /// The version that it runs, or came up with last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub from: Option<VersionSpec>,
    /// Bytes that it fetches while that runs; absent when that is not known, and 0
    /// when it keeps nothing on a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many people are logged in.
    #[serde(default)]
    pub users: u32,
}

/// A node that a rollout leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutLeft {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// Why, for people.
    pub reason: String,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutState {
    /// It waits for its time.
    Scheduled,
    /// It goes on.
    Running,
    /// An administrator halted it.
    Paused,
    /// Too much failed, and it halted itself.
    Stopped,
    /// All nodes have the version, or get it with their next boot, or failed.
    Done,
    /// An administrator ended it.
    Aborted,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}

impl RolloutState {
    /// The state as it stands in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
        }
    }

    /// Whether nothing happens any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

/// All rollouts that are not over, and the last that are, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutList {
    /// The rollouts.
    pub rollouts: Vec<Rollout>,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// Its number.
    pub rollout: u64,
    /// The version.
    #[schema(value_type = String)]
    pub version: VersionSpec,
    /// The profile whose nodes they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub profile: Option<ProfileName>,
    /// Nodes that must come up with it before all others.
    pub canary_count: u32,
    /// Nodes that are under way at once after that.
    pub batch_count: u32,
    /// Failures after the canaries that do not stop it.
    pub failures_max: u32,
    /// When machines that have the version are started anew.
    pub reboot: RolloutReboot,
    /// Whether machines that are off are woken.
    pub wake: bool,
    /// Who began it.
    pub actor: String,
    /// When it was begun.
    pub created: String,
    /// It does nothing before.
    pub starts: String,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// How far it is.
    pub state: RolloutState,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How far its nodes are.
    pub counts: RolloutCounts,
}

/// How many nodes of a rollout are how far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RolloutCounts {
    /// Nothing was done yet.
    pub waiting: u64,
    /// The version is assigned to them.
    pub assigned: u64,
    /// They were told to start anew.
    pub restarting: u64,
    /// They were off, and were woken.
    pub waking: u64,
    /// They came up with the version.
    pub good: u64,
    /// They did not.
    pub failed: u64,
    /// They get it with their next boot; nobody waits for that.
    pub later: u64,
    /// They are not the rollout's any more.
    pub left: u64,
}

/// A rollout and its nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutDetail {
    /// The rollout.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// Its nodes.
    pub nodes: Vec<RolloutNode>,
}

/// A node of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutNode {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// How far it is: a member's name of the counts.
    pub state: String,
    /// Since when.
    pub since: String,
    /// More, for people.
    pub detail: String,
}
