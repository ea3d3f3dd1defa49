//! A writable clone: a base that never changes under the volume's own writes.

use std::{
    io,
    ops::{ControlFlow, Range},
    sync::Arc,
};

use bytes::Bytes;
use rootstock_core::{BLOCK_BYTES, ByteRange, Digest, units::DISK_BYTES_MAX};
use rootstock_store::disk::Disk;

use crate::{
    device::{BlockDevice, BlockError, Segments, StatusExtent, StatusList, Zero, check_range},
    overlay::{
        self, Lookup, OpenError, Overlay, OverlayOptions, Source, Wait,
        map::{BlockMap, Entry, Run, blocks_of},
    },
    view::SnapshotView,
};

/// How often a read starts again because its slots were freed meanwhile, before
/// it keeps writes out while it reads.
const READ_RACES_MAX: usize = 3;

/// Bytes written at once when zeros have to be allocated.
const ZERO_WRITE_BYTES: u64 = 1 << 20;

/// What a volume is a clone of.
#[derive(Clone)]
pub struct Base {
    /// The disk to read from. It never changes.
    pub device: Arc<dyn BlockDevice>,
    /// What it is: a manifest's id, recorded in the volume and compared at open.
    pub id: Digest,
}

/// A writable clone of a disk. All methods take `&self` and may be called from
/// many threads.
pub struct Volume {
    base: Base,
    overlay: Arc<Overlay>,
}

/// What a volume takes and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeStats {
    /// The disk's size.
    pub size_bytes: u64,
    /// Bytes of the volume's own writes, with what snapshot views hold on to.
    pub used_bytes: u64,
    /// Bytes written since the last flush.
    pub unflushed_bytes: u64,
    /// Length of the map log.
    pub log_bytes: u64,
}

/// Why a volume was not resized.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It would lose data.
    #[error(
        "cannot shrink a volume from {size_bytes} B to {wanted_bytes} B: it would lose what is \
         stored there; make a smaller volume and copy into it"
    )]
    Shrink {
        /// The present size.
        size_bytes: u64,
        /// The size asked for.
        wanted_bytes: u64,
    },
    /// Above [`DISK_BYTES_MAX`].
    #[error("a volume of {wanted_bytes} B is above the limit of {DISK_BYTES_MAX} B")]
    TooLarge {
        /// The size asked for.
        wanted_bytes: u64,
    },
    /// The new size could not be recorded; it holds until the volume is closed.
    #[error("cannot record the volume's new size")]
    Record(#[source] BlockError),
}

