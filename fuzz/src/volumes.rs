//! Disks around what describes volumes on them, with checksums that are right.

use crate::sparse::{SECTOR_BYTES, SparseDisk};

/// The only metadata area of a physical volume, its header, and where extents begin.
const AREA: usize = 4096;
const HEAD: usize = 512;
const DATA: usize = 64 << 10;

/// How long the disks are, in sectors: 4 MiB.
const SECTORS: u32 = 8192;

/// A superblock with the roles that are mended, in bytes.
const SUPERBLOCK: usize = 512;

/// A group of one volume, as the first input.
pub const DESCRIPTION: &str = "lab { id = \"g\" seqno = 1 format = \"lvm2\" \
    status = [\"RESIZEABLE\", \"READ\", \"WRITE\"] flags = [] extent_size = 128\n\
    physical_volumes { pv0 { id = \"012345-6789-abcd-efgh-ijkl-mnop-qrstuv\" # one\n\
    status = [\"ALLOCATABLE\"] flags = [] dev_size = 8192 pe_start = 128 pe_count = 63 } }\n\
    logical_volumes { home { id = \"h\" status = [\"READ\", \"WRITE\", \"VISIBLE\"] flags = []\n\
    segment_count = 2\n\
    segment1 { start_extent = 0 extent_count = 3 type = \"striped\" stripe_count = 1\n\
    stripes = [ \"pv0\", 9 ] }\n\
    segment2 { start_extent = 3 extent_count = 4 type = \"striped\" stripe_count = 1\n\
    stripes = [ \"pv0\", 0 ] } } } }\n\
    contents = \"Text Format Volume Group\"\nversion = 1\n\0";

/// A physical volume with this description.
#[must_use]
pub fn physical(text: &[u8]) -> Option<SparseDisk> {
    let mut head = vec![0; DATA];
    let text = &text[..text.len().min(DATA - AREA - HEAD)];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    let mut label = [0; SECTOR_BYTES];
    label[..9].copy_from_slice(b"LABELONE\x01");
    label[20] = 32;
    label[24..64].copy_from_slice(b"LVM2 0010123456789abcdefghijklmnopqrstuv");
    let numbers = [DATA, 0, 0, 0, AREA, DATA - AREA];
    for (at, number) in numbers.iter().enumerate() {
        label[72 + at * 8..][..8].copy_from_slice(&(*number as u64).to_le_bytes());
    }
    let sum = crc(&label[20..]);
    label[16..20].copy_from_slice(&sum.to_le_bytes());
    put(SECTOR_BYTES, &label);
    let mut area = [0; HEAD];
    area[4..21].copy_from_slice(b" LVM2 x[5A%r0N*>\x01");
    let numbers = [AREA, DATA - AREA, HEAD, text.len()];
    for (at, number) in numbers.iter().enumerate() {
        area[24 + at * 8..][..8].copy_from_slice(&(*number as u64).to_le_bytes());
    }
    area[56..60].copy_from_slice(&crc(text).to_le_bytes());
    let sum = crc(&area[4..]);
    area[..4].copy_from_slice(&sum.to_le_bytes());
    put(AREA, &area);
    put(AREA + HEAD, text);
    with_len(&head)
}

/// A superblock of an array of level 1, as the first input.
#[must_use]
pub fn superblock() -> Vec<u8> {
    let mut head = vec![0; SUPERBLOCK];
    head[..5].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1]);
    for (at, value) in [
        (72, 1),
        (80, 4096),
        (92, 2),
        (128, 128),
        (136, 4096),
        (144, 8),
        (208, u64::MAX),
        (220, 128),
    ] {
        head[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    head
}

/// A disk with this superblock of an array, and what comes after it.
#[must_use]
pub fn array(input: &[u8], start: usize) -> Option<SparseDisk> {
    let mut head = vec![0; DATA.max(start + input.len())];
    head[start..start + input.len()].copy_from_slice(input);
    let own = &mut head[start..start + SUPERBLOCK];
    own[216..220].fill(0);
    let words = own.as_chunks::<4>().0.iter();
    let sum: u64 = words.map(|word| u64::from(u32::from_le_bytes(*word))).sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    own[216..220].copy_from_slice(&sum.to_le_bytes());
    with_len(&head)
}

fn with_len(head: &[u8]) -> Option<SparseDisk> {
    let mut input = SparseDisk::to_input(head);
    input[..4].copy_from_slice(&SECTORS.to_le_bytes());
    SparseDisk::from_input(&input)
}

/// LVM2's CRC.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
