//! The export pipeline: a version becomes a sparse file.
//!
//! One thread walks the manifest's trees, several fetch, check and write. The
//! seal is checked against the site's key, and every page and chunk against its
//! id, before a byte of it is written.

use std::{
    collections::HashMap,
    fs::File,
    io,
    num::NonZero,
    os::unix::fs::FileExt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use ed25519_dalek::VerifyingKey;
use rootstock_api::{
    Records,
    record::{FETCH_MAX, RecordError},
};
use rootstock_core::{BLOCK_BYTES, ChunkId, ImageName, VersionNumber, VersionSpec, units::is_zero};
use rootstock_image::{
    frame::{Codec, Decoder, FrameError},
    manifest::{Descend, LookupError, Manifest, ManifestError, PageSource, Visit},
    seal::Seal,
};

use crate::{Client, ClientError};

/// Batches that wait for a thread.
const QUEUE_BATCHES_MAX: usize = 4;

/// What is told about an export. Called from several threads.
pub trait Progress: Sync {
    /// So many bytes of the disk, from here on, are written or known as zeros.
    fn written(&self, more_bytes: u64);
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The daemon refused or went away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The root document cannot be read.
    #[error("the manifest of {version} cannot be used")]
    Manifest {
        /// The version.
        version: VersionSpec,
        /// Why.
        #[source]
        cause: ManifestError,
    },
    /// The site did not sign this.
    #[error("the manifest of {version} is not signed by this site: {what}")]
    Seal {
        /// The version.
        version: VersionSpec,
        /// What is wrong.
        what: String,
    },
    /// A page cannot be read.
    #[error(transparent)]
    Page(#[from] LookupError<FetchError>),
    /// A chunk cannot be read.
    #[error("the disk cannot be read at byte {offset_bytes}")]
    Chunk {
        /// Where on the disk.
        offset_bytes: u64,
        /// Why.
        #[source]
        cause: FetchError,
    },
    /// The file cannot be written.
    #[error("the file cannot be written at byte {offset_bytes}")]
    Write {
        /// Where.
        offset_bytes: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody stopped it.
    #[error("the export was stopped")]
    Cancelled,
}

/// Why a chunk or a page did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The daemon refused or went away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer is not records.
    #[error("the daemon's answer is damaged")]
    Records(#[from] RecordError),
    /// A frame is damaged.
    #[error("the daemon sent a damaged chunk")]
    Frame(#[from] FrameError),
    /// A codec of a newer release.
    #[error("chunk {chunk} is packed with codec {codec}, which a newer release made")]
    Codec {
        /// The chunk.
        chunk: ChunkId,
        /// The codec's byte.
        codec: u8,
    },
    /// The daemon sent something else.
    #[error("the daemon did not send chunk {chunk}")]
    Absent {
        /// The chunk.
        chunk: ChunkId,
    },
}

/// A version whose root document has been checked.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The version, by its number.
    pub version: VersionSpec,
    /// Its root document.
    pub manifest: Manifest,
}

/// Fetches a version's root document and checks the site's signature on it.
///
/// # Errors
/// [`PullError`] when there is no such version or its seal is not this site's.
pub fn manifest(client: &Client, version: &VersionSpec) -> Result<Pulled, PullError> {
    let answer = client.manifest(version)?;
    let key = client.site()?.public_key;
    let number = answer.version.parse().map(VersionNumber).map_err(|_| {
        client.not_the_api(format!("'{}' is not a version's number", answer.version))
    })?;
    let manifest = Manifest::decode(&answer.bytes).map_err(|cause| PullError::Manifest {
        version: version.clone(),
        cause,
    })?;
    check_seal(&key, &answer.seal, &version.image, number, &manifest).map_err(|what| {
        PullError::Seal {
            version: version.clone(),
            what,
        }
    })?;
    Ok(Pulled {
        version: VersionSpec {
            image: version.image.clone(),
            selector: rootstock_core::VersionSelector::Number(number),
        },
        manifest,
    })
}

/// Writes a version's disk into an empty file, zeros as holes.
///
/// # Errors
/// [`PullError`]; the file then holds a part of the disk.
pub fn pull(
    client: &Client,
    manifest: &Manifest,
    file: &File,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<(), PullError> {
    let grid = manifest.grid();
    let disk_bytes = grid.disk_bytes();
    file.set_len(disk_bytes).map_err(|cause| PullError::Write {
        offset_bytes: 0,
        cause,
    })?;
    let (queue, waiting) = mpsc::sync_channel::<Vec<(u64, ChunkId)>>(QUEUE_BATCHES_MAX);
    let waiting = Mutex::new(waiting);
    let failed: Mutex<Option<PullError>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let fail = |error: PullError| {
        stop.store(true, Ordering::Relaxed);
        lock(&failed).get_or_insert(error);
    };
    let stopped = || stop.load(Ordering::Relaxed) || cancel.load(Ordering::Relaxed);
    let target = Target {
        client,
        manifest,
        file,
        progress,
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, NonZero::get) + 1;
        for _ in 0..workers {
            scope.spawn(|| {
                let mut decoder = Decoder::new();
                loop {
                    // The lock is dropped before the batch is worked on.
                    let batch = lock(&waiting).recv();
                    let Ok(batch) = batch else { return };
                    // A failed export drains the queue, so that the walk ends.
                    if !stopped()
                        && let Err(error) = target.write(&mut decoder, &batch)
                    {
                        fail(error);
                    }
                }
            });
        }
        let walked = walk(client, manifest, &queue, stopped);
        drop(queue);
        if let Err(error) = walked {
            fail(PullError::Page(error));
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if stopped() {
        return Err(PullError::Cancelled);
    }
    file.sync_all().map_err(|cause| PullError::Write {
        offset_bytes: disk_bytes,
        cause,
    })
}

/// Hands the version's chunks to the queue, in the order of the disk.
fn walk(
    client: &Client,
    manifest: &Manifest,
    queue: &mpsc::SyncSender<Vec<(u64, ChunkId)>>,
    stopped: impl Fn() -> bool,
) -> Result<(), LookupError<FetchError>> {
    let mut batch = Vec::new();
    manifest.walk(&Pages { client }, |visit| {
        if stopped() {
            return Descend::Past;
        }
        if let Visit::Chunk { index, id } = visit {
            batch.push((index, id));
            if batch.len() == FETCH_MAX {
                // The workers live until the queue is dropped.
                let _ = queue.send(std::mem::take(&mut batch));
            }
        }
        Descend::Into
    })?;
    if !batch.is_empty() {
        let _ = queue.send(batch);
    }
    Ok(())
}

fn check_seal(
    key: &str,
    seal: &str,
    image: &ImageName,
    version: VersionNumber,
    manifest: &Manifest,
) -> Result<(), String> {
    let key = from_hex(key)
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
        .ok_or("the site's key cannot be read")?;
    let seal = from_hex(seal).ok_or("its seal is not hexadecimal")?;
    Seal::decode(&seal)
        .and_then(|seal| seal.verify_for(&key, image, version, manifest.id()))
        .map_err(|error| error.to_string())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8);
    text.as_bytes().chunks(2).map(pair).collect()
}

/// Manifest pages from the daemon.
struct Pages<'a> {
    client: &'a Client,
}

impl PageSource for Pages<'_> {
    type Error = FetchError;
    type Bytes = Vec<u8>;

    fn page(&self, id: ChunkId) -> Result<Vec<u8>, FetchError> {
        let mut chunks = fetch(self.client, &mut Decoder::new(), &[id])?;
        chunks.remove(&id).ok_or(FetchError::Absent { chunk: id })
    }
}

struct Target<'a> {
    client: &'a Client,
    manifest: &'a Manifest,
    file: &'a File,
    progress: &'a dyn Progress,
}

impl Target<'_> {
    fn write(&self, decoder: &mut Decoder, batch: &[(u64, ChunkId)]) -> Result<(), PullError> {
        let grid = self.manifest.grid();
        let offset_bytes = grid.span(batch[0].0).start_bytes;
        let mut ids: Vec<ChunkId> = batch.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        let chunks = fetch(self.client, decoder, &ids).map_err(|cause| PullError::Chunk {
            offset_bytes,
            cause,
        })?;
        for (index, id) in batch {
            let span = grid.span(*index);
            let raw = chunks
                .get(id)
                .filter(|raw| raw.len() == span.len_bytes as usize)
                .ok_or(PullError::Chunk {
                    offset_bytes: span.start_bytes,
                    cause: FetchError::Absent { chunk: *id },
                })?;
            write_sparse(self.file, span.start_bytes, raw).map_err(|cause| PullError::Write {
                offset_bytes: span.start_bytes,
                cause,
            })?;
            self.progress.written(u64::from(span.len_bytes));
        }
        Ok(())
    }
}

