//! The words every other crate shares: ids, units, names, extents and limits.
//!
//! This crate knows nothing of the rest of Rootstock, does no I/O, reads no
//! clock and draws no random numbers.

pub mod cause;
pub mod digest;
pub mod extent;
pub mod hostlist;
pub mod hours;
pub mod limit;
pub mod name;
pub mod node;
pub mod peer;
pub mod units;

pub use cause::chain;
pub use digest::{ChunkId, Digest, FrameId};
pub use extent::{ByteRange, Extents};
pub use hostlist::{HOSTS_MAX, HostList, HostListError, fold};
pub use hours::{DAY_MINUTES, DailyHours, HOUR_PARTS_MAX, HoursError};
pub use limit::{TIME_LIMIT_SECONDS_MAX, TimeLimit, TimeLimitError};
pub use name::{
    ImageName, InstallerName, NameError, TagName, VersionNumber, VersionSelector, VersionSpec,
    VolumeName,
};
pub use node::{MacAddress, MacError, NodeName, ProfileName};
pub use peer::{PeerId, PeerIdError};
pub use units::{BLOCK_BYTES, CHUNK_BYTES, SECTOR_BYTES};
