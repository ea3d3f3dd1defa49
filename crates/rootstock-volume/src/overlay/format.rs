//! The bytes of an overlay's map log: header, transactions, runs.
//!
//! Described, with reasons, in docs/formats/overlay.md. All numbers are little
//! endian. Nothing here does I/O.

use rootstock_core::{BLOCK_BYTES, Digest};

use super::map::SLOTS_MAX;

/// Bytes of a log file's header.
pub(super) const HEADER_BYTES: usize = 64;

/// Bytes of a part before its runs.
pub(super) const PART_HEAD_BYTES: usize = 40;

/// Bytes of the digest after a part's runs.
pub(super) const PART_TAIL_BYTES: usize = 32;

/// The most bytes of runs in one part: what a reader has to hold at once.
pub(super) const PART_BODY_BYTES_MAX: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"RSTKOVLY";
const VERSION: u32 = 1;
const PART_MAGIC: &[u8; 4] = b"RSTX";

/// The transaction goes on in the next part.
const FLAG_MORE: u32 = 1;
/// The transaction is the whole map: it begins with every block as in the base.
const FLAG_FULL: u32 = 2;

const KIND_ZERO: u32 = 0;
const KIND_DATA: u32 = 1;
const RUN_HEAD_BYTES: usize = 16;

/// What a log file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Number of the file: each compaction makes the next one.
    pub(super) sequence: u64,
    /// The disk that blocks without an entry are read from.
    pub(super) base: Digest,
}

/// Why a header is not one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Not this format, or damaged.
    Damaged,
    /// A version of the format that this release does not know.
    Version(u32),
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..56].copy_from_slice(self.base.as_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < HEADER_BYTES
            || &bytes[..8] != MAGIC
            || crc32fast::hash(&bytes[..60]) != u32_at(bytes, 60)
        {
            return Err(HeaderError::Damaged);
        }
        if u32_at(bytes, 8) != VERSION {
            return Err(HeaderError::Version(u32_at(bytes, 8)));
        }
        let mut base = [0; Digest::LEN];
        base.copy_from_slice(&bytes[24..56]);
        if u64::from(u32_at(bytes, 12)) != BLOCK_BYTES || bytes[56..60] != [0; 4] {
            return Err(HeaderError::Damaged);
        }
        Ok(Self {
            sequence: u64_at(bytes, 16),
            base: Digest::from_bytes(base),
        })
    }
}

/// What is said of a transaction in each of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transaction {
    /// The file's number, so that an old file's part is never taken for this one's.
    pub(super) sequence: u64,
    /// One more than the transaction before.
    pub(super) generation: u64,
    /// The volume's size from this transaction on, in bytes.
    pub(super) size_bytes: u64,
    /// Whether it replaces the whole map.
    pub(super) full: bool,
}

/// Writes a transaction's runs into parts, each handed to `sink` when full.
pub(super) struct Encoder<S> {
    transaction: Transaction,
    part: u32,
    body: Vec<u8>,
    sink: S,
}

impl<S: FnMut(&[u8]) -> std::io::Result<()>> Encoder<S> {
    pub(super) fn new(transaction: Transaction, sink: S) -> Self {
        Self {
            transaction,
            part: 0,
            body: Vec::new(),
            sink,
        }
    }

    /// Blocks that read as zeros.
    pub(super) fn zero(&mut self, first_block: u64, blocks: u64) -> std::io::Result<()> {
        let (mut next, mut left) = (first_block, blocks);
        while left > 0 {
            let count = left.min(u64::from(u32::MAX));
            self.room(RUN_HEAD_BYTES)?;
            self.run_head(next, count as u32, KIND_ZERO);
            next += count;
            left -= count;
        }
        Ok(())
    }

