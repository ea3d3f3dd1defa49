//! Nodes and profiles: machines, what they are to run, and how they come up.

use std::{collections::BTreeMap, net::Ipv4Addr};

use rootstock_core::{HostList, MacAddress, NodeName, ProfileName, VersionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    boot::{BootStep, Inventory, NodeReport},
    install::Installation,
    installer::InstallerRun,
    settings::{Setting, Settings, strict},
    swarm::NodeSwarm,
};

/// All nodes, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name, which is its host name too.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// How it does.
    pub state: NodeState,
    /// The profile it inherits from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub profile: Option<ProfileName>,
    /// Its network cards.
    #[schema(value_type = Vec<String>)]
    pub macs: Vec<MacAddress>,
    /// Its SMBIOS UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The address that is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// What is set on the node itself.
    pub settings: Settings,
    /// What holds for it, inherited settings included.
    pub effective: Settings,
    /// Where each of these comes from, by the setting's name.
    pub origins: BTreeMap<String, Origin>,
    /// What it is made of, once it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// When it was added or found.
    pub created: String,
    /// When it was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<String>,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
    /// Its last boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootSummary>,
    /// What it said last of itself, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<NodeReport>,
    /// Why it does not boot the version that is assigned to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<Abandoned>,
    /// What it has on a disk of its own, and boots by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<Installation>,
    /// What an installer is to do there, or did last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installer: Option<InstallerRun>,
    /// Why it would fetch nothing ahead now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_paused: Option<String>,
    /// How it takes part in the swarm, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swarm: Option<NodeSwarm>,
}

/// A version that a node does not come up with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Abandoned {
    /// The version, which is assigned to the node.
    #[schema(value_type = String)]
    pub version: VersionSpec,
    /// When it failed last.
    pub at: String,
    /// Why, for people.
    pub reason: String,
    /// What the node boots instead: the last version that it came up with. Without
    /// one it tries again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub instead: Option<VersionSpec>,
}

/// How a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It was found on the wire, and waits for approval.
    Held,
    /// It may boot, and does not.
    Ready,
    /// It is on its way.
    Booting,
    /// Its system is up.
    Up,
    /// It was shut down or went silent.
    Gone,
    /// Its last boot failed.
    Failed,
    /// It was sent to its own disk, and is under control again at its next boot from
    /// the network.
    OwnDisk,
    /// An installer runs on it.
    Installing,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}

impl NodeState {
    /// The state as it stands in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Ready => "ready",
            Self::Booting => "booting",
            Self::Up => "up",
            Self::Gone => "gone",
            Self::Failed => "failed",
            Self::OwnDisk => "own-disk",
            Self::Installing => "installing",
            Self::Unknown => "unknown",
        }
    }
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// It is set on the node itself.
    Node,
    /// It is set on this profile.
    Profile {
        /// Its name.
        #[schema(value_type = String)]
        name: ProfileName,
    },
    /// The node's network has a profile, which sets it.
    Network {
        /// The profile's name.
        #[schema(value_type = String)]
        profile: ProfileName,
    },
    /// Nobody sets it.
    Default,
}

/// A node's last boot in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootSummary {
    /// Its id.
    pub boot: String,
    /// When it began.
    pub started: String,
    /// How far it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<BootStep>,
    /// When it came there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// For people: what was done there, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Bytes moved up to there.
    #[serde(default)]
    pub bytes: u64,
    /// The version that it runs, until the boot is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub running: Option<VersionSpec>,
}

/// A node to be added, or as an export writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Its network cards.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub macs: Vec<MacAddress>,
    /// Its SMBIOS UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The address that is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// The profile it inherits from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub profile: Option<ProfileName>,
    /// What is set on the node itself.
    #[serde(default, deserialize_with = "strict")]
    pub settings: Settings,
}

/// Adds nodes: all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeCreate {
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
}

