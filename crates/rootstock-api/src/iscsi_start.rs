//! How a machine comes to the system on its disk over iSCSI.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What starts on a machine whose disk is reached over iSCSI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IscsiStart {
    /// The kernel, where the disk has a Linux whose own initrd has no initiator and can be
    /// given one; else the boot loader.
    #[default]
    Auto,
    /// The boot loader that is on the disk.
    Loader,
    /// The kernel and the initrd that are on the disk, with an initiator added to the initrd.
    Kernel,
}

impl fmt::Display for IscsiStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Loader => "loader",
            Self::Kernel => "kernel",
        })
    }
}

impl FromStr for IscsiStart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "loader" => Ok(Self::Loader),
            "kernel" => Ok(Self::Kernel),
            _ => Err("write auto, loader or kernel".to_owned()),
        }
    }
}
