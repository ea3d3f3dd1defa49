//! An image on a disk: the disk boots with all of it, or does not boot.
//!
//! The order of writes is what this is about. First the boot record and the GPT go,
//! so that firmware that tries the disk goes on to the network; then what differs is
//! written; the first sector comes last, when all else is known to be on the disk.
//! What is there already is found by reading it, so that nothing has to be kept of an
//! installation that was cut, and another version writes only what it has changed.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_core::units::{HumanBytes, is_zero};
use rootstock_image::grid::{ChunkSpan, Grid, RegionKind};
use rootstock_image::inspect::{GrowError, GrownGpt, grown_gpt};
use rootstock_store::ReadError;
use rootstock_store::disk::DiskFile;
use rootstock_volume::BlockError;

use super::mark::{self, Mark};

/// What is written last, at most: it ends before the first partition.
const FRONT_BYTES_MAX: u64 = 1 << 20;
/// The boot record and the header of the GPT, in sectors of either length.
pub(crate) const TABLE_BYTES: u64 = 8192;
const SECTOR_BYTES: u64 = 512;
/// Chunks that one thread looks at before it fetches what lacks.
const RUN: u64 = 32;

/// Why an image is not on a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    /// It is too long.
    #[error(
        "the disk has {} and the image {}: take a larger disk, or import a smaller image",
        HumanBytes(*disk_bytes), HumanBytes(*image_bytes)
    )]
    TooSmall {
        /// The disk's length.
        disk_bytes: u64,
        /// The image's.
        image_bytes: u64,
    },
    /// Nothing on it could be started by firmware.
    #[error("the image has no partition table: firmware would not start it from a disk")]
    NoTable,
    /// Its partition table does not fit.
    #[error(transparent)]
    Gpt(#[from] GrowError),
    /// The disk.
    #[error("the disk cannot be {doing}")]
    Disk {
        /// `read`, `written`.
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// A part of the image.
    #[error("a chunk of the image is not to be had")]
    Fetch(#[source] ReadError),
    /// The image's manifest.
    #[error("the image's manifest cannot be read")]
    Manifest(#[source] BlockError),
}

/// Where an image comes from, and how fast.
pub(crate) trait Source: Sync {
    /// The chunk in a place.
    fn chunk_at(&self, span: ChunkSpan) -> Result<ChunkId, BlockError>;

    /// Waits until one of the threads, by its number, may look at a chunk.
    fn wait_turn(&self, number: usize);

    /// Fetches chunks, checked, in any order, and each once.
    fn fetch(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(ChunkId, Bytes) -> io::Result<()>,
    ) -> Result<io::Result<()>, ReadError>;

    /// So many bytes of the image are on the disk, some of them written now.
    fn is_there(&self, bytes: u64, written_bytes: u64);
}

/// An image that is to be on a disk.
pub(crate) struct Layout<'a> {
    disk: &'a dyn DiskFile,
    disk_bytes: u64,
    grid: &'a Grid,
    source: &'a dyn Source,
    /// What is written last.
    front: Vec<u8>,
    /// The second copy of a GPT, for a disk of this length.
    gpt: Option<GrownGpt>,
    is_marked: bool,
}

impl<'a> Layout<'a> {
    /// Looks whether the image can be on this disk. Nothing is written. `mark` is put
    /// where the image has nothing, if it has nothing there.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub(crate) fn prepare(
        disk: &'a dyn DiskFile,
        grid: &'a Grid,
        source: &'a dyn Source,
        mark: &Mark,
    ) -> Result<Self, LayoutError> {
        let disk_bytes = disk.len().map_err(reading)?;
        let disk_bytes = disk_bytes / SECTOR_BYTES * SECTOR_BYTES;
        let image_bytes = grid.disk_bytes();
        if disk_bytes < image_bytes {
            return Err(LayoutError::TooSmall {
                disk_bytes,
                image_bytes,
            });
        }
        let mut layout = Self {
            disk,
            disk_bytes,
            grid,
            source,
            front: Vec::new(),
            gpt: None,
            is_marked: false,
        };
        layout.fetch_front()?;
        layout.gpt = grown_gpt(&layout.front, disk_bytes)?;
        if let Some(gpt) = &mut layout.gpt {
            layout.front = std::mem::take(&mut gpt.front);
        }
        let mark = Mark {
            table: mark::table_of(&layout.front),
            ..mark.clone()
        };
        let mark = mark.encode().unwrap_or_default();
        let place = mark::AT_BYTES as usize..mark::AT_BYTES as usize + mark.len();
        if let Some(place) = layout.front.get_mut(place)
            && !place.is_empty()
            && is_zero(place)
        {
            place.copy_from_slice(&mark);
            layout.is_marked = true;
        }
        Ok(layout)
    }

    fn fetch_front(&mut self) -> Result<(), LayoutError> {
        let first = &self.grid.regions()[0];
        if first.kind != RegionKind::PartitionTable || first.len_bytes < SECTOR_BYTES {
            return Err(LayoutError::NoTable);
        }
        let end = first.end_bytes().min(FRONT_BYTES_MAX);
        let mut front = vec![0; end as usize];
        let spans = self.grid.spans().take_while(|span| span.start_bytes < end);
        for span in spans {
            let id = self.chunk_at(span)?;
            if id.is_zero() {
                continue;
            }
            let fetched = self.source.fetch(&[id], &mut |_, raw| {
                let at = span.start_bytes as usize;
                let place = front.get_mut(at..at + raw.len());
                let place = place.ok_or(io::ErrorKind::InvalidData)?;
                place.copy_from_slice(&raw);
                Ok(())
            });
            fetched.map_err(LayoutError::Fetch)?.map_err(writing)?;
        }
        self.front = front;
        Ok(())
    }

    /// Whether the disk will be known again without being named.
    pub(crate) fn is_marked(&self) -> bool {
        self.is_marked
    }

    /// Has a disk that does not boot: the first write.
    ///
    /// # Errors
    /// [`LayoutError::Disk`].
    pub(crate) fn begin(&self) -> Result<(), LayoutError> {
        // Alone: until it is gone, all that it leads to is there.
        self.write(0, &[0; SECTOR_BYTES as usize])?;
        self.sync()?;
        let len = TABLE_BYTES.min(self.front.len() as u64);
        self.write(0, &vec![0; len as usize])?;
        let last = self.disk_bytes - SECTOR_BYTES;
        let mut header = vec![0; SECTOR_BYTES as usize];
        self.disk.read_at(last, &mut header).map_err(reading)?;
        if header.starts_with(b"EFI PART") {
            self.write(last, &vec![0; SECTOR_BYTES as usize])?;
        }
        self.sync()?;
        if self.is_marked {
            let at = mark::AT_BYTES as usize;
            self.write(mark::AT_BYTES, &self.front[at..at + mark::BYTES])?;
            self.sync()?;
        }
        Ok(())
    }

    /// Has all but the front on the disk, by so many threads.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub(crate) fn fill(&self, threads: usize) -> Result<(), LayoutError> {
        let next = AtomicU64::new(0);
        let is_over = AtomicBool::new(false);
        let failed: Mutex<Option<LayoutError>> = Mutex::new(None);
        thread::scope(|scope| {
            for number in 0..threads {
                let (next, is_over, failed) = (&next, &is_over, &failed);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let first = next.fetch_add(RUN, Ordering::Relaxed);
                        if first >= self.grid.chunk_count() {
                            return;
                        }
                        if let Err(error) = self.fill_run(first, number) {
                            is_over.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.get_or_insert(error);
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => self.sync(),
        }
    }

    /// Looks at some chunks, and has those right that are not.
    fn fill_run(&self, first: u64, number: usize) -> Result<(), LayoutError> {
        let end = (first + RUN).min(self.grid.chunk_count());
        let mut lacking: HashMap<ChunkId, Vec<ChunkSpan>> = HashMap::new();
        let mut bytes = Vec::new();
        for index in first..end {
            let span = self.grid.span(index);
            let len = u64::from(span.len_bytes);
            if self.is_apart(span) {
                self.source.is_there(len, 0);
                continue;
            }
            self.source.wait_turn(number);
            let id = self.chunk_at(span)?;
            bytes.resize(span.len_bytes as usize, 0);
            let read = self.disk.read_at(span.start_bytes, &mut bytes);
            read.map_err(reading)?;
            match (id.is_zero(), is_zero(&bytes)) {
                (true, true) => self.source.is_there(len, 0),
                (true, false) => {
                    bytes.fill(0);
                    self.write(span.start_bytes, &bytes)?;
                    self.source.is_there(len, len);
                }
                (false, false) if ChunkId::of(&bytes) == id => self.source.is_there(len, 0),
                (false, _) => lacking.entry(id).or_default().push(span),
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let ids: Vec<ChunkId> = lacking.keys().copied().collect();
        let fetched = self.source.fetch(&ids, &mut |id, raw| {
            for span in lacking.get(&id).into_iter().flatten() {
                if raw.len() != span.len_bytes as usize {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.disk.write_at(span.start_bytes, &raw)?;
                let len = u64::from(span.len_bytes);
                self.source.is_there(len, len);
            }
            Ok(())
        });
        fetched.map_err(LayoutError::Fetch)?.map_err(writing)
    }

    /// Whether a chunk is not written in its turn: the front, and the second copy of
    /// a GPT, which has another place on this disk.
    fn is_apart(&self, span: ChunkSpan) -> bool {
        let last = self.grid.regions().last();
        let is_tail = self.gpt.is_some()
            && last.is_some_and(|region| {
                region.kind == RegionKind::PartitionTable && span.start_bytes >= region.start_bytes
            });
        span.start_bytes < self.front.len() as u64 || is_tail
    }

    /// Has a disk that boots: the last write is that of the first sector.
    ///
    /// # Errors
    /// [`LayoutError::Disk`].
    pub(crate) fn finish(&self) -> Result<(), LayoutError> {
        if let Some(gpt) = &self.gpt {
            self.write(gpt.tail_at_bytes, &gpt.tail)?;
        }
        let (first, rest) = self.front.split_at(SECTOR_BYTES as usize);
        if !rest.is_empty() {
            self.write(SECTOR_BYTES, rest)?;
        }
        self.sync()?;
        self.write(0, first)?;
        self.sync()
    }

    fn chunk_at(&self, span: ChunkSpan) -> Result<ChunkId, LayoutError> {
        self.source.chunk_at(span).map_err(LayoutError::Manifest)
    }

    fn write(&self, at_bytes: u64, bytes: &[u8]) -> Result<(), LayoutError> {
        self.disk.write_at(at_bytes, bytes).map_err(writing)
    }

    fn sync(&self) -> Result<(), LayoutError> {
        self.disk.sync_data().map_err(writing)
    }
}

fn reading(source: io::Error) -> LayoutError {
    LayoutError::Disk {
        doing: "read",
        source,
    }
}

fn writing(source: io::Error) -> LayoutError {
    LayoutError::Disk {
        doing: "written",
        source,
    }
}

#[cfg(test)]
mod tests;
