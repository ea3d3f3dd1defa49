//! Versions as roots over NFS: what `rootstock nfs serve` does beside the daemon.
//!
//! Each version has a process with mounts of its own, and in it an nfs-ganesha that serves
//! this version alone. Two versions of one image are file systems with the same UUID, of
//! which one nfs-ganesha takes one; a version that comes or goes disturbs nobody else; and
//! nobody on the head sees what is mounted. The daemon is asked over its API which
//! versions are wanted, and their bytes are read from it over NBD.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use rootstock_api::nfs::NfsRoot;
use serde::{Deserialize, Serialize};

pub use address::NbdAddress;
pub use export::export;
pub use head::{ServeError, serve};

mod address;
mod disk;
mod export;
mod ganesha;
mod head;
mod ports;
mod running;
mod sockets;

/// How a head serves.
#[derive(Debug, Clone)]
pub struct Options {
    /// This program and the words that make it [`export`].
    pub program: Vec<String>,
    /// The daemon's NBD server.
    pub nbd: NbdAddress,
    /// Where mounts and configurations are.
    pub run_dir: PathBuf,
    /// Where it is kept which port a version has.
    pub state_dir: PathBuf,
    /// The TCP ports that may be used, one for each version.
    pub ports: std::ops::RangeInclusive<u16>,
    /// How long a version stays that nobody wants and nobody is connected to.
    pub linger: Duration,
}

/// What an export's process is told: a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum ToExport {
    /// The first: export this.
    Start(Box<Start>),
    /// Who may read it from now on.
    Clients(Vec<IpAddr>),
}

/// What an export is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Start {
    root: NfsRoot,
    /// A directory of its own.
    directory: PathBuf,
    nbd: NbdAddress,
    port: u16,
    clients: Vec<IpAddr>,
}

/// What it says: a line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum FromExport {
    /// These may read it now.
    Ready(Vec<IpAddr>),
    /// It ends, and why.
    Failed(String),
}