    /// Blocks in the slots from `first_slot`, with their checksums.
    pub(super) fn data(
        &mut self,
        first_block: u64,
        first_slot: u32,
        crcs: &[u32],
    ) -> std::io::Result<()> {
        let mut done = 0;
        while done < crcs.len() {
            self.room(RUN_HEAD_BYTES + 8)?;
            let room = (PART_BODY_BYTES_MAX - self.body.len() - RUN_HEAD_BYTES - 4) / 4;
            let part = &crcs[done..crcs.len().min(done + room)];
            self.run_head(first_block + done as u64, part.len() as u32, KIND_DATA);
            let slot = first_slot + done as u32;
            self.body.extend_from_slice(&slot.to_le_bytes());
            for crc in part {
                self.body.extend_from_slice(&crc.to_le_bytes());
            }
            self.body.resize(self.body.len().next_multiple_of(8), 0);
            done += part.len();
        }
        Ok(())
    }

    /// Writes the last part.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        self.emit(false)
    }

    fn run_head(&mut self, block: u64, count: u32, kind: u32) {
        self.body.extend_from_slice(&block.to_le_bytes());
        self.body.extend_from_slice(&count.to_le_bytes());
        self.body.extend_from_slice(&kind.to_le_bytes());
    }

    fn room(&mut self, bytes: usize) -> std::io::Result<()> {
        if self.body.len() + bytes > PART_BODY_BYTES_MAX {
            self.emit(true)?;
        }
        Ok(())
    }

    fn emit(&mut self, more: bool) -> std::io::Result<()> {
        let Transaction {
            sequence,
            generation,
            size_bytes,
            full,
        } = self.transaction;
        let mut flags = 0;
        if more {
            flags |= FLAG_MORE;
        }
        if full {
            flags |= FLAG_FULL;
        }
        let mut bytes = Vec::with_capacity(PART_HEAD_BYTES + self.body.len() + PART_TAIL_BYTES);
        bytes.extend_from_slice(PART_MAGIC);
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.part.to_le_bytes());
        bytes.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.body);
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        self.body.clear();
        self.part += 1;
        (self.sink)(&bytes)
    }
}

/// The start of a part, before its digest has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartHead {
    pub(super) transaction: Transaction,
    pub(super) more: bool,
    pub(super) part: u32,
    pub(super) body_bytes: usize,
}

impl PartHead {
    /// The head in `bytes`, unless they cannot be one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < PART_HEAD_BYTES || &bytes[..4] != PART_MAGIC {
            return None;
        }
        let flags = u32_at(bytes, 4);
        let body_bytes = u32_at(bytes, 36) as usize;
        if flags & !(FLAG_MORE | FLAG_FULL) != 0
            || body_bytes > PART_BODY_BYTES_MAX
            || !body_bytes.is_multiple_of(8)
        {
            return None;
        }
        Some(Self {
            transaction: Transaction {
                sequence: u64_at(bytes, 8),
                generation: u64_at(bytes, 16),
                size_bytes: u64_at(bytes, 24),
                full: flags & FLAG_FULL != 0,
            },
            more: flags & FLAG_MORE != 0,
            part: u32_at(bytes, 32),
            body_bytes,
        })
    }

    /// Bytes of the whole part.
    pub(super) fn part_bytes(&self) -> usize {
        PART_HEAD_BYTES + self.body_bytes + PART_TAIL_BYTES
    }
}

/// The runs of a whole part, if its digest holds.
pub(super) fn checked_body(part: &[u8]) -> Option<&[u8]> {
    let (signed, tail) = part.split_at_checked(part.len().checked_sub(PART_TAIL_BYTES)?)?;
    (Digest::of(signed).as_bytes() == tail).then(|| &signed[PART_HEAD_BYTES..])
}

/// One run of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LoggedRun<'a> {
    Zero {
        first_block: u64,
        blocks: u64,
    },
    Data {
        first_block: u64,
        first_slot: u32,
        /// Four bytes each.
        crcs: &'a [u8],
    },
}

