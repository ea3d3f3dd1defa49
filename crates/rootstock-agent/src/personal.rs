//! Personal machines, whose writes stay: in a volume on the server, or on a file system
//! of the machine's own, from where they can become a version.

pub(crate) mod commit;
pub(crate) mod disk;
mod remote;
mod sender;

pub(crate) use remote::RemoteVolume;
