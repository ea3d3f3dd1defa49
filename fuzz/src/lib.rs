//! What the fuzz targets and the maker of their seeds share.

pub mod disks;
pub mod mend;
pub mod overlay;
pub mod pack;
pub mod sparse;
pub mod volumes;