impl Volume {
    /// Makes a volume in the directory `dir`, whose parent is there. It takes the
    /// same time whatever the size, and is durable on return. What an interrupted
    /// `create` left in the directory is replaced.
    ///
    /// # Errors
    /// [`OpenError`]; nothing that could be opened is left then.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &str,
        base: Base,
        size_bytes: u64,
        options: OverlayOptions,
    ) -> Result<Self, OpenError> {
        check_size(&base, size_bytes)?;
        prepare_dir(&*disk, dir)?;
        let overlay = Overlay::create(disk, dir, base.id, size_bytes, options)?;
        Ok(Self::assemble(base, overlay))
    }

    /// Makes a volume whose writes are gone when it is closed. Nothing is synced.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn create_ephemeral(
        disk: &dyn Disk,
        dir: &str,
        base: Base,
        size_bytes: u64,
        options: OverlayOptions,
    ) -> Result<Self, OpenError> {
        check_size(&base, size_bytes)?;
        prepare_dir(disk, dir)?;
        let overlay = Overlay::create_ephemeral(disk, dir, size_bytes, options)?;
        Ok(Self::assemble(base, overlay))
    }

    /// Opens a volume in its last flushed state. Only one may be open at a time.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        disk: &Arc<dyn Disk>,
        dir: &str,
        base: Base,
        options: OverlayOptions,
    ) -> Result<Self, OpenError> {
        let overlay = Overlay::open(disk, dir, base.id, options)?;
        check_size(&base, overlay.size_bytes())?;
        Ok(Self::assemble(base, overlay))
    }

    /// Removes a volume's files. An interrupted call is finished by another.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete(disk: &dyn Disk, dir: &str) -> io::Result<()> {
        let names = match disk.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        for name in names {
            disk.remove(&format!("{dir}/{name}"))?;
        }
        disk.remove_dir(dir)?;
        disk.sync_dir(parent(dir))
    }

    /// Whether a file in a volume's directory, by its name, holds what was written, and
    /// not only notes of it for the case that the process is killed.
    #[must_use]
    pub fn counts(name: &str) -> bool {
        !overlay::is_recent_name(name)
    }

    fn assemble(base: Base, overlay: Overlay) -> Self {
        Self {
            base,
            overlay: Arc::new(overlay),
        }
    }

    /// What the volume is a clone of.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Drops all writes: the volume reads as its base again, at its present size.
    /// Durable on return.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`]; the volume reads as its base all the same, until
    /// it is closed.
    pub fn reset(&self) -> Result<(), BlockError> {
        self.overlay.clear();
        self.overlay.flush()
    }

    /// Makes the disk larger; what is new reads as zeros. Durable on return.
    ///
    /// # Errors
    /// [`ResizeError`].
    pub fn resize(&self, wanted_bytes: u64) -> Result<(), ResizeError> {
        let size_bytes = self.overlay.size_bytes();
        if wanted_bytes < size_bytes {
            return Err(ResizeError::Shrink {
                size_bytes,
                wanted_bytes,
            });
        }
        if wanted_bytes > DISK_BYTES_MAX {
            return Err(ResizeError::TooLarge { wanted_bytes });
        }
        self.overlay.grow(wanted_bytes);
        self.overlay.flush().map_err(ResizeError::Record)
    }

    /// Flushes, for the timer that bounds how long writes stay unflushed.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`].
    pub fn checkpoint(&self) -> Result<(), BlockError> {
        self.overlay.flush()
    }

    /// Flushes and returns the flushed state as a disk that does not change. The
    /// space of what it shows is not reused before it is dropped.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`].
    pub fn snapshot_view(&self) -> Result<SnapshotView, BlockError> {
        let pinned = self.overlay.pin()?;
        Ok(SnapshotView::new(self.base.clone(), pinned))
    }

    /// Bytes of the volume's own writes, with what snapshot views hold on to. It waits
    /// for no flush.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.overlay.used_bytes()
    }

    /// What the volume takes and holds.
    #[must_use]
    pub fn stats(&self) -> VolumeStats {
        VolumeStats {
            size_bytes: self.overlay.size_bytes(),
            used_bytes: self.overlay.used_bytes(),
            unflushed_bytes: self.overlay.unflushed_bytes(),
            log_bytes: self.overlay.log_bytes(),
        }
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<ByteRange, BlockError> {
        check_range(offset_bytes, len_bytes, self.overlay.size_bytes())
    }

    fn read_waiting(
        &self,
        range: ByteRange,
        wait: Wait,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let blocks = blocks_around(range);
        let mark = out.mark();
        for _ in 0..READ_RACES_MAX {
            let lookup = self.overlay.lookup(blocks.clone());
            let read = read_pieces(&self.base, &self.overlay, &lookup.pieces, range, wait, out);
            if self.overlay.still_holds(blocks.clone(), &lookup) {
                if !matches!(read, Ok(true)) {
                    out.rewind(mark);
                }
                return read;
            }
            out.rewind(mark);
        }
        if wait == Wait::No {
            return Ok(false);
        }
        loop {
            let read = self.read_held(blocks.clone(), range, out);
            if matches!(read, Ok(true)) {
                return read;
            }
            out.rewind(mark);
            read?;
        }
    }

    /// Reads while no write can be entered. The base may be far away, and all writers
    /// would wait for it: what is needed of it is read before, since it never changes.
    /// `false` when more of it turned out to be needed, as after a reset.
    fn read_held(
        &self,
        blocks: Range<u64>,
        range: ByteRange,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        let mut below = Vec::new();
        for (blocks, source) in &self.overlay.lookup(blocks.clone()).pieces {
            if let (Source::Base, Some(part)) = (source, clip(blocks, range)) {
                let mut read = Segments::new();
                read_base(&self.base, part, Wait::Yes, &mut read)?;
                let mut bytes = vec![0; part.len as usize];
                read.copy_to(&mut bytes);
                below.push((part, Bytes::from(bytes)));
            }
        }
        let base = |part: ByteRange| {
            let has = |read: &&(ByteRange, Bytes)| {
                read.0.start <= part.start && part.end() <= read.0.end()
            };
            let (read, bytes) = below.iter().find(has)?;
            let first = (part.start - read.start) as usize;
            Some(bytes.slice(first..first + part.len as usize))
        };
        self.overlay.with_map_held(blocks, |pieces| {
            for (blocks, source) in pieces {
                let Some(part) = clip(blocks, range) else {
                    continue;
                };
                match source {
                    Source::Zero => out.push_zero(part.len as u32),
                    Source::Base => match base(part) {
                        Some(bytes) => out.push(bytes),
                        None => return Ok(false),
                    },
                    Source::Slots { first, crcs } => {
                        let slots = (*first, crcs.as_slice());
                        self.overlay
                            .read_piece(blocks, slots, part, Wait::Yes, out)?;
                    }
                }
            }
            Ok(true)
        })
    }

    /// One whole block for a write that changes a part of it, and its entry.
    fn read_block(&self, block: u64, buffer: &mut [u8]) -> Result<Entry, BlockError> {
        let range = ByteRange::new(block * BLOCK_BYTES, BLOCK_BYTES);
        let mut out = Segments::new();
        loop {
            let lookup = self.overlay.lookup(block..block + 1);
            out.clear();
            let read = read_pieces(
                &self.base,
                &self.overlay,
                &lookup.pieces,
                range,
                Wait::Yes,
                &mut out,
            );
            if self.overlay.still_holds(block..block + 1, &lookup) {
                read?;
                out.copy_to(buffer);
                return Ok(entry_of(&lookup));
            }
        }
    }

    fn write_blocks(&self, range: ByteRange, data: &[u8]) -> Result<(), BlockError> {
        let failed = |source| BlockError::io("write", range.start, source);
        let blocks = blocks_around(range);
        let bytes = ByteRange::new(
            blocks.start * BLOCK_BYTES,
            (blocks.end - blocks.start) * BLOCK_BYTES,
        );
        if bytes == range {
            let filled = self.overlay.fill(data).map_err(failed)?;
            self.overlay.enter(blocks.start, &filled, &[]);
            return Ok(());
        }
        let mut buffer = vec![0; bytes.len as usize];
        let block_bytes = BLOCK_BYTES as usize;
        loop {
            let mut expected = Vec::with_capacity(2);
            let last = blocks.end - 1;
            if bytes.start < range.start {
                let entry = self.read_block(blocks.start, &mut buffer[..block_bytes])?;
                expected.push((blocks.start, entry));
            }
            if bytes.end() > range.end() && expected.first().is_none_or(|(b, _)| *b != last) {
                let tail = buffer.len() - block_bytes;
                let entry = self.read_block(last, &mut buffer[tail..])?;
                expected.push((last, entry));
            }
            let first = (range.start - bytes.start) as usize;
            buffer[first..first + data.len()].copy_from_slice(data);
            let filled = self.overlay.fill(&buffer).map_err(failed)?;
            // Another writer may have changed the rest of an edge block.
            if self.overlay.enter(blocks.start, &filled, &expected) {
                return Ok(());
            }
        }
    }

    /// Flushes when much is unflushed. Its failure is the next flush's, not that of
    /// the write that happened to come now.
    fn after_write(&self) {
        if self.overlay.wants_checkpoint()
            && let Err(error) = self.overlay.checkpoint()
        {
            tracing::warn!(%error, "cannot flush a volume's writes; they stay in memory");
        }
    }
}

