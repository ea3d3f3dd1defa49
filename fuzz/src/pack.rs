//! Packs as fuzz inputs: records and an index whose checksums are set here.

use rootstock_core::Digest;
use rootstock_store::pack::{FOOTER_BYTES, FOOTER_MAGIC, HEADER_BYTES, RECORD_BYTES, RECORD_MAGIC};

/// The most records whose checksums are set.
const RECORDS_MAX: usize = 64;

/// Sets the checksums of a pack's records and of its footer, and returns the
/// digest of its index, which is the pack's id.
pub fn mend(pack: &mut [u8]) -> Digest {
    let mut at = HEADER_BYTES;
    for _ in 0..RECORDS_MAX {
        let Some(record) = pack.get_mut(at..at.saturating_add(RECORD_BYTES)) else {
            break;
        };
        if record[..4] != RECORD_MAGIC {
            break;
        }
        let sum = Digest::of(&record[..80]);
        record[80..88].copy_from_slice(&sum.as_bytes()[..8]);
        let frame_bytes = u32::from_le_bytes([72, 73, 74, 75].map(|i| record[i]));
        at = at.saturating_add(RECORD_BYTES + frame_bytes as usize);
    }
    let Some(footer_at) = pack.len().checked_sub(FOOTER_BYTES) else {
        return Digest::of(&[]);
    };
    let (body, footer) = pack.split_at_mut(footer_at);
    let index_at = u64::from_le_bytes([32, 33, 34, 35, 36, 37, 38, 39].map(|i| footer[i]));
    let index_at = usize::try_from(index_at).unwrap_or(usize::MAX);
    let id = Digest::of(body.get(index_at..).unwrap_or_default());
    footer[..32].copy_from_slice(id.as_bytes());
    let sum = Digest::of(&footer[..48]);
    footer[48..56].copy_from_slice(&sum.as_bytes()[..8]);
    footer[56..].copy_from_slice(&FOOTER_MAGIC);
    id
}
