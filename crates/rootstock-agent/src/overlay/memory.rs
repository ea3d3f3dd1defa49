//! Slots in this process's own memory, uncompressed: for kernels without zram.

use std::io;

use super::{BLOCK, SlotStore};

/// Slots are allocated this many at once: 1 MiB.
const SLAB_SLOTS: usize = 256;

/// Slabs of memory, made as they are needed and kept.
#[derive(Default)]
pub(crate) struct MemorySlots {
    slabs: Vec<Box<[u8]>>,
}

impl MemorySlots {
    /// No slots yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl SlotStore for MemorySlots {
    fn read(&self, slot: u32, out: &mut [u8]) -> io::Result<()> {
        for (number, block) in out.chunks_exact_mut(BLOCK).enumerate() {
            let slot = slot as usize + number;
            match self.slabs.get(slot / SLAB_SLOTS) {
                Some(slab) => {
                    block.copy_from_slice(&slab[slot % SLAB_SLOTS * BLOCK..][..BLOCK]);
                }
                None => block.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, slot: u32, data: &[u8]) -> io::Result<()> {
        for (number, block) in data.chunks_exact(BLOCK).enumerate() {
            let slot = slot as usize + number;
            while self.slabs.len() <= slot / SLAB_SLOTS {
                let mut slab = Vec::new();
                // Full memory is an error of this write, not the end of the process.
                slab.try_reserve_exact(SLAB_SLOTS * BLOCK)
                    .map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
                slab.resize(SLAB_SLOTS * BLOCK, 0);
                self.slabs.push(slab.into_boxed_slice());
            }
            self.slabs[slot / SLAB_SLOTS][slot % SLAB_SLOTS * BLOCK..][..BLOCK]
                .copy_from_slice(block);
        }
        Ok(())
    }

    fn release(&mut self, _slot: u32) {}

    fn used_bytes(&self) -> Option<u64> {
        None
    }
}
