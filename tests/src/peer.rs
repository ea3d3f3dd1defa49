//! Real NBD clients, foremost libnbd driven by small Python scripts.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command};

use anyhow::{Context, Result};

use crate::process::Process;
use crate::tool;

/// The system's own Python, for which `python3-libnbd` is installed.
const PYTHON: &str = "/usr/bin/python3";

/// Put before every script: `h` is connected to the export that the first argument names.
const CONNECTED: &str = "
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
";

/// Runs a libnbd script, with `h` connected to `uri`, and gives what it printed.
///
/// # Errors
/// When the script fails.
pub fn libnbd(uri: &str, script: &str) -> Result<String> {
    tool::run_command(&mut libnbd_command(uri, script))
}

/// The same, still to be started.
#[must_use]
pub fn libnbd_command(uri: &str, script: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command
        .args(["-u", "-c"])
        .arg(format!("{CONNECTED}{script}"))
        .arg(uri);
    command
}

/// A libnbd script that runs beside the test, read line by line.
pub struct Script {
    /// Its process.
    pub process: Process,
    lines: BufReader<ChildStdout>,
}

impl Script {
    /// Starts it with `h` connected to `uri`; what it says of errors goes to `log`.
    ///
    /// # Errors
    /// When Python cannot be started.
    pub fn start(uri: &str, script: &str, log: &Path) -> Result<Self> {
        let mut command = libnbd_command(uri, script);
        let mut process = Process::start_piped("the libnbd script", &mut command, log)?;
        let output = process.child().stdout.take().context("it has no output")?;
        Ok(Self {
            process,
            lines: BufReader::new(output),
        })
    }

    /// Its next line, or `None` when it has ended.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line)?;
        // A line that its death cut short was not said.
        Ok((count > 0 && line.ends_with('\n')).then(|| line.trim_end().to_owned()))
    }
}
