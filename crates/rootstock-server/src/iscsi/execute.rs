//! What commands do to a device.

use std::{
    error::Error,
    sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard},
};

use rootstock_core::ByteRange;
use rootstock_scsi::{
    Action, LbaStatus, Provisioning, Reply, Sense, SenseKey,
    action::{Comparison, Durability},
    compare,
};
use rootstock_volume::{BlockDevice, BlockError, Segments, Zero};

use super::{disk::Disk, jobs::Claim};

/// What is read or written at once by commands that go over long ranges, in bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// What one command has read ahead at most, in bytes: it is advice, and may name all of
/// a disk.
const PREFETCH_BYTES_MAX: u64 = 64 << 20;

/// The outcome of a command.
pub(super) enum Outcome {
    Reply(Reply),
    Data(Segments),
}

/// A command and where it is carried out.
pub(super) struct Execution<'a> {
    pub(super) disk: &'a Disk,
    pub(super) device: &'a dyn BlockDevice,
    /// What the initiator has sent with it.
    pub(super) data: &'a [u8],
    pub(super) claim: &'a Claim,
}

impl Execution<'_> {
    /// Carries out what does not have to wait for a disk: `None` when it may have
    /// to. Of a write that is to be durable, all but the flush.
    pub(super) fn begin(&self, action: &Action) -> Option<Outcome> {
        match action {
            Action::Read { range } => self.try_read(*range),
            Action::Write { range, .. } => {
                let written = self.write(*range, Durability::Cached);
                Some(Outcome::Reply(
                    written.map_or_else(Reply::from, |()| Reply::good()),
                ))
            }
            _ => None,
        }
    }

    fn try_read(&self, range: ByteRange) -> Option<Outcome> {
        let mut segments = Segments::new();
        let read = self
            .device
            .try_read(range.start, range.len as u32, &mut segments);
        match read {
            Ok(true) => Some(Outcome::Data(segments)),
            Ok(false) => None,
            Err(error) => Some(Outcome::Reply(self.failed(&error, "read", range).into())),
        }
    }

    /// Carries out what needs no more than the device.
    pub(super) fn run(&self, action: &Action) -> Outcome {
        if let Action::Read { range } = action {
            return match self.read(*range) {
                Ok(segments) => Outcome::Data(segments),
                Err(sense) => Outcome::Reply(sense.into()),
            };
        }
        let done = match action {
            Action::Write { range, durability } => self.write(*range, *durability),
            Action::WriteAndVerify { range } => self.write_and_verify(*range),
            Action::Flush => self.flush(),
            Action::Verify { range } => self.verify(*range),
            Action::Compare { range, comparison } => self.compare(*range, *comparison),
            Action::CompareAndWrite { range, durability } => {
                self.compare_and_write(*range, *durability)
            }
            Action::OrWrite { range, durability } => self.or_write(*range, *durability),
            Action::Zero { range } => self.zero(*range),
            Action::Fill { range, block } => self.fill(*range, block),
            Action::Unmap { ranges } => ranges.iter().try_for_each(|range| self.unmap(*range)),
            Action::Prefetch { range } => {
                self.device
                    .prefetch(range.start, range.len.min(PREFETCH_BYTES_MAX));
                Ok(())
            }
            Action::LbaStatus(status) => return self.lba_status(status),
            Action::Done(reply) => return Outcome::Reply(reply.clone()),
            // The session's own, which it has dealt with.
            Action::Read { .. }
            | Action::Parameters(_)
            | Action::Persist { .. }
            | Action::ReportLuns(_) => Err(Sense::INTERNAL_FAILURE),
        };
        Outcome::Reply(done.map_or_else(Reply::from, |()| Reply::good()))
    }

    fn read(&self, range: ByteRange) -> Result<Segments, Sense> {
        let mut segments = Segments::new();
        self.device
            .read(range.start, range.len as u32, &mut segments)
            .map_err(|error| self.failed(&error, "read", range))?;
        Ok(segments)
    }

    /// How much of a range is written: a write shorter than it was to be is of whole
    /// blocks.
    fn sent(&self, range: ByteRange) -> u64 {
        let whole = self.data.len() as u64 / self.disk.block_bytes() * self.disk.block_bytes();
        whole.min(range.len)
    }

    fn write(&self, range: ByteRange, durability: Durability) -> Result<(), Sense> {
        let len = self.sent(range);
        let _shared = self.beside_others()?;
        self.put(range.start, &self.data[..len as usize])?;
        self.make_durable(durability)
    }

    /// Writes all of the data there.
    pub(super) fn write_at(&self, offset: u64) -> Result<(), Sense> {
        let _shared = self.beside_others()?;
        self.put(offset, self.data)
    }

    /// To write as others do; not any more once another has ended this command.
    fn beside_others(&self) -> Result<RwLockReadGuard<'_, ()>, Sense> {
        let writes = self.disk.writes.read();
        self.check_claim()?;
        Ok(writes.unwrap_or_else(PoisonError::into_inner))
    }

    /// To write while nobody else does.
    fn alone(&self) -> Result<RwLockWriteGuard<'_, ()>, Sense> {
        let writes = self.disk.writes.write();
        self.check_claim()?;
        Ok(writes.unwrap_or_else(PoisonError::into_inner))
    }

    fn check_claim(&self) -> Result<(), Sense> {
        if self.claim.is_void() {
            return Err(Sense::new(SenseKey::AbortedCommand, 0x00, 0x00));
        }
        Ok(())
    }

    fn put(&self, offset: u64, data: &[u8]) -> Result<(), Sense> {
        self.device.write(offset, data).map_err(|error| {
            self.failed(&error, "write", ByteRange::new(offset, data.len() as u64))
        })
    }

    fn make_durable(&self, durability: Durability) -> Result<(), Sense> {
        match durability {
            Durability::Cached => Ok(()),
            Durability::Forced => self.flush(),
        }
    }

    fn flush(&self) -> Result<(), Sense> {
        let all = ByteRange::new(0, self.device.size_bytes());
        self.device
            .flush()
            .map_err(|error| self.failed(&error, "flush", all))
    }

    fn write_and_verify(&self, range: ByteRange) -> Result<(), Sense> {
        self.write(range, Durability::Forced)?;
        let written = ByteRange::new(range.start, self.sent(range));
        self.compare_pieces(written, |medium, at| {
            compare::whole(medium, &self.data[at..at + medium.len()], at as u64)
        })
    }

    fn verify(&self, range: ByteRange) -> Result<(), Sense> {
        self.compare_pieces(range, |_, _| Ok(()))
    }

    fn compare(&self, range: ByteRange, comparison: Comparison) -> Result<(), Sense> {
        self.compare_pieces(range, |medium, at| match comparison {
            Comparison::Whole => {
                let end = (at + medium.len()).min(self.data.len());
                let data = self.data.get(at..end).unwrap_or_default();
                compare::whole(medium, data, at as u64)
            }
            Comparison::OneBlock { .. } => compare::one_block(medium, self.data),
        })
    }

    /// Hands the range over in pieces of whole blocks, with their places in it.
    fn compare_pieces(
        &self,
        range: ByteRange,
        mut look: impl FnMut(&[u8], usize) -> Result<(), Sense>,
    ) -> Result<(), Sense> {
        let mut at = 0;
        while at < range.len {
            let len = PIECE_BYTES.min(range.len - at);
            let piece = self.read(ByteRange::new(range.start + at, len))?;
            look(&piece.to_vec(), at as usize)?;
            at += len;
        }
        Ok(())
    }

    fn compare_and_write(&self, range: ByteRange, durability: Durability) -> Result<(), Sense> {
        let _alone = self.alone()?;
        let half = range.len as usize;
        let (Some(expected), Some(new)) = (self.data.get(..half), self.data.get(half..2 * half))
        else {
            return Err(Sense::INTERNAL_FAILURE);
        };
        compare::whole(&self.read(range)?.to_vec(), expected, 0)?;
        self.put(range.start, new)?;
        self.make_durable(durability)
    }

    fn or_write(&self, range: ByteRange, durability: Durability) -> Result<(), Sense> {
        let _alone = self.alone()?;
        let mut medium = self.read(range)?.to_vec();
        compare::set_bits(&mut medium, self.data);
        self.put(range.start, &medium)?;
        self.make_durable(durability)
    }

    fn zero(&self, range: ByteRange) -> Result<(), Sense> {
        let _shared = self.beside_others()?;
        self.device
            .write_zeroes(range.start, range.len, Zero::MayPunch)
            .map_err(|error| self.failed(&error, "zero", range))
    }

    /// Discarding leaves what is no whole block of the volume's, and initiators are
    /// told that all of it reads as zeros.
    fn unmap(&self, range: ByteRange) -> Result<(), Sense> {
        self.zero(range)
    }

    fn fill(&self, range: ByteRange, block: &[u8]) -> Result<(), Sense> {
        if block.is_empty() {
            return Err(Sense::INTERNAL_FAILURE);
        }
        if block.iter().all(|byte| *byte == 0) {
            return self.zero(range);
        }
        let _shared = self.beside_others()?;
        let piece = block.repeat((PIECE_BYTES.min(range.len) as usize).div_ceil(block.len()));
        let mut at = 0;
        while at < range.len {
            let len = (piece.len() as u64).min(range.len - at);
            self.put(range.start + at, &piece[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    fn lba_status(&self, status: &LbaStatus) -> Outcome {
        let range = status.range;
        // Neighbours of one kind become one, of which the volume knows more kinds.
        let extents_max = status.descriptors_max.saturating_mul(4);
        match self.device.status(range.start, range.len, extents_max) {
            Ok(extents) => Outcome::Reply(status.reply(extents.iter().map(|extent| {
                let provisioning = if extent.zero {
                    Provisioning::Deallocated
                } else {
                    Provisioning::Mapped
                };
                (extent.len_bytes, provisioning)
            }))),
            Err(error) => Outcome::Reply(self.failed(&error, "look", range).into()),
        }
    }

    /// An error of the device, told to the log and to the initiator.
    fn failed(&self, error: &BlockError, doing: &'static str, range: ByteRange) -> Sense {
        if !matches!(error, BlockError::OutOfRange { .. } | BlockError::ReadOnly) {
            tracing::warn!(
                disk = self.disk.name(),
                doing,
                offset_bytes = range.start,
                len_bytes = range.len,
                %error,
                cause = error.source().map(tracing::field::display),
                "an iSCSI command failed"
            );
        }
        let block = range.start / self.disk.block_bytes();
        match error {
            BlockError::OutOfRange { .. } => Sense::LBA_OUT_OF_RANGE,
            BlockError::ReadOnly => Sense::WRITE_PROTECTED,
            BlockError::NoSpace { .. } => Sense::NO_SPACE,
            BlockError::Damaged { .. } => Sense::READ_FAILED.with_information(block),
            BlockError::Io { .. } if doing == "read" => Sense::READ_FAILED.with_information(block),
            BlockError::Io { .. } => Sense::new(SenseKey::MediumError, 0x0c, 0x00),
        }
    }
}
