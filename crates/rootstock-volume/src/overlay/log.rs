//! The map log as a file: replay, append, compaction.

use std::{
    io,
    ops::{ControlFlow, Range},
    sync::Arc,
};

use rootstock_core::{Digest, Extents};
use rootstock_store::disk::{Disk, DiskFile};

use super::{
    OpenError,
    format::{
        Encoder, HEADER_BYTES, Header, HeaderError, LoggedRun, PART_HEAD_BYTES, PartHead,
        Transaction, checked_body, each_run, u32_at,
    },
    map::{BlockMap, Entry, Run, blocks_of},
};

/// A log shorter than this is never compacted, in bytes.
pub(super) const LOG_BYTES_MIN: u64 = 4 << 20;

/// A log is compacted when it is this many times the size of its full map.
const LOG_GROWTH_MAX: u64 = 4;

/// Bytes read at once when a log is replayed; more than the longest part.
const WINDOW_BYTES: usize = 2 << 20;

const NAME_PREFIX: &str = "map-";
const UNFINISHED_SUFFIX: &str = ".new";

/// A state of the volume as the log records it.
#[derive(Clone)]
pub(super) struct Recorded {
    pub(super) map: BlockMap,
    pub(super) size_bytes: u64,
    pub(super) generation: u64,
}

/// The open log of a volume.
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    dir: String,
    base: Digest,
    file: Box<dyn DiskFile>,
    sequence: u64,
    len_bytes: u64,
    full_bytes: u64,
    bytes_min: u64,
    /// A compaction failed after its file got its name, or a failed transaction
    /// could not be cut off: only a newer file is sure to be what an open finds.
    must_compact: bool,
}

impl Log {
    /// Writes the first log file of a volume; its name is durable on return.
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        dir: &str,
        base: Digest,
        state: &Recorded,
        bytes_min: u64,
    ) -> io::Result<Self> {
        let (file, len_bytes) = write_full(&*disk, dir, base, 1, state)?;
        install(&*disk, dir, 1)?;
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            base,
            file,
            sequence: 1,
            len_bytes,
            full_bytes: len_bytes,
            bytes_min,
            must_compact: false,
        })
    }

    /// Finds the newest log file, replays it, and drops what a crash left.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        base: Digest,
        bytes_min: u64,
    ) -> Result<(Self, Recorded), OpenError> {
        let io_error = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        let mut sequences = Vec::new();
        let mut leftovers = Vec::new();
        for name in disk.list(dir).map_err(io_error)? {
            match name.strip_prefix(NAME_PREFIX) {
                Some(rest) if rest.ends_with(UNFINISHED_SUFFIX) => leftovers.push(name),
                Some(rest) => sequences.extend(u64::from_str_radix(rest, 16).ok()),
                None => {}
            }
        }
        let sequence = sequences
            .iter()
            .copied()
            .max()
            .ok_or_else(|| OpenError::NotAVolume {
                path: dir.to_owned(),
            })?;
        let path = format!("{dir}/{}", name_of(sequence));
        let file = disk.open(&path).map_err(io_error)?;
        let replay = replay(&*file, &path, sequence, base)?;
        if replay.file_bytes > replay.len_bytes {
            tracing::info!(
                path,
                dropped_bytes = replay.file_bytes - replay.len_bytes,
                "dropped an unfinished transaction"
            );
            file.set_len(replay.len_bytes).map_err(io_error)?;
        }
        // Whoever wrote this may have been killed before its syncs, and what is
        // believed now must not be undone by a power cut later.
        file.sync_data().map_err(io_error)?;
        disk.sync_dir(dir).map_err(io_error)?;
        // An older file or an unfinished one that cannot be removed does no harm.
        for old in sequences.into_iter().filter(|old| *old < sequence) {
            let _ = disk.remove(&format!("{dir}/{}", name_of(old)));
        }
        for name in leftovers {
            let _ = disk.remove(&format!("{dir}/{name}"));
        }
        let log = Self {
            disk,
            dir: dir.to_owned(),
            base,
            file,
            sequence,
            len_bytes: replay.len_bytes,
            full_bytes: replay.full_bytes,
            bytes_min,
            must_compact: false,
        };
        Ok((log, replay.state))
    }

    /// Makes `state` the recorded one: appends the entries of `changed`, or writes
    /// a new file when the log is long or `full` asks for it. Durable on return.
    pub(super) fn record(
        &mut self,
        state: &Recorded,
        changed: &Extents,
        full: bool,
    ) -> io::Result<()> {
        if full || self.must_compact {
            return self.compact(state);
        }
        let bytes = self.encode(state, changed)?;
        let len_bytes = self.len_bytes + bytes.len() as u64;
        if len_bytes > self.bytes_min.max(LOG_GROWTH_MAX * self.full_bytes) {
            match self.compact(state) {
                // A disk too full for a new file may take one more transaction.
                Err(_) if !self.must_compact => {}
                done => return done,
            }
        }
        let written = self.file.write_at(self.len_bytes, &bytes);
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // What a failed sync left may be in memory only: the next open must not
            // take it for durable.
            if self.file.set_len(self.len_bytes).is_err() {
                self.must_compact = true;
            }
            return Err(error);
        }
        self.len_bytes = len_bytes;
        Ok(())
    }

    /// The log file's length.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn encode(&self, state: &Recorded, changed: &Extents) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        let mut encoder = Encoder::new(state.transaction(self.sequence, false), sink);
        let block_bytes = rootstock_core::BLOCK_BYTES;
        for range in changed.iter() {
            let blocks = range.start / block_bytes..range.end() / block_bytes;
            encode_runs(&state.map, blocks, &mut encoder)?;
        }
        encoder.finish()?;
        Ok(bytes)
    }

    fn compact(&mut self, state: &Recorded) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let (file, len_bytes) = write_full(&*self.disk, &self.dir, self.base, sequence, state)?;
        // From here on the new name may be what a crash leaves.
        self.must_compact = true;
        self.sequence = sequence;
        install(&*self.disk, &self.dir, sequence)?;
        self.must_compact = false;
        // The next open removes what is left of older files as well.
        let _ = self
            .disk
            .remove(&format!("{}/{}", self.dir, name_of(sequence - 1)));
        self.file = file;
        self.len_bytes = len_bytes;
        self.full_bytes = len_bytes;
        Ok(())
    }
}

