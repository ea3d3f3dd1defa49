//! Block devices made of chunks: versions, clones, overlays and the chunk cache.
//!
//! Nothing here knows who asks: the NBD server, the exporter and the inspector
//! all read through [`BlockDevice`].

pub mod device;
mod overlay;
mod view;
mod volume;

pub use device::{BlockDevice, BlockError, Segment, Segments, StatusExtent, Zero};
pub use overlay::{OpenError, OverlayOptions};
pub use view::SnapshotView;
pub use volume::{Base, ResizeError, Volume, VolumeStats};
