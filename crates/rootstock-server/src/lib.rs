//! The daemon: the HTTP API, the NBD exports, the iSCSI target, the collector and the scrubber.
//!
//! [`Daemon::start`] takes a [`Config`] and owns everything until
//! [`Daemon::shutdown`]; several may run in one process on different data
//! directories. Nothing here reads the environment or the command line: the
//! binary hands both in as layers of the configuration.

mod app;
mod boot;
mod collector;
pub mod config;
mod daemon;
mod data_dir;
mod exports;
mod facts;
mod http;
mod imports;
mod installers;
mod iscsi;
mod leases;
mod metrics;
pub mod nbd;
mod nodes;
mod pages;
mod recipes;
mod rollouts;
mod scrub;
mod serving;
mod sizes;
mod stop;
mod targets;
mod tls;
mod traces;
mod verify;
mod volumes;

pub use boot::{ClaimError, dhcp, first_stage::FirstStageError};
pub use config::{Config, ConfigError, Layers, Loaded};
pub use daemon::{Daemon, ShutdownError, StartError};
pub use data_dir::DataDirError;
pub use http::{ListenError, openapi};
pub use tls::TlsError;
