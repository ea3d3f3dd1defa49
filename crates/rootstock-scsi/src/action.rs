//! What a command asks of the volume behind a unit.

use rootstock_core::ByteRange;

use crate::{
    cdb::{PersistentOut, SelectLen},
    lba_status::LbaStatus,
    nexus::NexusId,
    reply::Reply,
    report::ReportLuns,
    reservation::Reservations,
};

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// With the next [`Action::Flush`].
    Cached,
    /// Before the reply (FUA, and writes that are verified).
    Forced,
}

/// How what is on the medium is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// With the data of the initiator, as long as the range.
    Whole,
    /// Each block with the one block that the initiator sends.
    OneBlock {
        /// The block's size.
        block_bytes: u32,
    },
}

/// What is to be done for a command. Ranges are bytes, whole blocks, never
/// empty, and lie inside of the unit as it was when the command was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: this is the reply. Data that the initiator sends is dropped.
    Done(Reply),
    /// Gather [`Action::data_out`], then ask
    /// [`LogicalUnit::parameters`](crate::LogicalUnit::parameters).
    Parameters(Parameters),
    /// Keep the reservations where they survive a restart, then reply. Of two
    /// states the one with the larger [`Reservations::revision`] is newer.
    Persist {
        /// All reservations of the unit.
        state: Box<Reservations>,
        /// The reply once they are kept.
        reply: Reply,
        /// Nexuses whose commands are to be aborted (PREEMPT AND ABORT).
        abort: Vec<NexusId>,
    },
    /// Tell which units there are: [`ReportLuns::reply`].
    ReportLuns(ReportLuns),
    /// Read, and reply with the bytes. FUA needs nothing more of a volume that
    /// answers from its own writes.
    Read {
        /// Which bytes.
        range: ByteRange,
    },
    /// Write the initiator's data, then [`Reply::good`].
    Write {
        /// Which bytes.
        range: ByteRange,
        /// When they are durable.
        durability: Durability,
    },
    /// Write the initiator's data durably, read it back from the medium, and
    /// compare it ([`compare::whole`](crate::compare::whole)).
    WriteAndVerify {
        /// Which bytes.
        range: ByteRange,
    },
    /// Make all finished writes durable, then [`Reply::good`].
    Flush,
    /// Read and drop; [`Reply::good`] if everything could be read.
    Verify {
        /// Which bytes.
        range: ByteRange,
    },
    /// Read, and compare with the initiator's data by
    /// [`compare::whole`](crate::compare::whole) or
    /// [`compare::one_block`](crate::compare::one_block).
    Compare {
        /// Which bytes.
        range: ByteRange,
        /// With what.
        comparison: Comparison,
    },
    /// As one step that no other write divides: read, compare with the first
    /// half of the initiator's data ([`compare::whole`](crate::compare::whole)),
    /// and if it is equal, write the second half.
    CompareAndWrite {
        /// Which bytes.
        range: ByteRange,
        /// When they are durable.
        durability: Durability,
    },
    /// As one step that no other write divides: read, set the bits of the
    /// initiator's data ([`compare::set_bits`](crate::compare::set_bits)),
    /// write.
    OrWrite {
        /// Which bytes.
        range: ByteRange,
        /// When they are durable.
        durability: Durability,
    },
    /// Write zeros that take no space, then [`Reply::good`].
    Zero {
        /// Which bytes.
        range: ByteRange,
    },
    /// Write one block again and again, then [`Reply::good`].
    Fill {
        /// Which bytes.
        range: ByteRange,
        /// One block.
        block: Vec<u8>,
    },
    /// Discard; all of these read as zeros afterwards. Then [`Reply::good`].
    Unmap {
        /// Which bytes.
        ranges: Vec<ByteRange>,
    },
    /// Tell what is mapped: [`LbaStatus::reply`].
    LbaStatus(LbaStatus),
    /// Bring into the cache as far as it has room; the reply is
    /// [`Reply::good`] whatever became of it, and need not wait.
    Prefetch {
        /// Which bytes.
        range: ByteRange,
    },
}

/// How much data the initiator sends with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataOut {
    /// None.
    None,
    /// So many bytes; if the initiator announces fewer, only as many whole
    /// blocks as it sends are written.
    UpTo(u64),
    /// So many bytes; an initiator that announces another length gets
    /// [`Sense::INVALID_FIELD_IN_CDB`](crate::Sense::INVALID_FIELD_IN_CDB).
    Exactly(u64),
    /// A list of parameters of so many bytes; fewer are handed on as they are,
    /// and answered by [`LogicalUnit::parameters`](crate::LogicalUnit::parameters).
    List(u64),
}

impl DataOut {
    /// How many bytes the command's own fields say, for the residual count.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::None => 0,
            Self::UpTo(bytes) | Self::Exactly(bytes) | Self::List(bytes) => bytes,
        }
    }
}

impl Action {
    /// What the initiator sends with this.
    #[must_use]
    pub const fn data_out(&self) -> DataOut {
        match self {
            Self::Write { range, .. } | Self::WriteAndVerify { range } => DataOut::UpTo(range.len),
            Self::OrWrite { range, .. } => DataOut::Exactly(range.len),
            Self::CompareAndWrite { range, .. } => DataOut::Exactly(range.len * 2),
            Self::Compare { range, comparison } => match comparison {
                Comparison::Whole => DataOut::Exactly(range.len),
                Comparison::OneBlock { block_bytes } => DataOut::Exactly(*block_bytes as u64),
            },
            Self::Parameters(parameters) => parameters.data_out(),
            _ => DataOut::None,
        }
    }
}

/// A command that waits for its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    pub(crate) of: ParametersOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParametersOf {
    ModeSelect(SelectLen),
    PersistentOut { out: PersistentOut, len: u32 },
    Unmap { len: u16 },
    WriteSame { range: ByteRange, block_bytes: u32 },
}
