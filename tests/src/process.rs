//! A process that runs beside the test and ends with its guard.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::tool;
use crate::undo::{Action, Undo};
use crate::wait;

/// A running child, killed by its id when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    undo: Undo,
}

impl Process {
    /// Starts `command`, whose standard error, and standard output unless the
    /// caller wants it, go to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::start_with(name, command, log, Pipes::None)
    }

    /// As [`Process::start`], with standard input and output kept as pipes.
    ///
    /// # Errors
    /// As for [`Process::start`].
    pub fn start_piped(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::start_with(name, command, log, Pipes::InputAndOutput)
    }

    fn start_with(name: &str, command: &mut Command, log: &Path, pipes: Pipes) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        command.stderr(file.try_clone()?);
        match pipes {
            Pipes::None => command.stdin(Stdio::null()).stdout(file),
            Pipes::InputAndOutput => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
        };
        let child = command
            .spawn()
            .with_context(|| format!("start {}", tool::shown(command)))?;
        let undo = Undo::new(Action::Kill(child.id()));
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            undo,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, to take its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.undo.forget();
        }
        Ok(status)
    }

    /// Fails with its log when it has ended.
    ///
    /// # Errors
    /// When it is not running.
    pub fn check_runs(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.log_end()),
        }
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn ask_to_end(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("the process id is out of range")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("send SIGTERM to {}", self.name))
    }

    /// Ends it without warning (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.undo.forget();
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it still runs after `limit`; the message holds its log.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let ended = wait::until(&what, limit, || Ok(self.ended()?));
        ended.with_context(|| format!("{} said:\n{}", self.name, self.log_end()))
    }

    /// The last part of what it wrote.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        tool::end_of(&String::from_utf8_lossy(&text)).to_owned()
    }

    /// The most memory it has held at once.
    ///
    /// # Errors
    /// When it is not running.
    pub fn memory_peak_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// The memory it holds now.
    ///
    /// # Errors
    /// When it is not running.
    pub fn memory_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("{path} has no {field}"))?;
        Ok(value.parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Without the wait the killed child would stay as a zombie.
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
        self.undo.forget();
        // Its log goes with the directory of a test that failed.
        if std::thread::panicking() {
            eprintln!("{} said last:\n{}", self.log.display(), self.log_end());
        }
    }
}

/// Which pipes of a child the caller keeps.
#[derive(Clone, Copy)]
enum Pipes {
    None,
    InputAndOutput,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new("sleep");
        let process = Process::start("sleep", command.arg("600"), &log).unwrap();
        let id = process.id();
        assert!(process.memory_bytes().unwrap() > 0);
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn an_end_shows_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo broken >&2; exit 7"]);
        let mut process = Process::start("the shell", &mut command, &log).unwrap();
        let status = process.wait(Duration::from_secs(60)).unwrap();
        assert_eq!(status.code(), Some(7));
        let message = process.check_runs().unwrap_err().to_string();
        assert!(message.contains("broken"), "{message}");
    }
}
