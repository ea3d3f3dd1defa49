//! The whole image in memory: its frames, compressed as they came.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use rootstock_api::boot::FETCH_IDS_MAX;
use rootstock_core::units::HumanBytes;
use rootstock_core::{CHUNK_BYTES, ChunkId};
use rootstock_image::frame::{Decoder, Frame};
use rootstock_image::manifest::{Descend, Manifest, PageSource, Visit};
use rootstock_store::ReadError;
use rootstock_volume::ChunkSource;

use crate::console;
use crate::remote::{Asker, Fetch, Remote};

/// Requests at once; each brings up to 16 MiB.
const FETCHERS: usize = 4;
/// Lines that tell how far it is.
const TELLS: usize = 10;

/// Why an image is not in memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RamError {
    /// It would not fit.
    #[error(
        "the image may need {} of memory, and {} are free: give the machine more, or boot it diskless", HumanBytes(*needed_bytes), HumanBytes(*free_bytes)
    )]
    TooLarge {
        /// What its chunks may take.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// A chunk is not to be had.
    #[error("the image cannot be fetched")]
    Fetch(#[source] ReadError),
    /// The manifest's pages make no sense.
    #[error("the image's manifest cannot be read: {what}")]
    Manifest {
        /// What is wrong.
        what: String,
    },
}

/// All frames of an image. Gives them without any server.
pub(crate) struct RamFrames {
    frames: HashMap<ChunkId, Frame>,
}

impl RamFrames {
    /// Fetches every page and every chunk that is not zero, as long as it takes
    /// and no more than `free_bytes`.
    ///
    /// # Errors
    /// [`RamError`].
    pub(crate) fn fetch<F: Fetch>(
        manifest: &Manifest,
        remote: &Remote<F>,
        free_bytes: u64,
    ) -> Result<Self, RamError> {
        let pages = Kept::default();
        let mut ids = Vec::new();
        let source = Pages {
            remote,
            kept: &pages,
        };
        let walked = manifest.walk(&source, |visit| {
            if let Visit::Chunk { id, .. } = visit {
                ids.push(id);
            }
            Descend::Into
        });
        walked.map_err(|error| RamError::Manifest {
            what: console::chain(&error),
        })?;
        ids.sort_unstable();
        ids.dedup();
        let kept = pages.fill(remote, &ids, free_bytes)?;
        Ok(Self { frames: kept })
    }
}

/// Frames as they come.
#[derive(Default)]
struct Kept {
    frames: Mutex<HashMap<ChunkId, Frame>>,
}

impl Kept {
    fn keep(&self, frame: Frame) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.insert(frame.chunk, frame);
    }

    fn bytes(&self) -> u64 {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.values().map(|frame| frame.bytes.len() as u64).sum()
    }

    fn fill<F: Fetch>(
        self,
        remote: &Remote<F>,
        ids: &[ChunkId],
        free_bytes: u64,
    ) -> Result<HashMap<ChunkId, Frame>, RamError> {
        let batches: Vec<&[ChunkId]> = ids.chunks(FETCH_IDS_MAX).collect();
        let next = AtomicUsize::new(0);
        let fetcher = || -> Result<(), RamError> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch) = batches.get(at) else {
                    return Ok(());
                };
                remote
                    .frames(batch, Asker::PATIENT, |frame, _| self.keep(frame))
                    .map_err(RamError::Fetch)?;
                self.tell(at, batches.len(), free_bytes, ids.len())?;
            }
        };
        thread::scope(|scope| {
            let fetchers: Vec<_> = (0..FETCHERS).map(|_| scope.spawn(fetcher)).collect();
            fetchers.into_iter().try_for_each(|fetcher| {
                fetcher.join().unwrap_or_else(|_| {
                    Err(RamError::Manifest {
                        what: "a fetcher failed inside the agent".to_owned(),
                    })
                })
            })
        })?;
        Ok(self
            .frames
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// Says how far it is, and stops before memory is full.
    fn tell(&self, at: usize, count: usize, free: u64, ids: usize) -> Result<(), RamError> {
        let step = count.div_ceil(TELLS);
        if !(at + 1).is_multiple_of(step) && at + 1 != count {
            return Ok(());
        }
        let used = self.bytes();
        console::info(format_args!(
            "{} % of the image are in memory ({})",
            (at + 1) * 100 / count,
            HumanBytes(used)
        ));
        if used > free {
            let raw = ids as u64 * CHUNK_BYTES;
            let needed_bytes = (used * count as u64 / (at as u64 + 1)).min(raw).max(used);
            return Err(RamError::TooLarge {
                needed_bytes,
                free_bytes: free,
            });
        }
        Ok(())
    }
}

/// Pages from the network, which are kept.
struct Pages<'a, F> {
    remote: &'a Remote<F>,
    kept: &'a Kept,
}

impl<F: Fetch> PageSource for Pages<'_, F> {
    type Error = ReadError;
    type Bytes = Vec<u8>;

    fn page(&self, id: ChunkId) -> Result<Vec<u8>, ReadError> {
        let mut page = None;
        self.remote.frames(&[id], Asker::PATIENT, |frame, raw| {
            self.kept.keep(frame);
            page = Some(raw);
        })?;
        page.ok_or(ReadError::Missing { chunk: id })
    }
}

impl ChunkSource for RamFrames {
    fn read(&self, chunk: ChunkId) -> Result<Bytes, ReadError> {
        let missing = ReadError::Missing { chunk };
        let frame = self.frames.get(&chunk).ok_or(missing)?;
        // Checked when it came, and again: memory has no checksum everywhere.
        Decoder::new()
            .decode(chunk, frame.raw_bytes, frame.codec, &frame.bytes)
            .map(Bytes::from)
            .map_err(|_| ReadError::Missing { chunk })
    }
}
