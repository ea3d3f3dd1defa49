//! A file that is read ahead of its blocks, so that a block costs no call of its own.

use std::{io, mem, ops::Range, os::unix::fs::FileExt as _};

use crate::boot::body::Content;

/// What is read at once, in bytes: two dozen of the largest blocks. As many threads
/// hold as much as there are transfers.
const AHEAD_BYTES: u64 = 32 << 10;

/// A file and the part of it that was read last.
pub(super) struct Ahead {
    content: Content,
    held: Vec<u8>,
    held_at: u64,
}

impl Ahead {
    pub(super) fn new(content: Content) -> Self {
        Self {
            content,
            held: Vec::new(),
            held_at: 0,
        }
    }

    /// A part within the file, at most [`AHEAD_BYTES`] long.
    ///
    /// # Errors
    /// When the file cannot be read, or is shorter than it was.
    pub(super) fn part(&mut self, range: Range<u64>) -> io::Result<&[u8]> {
        let (bytes, at) = match &self.content {
            Content::Bytes(bytes) => (&bytes[..], 0),
            Content::File(file, len) => {
                let held_end = self.held_at + self.held.len() as u64;
                if range.start < self.held_at || range.end > held_end {
                    let ahead = AHEAD_BYTES.min(len.saturating_sub(range.start));
                    // Until all is read, nothing is held.
                    let mut buffer = mem::take(&mut self.held);
                    buffer.resize(ahead as usize, 0);
                    file.read_exact_at(&mut buffer, range.start)?;
                    (self.held, self.held_at) = (buffer, range.start);
                }
                (&self.held[..], self.held_at)
            }
        };
        let part = bytes.get((range.start - at) as usize..(range.end - at) as usize);
        part.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn blocks_are_those_of_the_file_in_any_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kernel");
        let len = 2 * AHEAD_BYTES + 100;
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        fs::write(&path, &bytes).expect("writes");
        let contents = [
            Content::open(&path).expect("opens"),
            Content::Bytes(bytes.clone().into()),
        ];
        for content in contents {
            let mut ahead = Ahead::new(content);
            let starts: Vec<u64> = (0..len).step_by(1428).chain([len]).collect();
            // Blocks that were lost are sent again.
            for &start in starts.iter().chain(starts.iter().rev()) {
                let end = len.min(start + 1428);
                let part = ahead.part(start..end).expect("is there");
                assert_eq!(part, &bytes[start as usize..end as usize], "{start}");
            }
            assert!(ahead.part(len - 1..len + 1).is_err());
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kernel");
        fs::write(&path, [7; 3000]).expect("writes");
        let mut ahead = Ahead::new(Content::open(&path).expect("opens"));
        fs::write(&path, [7; 2000]).expect("writes");
        assert!(ahead.part(0..1428).is_err());
        // Nothing that was not read counts as held.
        assert!(ahead.part(0..1428).is_err());
    }
}