/// Walks the runs of a checked body; `None` when they make no sense for a disk of
/// this many blocks.
pub(super) fn each_run(
    body: &[u8],
    disk_blocks: u64,
    mut each: impl FnMut(LoggedRun<'_>) -> Option<()>,
) -> Option<()> {
    let mut rest = body;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(RUN_HEAD_BYTES)?;
        let first_block = u64_at(head, 0);
        let count = u32_at(head, 8);
        let end = first_block.checked_add(u64::from(count))?;
        if count == 0 || end > disk_blocks {
            return None;
        }
        match u32_at(head, 12) {
            KIND_ZERO => {
                each(LoggedRun::Zero {
                    first_block,
                    blocks: u64::from(count),
                })?;
                rest = tail;
            }
            KIND_DATA => {
                let bytes = (4 + 4 * count as usize).next_multiple_of(8);
                let (run, tail) = tail.split_at_checked(bytes)?;
                let first_slot = u32_at(run, 0);
                if first_slot.checked_add(count)? > SLOTS_MAX {
                    return None;
                }
                each(LoggedRun::Data {
                    first_block,
                    first_slot,
                    crcs: &run[4..4 + 4 * count as usize],
                })?;
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(())
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transaction() -> Transaction {
        Transaction {
            sequence: 3,
            generation: 9,
            size_bytes: 1 << 40,
            full: false,
        }
    }

    fn parts(
        fill: impl FnOnce(&mut Encoder<&mut dyn FnMut(&[u8]) -> std::io::Result<()>>),
    ) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        let mut sink = |part: &[u8]| {
            parts.push(part.to_vec());
            Ok(())
        };
        let mut encoder = Encoder::new(
            transaction(),
            &mut sink as &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
        );
        fill(&mut encoder);
        encoder.finish().expect("a vector takes all");
        parts
    }

    #[test]
    fn a_header_and_back() {
        let header = Header {
            sequence: 7,
            base: Digest::of(b"base"),
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for at in 0..HEADER_BYTES {
            let mut bytes = bytes;
            bytes[at] ^= 1;
            assert_eq!(Header::decode(&bytes), Err(HeaderError::Damaged), "{at}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        let crc = crc32fast::hash(&newer[..60]);
        newer[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&newer), Err(HeaderError::Version(2)));
    }

    #[test]
    fn a_long_transaction_is_cut_into_parts() {
        let crcs: Vec<u32> = (0..600_000).collect();
        let parts = parts(|encoder| {
            encoder.zero(0, 1 << 33).expect("zero");
            encoder.data(1 << 20, 5, &crcs).expect("data");
        });
        assert_eq!(parts.len(), 3);
        let mut zeros = 0;
        let mut back = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let head = PartHead::decode(part).expect("a head");
            assert_eq!(head.transaction, transaction());
            assert_eq!((head.part, head.more), (index as u32, index < 2));
            assert_eq!(head.part_bytes(), part.len());
            let body = checked_body(part).expect("whole");
            each_run(body, 1 << 40, |run| {
                match run {
                    LoggedRun::Zero { blocks, .. } => zeros += blocks,
                    LoggedRun::Data {
                        first_block,
                        first_slot,
                        crcs,
                    } => {
                        assert_eq!(first_slot as usize, 5 + back.len());
                        assert_eq!(first_block as usize, (1 << 20) + back.len());
                        back.extend(crcs.chunks(4).map(|crc| u32_at(crc, 0)));
                    }
                }
                Some(())
            })
            .expect("runs");
        }
        assert_eq!(zeros, 1 << 33);
        assert_eq!(back, crcs);
    }

    proptest! {
        #[test]
        fn damage_is_seen(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut part = parts(|encoder| encoder.data(1, 2, &[3, 4, 5]).expect("data")).remove(0);
            let at = at.index(part.len());
            part[at] ^= flip;
            prop_assert!(checked_body(&part).is_none());
        }

        #[test]
        fn garbage_does_not_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = each_run(&body, 1 << 30, |_| Some(()));
            let _ = PartHead::decode(&body);
            let _ = checked_body(&body);
            let _ = Header::decode(&body);
        }
    }
}
