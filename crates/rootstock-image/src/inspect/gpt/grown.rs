//! A GPT on a disk that is longer than the image it was made for: the second copy
//! goes to the disk's end (UEFI 2.10, section 5.3.2).

use super::{super::checksum::crc32, Copy};

const SECTOR_BYTES: u64 = 512;
/// Where the fields of a header are.
const HEADER_CRC_AT: usize = 16;
const OWN_SECTOR_AT: usize = 24;
const ALTERNATE_AT: usize = 32;
const LAST_USABLE_AT: usize = 48;
const ENTRIES_SECTOR_AT: usize = 72;
/// The first slot of the protective record (section 5.2.3): its type, and how many
/// sectors it covers.
const SLOT_KIND_AT: usize = 446 + 4;
const SLOT_SECTORS_AT: usize = 446 + 12;
const PROTECTIVE: u8 = 0xee;

/// Both copies of a GPT, for a disk of a certain length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrownGpt {
    /// The disk's first bytes, as long as they were given.
    pub front: Vec<u8>,
    /// The second copy: entries, and then the header in the disk's last sector.
    pub tail: Vec<u8>,
    /// Where the second copy begins.
    pub tail_at_bytes: u64,
}

/// Why a GPT cannot be made to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrowError {
    /// Its first copy does not hold.
    #[error("the image's GPT is damaged: import the image again after `sgdisk --verify`")]
    Damaged,
    /// There is no room for the second copy behind the first.
    #[error("a disk of {disk_bytes} B has no room for two copies of the image's GPT")]
    TooSmall {
        /// Its length.
        disk_bytes: u64,
    },
}

/// The GPT that begins in `front`, a disk's first bytes, for a disk of `disk_bytes`;
/// nothing when there is none. Sectors are of 512 bytes.
///
/// # Errors
/// [`GrowError`].
pub fn grown_gpt(front: &[u8], disk_bytes: u64) -> Result<Option<GrownGpt>, GrowError> {
    let header_at = SECTOR_BYTES as usize;
    if front.get(header_at..header_at + 8) != Some(b"EFI PART") {
        return Ok(None);
    }
    let read = Copy::read(&front.to_vec(), SECTOR_BYTES, 1);
    let Ok(Some(copy)) = read else {
        return Err(GrowError::Damaged);
    };
    let entries_sectors = copy.entries.len.div_ceil(SECTOR_BYTES);
    let behind_first = copy.entries.end().div_ceil(SECTOR_BYTES);
    let last = (disk_bytes / SECTOR_BYTES).saturating_sub(1);
    let Some(tail_sector) = last
        .checked_sub(entries_sectors)
        .filter(|at| *at > behind_first)
    else {
        return Err(GrowError::TooSmall { disk_bytes });
    };

    let mut front = front.to_vec();
    if front[SLOT_KIND_AT] == PROTECTIVE {
        // All of the disk, or as much as the field can say.
        let sectors = u32::try_from(last).unwrap_or(u32::MAX);
        front[SLOT_SECTORS_AT..SLOT_SECTORS_AT + 4].copy_from_slice(&sectors.to_le_bytes());
    }
    let header = &mut front[header_at..header_at + SECTOR_BYTES as usize];
    put(header, ALTERNATE_AT, last);
    put(header, LAST_USABLE_AT, tail_sector - 1);
    seal(header);

    let mut second = header.to_vec();
    put(&mut second, OWN_SECTOR_AT, last);
    put(&mut second, ALTERNATE_AT, 1);
    put(&mut second, ENTRIES_SECTOR_AT, tail_sector);
    seal(&mut second);
    let mut tail = copy.bytes;
    tail.resize((entries_sectors * SECTOR_BYTES) as usize, 0);
    tail.extend(second);
    Ok(Some(GrownGpt {
        front,
        tail,
        tail_at_bytes: tail_sector * SECTOR_BYTES,
    }))
}

fn put(header: &mut [u8], at: usize, number: u64) {
    header[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

/// Enters the checksum, over as many bytes as the header says that it has: the
/// parser has seen that they are there.
fn seal(header: &mut [u8]) {
    let len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    header[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
    let sum = crc32(&header[..len]);
    header[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&sum.to_le_bytes());
}
