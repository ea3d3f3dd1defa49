//! `rootstock serve`: the daemon.

use std::path::PathBuf;

use clap::Args;

use crate::cli::Global;

/// How the daemon runs; the file has the same names.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the daemon until it is told to stop.
pub fn run(_: &ServeArgs, _: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
