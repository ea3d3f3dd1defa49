//! A guest's serial console: what it said, and waiting for what it will say.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::tool;

/// The most of a console that is kept; a boot says some 50 KiB.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Both directions of a serial line.
pub struct Console {
    input: ChildStdin,
    heard: Arc<Heard>,
    read_to: usize,
    commands: u32,
}

/// What the guest has said so far.
#[derive(Default)]
struct Heard {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: String,
    closed: bool,
}

impl Console {
    /// Listens to `output` in the background and keeps a copy in the file `log`.
    ///
    /// # Errors
    /// When the log cannot be made.
    pub fn new(input: ChildStdin, output: ChildStdout, log: &Path) -> Result<Self> {
        let heard = Arc::new(Heard::default());
        let copy = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let listener = Arc::clone(&heard);
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || listener.listen(output, copy))?;
        Ok(Self {
            input,
            heard,
            read_to: 0,
            commands: 0,
        })
    }

    /// Types `text` as it is.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes())?;
        self.input.flush()?;
        Ok(())
    }

    /// Waits until `wanted` appears behind what earlier calls have read, and
    /// gives the text before it.
    ///
    /// # Errors
    /// When `limit` passes or the line closes first; the message ends with the
    /// last that was heard.
    pub fn expect(&mut self, wanted: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut state = self.heard.lock();
        loop {
            if let Some(at) = state.text[self.read_to..].find(wanted) {
                let before = state.text[self.read_to..self.read_to + at].to_owned();
                self.read_to += at + wanted.len();
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                let why = if state.closed {
                    "the guest ended".to_owned()
                } else {
                    format!("{} s passed", limit.as_secs())
                };
                bail!(
                    "{why} before the console said {wanted:?}; it said last:\n{}",
                    tool::end_of(&state.text)
                );
            }
            state = self
                .heard
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Logs in as root at the prompt, which must come within `limit`.
    ///
    /// # Errors
    /// When the prompt does not come or the password is refused.
    pub fn log_in(&mut self, password: &str, limit: Duration) -> Result<()> {
        self.expect("login: ", limit)?;
        self.send("root\n")?;
        self.expect("Password: ", limit)?;
        self.send(&format!("{password}\n"))?;
        self.expect("# ", limit)?;
        // A plain prompt: no colours and no bracketed paste between us and the answers.
        self.shell("export TERM=dumb", limit)?;
        Ok(())
    }

    /// Runs `command` in the shell that waits on the console and gives its output.
    ///
    /// # Errors
    /// When it ends in failure or not within `limit`.
    pub fn shell(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        // The typed line is echoed: the quotes keep it from looking like the answer.
        self.send(&format!(
            "echo be''gin-{number}; {command}; echo en''d-{number}-$?-\n"
        ))?;
        self.expect(&format!("begin-{number}\r\n"), limit)?;
        let output = self.expect(&format!("end-{number}-"), limit)?;
        let status = self.expect("-", limit)?;
        if status != "0" {
            bail!("in the guest, {command:?} ended with {status}:\n{output}");
        }
        Ok(output.replace("\r\n", "\n"))
    }

    /// All that was heard.
    #[must_use]
    pub fn text(&self) -> String {
        self.heard.lock().text.clone()
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, mut output: impl Read, mut copy: impl Write) {
        let mut buffer = [0; 4096];
        loop {
            let count = output.read(&mut buffer).unwrap_or(0);
            let mut state = self.lock();
            if count == 0 || state.text.len() > TEXT_BYTES_MAX {
                state.closed = true;
                self.changed.notify_all();
                return;
            }
            let _ = copy.write_all(&buffer[..count]);
            // A console that sends half a character is shown with a mark in its place.
            state
                .text
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const LIMIT: Duration = Duration::from_secs(60);

    fn console(script: &str, log: &Path) -> (Console, std::process::Child) {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        (Console::new(input, output, log).unwrap(), child)
    }

    #[test]
    fn hears_and_answers() {
        let directory = tempfile::tempdir().unwrap();
        let script = "printf 'login: '; read name; echo hello $name";
        let (mut console, mut child) = console(script, &directory.path().join("log"));
        console.expect("login: ", LIMIT).unwrap();
        console.send("root\n").unwrap();
        assert_eq!(console.expect(" root", LIMIT).unwrap(), "hello");
        let error = console.expect("never", LIMIT).unwrap_err().to_string();
        assert!(error.starts_with("the guest ended before"), "{error}");
        child.wait().unwrap();
    }
}
