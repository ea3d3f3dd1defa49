//! Chunks in packs, on a local disk or in object storage.
//!
//! This crate knows nothing of images, nodes or protocols: it keeps frames by
//! the id of their chunk, gives them back checked, and forgets those that its
//! caller says nobody needs. [`disk`] is what it asks of a file system, with a
//! simulated one that can crash; [`objects`] is what packs are kept in.

pub mod disk;
pub mod objects;
pub mod pack;
mod recycle;
pub mod store;

pub use pack::PackId;
pub use store::{
    ChunkStore, CollectError, CollectProgress, CollectReport, Collection, Damage, DamageKind, Hold,
    LiveSet, OpenError, Origin, PACKS_IN_FLIGHT_MAX, PutError, PutOutcome, ReadError, ScrubReport,
    StoreOptions, StoreStats, StoredFrame,
};
