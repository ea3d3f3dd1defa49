//! Which reads go on where others ended, and how far ahead of them to fetch.

use rootstock_core::CHUNK_BYTES;

/// Streams that are followed at once.
const STREAMS_MAX: usize = 16;

/// A stream this long is one: shorter runs are a file's few blocks, and what is
/// ahead of those is as likely another file.
const RUN_BYTES_MIN: u64 = 2 * CHUNK_BYTES;

/// The furthest that is fetched ahead.
const AHEAD_BYTES_MAX: u64 = 8 * CHUNK_BYTES;

/// A gap that the kernel leaves for what it has in memory already.
const GAP_BYTES_MAX: u64 = 128 << 10;

#[derive(Debug, Clone, Copy)]
struct Stream {
    start: u64,
    end: u64,
    /// Up to where it was fetched ahead.
    ahead: u64,
    used: u64,
}

/// The streams of reads on one disk.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

impl Streams {
    /// Notes a read and gives the range to fetch ahead of it, as offset and length.
    pub(crate) fn note(&mut self, offset: u64, len: u64) -> Option<(u64, u64)> {
        self.clock += 1;
        let end = offset.saturating_add(len);
        let near = |stream: &&mut Stream| {
            offset + CHUNK_BYTES >= stream.end && offset <= stream.end + GAP_BYTES_MAX
        };
        if let Some(stream) = self.streams.iter_mut().find(near) {
            stream.used = self.clock;
            stream.end = stream.end.max(end);
            return stream.next();
        }
        if self.streams.len() == STREAMS_MAX {
            let oldest = (0..STREAMS_MAX).min_by_key(|at| self.streams[*at].used)?;
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Stream {
            start: offset,
            end,
            ahead: end,
            used: self.clock,
        });
        None
    }
}

impl Stream {
    /// As far ahead as it has come, up to the limit; a chunk at least, so that it
    /// is not asked for in crumbs.
    fn next(&mut self) -> Option<(u64, u64)> {
        let run = self.end - self.start;
        if run < RUN_BYTES_MIN {
            return None;
        }
        let from = self.ahead.max(self.end);
        let to = self.end + (run / 2).min(AHEAD_BYTES_MAX);
        if to < from + CHUNK_BYTES {
            return None;
        }
        self.ahead = to;
        Some((from, to - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn scattered_reads_fetch_nothing_ahead() {
        let mut streams = Streams::default();
        for number in 0..200 {
            let offset = number * 7919 % 199 * (1 << 30);
            assert_eq!(streams.note(offset, 128 * KIB), None);
        }
        assert!(streams.streams.len() <= STREAMS_MAX);
    }

    #[test]
    fn a_stream_is_fetched_ahead_once_and_without_gaps() {
        let mut streams = Streams::default();
        let mut covered = None;
        for number in 0..200 {
            let offset = number * 128 * KIB;
            // Another stream beside it does not disturb it.
            streams.note((1 << 40) + number * (1 << 30), 4 * KIB);
            if let Some((from, len)) = streams.note(offset, 128 * KIB) {
                assert!(len <= AHEAD_BYTES_MAX);
                if let Some(end) = covered {
                    assert!(from == end, "{from} after {end}");
                }
                covered = Some(from + len);
            }
        }
        let read = 200 * 128 * KIB;
        let covered = covered.expect("it was fetched ahead");
        assert!(covered > read && covered <= read + AHEAD_BYTES_MAX);
    }
}
