//! Parameter lists of commands that change the medium: UNMAP, WRITE SAME.

use rootstock_core::{ByteRange, units::is_zero};

use crate::{action::Action, reply::Reply, sense::Sense, unit::Unit};

const UNMAP_HEADER_BYTES: usize = 8;
const UNMAP_DESCRIPTOR_BYTES: usize = 16;

/// UNMAP (SBC-3 5.28.2): what is to be discarded.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR, INVALID FIELD IN PARAMETER LIST for more than
/// the limits allow, LOGICAL BLOCK ADDRESS OUT OF RANGE.
pub(crate) fn unmap(unit: &Unit, list: &[u8]) -> Result<Action, Sense> {
    let header = list
        .get(..UNMAP_HEADER_BYTES)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let descriptors = list[UNMAP_HEADER_BYTES..]
        .get(..len)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    // A part of a descriptor at the end does not count.
    let descriptors = descriptors.chunks_exact(UNMAP_DESCRIPTOR_BYTES);
    if descriptors.len() > unit.limits.unmap_descriptors_max as usize {
        return Err(Sense::parameter_byte(2));
    }
    let mut ranges = Vec::with_capacity(descriptors.len());
    let mut total = 0_u64;
    for descriptor in descriptors {
        let (lba, blocks) = unmap_descriptor(descriptor);
        if lba > unit.blocks || blocks > unit.blocks - lba {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        total += blocks;
        if total > u64::from(unit.limits.unmap_blocks_max) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        if blocks > 0 {
            ranges.push(unit.span(lba, blocks));
        }
    }
    if ranges.is_empty() {
        return Ok(Action::Done(Reply::good()));
    }
    Ok(Action::Unmap { ranges })
}

fn unmap_descriptor(bytes: &[u8]) -> (u64, u64) {
    let number = |range: std::ops::Range<usize>| {
        let bytes = bytes.get(range).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |all, byte| (all << 8) | u64::from(*byte))
    };
    (number(0..8), number(8..12))
}

/// WRITE SAME (SBC-3 5.43, 5.44): zeros take no space, whether UNMAP asks for
/// it or not; anything else is written, even where UNMAP is set, since it would
/// not be read back otherwise (SBC-3 4.7).
pub(crate) fn write_same(
    range: ByteRange,
    block_bytes: u32,
    block: &[u8],
) -> Result<Action, Sense> {
    if block.len() != block_bytes as usize {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    if is_zero(block) {
        return Ok(Action::Zero { range });
    }
    Ok(Action::Fill {
        range,
        block: block.to_vec(),
    })
}

#[cfg(test)]
mod tests;
