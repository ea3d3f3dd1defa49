//! A daemon of its own for a test: data directory, sockets, and the command line that talks to it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http;
use crate::namespace;
use crate::process::Process;
use crate::tool;
use crate::wait;

/// How long a daemon may take to answer `/healthz`.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a daemon may take to finish its writes and close.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Names the binary to test; without it, the one beside the test's own directory.
const BINARY_VARIABLE: &str = "ROOTSTOCK_BIN";
/// The address of the NBD server of every daemon made here.
const NBD_HOST: &str = "127.0.0.1";
/// What `--boot` takes for nowhere.
pub const BOOT_OFF: &str = "off";
/// Lets the system choose a free port.
const ANY_PORT: u16 = 0;

/// Where and how a daemon runs.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The program.
    pub binary: PathBuf,
    /// Holds the socket, the log and, unless told otherwise, the data.
    pub directory: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// The configuration file's text. Boot services are off unless it has `[boot]`.
    pub config: String,
    /// Where machines are booted, as `--boot` takes it; as the configuration says when absent.
    pub boot: Option<String>,
    /// The network namespace it runs in; this process's own when absent.
    pub namespace: Option<String>,
}

/// A running daemon, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    options: DaemonOptions,
    nbd_port: u16,
    process: Process,
}

/// The program under test.
///
/// # Errors
/// When it has not been built; the message says how.
pub fn binary() -> Result<PathBuf> {
    let path = match env::var_os(BINARY_VARIABLE) {
        Some(path) => PathBuf::from(path),
        // A test is `target/PROFILE/deps/NAME`, the program `target/PROFILE/rootstock`.
        None => env::current_exe()?
            .ancestors()
            .nth(2)
            .context("the test's own path has no directory above it")?
            .join("rootstock"),
    };
    if !path.exists() {
        bail!(
            "{} does not exist: build it with `cargo build --package rootstock`, or run `cargo xtask test`",
            path.display()
        );
    }
    Ok(path)
}

impl DaemonOptions {
    /// A daemon with all it has in `directory`.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn new(directory: &Path) -> Result<Self> {
        Ok(Self {
            binary: binary()?,
            directory: directory.to_owned(),
            data: directory.join("data"),
            config: String::new(),
            boot: None,
            namespace: None,
        })
    }
}

impl Daemon {
    /// Starts a daemon with all it has in `directory`, which may hold an earlier one's data.
    ///
    /// # Errors
    /// When it does not become healthy.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(DaemonOptions::new(directory)?)
    }

    /// Starts a daemon as `options` say and waits until it is healthy.
    ///
    /// # Errors
    /// When it does not become healthy; the message holds its log.
    pub fn start_with(options: DaemonOptions) -> Result<Self> {
        let process = spawn(&options, ANY_PORT)?;
        let mut daemon = Self {
            options,
            nbd_port: ANY_PORT,
            process,
        };
        daemon.wait_healthy()?;
        daemon.nbd_port = chosen_port(&daemon.socket())?;
        Ok(daemon)
    }

    /// Starts it again on the same data, after [`Daemon::kill`] or [`Daemon::stop`],
    /// with the NBD port it had, so that clients can come back.
    ///
    /// # Errors
    /// As for [`Daemon::start_with`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.options, self.nbd_port)?;
        self.wait_healthy()
    }

    /// Ends it without warning, as a crash would.
    ///
    /// # Errors
    /// When it had already ended.
    pub fn kill(&mut self) -> Result<()> {
        self.process.check_runs()?;
        self.process.kill()
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time, or not cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.process.ask_to_end()?;
        let status = self.process.wait(STOP_LIMIT)?;
        if !status.success() {
            bail!(
                "the daemon ended with {status}:\n{}",
                self.process.log_end()
            );
        }
        Ok(())
    }

    /// Its process, to measure it or to read its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The API's address in the form that `--api` takes.
    #[must_use]
    pub fn api(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(&self.options)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.options.data
    }

    /// The NBD server's TCP port on 127.0.0.1.
    #[must_use]
    pub fn nbd_port(&self) -> u16 {
        self.nbd_port
    }

    /// The address of an export, such as `nbd://127.0.0.1:4711/volume/a`.
    #[must_use]
    pub fn nbd_uri(&self, export: &str) -> String {
        format!("nbd://{NBD_HOST}:{}/{export}", self.nbd_port)
    }

    /// A command of the program that talks to this daemon, still to be given its words.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.options.binary);
        command
            .env("ROOTSTOCK_API", self.api())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program with `words` and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Result<String> {
        tool::run_command(self.command().args(words))
    }

    /// Runs the program with `words`, whose failure may be what the test wants.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Result<Output> {
        tool::output(self.command().args(words))
    }

    /// Runs the program with `words` and `--json` and gives the last document it printed.
    ///
    /// # Errors
    /// When it fails or prints none.
    pub fn json<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Result<Value> {
        let text = tool::run_command(self.command().args(words).arg("--json"))?;
        last_document(&text)
    }

    /// Expects the program to fail with `words`, and gives what it said about it.
    ///
    /// # Errors
    /// When it succeeds, or ends by a signal or a panic.
    pub fn refused<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Result<String> {
        let mut command = self.command();
        command.args(words);
        let output = tool::output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(1 | 2) => Ok(said),
            _ => bail!(
                "{} ended with {}:\n{said}",
                tool::shown(&command),
                output.status
            ),
        }
    }

    fn wait_healthy(&mut self) -> Result<()> {
        let socket = self.socket();
        let process = &mut self.process;
        let healthy = wait::until("an answer from /healthz", START_LIMIT, || {
            process.check_runs()?;
            let answer = http::get(&socket, "/healthz").ok();
            Ok(answer.filter(|answer| answer.status == 200))
        });
        match healthy {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("the daemon said:\n{}", self.process.log_end()))
            }
        }
    }
}

