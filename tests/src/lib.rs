//! What the end-to-end tests and the demo share: real daemons, real guests, real disks.
//!
//! Everything here waits for something to happen within a named limit and says
//! what it waited for when that limit passes. Every process, mount and directory
//! is taken back when its guard is dropped, and by [`undo::run_all`] on a signal.

pub mod agent;
pub mod block;
pub mod boots;
pub mod cable;
pub mod console;
pub mod daemon;
pub mod desk;
pub mod disk;
pub mod exercise;
pub mod filesystems;
pub mod golden;
pub mod guest;
pub mod holder;
pub mod http;
pub mod initrd;
pub mod kernel;
pub mod lan;
pub mod logged;
pub mod mount;
pub mod namespace;
pub mod node_service;
pub mod peer;
pub mod process;
pub mod pxe;
pub mod relay;
pub mod tool;
pub mod undo;
pub mod wait;
pub mod watch;

pub use daemon::{Daemon, DaemonOptions};
pub use guest::{Guest, GuestOptions};
pub use process::Process;
