//! What the boot services have and lack, for `rootstock boot doctor`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::nfs::NfsExport;

/// What the boot services have and lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootDoctor {
    /// Whether there are boot services.
    pub is_on: bool,
    /// Boot programs.
    pub programs: Vec<BootProgram>,
    /// Interfaces of the server.
    pub interfaces: Vec<BootInterfaceReport>,
    /// Ports that the services need.
    pub ports: Vec<BootPort>,
    /// The program of first stages.
    pub agent: AgentReport,
    /// What the head exports over NFS; absent when nothing there does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfs: Option<Vec<NfsExport>>,
    /// What is missing, in words.
    pub lacks: Vec<String>,
}

/// A boot program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootProgram {
    /// The name that firmware asks for.
    pub name: String,
    /// The processor.
    pub arch: String,
    /// `bios` or `uefi`.
    pub firmware: String,
    /// What it does.
    pub role: String,
    /// Whether machines of its kind need it.
    pub is_needed: bool,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What brings it.
    pub package: String,
}

/// An interface of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootInterfaceReport {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses with their networks.
    pub addresses: Vec<String>,
    /// What is done there; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Why nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Other DHCP servers that were seen there.
    pub rivals: Vec<String>,
}

/// A port that the services need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootPort {
    /// `udp` or `tcp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
    /// What for.
    pub purpose: String,
    /// Why it cannot be had; it can when absent. A port that the daemon itself
    /// listens on counts as had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The program of first stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentReport {
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
