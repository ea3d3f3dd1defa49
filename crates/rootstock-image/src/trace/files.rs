//! Which file a place on the disk belongs to, and a trace carried to the next version by that.

use std::io;

use rootstock_core::{BLOCK_BYTES, ByteRange};

use super::{Trace, TraceBuilder};
use crate::{
    inspect::{FileExtent, ext_files, partitions},
    read_at::{ReadAt, Window},
};

/// The most extents of all files of a disk that are noted.
pub const FILE_EXTENTS_MAX: usize = 1 << 20;

/// A file of a disk: the beginning of the digest of its partition and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FileKey([u8; 16]);

impl FileKey {
    fn of(partition: u32, path: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&partition.to_le_bytes());
        hasher.update(path);
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }
}

/// A part of a file that lies in one piece on the disk.
#[derive(Debug, Clone, Copy)]
struct Piece {
    file: FileKey,
    file_offset: u64,
    disk_offset: u64,
    len: u64,
}

impl Piece {
    fn disk_end(&self) -> u64 {
        self.disk_offset + self.len
    }

    fn file_end(&self) -> u64 {
        self.file_offset + self.len
    }
}

/// Where the files of a disk lie.
#[derive(Debug, Clone, Default)]
pub struct FileMap {
    /// By file and offset in it; pieces of a file do not overlap.
    by_file: Vec<Piece>,
    /// By place on the disk; none overlap.
    by_place: Vec<Piece>,
}

impl FileMap {
    /// The files and directories of all ext4 file systems of a disk. What cannot
    /// be made sense of has no files, and past [`FILE_EXTENTS_MAX`] nothing is
    /// noted.
    ///
    /// # Errors
    /// The source's own errors.
    pub fn read(disk: &dyn ReadAt) -> io::Result<Self> {
        let mut pieces = Vec::new();
        for partition in partitions(disk)? {
            if partition.fs.is_none_or(|fs| fs.kind != "ext") {
                continue;
            }
            let window = Window::new(disk, partition.start_bytes, partition.len_bytes);
            ext_files(&window, &mut |path, extent| {
                if pieces.len() < FILE_EXTENTS_MAX {
                    let file = FileKey::of(partition.number, path);
                    pieces.push(piece(file, partition.start_bytes, extent));
                }
            })?;
        }
        Ok(Self::of(pieces))
    }

    fn of(pieces: Vec<Piece>) -> Self {
        let mut by_place = pieces.clone();
        by_place.sort_by_key(|piece| piece.disk_offset);
        let mut end = 0;
        // A file of two names is under one of them; a damaged file system may say
        // anything.
        by_place.retain(|piece| {
            let fits = piece.disk_offset >= end;
            if fits {
                end = piece.disk_end();
            }
            fits
        });
        let mut by_file = pieces;
        by_file.sort_by_key(|piece| (piece.file, piece.file_offset));
        let mut last: Option<Piece> = None;
        by_file.retain(|piece| {
            let fits = last
                .is_none_or(|last| last.file != piece.file || piece.file_offset >= last.file_end());
            if fits {
                last = Some(*piece);
            }
            fits
        });
        Self { by_file, by_place }
    }

    /// The piece that a byte of the disk is in, or else where the next one begins.
    fn at(&self, offset: u64) -> Result<&Piece, u64> {
        let after = self
            .by_place
            .partition_point(|piece| piece.disk_end() <= offset);
        match self.by_place.get(after) {
            Some(piece) if piece.disk_offset <= offset => Ok(piece),
            Some(piece) => Err(piece.disk_offset),
            None => Err(u64::MAX),
        }
    }

    /// Calls `each` with the places on the disk of a file's range, in the file's
    /// order.
    fn each(&self, file: FileKey, range: ByteRange, mut each: impl FnMut(ByteRange)) {
        let first = self
            .by_file
            .partition_point(|piece| (piece.file, piece.file_end()) <= (file, range.start));
        for piece in &self.by_file[first..] {
            if piece.file != file || piece.file_offset >= range.end() {
                return;
            }
            let whole = ByteRange::new(piece.file_offset, piece.len);
            if let Some(part) = whole.intersection(range) {
                let within = part.start - piece.file_offset;
                each(ByteRange::new(piece.disk_offset + within, part.len));
            }
        }
    }
}

