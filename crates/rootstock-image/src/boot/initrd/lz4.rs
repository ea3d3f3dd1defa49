//! LZ4 as the kernel takes it for its first file system: the legacy frame, blocks
//! with their lengths before them (lz4's doc/lz4_Frame_format.md, "Legacy frame").

use std::io::{self, Read};

/// What a block has when decompressed, at the most, in bytes.
const BLOCK_BYTES_MAX: usize = 8 << 20;
/// The same of a block as it is stored: LZ4's bound for what cannot be compressed.
const STORED_BYTES_MAX: usize = BLOCK_BYTES_MAX + BLOCK_BYTES_MAX / 255 + 16;
/// The shortest match (lz4's doc/lz4_Block_format.md).
const MATCH_BYTES_MIN: usize = 4;
/// The frame's first bytes, which may be there again before any block.
const MAGIC: usize = 0x184c_2102;

/// A reader of the blocks after the frame's magic.
pub(super) struct Lz4Legacy<'a> {
    rest: &'a [u8],
    block: Vec<u8>,
    at: usize,
}

impl<'a> Lz4Legacy<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self {
            rest,
            block: Vec::new(),
            at: 0,
        }
    }

    /// What comes after the last block.
    pub(super) fn into_rest(self) -> &'a [u8] {
        self.rest
    }

    /// Decompresses the next block; nothing at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        loop {
            let Some((len, rest)) = self.rest.split_first_chunk() else {
                return Ok(false);
            };
            let len = u32::from_le_bytes(*len) as usize;
            if len == MAGIC {
                self.rest = rest;
                continue;
            }
            // Zeros, or what comes after this frame.
            if len == 0 || len > STORED_BYTES_MAX {
                return Ok(false);
            }
            let stored = rest.get(..len).ok_or(io::ErrorKind::UnexpectedEof)?;
            self.rest = &rest[len..];
            self.block.clear();
            self.at = 0;
            decode(stored, &mut self.block).ok_or(io::ErrorKind::InvalidData)?;
            if !self.block.is_empty() {
                return Ok(true);
            }
        }
    }
}

impl Read for Lz4Legacy<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() && !self.next_block()? {
            return Ok(0);
        }
        let mut left = &self.block[self.at..];
        let read = left.read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

/// Decompresses one block; nothing when it is damaged or too long.
fn decode(mut source: &[u8], out: &mut Vec<u8>) -> Option<()> {
    loop {
        let token = usize::from(take_byte(&mut source)?);
        let literals = length(token >> 4, &mut source)?;
        if out.len() + literals > BLOCK_BYTES_MAX {
            return None;
        }
        out.extend_from_slice(source.get(..literals)?);
        source = &source[literals..];
        // The last sequence has no match.
        if source.is_empty() {
            return Some(());
        }
        let low = take_byte(&mut source)?;
        let distance = usize::from(u16::from_le_bytes([low, take_byte(&mut source)?]));
        let len = length(token & 15, &mut source)? + MATCH_BYTES_MIN;
        let from = out.len().checked_sub(distance)?;
        if distance == 0 || out.len() + len > BLOCK_BYTES_MAX {
            return None;
        }
        // What is copied may overlap what it makes.
        for at in from..from + len {
            out.push(out[at]);
        }
    }
}

/// A length of which a token has the first four bits.
fn length(first: usize, source: &mut &[u8]) -> Option<usize> {
    let mut len = first;
    if first == 15 {
        loop {
            let more = take_byte(source)?;
            len += usize::from(more);
            if more != 255 {
                break;
            }
        }
    }
    Some(len)
}

fn take_byte(source: &mut &[u8]) -> Option<u8> {
    let (first, rest) = source.split_first()?;
    *source = rest;
    Some(*first)
}