impl Recorded {
    fn transaction(&self, sequence: u64, full: bool) -> Transaction {
        Transaction {
            sequence,
            generation: self.generation,
            size_bytes: self.size_bytes,
            full,
        }
    }
}

/// Whether a name in a volume's directory is that of a finished log file.
pub(crate) fn is_log_name(name: &str) -> bool {
    name.starts_with(NAME_PREFIX) && !name.ends_with(UNFINISHED_SUFFIX)
}

fn name_of(sequence: u64) -> String {
    format!("{NAME_PREFIX}{sequence:016x}")
}

/// Writes and syncs a log file with the whole map, under its unfinished name.
fn write_full(
    disk: &dyn Disk,
    dir: &str,
    base: Digest,
    sequence: u64,
    state: &Recorded,
) -> io::Result<(Box<dyn DiskFile>, u64)> {
    let path = format!("{dir}/{}{UNFINISHED_SUFFIX}", name_of(sequence));
    match disk.remove(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&path)?;
    let written = fill_full(&*file, base, sequence, state);
    if written.is_err() {
        let _ = disk.remove(&path);
    }
    Ok((file, written?))
}

fn fill_full(
    file: &dyn DiskFile,
    base: Digest,
    sequence: u64,
    state: &Recorded,
) -> io::Result<u64> {
    file.write_at(0, &Header { sequence, base }.encode())?;
    let mut len_bytes = HEADER_BYTES as u64;
    let sink = |part: &[u8]| {
        file.write_at(len_bytes, part)?;
        len_bytes += part.len() as u64;
        Ok(())
    };
    let mut encoder = Encoder::new(state.transaction(sequence, true), sink);
    let end = blocks_of(state.size_bytes).min(state.map.blocks_end());
    encode_runs(&state.map, 0..end, &mut encoder)?;
    encoder.finish()?;
    file.sync_data()?;
    Ok(len_bytes)
}