impl BlockDevice for Volume {
    fn size_bytes(&self) -> u64 {
        self.overlay.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
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

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), BlockError> {
        let range = self.check(offset_bytes, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.write_blocks(range, data)?;
        self.after_write();
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zero: Zero,
    ) -> Result<(), BlockError> {
        let range = self.check(offset_bytes, len_bytes)?;
        let whole = match zero {
            Zero::MayPunch => blocks_inside(range, self.size_bytes()),
            Zero::Allocate => 0..0,
        };
        let end = range.end();
        let edges = if whole.is_empty() {
            [range.start..end, end..end]
        } else {
            [
                range.start..whole.start * BLOCK_BYTES,
                (whole.end * BLOCK_BYTES).min(end)..end,
            ]
        };
        for edge in edges {
            let mut next = edge.start;
            while next < edge.end {
                let part = ByteRange::new(next, (edge.end - next).min(ZERO_WRITE_BYTES));
                self.write_blocks(part, &vec![0; part.len as usize])?;
                next = part.end();
            }
        }
        self.overlay.zero(whole);
        self.after_write();
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        let range = self.check(offset_bytes, len_bytes)?;
        self.overlay.zero(blocks_inside(range, self.size_bytes()));
        self.after_write();
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.overlay.flush()
    }

    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        let range = self.check(offset_bytes, len_bytes)?;
        status_of(&self.base, &self.overlay.map_now(), range, extents_max)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        if let Ok(range) = self.check(offset_bytes, len_bytes) {
            prefetch_of(&self.base, &self.overlay.map_now(), range);
        }
    }
}

