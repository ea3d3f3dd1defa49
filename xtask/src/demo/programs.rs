//! The programs that are shown.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{agent, command};

/// What the demo runs.
pub(crate) struct Programs {
    /// The daemon and its command line.
    pub(crate) rootstock: PathBuf,
    /// The first stage's program.
    pub(crate) agent: PathBuf,
}

impl Programs {
    /// Builds them, but for the daemon when `binary` is one.
    ///
    /// # Errors
    /// When a build fails.
    pub(crate) fn build(binary: Option<&Path>) -> Result<Self> {
        let rootstock = match binary {
            Some(binary) => std::path::absolute(binary)?,
            None => rootstock()?,
        };
        let agent = agent::run()?;
        Ok(Self { rootstock, agent })
    }
}

fn rootstock() -> Result<PathBuf> {
    let mut build = command::cargo();
    command::show(build.args(["build", "--release", "--locked", "--package", "rootstock"]))?;
    Ok(command::target().join("release/rootstock"))
}