fn spawn(options: &DaemonOptions, nbd_port: u16) -> Result<Process> {
    fs::create_dir_all(&options.directory)?;
    let config = options.directory.join("rootstock.toml");
    fs::write(&config, &options.config)?;
    let mut command = match &options.namespace {
        Some(namespace) => {
            let mut command = namespace::inside(namespace, "env");
            command.arg(&options.binary);
            command
        }
        None => Command::new(&options.binary),
    };
    command
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .arg("--data")
        .arg(&options.data)
        .arg("--api")
        .arg(format!("unix:{}", socket(options).display()))
        .arg("--nbd")
        .arg(format!("{NBD_HOST}:{nbd_port}"))
        .env("RUST_BACKTRACE", "1");
    match &options.boot {
        Some(boot) => {
            command.args(["--boot", boot]);
        }
        None if configures_boot(&options.config) => {}
        // Nothing answers on the networks of the machine that runs the tests.
        None => {
            command.args(["--boot", BOOT_OFF]);
        }
    }
    Process::start(
        "the daemon",
        &mut command,
        &options.directory.join("daemon.log"),
    )
}

/// Whether a configuration says where machines are booted.
fn configures_boot(config: &str) -> bool {
    config.lines().any(|line| line.trim() == "[boot]")
}

fn socket(options: &DaemonOptions) -> PathBuf {
    options.directory.join("api.sock")
}

/// The port that the system gave the NBD server, as the API tells it.
fn chosen_port(socket: &Path) -> Result<u16> {
    let site: Value = serde_json::from_str(&http::get(socket, "/v1/site")?.body)?;
    let address = site["nbd"][0].as_str();
    let port = address.and_then(|address| address.rsplit_once(':'));
    let (_, port) = port.with_context(|| format!("/v1/site names no NBD address: {site}"))?;
    Ok(port.parse()?)
}

fn last_document(text: &str) -> Result<Value> {
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let last = documents.last().context("it printed no JSON")?;
    last.with_context(|| format!("it printed something else than JSON:\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_services_are_off_unless_configured() {
        assert!(configures_boot(
            "[store]\n[boot]\ninterfaces = [\"auto\"]\n"
        ));
        assert!(!configures_boot("# [boot]\n[store]\n"));
        assert!(!configures_boot(""));
    }

    #[test]
    fn the_last_document_is_the_result() {
        let value = last_document("{\"step\":1}\n{\"step\":2}\n").unwrap();
        assert_eq!(value["step"], 2);
        assert!(last_document("").is_err());
        assert!(last_document("no json").is_err());
    }
}
