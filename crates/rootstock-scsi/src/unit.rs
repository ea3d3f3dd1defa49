//! What one logical unit is, as its caller decides it.

use rootstock_core::{BLOCK_BYTES, ByteRange};

/// A logical block's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes, what every system understands.
    B512,
    /// 4,096 bytes.
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// How many logical blocks a block of our overlays is, as a power of two
    /// (SBC-3 5.16.2, LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT).
    pub(crate) const fn physical_exponent(self) -> u8 {
        (BLOCK_BYTES / self.bytes() as u64).trailing_zeros() as u8
    }
}

/// Whether the medium may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any command.
    ReadWrite,
    /// Commands that write end with WRITE PROTECTED.
    ReadOnly,
}

/// One logical unit: a disk with thin provisioning and a volatile write cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The size of a logical block.
    pub block_size: BlockSize,
    /// How many logical blocks there are: at least one, at most
    /// [`Unit::BLOCKS_MAX`].
    pub blocks: u64,
    /// Whether it may be written.
    pub access: Access,
    /// The longest transfers.
    pub limits: Limits,
    /// Who it is.
    pub identity: Identity,
}

impl Unit {
    /// The most blocks of a unit; of either size, they are fewer than 2^63 bytes.
    pub const BLOCKS_MAX: u64 = 1 << 50;

    /// The bytes of some blocks.
    pub(crate) const fn span(&self, lba: u64, blocks: u64) -> ByteRange {
        let block = self.block_size.bytes() as u64;
        ByteRange::new(lba.saturating_mul(block), blocks.saturating_mul(block))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.span(0, self.blocks).len
    }
}

/// The limits that initiators are told (SBC-3 6.6, the block limits page).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest read, write, comparison or verification, in blocks.
    pub transfer_blocks_max: u32,
    /// The longest transfer that is not slower for its length, in blocks.
    pub transfer_blocks_optimal: u32,
    /// The most blocks of one UNMAP, in all its descriptors.
    pub unmap_blocks_max: u32,
    /// The most descriptors of one UNMAP.
    pub unmap_descriptors_max: u32,
    /// The longest WRITE SAME, in blocks; 0 is no limit.
    pub write_same_blocks_max: u64,
    /// The longest COMPARE AND WRITE, in blocks.
    pub compare_and_write_blocks_max: u8,
}

impl Limits {
    /// What suits a volume: transfers up to `transfer_bytes_max`, UNMAP up to
    /// 1 Mi blocks at once, WRITE SAME over the whole unit.
    #[must_use]
    pub const fn for_transfers(transfer_bytes_max: u32, block_size: BlockSize) -> Self {
        let transfer_blocks_max = transfer_bytes_max / block_size.bytes();
        Self {
            transfer_blocks_max,
            transfer_blocks_optimal: transfer_blocks_max,
            unmap_blocks_max: 1 << 20,
            unmap_descriptors_max: 256,
            write_same_blocks_max: 0,
            compare_and_write_blocks_max: 255,
        }
    }
}

/// Who a unit is, for [`Unit`]. Texts are cut to what their fields hold, and
/// what is not printable ASCII in them becomes a question mark; a target's
/// name is UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The product's name; 16 bytes are shown.
    pub product: String,
    /// The product's revision; 4 bytes are shown.
    pub revision: String,
    /// The serial number; 64 bytes are shown.
    pub serial: String,
    /// The world-wide name of this unit, which never changes.
    pub naa: Naa,
    /// The name of the SCSI target device (an iSCSI name).
    pub target_name: String,
    /// The portal group tag; with the target's name it names the target port
    /// (RFC 7143 4.4.2: `NAME,t,0xTAG`).
    pub portal_group_tag: u16,
    /// The relative target port identifier, from 1.
    pub relative_port: u16,
}

/// A name address authority identifier, its first four bits included (SPC-4
/// 7.8.6.6): 3 for one assigned by ourselves, 6 for one below a company's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naa {
    /// 64 bits.
    Short([u8; 8]),
    /// 128 bits.
    Long([u8; 16]),
}

impl Naa {
    /// A locally assigned identifier (SPC-4 7.8.6.6) from 60 of these bits.
    #[must_use]
    pub const fn locally_assigned(bits: u64) -> Self {
        Self::Short((bits & (u64::MAX >> 4) | 3 << 60).to_be_bytes())
    }

    pub(crate) const fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }
}
