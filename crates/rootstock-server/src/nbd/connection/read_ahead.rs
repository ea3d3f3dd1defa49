//! Guessing what a client reads next.
//!
//! Only bytes and offsets come in here, and ranges worth fetching go out. A
//! stream that reads on where it left off, and that had to wait, is read ahead of:
//! a little at first, then twice as much with each read, up to a bound. A read
//! anywhere else begins a stream of its own and fetches nothing.

use rootstock_core::{ByteRange, CHUNK_BYTES};

/// What is fetched at once, in bytes: about a chunk, so that every piece can be
/// decompressed by another worker.
pub(super) const PIECE_BYTES: u64 = CHUNK_BYTES;

/// How far ahead of a stream is fetched at first, in bytes.
const AHEAD_BYTES_MIN: u64 = 2 * PIECE_BYTES;

/// How far ahead of a stream is fetched at most, in bytes.
const AHEAD_BYTES_MAX: u64 = 4 << 20;

/// Streams of one connection that are told apart: a guest reads some files at once.
const STREAMS_MAX: usize = 4;

/// Whether a read found its data in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    InMemory,
    /// It has to wait for a disk or a decompressor.
    Missing,
}

/// The streams of a connection, the one read last at the end.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where its next read begins.
    next: u64,
    /// What lies before this byte was read or is being fetched.
    fetched_to: u64,
    /// How far to fetch ahead, in bytes; 0 until it had to wait.
    depth_bytes: u64,
}

impl ReadAhead {
    /// Takes note of a read, and says what to fetch for the next ones: up to
    /// `pieces_max` whole pieces inside the disk.
    pub(super) fn after_read(
        &mut self,
        read: ByteRange,
        found: Found,
        disk_bytes: u64,
        pieces_max: usize,
    ) -> Option<ByteRange> {
        let known = self
            .streams
            .iter()
            .position(|stream| stream.next == read.start);
        let Some(known) = known else {
            if self.streams.len() == STREAMS_MAX {
                self.streams.remove(0);
            }
            self.streams.push(Stream {
                next: read.end(),
                fetched_to: read.end(),
                depth_bytes: 0,
            });
            return None;
        };
        // Least recently read first.
        self.streams[known..].rotate_left(1);
        let stream = self.streams.last_mut()?;
        stream.next = read.end();
        stream.deepen(found);
        stream.fetch(disk_bytes, pieces_max)
    }
}

impl Stream {
    fn deepen(&mut self, found: Found) {
        self.depth_bytes = match (self.depth_bytes, found) {
            (0, Found::InMemory) => 0,
            (0, Found::Missing) => AHEAD_BYTES_MIN,
            (depth, _) => (2 * depth).min(AHEAD_BYTES_MAX),
        };
    }

    fn fetch(&mut self, disk_bytes: u64, pieces_max: usize) -> Option<ByteRange> {
        let from = self.fetched_to.max(self.next);
        let most = from.saturating_add(pieces_max as u64 * PIECE_BYTES);
        let wanted = self.next.saturating_add(self.depth_bytes).min(most);
        // Whole pieces, so that small reads do not fetch by driblets.
        let to = if wanted >= disk_bytes {
            disk_bytes
        } else {
            wanted - wanted % PIECE_BYTES
        };
        if self.depth_bytes == 0 || to <= from {
            return None;
        }
        self.fetched_to = to;
        Some(ByteRange::new(from, to - from))
    }
}