fn install(disk: &dyn Disk, dir: &str, sequence: u64) -> io::Result<()> {
    let name = name_of(sequence);
    disk.rename(
        &format!("{dir}/{name}{UNFINISHED_SUFFIX}"),
        &format!("{dir}/{name}"),
    )?;
    disk.sync_dir(dir)
}

fn encode_runs<S: FnMut(&[u8]) -> io::Result<()>>(
    map: &BlockMap,
    blocks: Range<u64>,
    encoder: &mut Encoder<S>,
) -> io::Result<()> {
    let mut zero = blocks.start..blocks.start;
    let mut crcs = Vec::new();
    let walk = map.visit(blocks, |range, run| {
        // Zero runs are joined across leaves, or a discarded disk would fill the log.
        if run == Run::Zero && range.start == zero.end {
            zero.end = range.end;
            return ControlFlow::Continue(());
        }
        let result = encoder.zero(zero.start, zero.end - zero.start);
        zero = range.end..range.end;
        let result = result.and_then(|()| match run {
            Run::Base => Ok(()),
            Run::Zero => {
                zero = range;
                Ok(())
            }
            Run::Data(entries) => {
                crcs.clear();
                let placed = entries.iter().filter_map(|entry| entry.placed());
                crcs.extend(placed.map(|(_, crc)| crc));
                let first = entries[0].placed().map_or(0, |(slot, _)| slot);
                encoder.data(range.start, first, &crcs)
            }
        });
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    });
    match walk {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => encoder.zero(zero.start, zero.end - zero.start),
    }
}

struct Replay {
    state: Recorded,
    /// Where the last whole transaction ends.
    len_bytes: u64,
    /// Where the full map at the start ends.
    full_bytes: u64,
    file_bytes: u64,
}

fn replay(
    file: &dyn DiskFile,
    path: &str,
    sequence: u64,
    base: Digest,
) -> Result<Replay, OpenError> {
    let damaged = |offset_bytes, what: &str| OpenError::Damaged {
        path: path.to_owned(),
        offset_bytes,
        what: what.to_owned(),
    };
    let io_error = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let mut reader = Reader::new(file).map_err(io_error)?;
    let header = reader.bytes(0, HEADER_BYTES).map_err(io_error)?;
    let header = match header.map(Header::decode) {
        Some(Ok(header)) => header,
        Some(Err(HeaderError::Version(version))) => {
            return Err(OpenError::Version {
                path: path.to_owned(),
                version,
            });
        }
        _ => return Err(damaged(0, "the header fails its checksum")),
    };
    if header.sequence != sequence {
        return Err(damaged(0, "the file's number is not the one in its name"));
    }
    if header.base != base {
        return Err(OpenError::OtherBase {
            path: path.to_owned(),
            expected: base,
            found: header.base,
        });
    }
    let mut state = Recorded {
        map: BlockMap::new(),
        size_bytes: 0,
        generation: 0,
    };
    let mut offset = HEADER_BYTES as u64;
    let mut full_bytes = None;
    loop {
        let first = full_bytes.is_none();
        let read = read_transaction(&mut reader, offset, sequence, first);
        match read.map_err(io_error)? {
            Some(whole) if first || whole.head.generation == state.generation + 1 => {
                state.size_bytes = whole.head.size_bytes;
                state.generation = whole.head.generation;
                apply(&whole, &mut state)
                    .ok_or_else(|| damaged(offset, "a transaction makes no sense"))?;
                offset = whole.end;
                full_bytes.get_or_insert(offset);
            }
            _ if first => return Err(damaged(offset, "the full map is not whole")),
            _ => break,
        }
    }
    // A power cut can only spoil the transaction that was being written. One that
    // is spoilt with a later one behind it was acknowledged, and is lost to rot.
    let later = reader.later_generation(offset, sequence, state.generation + 1);
    if let Some(at) = later.map_err(io_error)? {
        let what = format!("a transaction is damaged, and one at byte {at} follows it");
        return Err(damaged(offset, &what));
    }
    Ok(Replay {
        state,
        len_bytes: offset,
        full_bytes: full_bytes.unwrap_or(offset),
        file_bytes: reader.file_bytes,
    })
}

