//! Sets the checksums of XFS and Btrfs right: a mutation that breaks them is not
//! what is looked for.

use rootstock_image::ReadAt as _;

use crate::sparse::{SECTOR_BYTES, SparseDisk};

/// Where a block's checksum is, by what it begins with. A block of a tree is as
/// long as the file system says, the others are sectors.
const XFS_BLOCKS: [(&[u8; 4], usize); 4] =
    [(b"XFSB", 224), (b"XAGF", 216), (b"XAFL", 32), (b"AB3B", 52)];

/// The longest block that is mended, in bytes.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Btrfs has its first superblock at this byte, of this length.
const BTRFS_HEAD: u64 = 64 << 10;
const BTRFS_HEAD_BYTES: usize = 4096;

impl SparseDisk {
    /// Sets the checksums of all that begins as metadata of XFS does.
    pub fn mend_xfs(&mut self) {
        let Some(head) = self.block(0, SECTOR_BYTES) else {
            return;
        };
        let long = u32::from_be_bytes([4, 5, 6, 7].map(|at| head[at])) as usize;
        let short = usize::from(u16::from_be_bytes([head[102], head[103]]));
        for start in self.places() {
            let Some(magic) = self.block(start, 4) else {
                continue;
            };
            let kind = XFS_BLOCKS.iter().find(|(own, _)| magic == own.as_slice());
            let Some((magic, at)) = kind else {
                continue;
            };
            let len = if *magic == b"AB3B" { long } else { short };
            if let Some(mut block) = self.block(start, len).filter(|block| block.len() > at + 4) {
                block[*at..at + 4].fill(0);
                let sum = crc32c(&block).to_le_bytes();
                self.write(start + *at as u64, &sum);
            }
        }
    }

    /// Sets the checksums of the superblock and of all that has its UUID.
    pub fn mend_btrfs(&mut self) {
        let Some(head) = self.block(BTRFS_HEAD, BTRFS_HEAD_BYTES) else {
            return;
        };
        let uuid = head[32..48].to_vec();
        let len = u32::from_le_bytes([148, 149, 150, 151].map(|at| head[at])) as usize;
        for start in self.places() {
            let own = self.block(start + 32, 16).is_some_and(|own| own == uuid);
            if start == BTRFS_HEAD {
                self.mend_after(start, BTRFS_HEAD_BYTES);
            } else if own {
                self.mend_after(start, len);
            }
        }
    }

    /// A checksum over all that comes after the room for one.
    fn mend_after(&mut self, start: u64, len: usize) {
        if let Some(block) = self.block(start, len).filter(|block| block.len() > 32) {
            let sum = crc32c(&block[32..]).to_le_bytes();
            self.write(start, &sum);
        }
    }

    fn block(&self, start: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; Some(len).filter(|len| *len <= BLOCK_BYTES_MAX)?];
        self.read_exact_at(start, &mut bytes).ok().map(|()| bytes)
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}
