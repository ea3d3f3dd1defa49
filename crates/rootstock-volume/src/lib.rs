//! Block devices made of chunks: versions, clones, overlays and the chunk cache.
//!
//! Nothing here knows who asks: the NBD server, the exporter and the inspector
//! all read through [`BlockDevice`]. A [`VersionDisk`] is a manifest and the
//! [`ChunkCache`]; a [`Volume`] is such a disk, which never changes, under its
//! own writes in an overlay (docs/formats/overlay.md); a [`SnapshotView`] is a
//! volume at one of its flushes, and [`commit()`] makes a version of it.

pub mod cache;
pub mod commit;
pub mod device;
mod overlay;
pub mod version;
mod view;
mod volume;

pub use cache::{CacheStats, ChunkCache, ChunkSource};
pub use commit::{
    CommitError, CommitOptions, CommitProgress, CommitReport, DeviceReader, Sink, Stored, commit,
    commit_to,
};
pub use device::{BlockDevice, BlockError, Segment, Segments, StatusExtent, Zero};
pub use overlay::{OpenError, OverlayOptions};
pub use version::VersionDisk;
pub use view::SnapshotView;
pub use volume::{Base, ResizeError, Volume, VolumeStats};
