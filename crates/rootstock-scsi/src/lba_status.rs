//! GET LBA STATUS: what of a unit takes space (SBC-3 5.4).

use rootstock_core::ByteRange;

use crate::reply::Reply;

/// The most descriptors of one reply; initiators ask again for the rest.
const DESCRIPTORS_MAX: usize = 256;

const HEADER_BYTES: u32 = 8;
const DESCRIPTOR_BYTES: u32 = 16;

/// Whether a stretch takes space (SBC-3 5.4.2, PROVISIONING STATUS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Provisioning {
    /// It does.
    Mapped = 0,
    /// It does not, and reads as zeros.
    Deallocated = 1,
}

/// A question for the volume's extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaStatus {
    /// From the first block asked about to the end of the unit.
    pub range: ByteRange,
    /// How many stretches the reply has room for, at least one.
    pub descriptors_max: usize,
    block_bytes: u32,
    allocation_bytes: u32,
}

impl LbaStatus {
    pub(crate) fn new(range: ByteRange, block_bytes: u32, allocation_bytes: u32) -> Self {
        let room = allocation_bytes.saturating_sub(HEADER_BYTES) / DESCRIPTOR_BYTES;
        Self {
            range,
            descriptors_max: (room as usize).clamp(1, DESCRIPTORS_MAX),
            block_bytes,
            allocation_bytes,
        }
    }

    /// The reply, from stretches that follow one another from the range's
    /// start: their lengths in bytes, and what they are. Neighbours of one
    /// kind become one, and a block of which only a part is mapped is mapped.
    /// What the stretches leave out counts as mapped.
    #[must_use]
    pub fn reply(&self, stretches: impl IntoIterator<Item = (u64, Provisioning)>) -> Reply {
        let mut list = List {
            descriptors: Vec::new(),
            max: self.descriptors_max,
            at: self.range.start / u64::from(self.block_bytes),
            full: false,
        };
        let mut end = self.range.start;
        for (bytes, provisioning) in stretches {
            let start = end;
            end = end.saturating_add(bytes).min(self.range.end());
            // Only whole blocks are free; the rest lies in a mapped one.
            let block = u64::from(self.block_bytes);
            let (first, last) = (start.div_ceil(block), end / block);
            if provisioning == Provisioning::Deallocated && first < last {
                list.extend_to(first, Provisioning::Mapped);
                list.extend_to(last, Provisioning::Deallocated);
            }
            if list.full || end == self.range.end() {
                break;
            }
        }
        let all = self.range.end() / u64::from(self.block_bytes);
        list.extend_to(all, Provisioning::Mapped);
        self.encode(&list.descriptors)
    }

    // SBC-3 5.4.2.
    fn encode(&self, descriptors: &[Descriptor]) -> Reply {
        let mut data = Vec::with_capacity(8 + 16 * descriptors.len());
        // PARAMETER DATA LENGTH counts from behind itself.
        let len = 4 + DESCRIPTOR_BYTES * descriptors.len() as u32;
        data.extend_from_slice(&len.to_be_bytes());
        data.extend_from_slice(&[0; 4]);
        for descriptor in descriptors {
            data.extend_from_slice(&descriptor.lba.to_be_bytes());
            data.extend_from_slice(&descriptor.blocks.to_be_bytes());
            data.extend_from_slice(&[descriptor.provisioning as u8, 0, 0, 0]);
        }
        data.truncate(self.allocation_bytes as usize);
        Reply::data(data)
    }
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    lba: u64,
    blocks: u32,
    provisioning: Provisioning,
}

/// Descriptors that follow one another.
struct List {
    descriptors: Vec<Descriptor>,
    max: usize,
    /// The block behind the last descriptor.
    at: u64,
    /// Whether something had no room.
    full: bool,
}

impl List {
    /// Says that everything up to `end` is of one kind, as far as there is room.
    fn extend_to(&mut self, end: u64, provisioning: Provisioning) {
        while self.at < end && !self.full {
            let left = end - self.at;
            self.at += match self.descriptors.last_mut() {
                Some(last) if last.provisioning == provisioning => last.lengthen(left),
                _ => 0,
            };
            if self.at < end {
                self.begin(provisioning);
            }
        }
    }

    fn begin(&mut self, provisioning: Provisioning) {
        if self.descriptors.len() >= self.max {
            self.full = true;
            return;
        }
        self.descriptors.push(Descriptor {
            lba: self.at,
            blocks: 0,
            provisioning,
        });
    }
}

impl Descriptor {
    /// Takes up to `blocks` more, as far as its number goes; says how many.
    fn lengthen(&mut self, blocks: u64) -> u64 {
        let room = u32::MAX - self.blocks;
        let taken = u32::try_from(blocks).unwrap_or(u32::MAX).min(room);
        self.blocks += taken;
        taken.into()
    }
}

#[cfg(test)]
mod tests;
