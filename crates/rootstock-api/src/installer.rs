//! Installers of distributions, which machines are started with once, before they run
//! what their mode says.

use std::collections::BTreeMap;

use rootstock_core::{HostList, InstallerName, NodeName, VolumeName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// All installers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstallerList {
    /// By name.
    pub installers: Vec<Installer>,
    /// The directory on the server that they are in.
    pub directory: String,
}

/// An installer: a kernel, its initrd, and the files that answer its questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Installer {
    /// Its name: its folder's.
    #[schema(value_type = String)]
    pub name: InstallerName,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Its kernel, a path on the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// Its initrd, in parts.
    #[serde(default)]
    pub initrd: Vec<String>,
    /// The files that are made for each machine of templates.
    #[serde(default)]
    pub files: Vec<String>,
    /// What tells that it is done.
    #[serde(default)]
    pub ends: InstallerEnd,
    /// How often it is started until it is given up.
    #[serde(default)]
    pub starts_max: u32,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What tells that an installer is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstallerEnd {
    /// It calls home.
    #[default]
    Call,
    /// The machine starts again, after the installer was sent whole.
    Restart,
}

/// Asks for what an installer would be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallerRender {
    /// The node that it would run on.
    #[schema(value_type = String)]
    pub node: NodeName,
}

/// What an installer would be given on a node. Secrets in it are not those of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstallerRendered {
    /// Its kernel's arguments.
    pub arguments: Vec<String>,
    /// The files, by name.
    pub files: BTreeMap<String, String>,
}

/// Has nodes run an installer at their next boot: all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodesInstall {
    /// The nodes, as a host list: `n[001-300],m5`.
    #[schema(value_type = String)]
    pub nodes: HostList,
    /// The installer.
    #[schema(value_type = String)]
    pub installer: InstallerName,
    /// How large the volume is made of a node whose disk is one that is not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_bytes: Option<u64>,
    /// Whether nodes that run may be among them.
    #[serde(default)]
    pub force: bool,
}

/// What was made ready for an installer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodesInstalling {
    /// The nodes.
    pub nodes: Vec<InstallTarget>,
}

/// Where an installer finds the disk of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstallTarget {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// The volume, when its disk is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volume: Option<VolumeName>,
    /// Whether the volume was made for it.
    #[serde(default)]
    pub made: bool,
}

/// What an installer is to do on a node, or did last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstallerRun {
    /// The installer.
    #[schema(value_type = String)]
    pub installer: InstallerName,
    /// How far it is.
    pub state: InstallerRunState,
    /// When it was asked for.
    pub asked: String,
    /// How often it was started.
    #[serde(default)]
    pub starts: u32,
    /// When it was started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When it was done, or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Why it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far an installer is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstallerRunState {
    /// It starts with the node's next boot.
    Waiting,
    /// It was started.
    Running,
    /// It is done.
    Done,
    /// It was given up: the node waits.
    Failed,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}