/// The raw bytes of chunks, each checked against its id.
fn fetch(
    client: &Client,
    decoder: &mut Decoder,
    ids: &[ChunkId],
) -> Result<HashMap<ChunkId, Vec<u8>>, FetchError> {
    let body = client.fetch(ids)?;
    let mut chunks = HashMap::with_capacity(ids.len());
    for record in Records::new(&body) {
        let record = record?;
        let codec = Codec::from_byte(record.codec).ok_or(FetchError::Codec {
            chunk: record.chunk,
            codec: record.codec,
        })?;
        let raw = decoder.decode(record.chunk, record.raw_bytes, codec, record.frame)?;
        chunks.insert(record.chunk, raw);
    }
    match ids.iter().find(|id| !chunks.contains_key(id)) {
        Some(absent) => Err(FetchError::Absent { chunk: *absent }),
        None => Ok(chunks),
    }
}

/// Writes the runs of blocks that are not zeros.
fn write_sparse(file: &File, start_bytes: u64, raw: &[u8]) -> io::Result<()> {
    let blocks: Vec<&[u8]> = raw.chunks(BLOCK_BYTES as usize).collect();
    let mut at = 0;
    for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|block| block.len()).sum();
        if !is_zero(run[0]) {
            file.write_all_at(&raw[at..at + len], start_bytes + at as u64)?;
        }
        at += len;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read() {
        assert_eq!(from_hex("00fF"), Some(vec![0, 255]));
        assert_eq!(from_hex(""), Some(Vec::new()));
        for bad in ["0", "0g", "é0"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn zeros_are_not_written() {
        let file = tempfile::tempfile().expect("temp file");
        let mut raw = vec![0; 5 * 4096 + 100];
        raw[4096] = 1;
        raw[5 * 4096 + 99] = 2;
        file.set_len(8192 + raw.len() as u64).expect("grows");
        write_sparse(&file, 8192, &raw).expect("writes");
        let mut back = vec![9; raw.len()];
        file.read_exact_at(&mut back, 8192).expect("reads");
        assert_eq!(back, raw);
    }
}
