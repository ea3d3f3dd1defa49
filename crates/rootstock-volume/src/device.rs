//! What a block device of this crate promises, and how its reads are handed out.

use std::io::{self, IoSlice};

use bytes::Bytes;
use rootstock_core::ByteRange;

/// Length in bytes of the page of zeros that zero runs are sent from.
pub const ZEROES_BYTES: usize = 64 * 1024;

/// Zeros shared by every reader; it lies in `.bss`, so it costs one page of memory.
pub static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];

/// A disk that many threads read and write at once.
///
/// Offsets and lengths are in bytes and need no alignment. Two requests that
/// overlap in time may take effect in either order; a read that begins after a
/// write has returned sees it. The methods that change a disk are those of a
/// read-only one unless they are given.
pub trait BlockDevice: Send + Sync {
    /// The disk's size in bytes. It may change between calls: volumes are resized.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused with [`BlockError::ReadOnly`].
    fn read_only(&self) -> bool {
        true
    }

    /// Appends `len_bytes` from `offset_bytes` to `out`, waiting for what is not
    /// in memory. After an error `out` is as it was.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`], [`BlockError::Damaged`] or [`BlockError::Io`].
    fn read(&self, offset_bytes: u64, len_bytes: u32, out: &mut Segments)
    -> Result<(), BlockError>;

    /// As [`BlockDevice::read`], but `false`, with `out` as it was, when it would
    /// have to wait for the disk or a decompressor: the caller then hands the
    /// read to a thread that may wait.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    fn try_read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<bool, BlockError>;

    /// Writes `data`. It survives a power cut once [`BlockDevice::flush`], begun
    /// after this returned, has returned.
    ///
    /// # Errors
    /// [`BlockError`]; after [`BlockError::NoSpace`] some 4 KiB blocks of the range
    /// may hold the new data and the others the old, and the device goes on working.
    fn write(&self, _offset_bytes: u64, _data: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn write_zeroes(
        &self,
        _offset_bytes: u64,
        _len_bytes: u64,
        _zero: Zero,
    ) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    /// Says that a range's content is no longer needed: its whole 4 KiB blocks
    /// read as zeros from now on, the rest of it stays.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn discard(&self, _offset_bytes: u64, _len_bytes: u64) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    /// Makes every write that returned before this call durable, whichever
    /// connection it came over.
    ///
    /// # Errors
    /// [`BlockError::NoSpace`] or [`BlockError::Io`]; the writes stay readable and
    /// the next flush tries again.
    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    /// What lies in a range, from metadata alone: never reads data. The extents
    /// follow each other from `offset_bytes`, neighbours differ, and they end
    /// before the range does when `extents_max` is reached. Never empty for a
    /// range of at least a byte and `extents_max` of at least 1.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`], or an error of reading the metadata.
    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError>;

    /// Brings a range into memory if there is room. Errors show when it is read.
    fn prefetch(&self, offset_bytes: u64, len_bytes: u64);
}

/// What [`BlockDevice::write_zeroes`] may do with the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// The range's space may be given back: later writes to it may find the disk full.
    MayPunch,
    /// The range gets space of its own, so that later writes to it do not fail.
    Allocate,
}

/// A run of bytes of one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Nothing is stored for it.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

/// Why a block device did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The range passes the end of the disk.
    #[error("{len_bytes} B from byte {offset_bytes} pass the end of the disk of {size_bytes} B")]
    OutOfRange {
        /// First byte asked for.
        offset_bytes: u64,
        /// Bytes asked for.
        len_bytes: u64,
        /// The disk's size.
        size_bytes: u64,
    },
    /// A write to a version.
    #[error("the disk is read-only: write to a volume made from it")]
    ReadOnly,
    /// The server's disk is full.
    #[error(
        "no space for the volume's writes on the server: free some there, what is written stays"
    )]
    NoSpace {
        /// What the server's file system said.
        #[source]
        source: io::Error,
    },
    /// What is stored fails its checksum or is missing. It is never served.
    #[error("the data at byte {offset_bytes} is damaged ({what}) and was not served")]
    Damaged {
        /// Where on this disk.
        offset_bytes: u64,
        /// What was found.
        what: String,
    },
    /// The server's disk failed.
    #[error("cannot {doing} at byte {offset_bytes}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where on this disk.
        offset_bytes: u64,
        /// What the server's file system said.
        #[source]
        source: io::Error,
    },
}

impl BlockError {
    /// Sorts a full disk from other failures.
    pub(crate) fn io(doing: &'static str, offset_bytes: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { source },
            _ => Self::Io {
                doing,
                offset_bytes,
                source,
            },
        }
    }
}

/// The range, when it lies within a device of `size_bytes`.
///
/// # Errors
/// [`BlockError::OutOfRange`].
pub fn check_range(
    offset_bytes: u64,
    len_bytes: u64,
    size_bytes: u64,
) -> Result<ByteRange, BlockError> {
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end <= size_bytes => Ok(ByteRange::new(offset_bytes, len_bytes)),
        _ => Err(BlockError::OutOfRange {
            offset_bytes,
            len_bytes,
            size_bytes,
        }),
    }
}

/// A piece of a read.
#[derive(Debug, Clone)]
pub enum Segment {
    /// This many zeros.
    Zero(u32),
    /// Bytes of a cached chunk or of an overlay, not copied.
    Bytes(Bytes),
}