struct WholeTransaction {
    head: Transaction,
    bodies: Vec<Vec<u8>>,
    end: u64,
}

/// The transaction at `offset`, if all of it is there and passes its digests.
fn read_transaction(
    reader: &mut Reader<'_>,
    offset: u64,
    sequence: u64,
    full: bool,
) -> io::Result<Option<WholeTransaction>> {
    let mut whole = None::<WholeTransaction>;
    let mut end = offset;
    loop {
        let Some((head, body)) = reader.part(end)? else {
            return Ok(None);
        };
        let parts = whole.as_ref().map_or(0, |whole| whole.bodies.len());
        let expected = whole.as_ref().map_or(head.transaction, |whole| whole.head);
        if head.transaction != expected
            || head.transaction.sequence != sequence
            || head.transaction.full != full
            || head.part as usize != parts
        {
            return Ok(None);
        }
        let body = body.to_vec();
        end += head.part_bytes() as u64;
        let all = whole.get_or_insert_with(|| WholeTransaction {
            head: head.transaction,
            bodies: Vec::new(),
            end,
        });
        all.bodies.push(body);
        all.end = end;
        if !head.more {
            return Ok(whole);
        }
    }
}

fn apply(whole: &WholeTransaction, state: &mut Recorded) -> Option<()> {
    if state.size_bytes > rootstock_core::units::DISK_BYTES_MAX {
        return None;
    }
    let map = &mut state.map;
    for body in &whole.bodies {
        each_run(body, blocks_of(state.size_bytes), |run| {
            match run {
                LoggedRun::Zero {
                    first_block,
                    blocks,
                } => map.set_zero(first_block..first_block + blocks, |_, _| ()),
                LoggedRun::Data {
                    first_block,
                    first_slot,
                    crcs,
                } => {
                    for (index, crc) in crcs.chunks_exact(4).enumerate() {
                        let entry = Entry::data(first_slot + index as u32, u32_at(crc, 0));
                        map.set(first_block + index as u64, entry);
                    }
                }
            }
            Some(())
        })?;
    }
    Some(())
}

/// Reads a file front to back through one buffer.
pub(super) struct Reader<'a> {
    file: &'a dyn DiskFile,
    file_bytes: u64,
    buffer: Vec<u8>,
    start: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a dyn DiskFile) -> io::Result<Self> {
        Ok(Self {
            file,
            file_bytes: file.len()?,
            buffer: Vec::new(),
            start: 0,
        })
    }

    /// The bytes at a place, unless the file ends before them.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        debug_assert!(len <= WINDOW_BYTES);
        if offset + len as u64 > self.file_bytes {
            return Ok(None);
        }
        let inside =
            offset >= self.start && offset + len as u64 <= self.start + self.buffer.len() as u64;
        if !inside {
            let want = (self.file_bytes - offset).min(WINDOW_BYTES as u64);
            self.buffer.resize(want as usize, 0);
            self.start = offset;
            self.file.read_at(offset, &mut self.buffer)?;
        }
        let first = (offset - self.start) as usize;
        Ok(Some(&self.buffer[first..first + len]))
    }

    /// The part at a place, if it passes its digest.
    pub(super) fn part(&mut self, offset: u64) -> io::Result<Option<(PartHead, &[u8])>> {
        let head = self.bytes(offset, PART_HEAD_BYTES)?;
        let Some(head) = head.and_then(PartHead::decode) else {
            return Ok(None);
        };
        let part = self.bytes(offset, head.part_bytes())?;
        Ok(part.and_then(checked_body).map(|body| (head, body)))
    }

    /// Where a whole part of a generation after `generation` lies, if one does.
    fn later_generation(
        &mut self,
        from: u64,
        sequence: u64,
        generation: u64,
    ) -> io::Result<Option<u64>> {
        let mut offset = from;
        while offset < self.file_bytes {
            if let Some((head, _)) = self.part(offset)?
                && head.transaction.sequence == sequence
                && head.transaction.generation > generation
            {
                return Ok(Some(offset));
            }
            // All parts are multiples of eight bytes long.
            offset += 8;
        }
        Ok(None)
    }
}