/// A version's trace for the version made from it: what was read of a file is
/// looked for in the file of that path, wherever it lies now; what belongs to no
/// file, such as a file system's own tables, is taken at its place.
#[must_use]
pub fn carry(trace: &Trace, from: &FileMap, to: &FileMap, to_disk_bytes: u64) -> Trace {
    let mut carried = TraceBuilder::new(to_disk_bytes);
    for run in trace.runs() {
        let end = (run.end() * BLOCK_BYTES).min(trace.disk_bytes());
        let mut at = run.first * BLOCK_BYTES;
        while at < end {
            at = match from.at(at) {
                Ok(piece) => {
                    let part_end = piece.disk_end().min(end);
                    let start = piece.file_offset + (at - piece.disk_offset);
                    let range = ByteRange::new(start, part_end - at);
                    to.each(piece.file, range, |place| carried.read(place));
                    part_end
                }
                Err(next) => {
                    let part_end = next.min(end);
                    carried.read(ByteRange::new(at, part_end - at));
                    part_end
                }
            };
        }
    }
    carried.finish()
}

fn piece(file: FileKey, start_bytes: u64, extent: FileExtent) -> Piece {
    Piece {
        file,
        file_offset: extent.file_offset_bytes,
        disk_offset: start_bytes + extent.offset_bytes,
        len: extent.len_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Run;

    fn map(pieces: &[(&str, u64, u64, u64)]) -> FileMap {
        let piece = |&(path, file_block, block, count): &(&str, u64, u64, u64)| Piece {
            file: FileKey::of(1, path.as_bytes()),
            file_offset: file_block * BLOCK_BYTES,
            disk_offset: block * BLOCK_BYTES,
            len: count * BLOCK_BYTES,
        };
        FileMap::of(pieces.iter().map(piece).collect())
    }

    fn check(
        from: &[(&str, u64, u64, u64)],
        to: &[(&str, u64, u64, u64)],
        runs: &[(u64, u64)],
        expected: &[(u64, u64)],
    ) {
        let disk_bytes = 1000 * BLOCK_BYTES;
        let mut trace = TraceBuilder::new(disk_bytes);
        for (first, count) in runs {
            trace.read(ByteRange::new(first * BLOCK_BYTES, count * BLOCK_BYTES));
        }
        let carried = carry(&trace.finish(), &map(from), &map(to), disk_bytes);
        let expected: Vec<Run> = expected
            .iter()
            .map(|&(first, count)| Run { first, count })
            .collect();
        assert_eq!(carried.runs(), expected, "{from:?} {to:?} {runs:?}");
    }

    #[test]
    fn what_was_read_of_a_file_is_looked_for_where_it_lies_now() {
        // No files: by place.
        check(&[], &[], &[(7, 3), (1, 2)], &[(7, 3), (1, 2)]);
        // Moved whole, and a table before it that did not move.
        check(
            &[("/a", 0, 10, 5)],
            &[("/a", 0, 50, 5)],
            &[(8, 4)],
            &[(8, 2), (50, 2)],
        );
        // In two pieces now, the second of which lies before the first.
        check(
            &[("/a", 0, 10, 6)],
            &[("/a", 0, 90, 3), ("/a", 3, 40, 9)],
            &[(11, 4)],
            &[(91, 2), (40, 2)],
        );
        // In two pieces before, and in one now.
        check(
            &[("/a", 0, 10, 2), ("/a", 2, 30, 2)],
            &[("/a", 0, 60, 4)],
            &[(30, 2), (10, 2)],
            &[(62, 2), (60, 2)],
        );
        // Gone, or shorter.
        check(&[("/a", 0, 10, 5)], &[], &[(10, 5), (3, 1)], &[(3, 1)]);
        check(
            &[("/a", 0, 10, 5)],
            &[("/a", 0, 20, 1)],
            &[(10, 5)],
            &[(20, 1)],
        );
        // Of two names, under the one that is left.
        check(
            &[("/a", 0, 10, 2), ("/b", 0, 10, 2)],
            &[("/a", 0, 20, 2), ("/b", 0, 20, 2)],
            &[(10, 2)],
            &[(20, 2)],
        );
        // Past the new disk's end there is nothing.
        check(&[], &[], &[(998, 2)], &[(998, 2)]);
    }

    #[test]
    fn pieces_that_overlap_are_no_harm() {
        let pieces = [("/a", 0, 10, 5), ("/a", 2, 12, 9), ("/b", 0, 11, 100)];
        let map = map(&pieces);
        assert_eq!((map.by_file.len(), map.by_place.len()), (2, 1));
        assert!(map.at(16 * BLOCK_BYTES).is_err());
    }
}
