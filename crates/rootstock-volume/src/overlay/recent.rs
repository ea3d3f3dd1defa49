//! What was written since the last flush, for whoever opens the volume after the
//! process that wrote it was killed.
//!
//! Initiators count on what was answered, flushed or not, as long as they run
//! themselves: a daemon that is killed is no power cut to them. Each write's entries
//! go to one of two files, into the page cache and no further, where they outlive the
//! process and not the machine. A file is of one machine's boot and of one coming
//! generation; when a flush takes that generation's state, the other file begins.
//! Syncing nothing, it costs a write of some hundred bytes.

use std::{io, ops::Range};

use rootstock_core::units::DISK_BYTES_MAX;
use rootstock_store::disk::{Boot, Disk, DiskFile};

use super::{
    format::{Encoder, LoggedRun, Transaction, each_run, u32_at},
    log::Reader,
    map::blocks_of,
};

const NAMES: [&str; 2] = ["recent-0", "recent-1"];

const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"RSTKRCNT";
const VERSION: u32 = 1;

/// A change of the map.
pub(super) enum Change<'a> {
    /// Consecutive blocks are in these runs of slots, with their checksums.
    Data {
        first_block: u64,
        slots: &'a [Range<u32>],
        crcs: &'a [u32],
    },
    /// Blocks read as zeros.
    Zero(Range<u64>),
    /// All blocks are as in the base.
    Clear,
}

/// The files of an open volume.
pub(super) struct Recent {
    files: [Box<dyn DiskFile>; 2],
    current: usize,
    header: Header,
    len_bytes: u64,
    /// Something is lacking in it: it waits for the next flush to begin anew.
    broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    boot: Boot,
    /// One more than that of the file before, or this is not what follows it.
    sequence: u64,
    /// The generation that a flush of these writes will have.
    generation: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.boot);
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None for what is not whole, or of another format.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        let whole = bytes[..8] == *MAGIC
            && u32_at(bytes, 8) == VERSION
            && crc32fast::hash(&bytes[..60]) == u32_at(bytes, 60);
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        whole.then(|| Self {
            boot: std::array::from_fn(|i| bytes[16 + i]),
            sequence: number(32),
            generation: number(40),
        })
    }
}

impl Recent {
    /// Begins in a volume whose last durable generation is `generation`, with what is
    /// `noted` already; none where the disk does not tell one boot from another. What
    /// was there before is replaced at once or not at all.
    pub(super) fn begin(
        disk: &dyn Disk,
        dir: &str,
        generation: u64,
        noted: impl FnOnce(&mut Self),
    ) -> io::Result<Option<Self>> {
        let Some(boot) = disk.boot() else {
            return Ok(None);
        };
        let paths = NAMES.map(|name| format!("{dir}/{name}"));
        let before = paths.each_ref().map(|path| header_of(disk, path));
        let last = before.iter().flatten().map(|header| header.sequence).max();
        let unfinished = format!("{dir}/{}.new", NAMES[0]);
        remove(disk, &unfinished)?;
        let header = Header {
            boot,
            // Not what follows any that is there.
            sequence: last.unwrap_or(0) + 2,
            generation: generation + 1,
        };
        let first = disk.create(&unfinished)?;
        first.write_at(0, &header.encode())?;
        let second = format!("{unfinished}.other");
        remove(disk, &second)?;
        let other = disk.create(&second)?;
        let mut recent = Self {
            files: [first, other],
            current: 0,
            header,
            len_bytes: HEADER_BYTES as u64,
            broken: false,
        };
        noted(&mut recent);
        if recent.broken {
            return Err(io::Error::other("the recent writes cannot be noted again"));
        }
        disk.rename(&unfinished, &paths[0])?;
        disk.rename(&second, &paths[1])?;
        Ok(Some(recent))
    }

    /// Notes a change of a volume of this size, after all that were noted before.
    pub(super) fn note(&mut self, size_bytes: u64, change: &Change<'_>) {
        if self.broken {
            return;
        }
        let written = self.encode(size_bytes, change).and_then(|bytes| {
            let file = &self.files[self.current];
            file.write_at(self.len_bytes, &bytes).map(|()| bytes.len())
        });
        match written {
            Ok(len) => self.len_bytes += len as u64,
            Err(error) => self.give_up(&error),
        }
    }

    /// What is noted from now on is not in the state that is to become this generation.
    pub(super) fn taken(&mut self, generation: u64) {
        self.current = 1 - self.current;
        self.header.sequence += 1;
        self.header.generation = generation + 1;
        self.len_bytes = HEADER_BYTES as u64;
        self.broken = false;
        let header = self.header.encode();
        if let Err(error) = self.files[self.current].write_at(0, &header) {
            self.give_up(&error);
        }
    }