/// A range cut where pieces end.
pub(super) fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let end = ((next / PIECE_BYTES + 1) * PIECE_BYTES).min(range.end());
        let piece = ByteRange::new(next, end.saturating_sub(next));
        next = end;
        (piece.len > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK_BYTES: u64 = 64 << 20;
    const ENOUGH: usize = 1000;

    fn read(ahead: &mut ReadAhead, start: u64, len: u64, found: Found) -> Option<(u64, u64)> {
        ahead
            .after_read(ByteRange::new(start, len), found, DISK_BYTES, ENOUGH)
            .map(|range| (range.start / PIECE_BYTES, range.end() / PIECE_BYTES))
    }

    #[test]
    fn a_stream_that_waits_is_read_ahead_of_deeper_and_deeper() {
        let mut ahead = ReadAhead::default();
        let fetched: Vec<_> = (0..8)
            .map(|n| {
                let found = if n < 2 {
                    Found::Missing
                } else {
                    Found::InMemory
                };
                read(&mut ahead, n * PIECE_BYTES, PIECE_BYTES, found)
            })
            .collect();
        assert_eq!(
            fetched,
            [
                None,
                Some((2, 4)),
                Some((4, 7)),
                Some((7, 12)),
                Some((12, 21)),
                Some((21, 22)),
                Some((22, 23)),
                Some((23, 24)),
            ]
        );
    }

    #[test]
    fn small_reads_fetch_whole_pieces_now_and_then() {
        let mut ahead = ReadAhead::default();
        let mut next = 0;
        let mut fetches = 0;
        for n in 0..1024 {
            let found = if n == 1 {
                Found::Missing
            } else {
                Found::InMemory
            };
            if let Some((from, to)) = read(&mut ahead, n * 4096, 4096, found) {
                assert!(from == next && to > from, "{from}..{to} after {next}");
                next = to;
                fetches += 1;
            }
        }
        assert_eq!(next, (4 << 20) / PIECE_BYTES + 16);
        assert!(fetches <= 30, "{fetches} fetches");
    }

    #[test]
    fn only_streams_that_wait_fetch() {
        let mut ahead = ReadAhead::default();
        for n in 0..100 {
            assert_eq!(read(&mut ahead, n * 4096, 4096, Found::InMemory), None);
            let elsewhere = (n * 7919 % 1000 + 1000) * 8192;
            assert_eq!(read(&mut ahead, elsewhere, 4096, Found::Missing), None);
        }
    }

    #[test]
    fn some_streams_are_told_apart() {
        let mut ahead = ReadAhead::default();
        for round in 0..4 {
            for stream in 0..STREAMS_MAX as u64 {
                let start = stream * (8 << 20) + round * PIECE_BYTES;
                let fetch = read(&mut ahead, start, PIECE_BYTES, Found::Missing);
                assert_eq!(fetch.is_some(), round > 0);
            }
        }
    }

    #[test]
    fn nothing_is_fetched_beyond_the_disk_or_the_bound() {
        let mut ahead = ReadAhead::default();
        let last = DISK_BYTES - 3 * PIECE_BYTES;
        read(&mut ahead, last, PIECE_BYTES, Found::Missing);
        let range = ByteRange::new(last + PIECE_BYTES, 4096);
        let fetch = |ahead: &mut ReadAhead, pieces_max| {
            ahead.after_read(range, Found::Missing, DISK_BYTES - 512, pieces_max)
        };
        assert_eq!(fetch(&mut ahead, 0), None);
        let mut ahead = ReadAhead::default();
        read(&mut ahead, last, PIECE_BYTES, Found::Missing);
        let fetched = fetch(&mut ahead, 5).expect("a fetch");
        assert_eq!(fetched.end(), DISK_BYTES - 512);
    }

    #[test]
    fn pieces_are_cut_at_their_bounds() {
        let range = ByteRange::new(PIECE_BYTES - 512, PIECE_BYTES + 1024);
        let cut: Vec<_> = pieces(range)
            .map(|piece| (piece.start, piece.len))
            .collect();
        assert_eq!(
            cut,
            [
                (PIECE_BYTES - 512, 512),
                (PIECE_BYTES, PIECE_BYTES),
                (2 * PIECE_BYTES, 512)
            ]
        );
        assert_eq!(pieces(ByteRange::new(5, 0)).count(), 0);
    }
}