/// Names nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeNames {
    /// The nodes, as a host list: `n[001-300],m5`.
    #[schema(value_type = String)]
    pub nodes: HostList,
}

/// Names nodes that go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeDelete {
    /// The nodes, as a host list: `n[001-300],m5`.
    #[schema(value_type = String)]
    pub nodes: HostList,
    /// Whether nodes that run may go: they lose their disk.
    #[serde(default)]
    pub force: bool,
}

/// Brings nodes back to the image that was set on them before: all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeRollback {
    /// The nodes, as a host list: `n[001-300],m5`.
    #[schema(value_type = String)]
    pub nodes: HostList,
    /// Whether the change is only worked out and checked.
    #[serde(default)]
    pub dry_run: bool,
}

/// Has another machine take a node's place: it gets the node's name, settings, keys and
/// volume. A node that this machine was found as, and that waits for approval, goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeReplace {
    /// The new machine's network cards.
    #[schema(value_type = Vec<String>)]
    pub macs: Vec<MacAddress>,
    /// Its SMBIOS UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Also when the old machine runs.
    #[serde(default)]
    pub force: bool,
}

/// Brings a profile back to the image that was set on it before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileRollback {
    /// Whether the change is only worked out and checked.
    #[serde(default)]
    pub dry_run: bool,
}

/// Names nodes that start anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeReboot {
    /// The nodes, as a host list: `n[001-300],m5`.
    #[schema(value_type = String)]
    pub nodes: HostList,
    /// Whether the kernel may do it where the system itself takes too long.
    #[serde(default)]
    pub force: bool,
}

/// Nodes that were told something, and those that could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodesTold {
    /// Those that were told.
    #[schema(value_type = Vec<String>)]
    pub nodes: Vec<NodeName>,
    /// The others: they do not run, or run already.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub others: Vec<NodeName>,
}

/// Nodes that something was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodesDone {
    /// The nodes.
    #[schema(value_type = Vec<String>)]
    pub nodes: Vec<NodeName>,
    /// Those of them that were running.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub running: Vec<NodeName>,
}

/// Changes nodes: all or none. What is not named stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSet {
    /// The nodes, as a host list: `n[001-300],m5`.
    #[schema(value_type = String)]
    pub nodes: HostList,
    /// Settings that the nodes get.
    #[serde(default, deserialize_with = "strict")]
    pub set: Settings,
    /// Settings that the nodes lose, so that they inherit them.
    #[serde(default)]
    pub unset: Vec<Setting>,
    /// The profile that they inherit from.
    #[serde(default)]
    #[schema(value_type = Change<String>)]
    pub profile: Change<ProfileName>,
    /// The UUID, for one node.
    #[serde(default)]
    pub uuid: Change<String>,
    /// The address that is its own, for one node.
    #[serde(default)]
    #[schema(value_type = Change<String>)]
    pub address: Change<Ipv4Addr>,
    /// Network cards that the node gets, for one node.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub add_macs: Vec<MacAddress>,
    /// Network cards that it loses, for one node.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub remove_macs: Vec<MacAddress>,
    /// Whether the change is only worked out and checked.
    #[serde(default)]
    pub dry_run: bool,
}

impl NodeSet {
    /// A change of these nodes that changes nothing yet.
    #[must_use]
    pub fn of(nodes: HostList) -> Self {
        Self {
            nodes,
            set: Settings::default(),
            unset: Vec::new(),
            profile: Change::Keep,
            uuid: Change::Keep,
            address: Change::Keep,
            add_macs: Vec::new(),
            remove_macs: Vec::new(),
            dry_run: false,
        }
    }
}

/// What becomes of a value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change<T> {
    /// It stays.
    #[default]
    Keep,
    /// It goes.
    Unset,
    /// It becomes this.
    Set(T),
}

/// What a change does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeReport {
    /// What changes, by name; what does not change is left out.
    pub changes: Vec<NamedChange>,
    /// Whether it was done.
    pub applied: bool,
    /// Nodes among them that run and change when they boot anew; what holds at
    /// once is no reason to be here.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub running: Vec<NodeName>,
}

