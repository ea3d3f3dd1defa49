//! Shares: which iSCSI initiators may use a volume or a version.

use rootstock_core::VolumeName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An initiator that may use a volume or a version over iSCSI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Share {
    /// Its iSCSI name.
    pub initiator: String,
    /// The network that it must come from, if from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it must prove.
    pub chap: ChapMode,
    /// Where it is sent instead, as `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
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

/// Shares a volume or a version with an initiator over iSCSI, or changes how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareSet {
    /// Its iSCSI name: `iqn.…`, `eui.…` or `naa.…`.
    pub initiator: String,
    /// The network that it must come from: `10.0.0.0/24`, or one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it must prove; the secrets are made anew.
    #[serde(default)]
    pub chap: ChapMode,
    /// Where it is sent instead: `HOST:PORT`, a host being an address or a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// The target that a volume is to be a disk of; as it was when absent, and first one
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub target: Option<VolumeName>,
    /// Its number there; the lowest that is free when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
}

/// Ends a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareEnd {
    /// The initiator's iSCSI name.
    pub initiator: String,
}

/// A volume or a version that is shared. The secrets are shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SharedTarget {
    /// The target's iSCSI name.
    pub target: String,
    /// The disk's number in the target.
    #[serde(default)]
    pub lun: u16,
    /// Where it is found; nowhere when the daemon serves no iSCSI.
    pub addresses: Vec<String>,
    /// With whom it is shared.
    pub share: Share,
    /// What the initiator must know; its user name may be any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// What the target proves to know; its user name is the target's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_secret: Option<String>,
}

impl std::fmt::Debug for SharedTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedTarget")
            .field("target", &self.target)
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}
