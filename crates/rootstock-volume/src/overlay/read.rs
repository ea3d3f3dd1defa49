//! Reading an overlay: where a range lies, and its slots with their checksums.

use std::{
    io::{self, IoSliceMut},
    ops::{ControlFlow, Range},
    sync::atomic::Ordering,
};

use bytes::Bytes;
use rootstock_core::{BLOCK_BYTES, ByteRange};
use rustix::io::{Errno, ReadWriteFlags};

use super::{
    Overlay,
    map::{BlockMap, Entry, Run},
};
use crate::device::{BlockError, Segments};

/// Whether a read may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// As long as it takes.
    Yes,
    /// Not for a disk or a decompressor.
    No,
}

/// Where a stretch of blocks is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The base.
    Base,
    /// Nowhere: zeros.
    Zero,
    /// Consecutive slots, one checksum each.
    Slots { first: u32, crcs: Vec<u32> },
}

/// Where a range lay at one moment.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) pieces: Vec<(Range<u64>, Source)>,
    frees: u64,
}

/// The pieces of a range in a map, neighbours joined.
pub(crate) fn lookup_in(map: &BlockMap, blocks: Range<u64>) -> Vec<(Range<u64>, Source)> {
    let mut pieces: Vec<(Range<u64>, Source)> = Vec::with_capacity(1);
    let _: ControlFlow<()> = map.visit(blocks, |range, run| {
        match (pieces.last_mut(), run) {
            (Some((last, Source::Base)), Run::Base) | (Some((last, Source::Zero)), Run::Zero) => {
                last.end = range.end;
            }
            (Some((last, Source::Slots { first, crcs })), Run::Data(entries))
                if entries[0].placed().map(|(slot, _)| slot)
                    == first.checked_add(crcs.len() as u32) =>
            {
                last.end = range.end;
                crcs.extend(checksums(entries));
            }
            (_, Run::Base) => pieces.push((range, Source::Base)),
            (_, Run::Zero) => pieces.push((range, Source::Zero)),
            (_, Run::Data(entries)) => {
                let first = entries[0].placed().map_or(0, |(slot, _)| slot);
                let crcs = checksums(entries).collect();
                pieces.push((range, Source::Slots { first, crcs }));
            }
        }
        ControlFlow::Continue(())
    });
    pieces
}

fn checksums(entries: &[Entry]) -> impl Iterator<Item = u32> + '_ {
    let placed = entries.iter().filter_map(|entry| entry.placed());
    placed.map(|(_, crc)| crc)
}

impl Overlay {
    /// Where the blocks lie now.
    pub(crate) fn lookup(&self, blocks: Range<u64>) -> Lookup {
        let state = self.read_state();
        Lookup {
            pieces: lookup_in(&state.map, blocks),
            frees: self.frees.load(Ordering::SeqCst),
        }
    }

    /// Whether what was read after `lookup` is what it said: no slot was freed
    /// since, or none of these.
    pub(crate) fn still_holds(&self, blocks: Range<u64>, lookup: &Lookup) -> bool {
        if self.frees.load(Ordering::SeqCst) == lookup.frees {
            return true;
        }
        lookup_in(&self.read_state().map, blocks) == lookup.pieces
    }

    /// Calls `read` with the pieces of a range while no write can be entered: for
    /// a reader that lost the race too often.
    pub(crate) fn with_map_held<R>(
        &self,
        blocks: Range<u64>,
        read: impl FnOnce(&[(Range<u64>, Source)]) -> R,
    ) -> R {
        let state = self.read_state();
        read(&lookup_in(&state.map, blocks))
    }

    /// Appends the part of `range` that lies in these slots, `blocks` on the disk;
    /// `false` when that would mean waiting.
    pub(crate) fn read_piece(
        &self,
        blocks: &Range<u64>,
        (first_slot, crcs): (u32, &[u32]),
        range: ByteRange,
        wait: Wait,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let start_bytes = blocks.start * BLOCK_BYTES;
        let failed = |source| BlockError::io("read the volume's writes", start_bytes, source);
        let data = match wait {
            Wait::Yes => Some(self.read_slots(first_slot, crcs.len()).map_err(failed)?),
            Wait::No => self
                .try_read_slots(first_slot, crcs.len())
                .map_err(failed)?,
        };
        let Some(data) = data else {
            return Ok(false);
        };
        check(start_bytes, &data, crcs)?;
        let first = range.start.saturating_sub(start_bytes) as usize;
        let end = (range.end() - start_bytes).min(data.len() as u64) as usize;
        out.push(Bytes::from(data).slice(first..end));
        Ok(true)
    }

    /// The bytes of consecutive slots, not checked.
    pub(super) fn read_slots(&self, first: u32, count: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; count * BLOCK_BYTES as usize];
        match self.data.read_at(u64::from(first) * BLOCK_BYTES, &mut data) {
            // A file that was cut is found by the checksums.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(data),
            done => done.map(|()| data),
        }
    }

    /// The bytes of consecutive slots if they are in memory.
    fn try_read_slots(&self, first: u32, count: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(fd) = self.data.raw_fd() else {
            return self.read_slots(first, count).map(Some);
        };
        let mut data = vec![0; count * BLOCK_BYTES as usize];
        let offset = u64::from(first) * BLOCK_BYTES;
        let len = data.len();
        let mut parts = [IoSliceMut::new(&mut data)];
        match rustix::io::preadv2(fd, &mut parts, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == len => Ok(Some(data)),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            // A file system that cannot say, such as tmpfs, is taken for a fast one.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.read_slots(first, count).map(Some)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Compares blocks with their checksums; `start_bytes` is their place on the disk.
pub(super) fn check(start_bytes: u64, data: &[u8], crcs: &[u32]) -> Result<(), BlockError> {
    let blocks = data.chunks_exact(BLOCK_BYTES as usize);
    let wrong = blocks
        .zip(crcs)
        .position(|(block, crc)| crc32fast::hash(block) != *crc);
    match wrong {
        None => Ok(()),
        Some(index) => Err(BlockError::Damaged {
            offset_bytes: start_bytes + index as u64 * BLOCK_BYTES,
            what: "a block written to the volume fails its checksum".to_owned(),
        }),
    }
}
