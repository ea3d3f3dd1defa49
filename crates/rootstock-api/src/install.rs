//! Installing: the image is laid out on a disk of the machine's own, which then boots
//! without us.

use std::{fmt, str::FromStr};

use rootstock_core::VersionSpec;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::boot::is_device;

/// The disk that an image is laid out on, such as `/dev/sda` or
/// `/dev/disk/by-id/...`. Whatever it holds is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallDisk(String);

impl InstallDisk {
    /// The device's path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstallDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for InstallDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_device(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("write a whole disk, such as /dev/sda or /dev/disk/by-id/...".to_owned())
        }
    }
}

impl Serialize for InstallDisk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InstallDisk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// That a machine is to lay the version that it runs out on a disk of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct InstallOrder {
    /// Which disk: without a name one that is empty, or was installed for this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub disk: Option<InstallDisk>,
}

/// How far an installation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstallState {
    /// Nothing was changed on any disk.
    #[default]
    Waiting,
    /// The disk does not boot, until all of the image is there. The machine changes
    /// nothing on the disk before the server has taken a report that says so.
    Laying,
    /// The disk boots, and holds all of the image.
    Installed,
    /// Nothing more is written until the machine boots anew.
    Failed,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}

/// How a machine lays its image out on a disk of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct InstallReport {
    /// How far it is.
    pub state: InstallState,
    /// The disk, such as `/dev/sda`; empty while it is not known.
    pub device: String,
    /// Why it waits or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes of the image.
    pub bytes: u64,
    /// How many of them were seen to be right on the disk, or were written.
    pub done_bytes: u64,
    /// Bytes that were not right there, and were written.
    pub written_bytes: u64,
    /// Bytes of frames that came from a server for that.
    pub fetched_bytes: u64,
    /// The estimate until it is done, while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_to_complete: Option<u64>,
}

/// What a node has on a disk of its own, and boots by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Installation {
    /// The version.
    #[schema(value_type = String)]
    pub version: VersionSpec,
    /// The disk, as the machine named it.
    pub device: String,
    /// When it was complete.
    pub at: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_device() {
        for text in ["/dev/sda", "/dev/disk/by-id/ata-WDC_WD10-1"] {
            let disk: InstallDisk = text.parse().expect("is one");
            assert_eq!(disk.to_string(), text);
            let json = serde_json::to_string(&disk).expect("serializes");
            assert_eq!(
                serde_json::from_str::<InstallDisk>(&json).expect("reads"),
                disk
            );
        }
        for text in ["", "auto", "none", "sda", "/dev/", "/dev/../etc/shadow"] {
            let error = text.parse::<InstallDisk>().expect_err(text);
            assert!(error.contains("/dev/sda"), "{error}");
        }
    }
}
