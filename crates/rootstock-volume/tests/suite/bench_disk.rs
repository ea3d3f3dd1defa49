//! What the tests share: a base disk in memory, a volume over it and its model.

use std::sync::Arc;

use bytes::Bytes;
use rootstock_core::{BLOCK_BYTES, Digest};
use rootstock_store::disk::{Disk, SimDisk};
use rootstock_volume::{
    Base, BlockDevice, BlockError, OpenError, OverlayOptions, Segments, StatusExtent, Volume, Zero,
};

pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

/// A read-only disk of known bytes.
pub(crate) struct MemoryDisk(pub(crate) Bytes);

impl BlockDevice for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, len: u32, out: &mut Segments) -> Result<(), BlockError> {
        out.push(
            self.0
                .slice(offset as usize..offset as usize + len as usize),
        );
        Ok(())
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Result<bool, BlockError> {
        self.read(offset, len, out).map(|()| true)
    }

    fn status(&self, _: u64, len_bytes: u64, _: usize) -> Result<Vec<StatusExtent>, BlockError> {
        Ok(vec![StatusExtent {
            len_bytes,
            hole: false,
            zero: false,
        }])
    }

    fn prefetch(&self, _: u64, _: u64) {}
}

/// Bytes that differ in every block and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn base_of(bytes: &[u8]) -> Base {
    Base {
        device: Arc::new(MemoryDisk(Bytes::copy_from_slice(bytes))),
        id: Digest::of(bytes),
    }
}

/// A simulated disk as what volumes are opened on.
pub(crate) fn arc(disk: SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk)
}

pub(crate) fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    read(device, 0, device.size_bytes() as usize)
}

pub(crate) fn read(device: &dyn BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut out = Segments::new();
    device
        .read(offset, len as u32, &mut out)
        .expect("what was written is readable");
    let waiting = out.to_vec();
    out.clear();
    if device
        .try_read(offset, len as u32, &mut out)
        .expect("trying does not fail")
    {
        assert_eq!(out.to_vec(), waiting);
    }
    waiting
}

/// A volume over a small base, and how to open it again.
pub(crate) struct Setup {
    pub(crate) base: Vec<u8>,
    pub(crate) size_bytes: u64,
    pub(crate) options: OverlayOptions,
}

impl Setup {
    pub(crate) fn create(&self, disk: Arc<dyn Disk>) -> Result<Volume, OpenError> {
        Volume::create(
            disk,
            "v",
            base_of(&self.base),
            self.size_bytes,
            self.options,
        )
    }

    pub(crate) fn open(&self, disk: &Arc<dyn Disk>) -> Result<Volume, OpenError> {
        Volume::open(disk, "v", base_of(&self.base), self.options)
    }

    /// What a new volume reads as.
    pub(crate) fn first(&self) -> Vec<u8> {
        let mut bytes = self.base.clone();
        bytes.resize(self.size_bytes as usize, 0);
        bytes
    }
}

/// What a volume is asked to do.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Write {
        offset: usize,
        len: usize,
        seed: u64,
    },
    Zero {
        offset: usize,
        len: usize,
        allocate: bool,
    },
    Discard {
        offset: usize,
        len: usize,
    },
    Flush,
    Reset,
    Grow {
        bytes: u64,
    },
}

impl Step {
    /// The step with its range cut to a disk of this size.
    pub(crate) fn within(mut self, size: usize) -> Self {
        if let Self::Write { offset, len, .. }
        | Self::Zero { offset, len, .. }
        | Self::Discard { offset, len } = &mut self
        {
            *offset %= size;
            *len = (*len).min(size - *offset);
        }
        self
    }

    pub(crate) fn run(&self, volume: &Volume) -> Result<(), BlockError> {
        match self {
            Self::Write { offset, len, seed } => {
                volume.write(*offset as u64, &pattern(*seed, *len))
            }
            Self::Zero {
                offset,
                len,
                allocate,
            } => {
                let zero = if *allocate {
                    Zero::Allocate
                } else {
                    Zero::MayPunch
                };
                volume.write_zeroes(*offset as u64, *len as u64, zero)
            }
            Self::Discard { offset, len } => volume.discard(*offset as u64, *len as u64),
            Self::Flush => volume.flush(),
            Self::Reset => volume.reset(),
            Self::Grow { bytes } => match volume.resize(volume.size_bytes() + bytes) {
                Ok(()) => Ok(()),
                Err(rootstock_volume::ResizeError::Record(error)) => Err(error),
                Err(error) => panic!("growing is allowed: {error}"),
            },
        }
    }

    /// What the disk reads as after the step.
    pub(crate) fn apply(&self, base: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut after = bytes.to_vec();
        match self {
            Self::Write { offset, len, seed } => {
                after[*offset..offset + len].copy_from_slice(&pattern(*seed, *len));
            }
            Self::Zero { offset, len, .. } => after[*offset..offset + len].fill(0),
            Self::Discard { offset, len } => {
                let end = if offset + len == after.len() {
                    after.len()
                } else {
                    (offset + len) / BLOCK * BLOCK
                };
                let first = offset.next_multiple_of(BLOCK);
                if first < end {
                    after[first..end].fill(0);
                }
            }
            Self::Flush => {}
            Self::Reset => {
                after.fill(0);
                after[..base.len()].copy_from_slice(base);
            }
            Self::Grow { bytes } => after.resize(after.len() + *bytes as usize, 0),
        }
        after
    }

    /// Whether its success says that everything before it is durable.
    pub(crate) fn is_durable(&self) -> bool {
        matches!(self, Self::Flush | Self::Reset | Self::Grow { .. })
    }
}
