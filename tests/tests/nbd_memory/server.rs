//! The NBD server over a disk in memory, as a process of its own.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ChildStdin, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rootstock_tests::Process;
use tempfile::TempDir;

/// Size of the disk that [`content`] makes, in bytes.
pub(crate) const SIZE: usize = 24 << 20;

/// The file in the server's directory that holds the disk it starts with.
pub(crate) const IMAGE: &str = "disk.img";

/// How long the server may take to shut down in good order.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);

/// A disk with holes, data in odd places, and data at both ends.
pub(crate) fn content() -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    let mut state = 1_u32;
    for (start, len) in [(0, 4096), (5 << 20, 6_000_000), (SIZE - 700, 700)] {
        for byte in &mut disk[start..start + len] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
    }
    disk
}

/// A running server, ended in good order by [`MemoryServer::finish`].
pub(crate) struct MemoryServer {
    pub(crate) process: Process,
    pub(crate) dir: TempDir,
    pub(crate) address: String,
    input: Option<ChildStdin>,
}

impl MemoryServer {
    /// Starts it on a Unix socket and a free TCP port, with a disk of [`content`].
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, arguments)
    }

    /// As [`MemoryServer::start`], in a directory that holds what the arguments name.
    pub(crate) fn start_in(dir: TempDir, arguments: &[&str]) -> Result<Self> {
        let fill = dir.path().join(IMAGE);
        std::fs::write(&fill, content())?;
        let mut command = Command::new(program()?);
        command
            .args(["--tcp", "127.0.0.1:0", "--unix"])
            .arg(dir.path().join("nbd.sock"))
            .arg("--fill")
            .arg(&fill)
            .args(arguments);
        let log = dir.path().join("log");
        let mut process = Process::start_piped("nbd_memory", &mut command, &log)?;
        let input = process.child().stdin.take();
        let output = process.child().stdout.take().context("no output")?;
        let mut address = None;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some(listening) = line.strip_prefix("listening ") {
                address = Some(listening.to_owned());
            }
            if line == "ready" {
                break;
            }
        }
        let address = address.with_context(|| process.log_end())?;
        Ok(Self {
            process,
            dir,
            address,
            input,
        })
    }

    /// An export over TCP.
    pub(crate) fn tcp(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// An export over the Unix socket.
    pub(crate) fn unix(&self, export: &str) -> String {
        let socket = self.dir.path().join("nbd.sock");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// Shuts it down: it must still run, and end well.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.process.check_runs()?;
        drop(self.input.take());
        let status = self.process.wait(SHUTDOWN_LIMIT)?;
        ensure!(status.success(), "the server ended with {status}");
        let log = self.process.log_end();
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    }
}

/// The server's program, which is an example of its crate.
fn program() -> Result<PathBuf> {
    // This test is in PROFILE/deps, the example in PROFILE/examples.
    let this = env::current_exe()?;
    let profile = this.parent().and_then(Path::parent);
    let program = profile
        .context("a test lies two directories deep")?
        .join("examples/nbd_memory");
    ensure!(
        program.exists(),
        "{} does not exist: build it with `cargo build --package rootstock-server --example nbd_memory`, or run `cargo xtask test`",
        program.display()
    );
    Ok(program)
}
