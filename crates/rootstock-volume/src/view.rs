//! A volume as it was at a flush: a disk that does not change.

use std::{ops::ControlFlow, sync::Arc};

use rootstock_core::{BLOCK_BYTES, ByteRange, Extents};
use rootstock_store::disk::Disk;

use crate::{
    device::{BlockDevice, BlockError, Segments, StatusExtent, check_range},
    overlay::{self, OpenError, OverlayOptions, PinnedState, Wait, lookup_in, map::Run},
    volume::{Base, blocks_around, prefetch_of, prepare_dir, read_pieces, status_of},
};

/// A flushed state of a [`crate::Volume`], read-only. While it lives, the volume
/// goes on and keeps the space of what the view shows.
pub struct SnapshotView {
    base: Base,
    pinned: PinnedState,
}

impl SnapshotView {
    pub(crate) fn new(base: Base, pinned: PinnedState) -> Self {
        Self { base, pinned }
    }

    /// What the volume is a clone of.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The bytes, in whole blocks, that the volume wrote or discarded.
    #[must_use]
    pub fn changed(&self) -> Extents {
        let mut changed = Extents::new();
        let map = self.pinned.map();
        let _: ControlFlow<()> = map.visit(0..map.blocks_end(), |blocks, run| {
            if run != Run::Base {
                changed.insert(ByteRange::new(
                    blocks.start * BLOCK_BYTES,
                    (blocks.end - blocks.start) * BLOCK_BYTES,
                ));
            }
            ControlFlow::Continue(())
        });
        changed
    }

    /// Makes a new volume of this state, over the same base, in the directory `dir`,
    /// whose parent is there. Where the file system can share blocks, nothing is
    /// copied. Durable on return; open it with [`crate::Volume::open`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn copy_to(
        &self,
        disk: Arc<dyn Disk>,
        dir: &str,
        options: OverlayOptions,
    ) -> Result<(), OpenError> {
        prepare_dir(&*disk, dir)?;
        overlay::copy(&self.pinned, disk, dir, self.base.id, options)
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<ByteRange, BlockError> {
        check_range(offset_bytes, len_bytes, self.size_bytes())
    }

    fn read_waiting(
        &self,
        range: ByteRange,
        wait: Wait,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let mark = out.mark();
        let pieces = lookup_in(self.pinned.map(), blocks_around(range));
        let overlay = self.pinned.overlay();
        let read = read_pieces(&self.base, overlay, &pieces, range, wait, out);
        if !matches!(read, Ok(true)) {
            out.rewind(mark);
        }
        read
    }
}

impl BlockDevice for SnapshotView {
    fn size_bytes(&self) -> u64 {
        self.pinned.size_bytes()
    }

    fn read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<(), BlockError> {
        let range = self.check(offset_bytes, u64::from(len_bytes))?;
        self.read_waiting(range, Wait::Yes, out).map(|_| ())
    }

    fn try_read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let range = self.check(offset_bytes, u64::from(len_bytes))?;
        self.read_waiting(range, Wait::No, out)
    }

    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        let range = self.check(offset_bytes, len_bytes)?;
        status_of(&self.base, self.pinned.map(), range, extents_max)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        if let Ok(range) = self.check(offset_bytes, len_bytes) {
            prefetch_of(&self.base, self.pinned.map(), range);
        }
    }
}