    /// Forgets everything until the next flush: with a gap it would be wrong.
    pub(super) fn give_up(&mut self, error: &dyn std::fmt::Display) {
        if !self.broken {
            tracing::warn!(%error, "until the next flush, what is not flushed would be lost if this process were killed");
        }
        self.broken = true;
        for file in &self.files {
            // A header is in a page that is there: this needs no space.
            let gone = file.write_at(0, &[0; HEADER_BYTES]);
            if gone.or_else(|_| file.set_len(0)).is_err() {
                tracing::error!("notes of recent writes cannot be made void");
            }
        }
    }

    fn encode(&self, size_bytes: u64, change: &Change<'_>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        let transaction = Transaction {
            sequence: self.header.sequence,
            generation: self.header.generation,
            size_bytes,
            full: matches!(change, Change::Clear),
        };
        let mut encoder = Encoder::new(transaction, sink);
        match change {
            Change::Clear => {}
            Change::Zero(blocks) => encoder.zero(blocks.start, blocks.end - blocks.start)?,
            Change::Data {
                first_block,
                slots,
                crcs,
            } => {
                let mut done = 0;
                for run in *slots {
                    let end = crcs.len().min(done + run.len());
                    encoder.data(*first_block + done as u64, run.start, &crcs[done..end])?;
                    done = end;
                }
            }
        }
        encoder.finish()?;
        Ok(bytes)
    }
}

impl Drop for Recent {
    /// Keeps no more than the next opening may need.
    fn drop(&mut self) {
        let other = 1 - self.current;
        // What cannot be cut is cut when it is opened next.
        let _ = self.files[other].set_len(0);
        let _ = self.files[self.current].set_len(self.len_bytes);
    }
}

/// Whether a name in a volume's directory is that of such a file.
pub(crate) fn is_recent_name(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Hands over what was noted after the state of `generation`, in its order: the size at
/// the time, and the change. `each` gives none for what makes no sense, and so does this.
pub(super) fn read(
    disk: &dyn Disk,
    dir: &str,
    generation: u64,
    mut each: impl FnMut(u64, &Change<'_>) -> Option<()>,
) -> Option<()> {
    let Some(boot) = disk.boot() else {
        return Some(());
    };
    let of = |name: &str| {
        let path = format!("{dir}/{name}");
        let header = header_of(disk, &path)?;
        (header.boot == boot).then_some((header, path))
    };
    let found: Vec<_> = NAMES.iter().filter_map(|name| of(name)).collect();
    let first = found.iter().find(|(it, _)| it.generation == generation + 1);
    let Some((first, path)) = first else {
        return Some(());
    };
    read_file(disk, path, first, &mut each)?;
    let next = found
        .iter()
        .find(|(it, _)| it.generation == generation + 2 && it.sequence == first.sequence + 1);
    match next {
        Some((next, path)) => read_file(disk, path, next, &mut each),
        None => Some(()),
    }
}

fn read_file(
    disk: &dyn Disk,
    path: &str,
    header: &Header,
    each: &mut impl FnMut(u64, &Change<'_>) -> Option<()>,
) -> Option<()> {
    let file = disk.open(path).ok()?;
    let mut reader = Reader::new(&*file).ok()?;
    let mut offset = HEADER_BYTES as u64;
    // The one that was being written when the process was killed was not answered.
    while let Some((head, body)) = reader.part(offset).ok()? {
        let of = head.transaction;
        if of.sequence != header.sequence || of.generation != header.generation {
            break;
        }
        if of.size_bytes > DISK_BYTES_MAX {
            return None;
        }
        offset += head.part_bytes() as u64;
        if of.full {
            each(of.size_bytes, &Change::Clear)?;
        }
        each_run(body, blocks_of(of.size_bytes), |run| match run {
            LoggedRun::Zero {
                first_block,
                blocks,
            } => each(
                of.size_bytes,
                &Change::Zero(first_block..first_block + blocks),
            ),
            LoggedRun::Data {
                first_block,
                first_slot,
                crcs,
            } => {
                let crcs: Vec<_> = crcs.chunks_exact(4).map(|crc| u32_at(crc, 0)).collect();
                let run = first_slot..first_slot + crcs.len() as u32;
                let change = Change::Data {
                    first_block,
                    slots: std::slice::from_ref(&run),
                    crcs: &crcs,
                };
                each(of.size_bytes, &change)
            }
        })?;
    }
    Some(())
}

fn header_of(disk: &dyn Disk, path: &str) -> Option<Header> {
    let file = disk.open(path).ok()?;
    let mut bytes = [0; HEADER_BYTES];
    file.read_at(0, &mut bytes).ok()?;
    Header::decode(&bytes)
}

fn remove(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
