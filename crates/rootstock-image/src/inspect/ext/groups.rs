//! Group descriptors, read one block of them at a time.

use super::{
    super::{
        Refusal,
        checksum::{crc16, crc32c},
        kept,
    },
    Superblock,
};
use crate::read_at::{ReadAt, Window};

const FLAG_BLOCK_UNINIT: u16 = 2;

/// Where a descriptor's own checksum is.
const CHECKSUM: usize = 30;

/// A block group, as its descriptor has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    pub(super) free_clusters: u64,
    /// The group was never used: its bitmap follows from the layout.
    pub(super) block_uninit: bool,
    pub(super) bitmap_checksum: u32,
    /// Short descriptors hold half of the bitmap's checksum.
    pub(super) bitmap_checksum_mask: u32,
}

/// Reads descriptors and checks their checksums.
pub(super) struct Descriptors<'a> {
    window: &'a Window<'a>,
    sb: &'a Superblock,
    /// The number of the block of descriptors in `bytes`.
    loaded: Option<u64>,
    bytes: Vec<u8>,
}

impl<'a> Descriptors<'a> {
    pub(super) fn new(window: &'a Window<'a>, sb: &'a Superblock) -> Self {
        Self {
            window,
            sb,
            loaded: None,
            bytes: vec![0; sb.block_bytes as usize],
        }
    }

    pub(super) fn get(&mut self, group: u64) -> Result<Descriptor, Refusal> {
        let block = group / self.sb.descriptors_per_block();
        if self.loaded != Some(block) {
            let place = self.sb.descriptor_block(block) * self.sb.block_bytes;
            self.loaded = None;
            self.window.read_exact_at(place, &mut self.bytes)?;
            self.loaded = Some(block);
        }
        let len = self.sb.descriptor_bytes as usize;
        let at = (group % self.sb.descriptors_per_block()) as usize * len;
        let bytes = &self.bytes[at..at + len];
        let own = u16::from_le_bytes([bytes[CHECKSUM], bytes[CHECKSUM + 1]]);
        if checksum(self.sb, group, bytes).is_some_and(|sum| sum != own) {
            return kept(format!(
                "the descriptor of group {group} has a wrong checksum: run e2fsck on it"
            ));
        }
        Ok(Descriptor::parse(bytes))
    }
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Self {
        let wide = bytes.len() >= 64;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let block_at = |low: usize, high: usize| {
            let high = if wide { u32_at(high) } else { 0 };
            u64::from(u32_at(low)) | u64::from(high) << 32
        };
        let pair_at = |low: usize, high: usize| {
            let high = if wide { u16_at(high) } else { 0 };
            u32::from(u16_at(low)) | u32::from(high) << 16
        };
        Self {
            block_bitmap: block_at(0, 32),
            inode_bitmap: block_at(4, 36),
            inode_table: block_at(8, 40),
            free_clusters: pair_at(12, 44).into(),
            block_uninit: u16_at(18) & FLAG_BLOCK_UNINIT != 0,
            bitmap_checksum: pair_at(24, 56),
            bitmap_checksum_mask: if wide { !0 } else { 0xffff },
        }
    }
}

/// The checksum that a descriptor has to have: over the file system, the group's
/// number and all of the descriptor but the checksum itself.
fn checksum(sb: &Superblock, group: u64, bytes: &[u8]) -> Option<u16> {
    let number = (group as u32).to_le_bytes();
    let (head, tail) = (&bytes[..CHECKSUM], &bytes[CHECKSUM + 2..]);
    if let Some(seed) = sb.checksum_seed {
        let sum = crc32c(crc32c(seed, &number), head);
        return Some(crc32c(crc32c(sum, &[0; 2]), tail) as u16);
    }
    sb.has_descriptor_checksums().then(|| {
        let sum = crc16(crc16(!0, &sb.uuid), &number);
        crc16(crc16(sum, head), tail)
    })
}
