//! The machine's own disks: which one is a cache, how one is prepared.

pub(crate) mod device;
pub(crate) mod file;
pub(crate) mod find;
pub(crate) mod part;
pub(crate) mod prepare;