/// What changes of one node or profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedChange {
    /// The node's or profile's name.
    pub name: String,
    /// Whether it is new.
    #[serde(default)]
    pub is_new: bool,
    /// Its values.
    pub fields: Vec<FieldChange>,
}

/// A value before and after, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// A setting, or `profile`, `macs`, `uuid`, `address`, `parent`.
    pub field: String,
    /// What it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// How a list of nodes is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeFormat {
    /// `{"nodes": [...]}`, each as [`NodeSpec`].
    Json,
    /// `[[nodes]]` tables with the same members.
    Toml,
    /// A line for each network card: `mac,name,…` below a line of titles.
    Csv,
}

/// Nodes as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeText {
    /// How it is written.
    pub format: NodeFormat,
    /// The text.
    pub text: String,
}

/// Adds and changes nodes so that they are as a text says: all or none. Nodes
/// that are not in it stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeImport {
    /// How it is written.
    pub format: NodeFormat,
    /// The text.
    pub text: String,
    /// Whether the change is only worked out and checked.
    #[serde(default)]
    pub dry_run: bool,
}

/// Boots of a node, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootList {
    /// The boots.
    pub boots: Vec<BootTranscript>,
}

/// A boot, step by step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootTranscript {
    /// Its id.
    pub boot: String,
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// When it began.
    pub started: String,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The version that it was told to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<VersionSpec>,
    /// Its steps, in order.
    pub steps: Vec<BootEvent>,
}

/// A step of a boot, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootEvent {
    /// Which.
    pub step: BootStep,
    /// When the server learned of it.
    pub at: String,
    /// Since the boot began, in milliseconds.
    pub since_start_ms: u64,
    /// How long the machine's kernel had been running, once it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// Bytes moved up to here.
    #[serde(default)]
    pub bytes: u64,
    /// For people: what was done, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A line of the live view. At first there is one [`NodeEvent::Node`] for each
/// node, then one for each change, and one for each report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum NodeEvent {
    /// How a node does now.
    Node(NodeStatus),
    /// A node that runs said how it does.
    Report {
        /// Its name.
        #[schema(value_type = String)]
        node: NodeName,
        /// What it said.
        report: NodeReport,
    },
    /// A node was deleted.
    Deleted {
        /// Its name.
        #[schema(value_type = String)]
        node: NodeName,
    },
    /// Nothing happened; the daemon is there.
    Alive,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}

/// How a node does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// How it does.
    pub state: NodeState,
    /// Its last boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootSummary>,
    /// What it said last of itself, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<NodeReport>,
}

/// All profiles, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProfileList {
    /// The profiles.
    pub profiles: Vec<Profile>,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Profile {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ProfileName,
    /// The profile it inherits from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<ProfileName>,
    /// What is set on the profile itself.
    pub settings: Settings,
    /// What its heirs get, inherited settings included.
    pub effective: Settings,
    /// Where each of these comes from, by the setting's name.
    pub origins: BTreeMap<String, Origin>,
    /// How many nodes name it.
    pub node_count: u64,
    /// When it was made.
    pub created: String,
}

/// Makes a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileCreate {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ProfileName,
    /// The profile it inherits from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<ProfileName>,
    /// What is set on it.
    #[serde(default, deserialize_with = "strict")]
    pub settings: Settings,
}

/// Changes a profile. What is not named stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileSet {
    /// Settings that it gets.
    #[serde(default, deserialize_with = "strict")]
    pub set: Settings,
    /// Settings that it loses.
    #[serde(default)]
    pub unset: Vec<Setting>,
    /// The profile that it inherits from.
    #[serde(default)]
    #[schema(value_type = Change<String>)]
    pub parent: Change<ProfileName>,
    /// Whether the change is only worked out and checked.
    #[serde(default)]
    pub dry_run: bool,
}
