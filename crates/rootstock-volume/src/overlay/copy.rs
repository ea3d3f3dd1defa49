//! Copying a pinned state into a new overlay: shared blocks where the file system
//! can, else the used slots in the order of their blocks.

use std::{io, ops::ControlFlow, sync::Arc};

use rootstock_core::{BLOCK_BYTES, Digest};
use rootstock_store::disk::{Disk, DiskFile};

use super::{
    OpenError, OverlayOptions, create_data,
    flush::PinnedState,
    log::{Log, Recorded},
    map::{BlockMap, Entry, Run},
};

/// The most slots copied with one read and one write: 1 MiB.
const COPY_SLOTS_MAX: usize = 256;

/// A new overlay in `dir` (there and empty) with the pinned state. Durable on return.
pub(crate) fn copy(
    pinned: &PinnedState,
    disk: Arc<dyn Disk>,
    dir: &str,
    base: Digest,
    options: OverlayOptions,
) -> Result<(), OpenError> {
    let io_error = |source| OpenError::Io {
        path: dir.to_owned(),
        source,
    };
    let data = create_data(&*disk, dir)?;
    let map = if reflink(&*pinned.overlay().data, &*data) {
        pinned.map().clone()
    } else {
        copy_slots(pinned, &*data).map_err(io_error)?
    };
    data.sync_data().map_err(io_error)?;
    let state = Recorded {
        map,
        size_bytes: pinned.size_bytes(),
        generation: 1,
    };
    Log::create(disk, dir, base, &state, options.log_bytes_min).map_err(io_error)?;
    Ok(())
}

/// Shares all of a file's blocks with another, where the file system can
/// (`ioctl_ficlone(2)`: Btrfs, XFS).
fn reflink(from: &dyn DiskFile, to: &dyn DiskFile) -> bool {
    match (from.raw_fd(), to.raw_fd()) {
        (Some(from), Some(to)) => rustix::fs::ioctl_ficlone(to, from).is_ok(),
        _ => false,
    }
}

fn copy_slots(pinned: &PinnedState, to: &dyn DiskFile) -> io::Result<BlockMap> {
    let mut copy = BlockMap::new();
    let mut next_slot = 0_u32;
    let map = pinned.map();
    let walk = map.visit(0..map.blocks_end(), |blocks, run| {
        let entries = match run {
            Run::Base => return ControlFlow::Continue(()),
            Run::Zero => {
                copy.set_zero(blocks, |_, _| ());
                return ControlFlow::Continue(());
            }
            Run::Data(entries) => entries,
        };
        for (part, first_block) in entries
            .chunks(COPY_SLOTS_MAX)
            .zip((blocks.start..).step_by(COPY_SLOTS_MAX))
        {
            if let Err(error) = copy_run(pinned, part, first_block, to, next_slot, &mut copy) {
                return ControlFlow::Break(error);
            }
            next_slot += part.len() as u32;
        }
        ControlFlow::Continue(())
    });
    match walk {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(copy),
    }
}

/// Copies slots as they are: damage stays visible to the checksums in the map.
fn copy_run(
    pinned: &PinnedState,
    entries: &[Entry],
    first_block: u64,
    to: &dyn DiskFile,
    first_slot: u32,
    copy: &mut BlockMap,
) -> io::Result<()> {
    let placed = || entries.iter().filter_map(|entry| entry.placed());
    let from = placed().next().map_or(0, |(slot, _)| slot);
    let data = pinned.overlay().read_slots(from, entries.len())?;
    to.write_at(u64::from(first_slot) * BLOCK_BYTES, &data)?;
    for (index, (_, crc)) in placed().enumerate() {
        let entry = Entry::data(first_slot + index as u32, crc);
        copy.set(first_block + index as u64, entry);
    }
    Ok(())
}
