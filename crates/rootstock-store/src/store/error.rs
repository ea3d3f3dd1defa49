//! What can go wrong in the store, and what its user reads then.

use std::io;

use rootstock_core::ChunkId;
use rootstock_image::frame::FrameError;

use crate::pack::PackId;

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The packs could not be listed.
    #[error("cannot list the packs of the chunk store: check the disk and its permissions")]
    List {
        /// The back end's error.
        #[source]
        source: io::Error,
    },
    /// A pack could not be read.
    #[error("cannot read pack '{key}' of the chunk store: check the disk and its permissions")]
    Read {
        /// The pack's key.
        key: String,
        /// The back end's error.
        #[source]
        source: io::Error,
    },
    /// A pack of a release that came later.
    #[error(
        "pack '{key}' has format {version}, and this release reads format {known}: start the release that wrote it, or a newer one"
    )]
    Newer {
        /// The pack's key.
        key: String,
        /// The format it says it has.
        version: u16,
        /// The newest format that this release reads.
        known: u16,
    },
    /// An object among the packs that is none.
    #[error(
        "'{key}' is not a pack: if it does not belong to this store, move it elsewhere; if it does, both its ends are damaged: restore it from a backup, or move it elsewhere and run a verification to see what it held"
    )]
    NotAPack {
        /// The object's key.
        key: String,
    },
    /// The options contradict the format.
    #[error("packs of {pack_bytes} bytes are out of bounds: choose {min} to {max}")]
    PackBytes {
        /// What was asked for.
        pack_bytes: u32,
        /// The smallest allowed.
        min: u32,
        /// The largest allowed.
        max: u32,
    },
}

/// Why a chunk was not given.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store does not have it.
    #[error("chunk {chunk} is not in the store")]
    Missing {
        /// The chunk asked for.
        chunk: ChunkId,
    },
    /// What is stored is not what was put.
    #[error("{0}: import the same image again, or restore the pack from a backup, to mend it")]
    Damaged(Damage),
    /// The disk did not give it.
    #[error("cannot read chunk {chunk} from pack {pack} at byte {offset_bytes}: check the disk")]
    Io {
        /// The chunk asked for.
        chunk: ChunkId,
        /// The pack that holds it.
        pack: PackId,
        /// Where its record begins.
        offset_bytes: u64,
        /// The back end's error.
        #[source]
        source: io::Error,
    },
}

/// A stored chunk that is not what was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk {chunk} is damaged: {kind} (pack {pack}, byte {offset_bytes})")]
pub struct Damage {
    /// The chunk.
    pub chunk: ChunkId,
    /// The pack that holds it.
    pub pack: PackId,
    /// Where its record begins in the pack.
    pub offset_bytes: u64,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What is wrong with a stored chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DamageKind {
    /// The record's header is not the chunk's.
    #[error("its record's header changed")]
    Header,
    /// The frame's bytes are not those that were written.
    #[error("its frame's bytes changed")]
    Frame,
    /// The frame is as it was written, and yet not the chunk's.
    #[error("its frame holds other data")]
    Raw,
    /// The disk does not give the bytes.
    #[error("the disk cannot read it")]
    Unreadable,
    /// The pack ends before it, or is gone.
    #[error("its pack is cut short or gone")]
    Lost,
}

/// Why a chunk was not stored, or not yet durable.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The frame is not what it says.
    #[error("the frame of chunk {chunk} was refused")]
    Frame {
        /// The chunk it claims to hold.
        chunk: ChunkId,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// The disk is full.
    #[error(
        "no space left for pack {pack}: nothing is lost, free space on the disk (deleting versions and collecting frees some) and try again"
    )]
    NoSpace {
        /// The pack that waits in memory for space.
        pack: PackId,
        /// The back end's error.
        #[source]
        source: io::Error,
    },
    /// The disk failed.
    #[error("cannot write pack {pack}: check the disk, then try again")]
    Io {
        /// The pack that waits in memory.
        pack: PackId,
        /// The back end's error.
        #[source]
        source: io::Error,
    },
}

/// Why a collection ended early. What it freed stays freed, nothing is lost.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Only one collection runs at a time.
    #[error("a collection is running already: wait for its end")]
    Busy,
    /// A pack made of what is still needed could not be stored.
    #[error("cannot store what the collection wanted to keep")]
    Put(#[from] PutError),
}
