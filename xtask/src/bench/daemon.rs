//! The daemon under measurement, on a data directory of its own.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    Bench,
    process::{self, Server},
};

/// A running daemon and how to reach it.
pub(crate) struct Daemon {
    pub(crate) server: Server,
    pub(crate) nbd_port: u16,
    binary: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    /// Starts a daemon on `data`, which may hold an earlier one's state.
    pub(crate) fn start(bench: &Bench, data: &Path, cache_mib: u64) -> Result<Self> {
        Self::start_with(bench, data, cache_mib, &[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(
        bench: &Bench,
        data: &Path,
        cache_mib: u64,
        more: &[&str],
    ) -> Result<Self> {
        std::fs::create_dir_all(data)?;
        let socket = data.with_extension("sock");
        let nbd_port = process::free_port()?;
        let config = data.with_extension("toml");
        // The scrubber is off: it would bring packs back into a page cache that
        // was dropped for the measurement. No recipes: they would take half a core.
        let cache_bytes = cache_mib << 20;
        std::fs::write(
            &config,
            format!(
                "[store]\ncache_bytes = {cache_bytes}\nscrub_rate_bytes = 0\nrecipe_load_percent = 0\n"
            ),
        )?;
        let mut command = Command::new(&bench.rootstock);
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--data")
            .arg(data)
            .arg("--api")
            .arg(format!("unix:{}", socket.display()))
            .arg("--nbd")
            .arg(format!("127.0.0.1:{nbd_port}"))
            .args(["--boot", "off"])
            .args(more);
        let server = Server::start(&mut command, || {
            UnixStream::connect(&socket).is_ok() && process::listens(nbd_port)
        })?;
        Ok(Self {
            server,
            nbd_port,
            binary: bench.rootstock.clone(),
            socket,
        })
    }

    /// The administrator's command, pointed at this daemon.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("ROOTSTOCK_API", format!("unix:{}", self.socket.display()));
        command
    }

    /// Imports an image and returns the seconds it took.
    pub(crate) fn import(&self, name: &str, source: &Path) -> Result<f64> {
        process::run(
            self.command()
                .args(["image", "import", name])
                .arg(source)
                .arg("--json"),
        )
        .context("importing")
    }

    /// The NBD URI of an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.nbd_port)
    }
}
