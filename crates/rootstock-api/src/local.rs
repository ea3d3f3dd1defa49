//! What a machine keeps on its own disk to start when no server answers.
//!
//! A [`LocalOrder`] has nothing secret: no session, no volume, no identity. So it may
//! be asked for at any time of a boot, and of the version that comes next.

use rootstock_core::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::BootOrder;

/// What a start from the machine's own disk is: a [`LocalOrder`], with its signature
/// in [`crate::boot::ORDER_SIGNATURE_HEADER`]. `?image=lab&version=3` is the version
/// that is meant: the one it runs, or the one it is to run next.
pub const LOCAL_ORDER: &str = "/node/v1/local";

/// A file that a [`LocalOrder`] names: the same words, and `&name=kernel`.
pub const LOCAL_FILE: &str = "/node/v1/local/file";

/// Where a machine that started from its own disk asks for a boot token, followed by
/// its card's address: `/boot/local/52-54-00-12-34-56?runs=lab:3&manifest=HEX`, which is
/// the version that it runs and the id of its manifest. The answer is the token and nothing else, or 409 with the reason why there is none.
pub const LOCAL_TOKEN: &str = "/boot/local/";

/// Where a machine that holds an image for others gets its boot token: this and its MAC
/// address with dashes.
pub const HOLD_TOKEN: &str = "/boot/hold/";

/// The format of a [`LocalOrder`].
pub const LOCAL_FORMAT: u32 = 1;

/// The largest local order, in bytes.
pub const LOCAL_ORDER_BYTES_MAX: usize = 64 << 10;

/// The longest file that a local order names.
pub const LOCAL_FILE_BYTES_MAX: u64 = 256 << 20;

/// A BIOS's boot sector, by its name in [`LocalOrder::loader`].
pub const BOOT_IMG: &str = "boot.img";
/// What it loads.
pub const CORE_IMG: &str = "core.img";
/// What UEFI starts. Others whose names end so lie beside it.
pub const BOOT_EFI: &str = "BOOTX64.EFI";

/// How a machine is to start from its own disk. The bytes on the wire are what is
/// signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LocalOrder {
    /// [`LOCAL_FORMAT`].
    pub local_format: u32,
    /// What it runs, without a session, a volume and an identity.
    pub order: BootOrder,
    /// The kernel's arguments, but for Rootstock's own.
    pub arguments: Vec<String>,
    /// The version's kernel.
    pub kernel: LocalFile,
    /// The first stage made for it.
    pub first_stage: LocalFile,
    /// The boot loader's files, as far as the server has them.
    pub loader: Vec<LocalFile>,
    /// Why files of the boot loader lack, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// A file that is needed to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LocalFile {
    /// By which it is asked for.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// BLAKE3 of its bytes.
    #[schema(value_type = String)]
    pub digest: Digest,
}
