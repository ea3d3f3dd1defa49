//! What is chosen when a volume is made.

use rootstock_api::ProblemCode;
use rootstock_core::{SECTOR_BYTES, VolumeName};

use crate::http::ApiError;

/// What a volume is for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Whether its writes are dropped when its last client leaves.
    pub(crate) ephemeral: bool,
    /// The logical blocks of its disk over iSCSI.
    pub(crate) block_bytes: u32,
}

impl Kind {
    /// What machines boot from: blocks of 512 bytes, as in the images that there are.
    pub(crate) const fn bootable(ephemeral: bool) -> Self {
        Self {
            ephemeral,
            block_bytes: SECTOR_BYTES as u32,
        }
    }
}

/// A disk is of whole blocks.
pub(super) fn check_blocks(
    name: &VolumeName,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<(), ApiError> {
    let detail = if !matches!(block_bytes, 512 | 4096) {
        format!("volume '{name}' cannot have blocks of {block_bytes} B")
    } else if !size_bytes.is_multiple_of(block_bytes.into()) {
        format!("volume '{name}' of {size_bytes} B is not of whole blocks of {block_bytes} B")
    } else {
        return Ok(());
    };
    Err(ApiError::new(ProblemCode::BadValue, detail)
        .with_hint("blocks have 512 or 4,096 bytes, and a disk is of whole ones"))
}