/// Appends a range, given where its blocks lie; `false` when that means waiting.
/// Unless it returns `true`, a part may have been appended.
pub(crate) fn read_pieces(
    base: &Base,
    overlay: &Overlay,
    pieces: &[(Range<u64>, Source)],
    range: ByteRange,
    wait: Wait,
    out: &mut Segments,
) -> Result<bool, BlockError> {
    for (blocks, source) in pieces {
        let Some(part) = clip(blocks, range) else {
            continue;
        };
        let done = match source {
            Source::Zero => {
                out.push_zero(part.len as u32);
                true
            }
            Source::Base => read_base(base, part, wait, out)?,
            Source::Slots { first, crcs } => {
                overlay.read_piece(blocks, (*first, crcs), part, wait, out)?
            }
        };
        if !done {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Appends a range of the base; what is beyond its end are zeros.
fn read_base(
    base: &Base,
    range: ByteRange,
    wait: Wait,
    out: &mut Segments,
) -> Result<bool, BlockError> {
    let inside = base_part(base, range);
    if inside.len > 0 {
        let len = inside.len as u32;
        match wait {
            Wait::Yes => base.device.read(inside.start, len, out)?,
            Wait::No => {
                if !base.device.try_read(inside.start, len, out)? {
                    return Ok(false);
                }
            }
        }
    }
    out.push_zero((range.len - inside.len) as u32);
    Ok(true)
}

pub(crate) fn status_of(
    base: &Base,
    map: &BlockMap,
    range: ByteRange,
    extents_max: usize,
) -> Result<Vec<StatusExtent>, BlockError> {
    let mut list = StatusList::new(extents_max);
    let walk = map.visit(blocks_around(range), |blocks, run| {
        let Some(part) = clip(&blocks, range) else {
            return ControlFlow::Continue(());
        };
        let own = |empty| StatusExtent {
            len_bytes: part.len,
            hole: empty,
            zero: empty,
        };
        let room = match run {
            Run::Data(_) => Ok(list.push(own(false))),
            Run::Zero => Ok(list.push(own(true))),
            Run::Base => base_status(base, part, extents_max, &mut list),
        };
        match room {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(Ok(())),
            Err(error) => ControlFlow::Break(Err(error)),
        }
    });
    if let ControlFlow::Break(Err(error)) = walk {
        return Err(error);
    }
    Ok(list.finish())
}

/// `false` when the list is full.
fn base_status(
    base: &Base,
    range: ByteRange,
    extents_max: usize,
    list: &mut StatusList,
) -> Result<bool, BlockError> {
    let inside = base_part(base, range);
    let mut covered = 0;
    if inside.len > 0 {
        for extent in base.device.status(inside.start, inside.len, extents_max)? {
            covered += extent.len_bytes;
            if !list.push(extent) {
                return Ok(false);
            }
        }
        if covered < inside.len {
            return Ok(false);
        }
    }
    Ok(list.push(StatusExtent {
        len_bytes: range.len - inside.len,
        hole: true,
        zero: true,
    }))
}

pub(crate) fn prefetch_of(base: &Base, map: &BlockMap, range: ByteRange) {
    let _: ControlFlow<()> = map.visit(blocks_around(range), |blocks, run| {
        if run == Run::Base
            && let Some(part) = clip(&blocks, range)
        {
            let inside = base_part(base, part);
            base.device.prefetch(inside.start, inside.len);
        }
        ControlFlow::Continue(())
    });
}

/// The part of a range that is inside the base; empty at its end if none is.
fn base_part(base: &Base, range: ByteRange) -> ByteRange {
    let end = range.end().min(base.device.size_bytes());
    ByteRange::new(range.start.min(end), end.saturating_sub(range.start))
}

/// The blocks that a range touches.
pub(crate) fn blocks_around(range: ByteRange) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end().div_ceil(BLOCK_BYTES)
}

/// The blocks that are wholly inside a range; the disk's last block counts as
/// whole where the disk ends in its middle.
fn blocks_inside(range: ByteRange, size_bytes: u64) -> Range<u64> {
    let first = range.start.div_ceil(BLOCK_BYTES);
    let end = if range.end() == size_bytes {
        blocks_of(size_bytes)
    } else {
        range.end() / BLOCK_BYTES
    };
    first..end.max(first)
}

/// The part of a range that lies in these blocks.
fn clip(blocks: &Range<u64>, range: ByteRange) -> Option<ByteRange> {
    ByteRange::new(
        blocks.start * BLOCK_BYTES,
        (blocks.end - blocks.start) * BLOCK_BYTES,
    )
    .intersection(range)
}

/// The entry of the one block that was looked up.
fn entry_of(lookup: &Lookup) -> Entry {
    match lookup.pieces.first() {
        Some((_, Source::Slots { first, crcs })) => Entry::data(*first, crcs[0]),
        Some((_, Source::Zero)) => Entry::ZERO,
        _ => Entry::BASE,
    }
}

fn check_size(base: &Base, size_bytes: u64) -> Result<(), OpenError> {
    let base_bytes = base.device.size_bytes();
    if (base_bytes..=DISK_BYTES_MAX).contains(&size_bytes) {
        return Ok(());
    }
    Err(OpenError::Size {
        size_bytes,
        base_bytes,
    })
}

/// Makes the directory of a volume, durably, and clears what an interrupted
/// creation left in it.
pub(crate) fn prepare_dir(disk: &dyn Disk, dir: &str) -> Result<(), OpenError> {
    let io_error = |source| OpenError::Io {
        path: dir.to_owned(),
        source,
    };
    disk.create_dir(dir).map_err(io_error)?;
    disk.sync_dir(parent(dir)).map_err(io_error)?;
    let names = disk.list(dir).map_err(io_error)?;
    if names.iter().any(|name| overlay::is_log_name(name)) {
        return Err(OpenError::Exists {
            path: dir.to_owned(),
        });
    }
    for name in names {
        disk.remove(&format!("{dir}/{name}")).map_err(io_error)?;
    }
    Ok(())
}

fn parent(dir: &str) -> &str {
    dir.rsplit_once('/').map_or("", |(parent, _)| parent)
}