impl Segment {
    /// Its length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Zero(len) => *len as usize,
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The answer to a read: pieces in order. One is kept per connection or worker
/// and cleared between requests, so that it stops allocating.
#[derive(Debug, Default)]
pub struct Segments {
    pieces: Vec<Segment>,
    len_bytes: usize,
}

/// A place in [`Segments`] to go back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    len_bytes: usize,
}

impl Segments {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pieces: Vec::new(),
            len_bytes: 0,
        }
    }

    /// Forgets the pieces and keeps their table.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.len_bytes = 0;
    }

    /// The length of all pieces in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether nothing was read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// The pieces in order: none is empty, and no two zero runs meet unless their
    /// sum passes `u32::MAX`.
    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.pieces.iter()
    }

    /// Appends zeros, joining a zero run before them.
    pub fn push_zero(&mut self, len_bytes: u32) {
        if len_bytes == 0 {
            return;
        }
        self.len_bytes += len_bytes as usize;
        if let Some(Segment::Zero(last)) = self.pieces.last_mut()
            && let Some(sum) = last.checked_add(len_bytes)
        {
            *last = sum;
            return;
        }
        self.pieces.push(Segment::Zero(len_bytes));
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len_bytes += bytes.len();
            self.pieces.push(Segment::Bytes(bytes));
        }
    }

    /// Calls `each` with the bytes in order; zero runs come as slices of [`ZEROES`].
    pub fn for_each_slice<'a>(&'a self, mut each: impl FnMut(&'a [u8])) {
        for piece in &self.pieces {
            match piece {
                Segment::Bytes(bytes) => each(bytes),
                Segment::Zero(len) => {
                    let mut left = *len as usize;
                    while left > 0 {
                        let part = left.min(ZEROES_BYTES);
                        each(&ZEROES[..part]);
                        left -= part;
                    }
                }
            }
        }
    }

    /// Appends what a vectored write sends to `out`.
    pub fn io_slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        self.for_each_slice(|slice| out.push(IoSlice::new(slice)));
    }

    /// Copies everything into `buffer`.
    ///
    /// # Panics
    /// When `buffer` has another length than the segments.
    pub fn copy_to(&self, buffer: &mut [u8]) {
        assert_eq!(
            buffer.len(),
            self.len_bytes,
            "a buffer of the read's length"
        );
        let mut rest = buffer;
        for piece in &self.pieces {
            let (head, tail) = rest.split_at_mut(piece.len_bytes());
            match piece {
                Segment::Zero(_) => head.fill(0),
                Segment::Bytes(bytes) => head.copy_from_slice(bytes),
            }
            rest = tail;
        }
    }

    /// Everything in one vector: for tests and small reads.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len_bytes];
        self.copy_to(&mut all);
        all
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            len_bytes: self.len_bytes,
        }
    }

    /// Drops what was appended since `mark`.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        while self.len_bytes > mark.len_bytes {
            let Some(last) = self.pieces.last_mut() else {
                break;
            };
            let surplus = self.len_bytes - mark.len_bytes;
            match last {
                // Zeros that were joined to a run from before the mark.
                Segment::Zero(len) if *len as usize > surplus => {
                    *len -= surplus as u32;
                    self.len_bytes -= surplus;
                }
                piece => {
                    self.len_bytes -= piece.len_bytes();
                    self.pieces.pop();
                }
            }
        }
    }
}

/// Collects status runs, joining equal neighbours, up to a limit.
pub(crate) struct StatusList {
    extents: Vec<StatusExtent>,
    extents_max: usize,
}

impl StatusList {
    pub(crate) fn new(extents_max: usize) -> Self {
        Self {
            extents: Vec::new(),
            extents_max,
        }
    }

    /// Appends a run; `false` when the list is full and the run was left out.
    pub(crate) fn push(&mut self, run: StatusExtent) -> bool {
        if run.len_bytes == 0 {
            return true;
        }
        if let Some(last) = self.extents.last_mut()
            && (last.hole, last.zero) == (run.hole, run.zero)
        {
            last.len_bytes += run.len_bytes;
            return true;
        }
        if self.extents.len() >= self.extents_max {
            return false;
        }
        self.extents.push(run);
        true
    }

    pub(crate) fn finish(self) -> Vec<StatusExtent> {
        self.extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_rewind_and_copy() {
        let mut segments = Segments::new();
        segments.push_zero(10);
        let mark = segments.mark();
        segments.push_zero(70_000);
        segments.push(Bytes::from_static(b"abc"));
        segments.push(Bytes::new());
        segments.push_zero(0);
        assert_eq!(segments.iter().count(), 2);
        assert_eq!(segments.len_bytes(), 70_013);
        let mut slices = Vec::new();
        segments.io_slices(&mut slices);
        assert_eq!(
            slices.iter().map(|slice| slice.len()).collect::<Vec<_>>(),
            [ZEROES_BYTES, 70_010 - ZEROES_BYTES, 3]
        );
        assert_eq!(&segments.to_vec()[70_008..], b"\0\0abc");
        segments.rewind(mark);
        assert_eq!(segments.to_vec(), [0; 10]);
        segments.clear();
        assert!(segments.is_empty());
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        assert!(check_range(0, 10, 10).is_ok());
        assert!(check_range(10, 0, 10).is_ok());
        assert!(check_range(10, 1, 10).is_err());
        assert!(check_range(u64::MAX, 2, 10).is_err());
    }
}
