//! The daemon: the HTTP API, the NBD exports, the collector and the scrubber.
//!
//! [`Daemon::start`] takes a [`Config`] and owns everything until
//! [`Daemon::shutdown`]; several may run in one process on different data
//! directories. Nothing here reads the environment or the command line: the
//! binary hands both in as layers of the configuration.

pub mod config;
mod data_dir;
mod tls;

pub use config::{Config, ConfigError, Layers, Loaded};
pub use data_dir::DataDirError;
