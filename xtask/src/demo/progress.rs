//! Saying where the demo is, and running its long commands so that one can watch.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rootstock_tests::{Process, tool, wait};

/// Prints steps with their number and the time they took.
pub(crate) struct Progress {
    count: u32,
    number: Cell<u32>,
    start: Instant,
}

impl Progress {
    /// Nothing done yet, of `count` steps.
    pub(crate) fn new(count: u32) -> Self {
        Self {
            count,
            number: Cell::new(0),
            start: Instant::now(),
        }
    }

    /// Does one step, with its heading before and its time behind.
    ///
    /// # Errors
    /// The step's own, with its heading.
    pub(crate) fn step<T>(&self, what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.number.set(self.number.get() + 1);
        let number = self.number.get();
        println!("[{number:>2}/{}] {what}", self.count);
        let start = Instant::now();
        let result = step().with_context(|| format!("step {number}, {what}"))?;
        println!("        done in {:.1} s", start.elapsed().as_secs_f32());
        Ok(result)
    }

    /// Fails unless every step was done.
    ///
    /// # Errors
    /// With the number of steps that were left out.
    pub(crate) fn finish(&self) -> Result<Duration> {
        if self.number.get() != self.count {
            bail!(
                "only {} of {} steps were done",
                self.number.get(),
                self.count
            );
        }
        Ok(self.start.elapsed())
    }
}

/// Says something about the step that runs.
pub(crate) fn note(text: &str) {
    println!("        {text}");
}

/// Runs a long `command` and prints those lines of its output that begin with `mark`.
///
/// # Errors
/// When it fails or is not done within `limit`; the message holds the end of its output.
pub(crate) fn watch(command: &mut Command, log: &Path, mark: &str, limit: Duration) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::start(&name, command, log)?;
    let mut shown = 0;
    let status = wait::until(&format!("the end of {name}"), limit, || {
        let ended = process.ended()?;
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text.get(shown..complete).unwrap_or_default().lines() {
            if let Some(said) = line.strip_prefix(mark) {
                note(said.trim());
            }
        }
        shown = complete;
        Ok(ended)
    });
    let status = status.with_context(|| format!("it said:\n{}", process.log_end()))?;
    if !status.success() {
        bail!(
            "{} ended with {status}:\n{}",
            tool::shown(command),
            process.log_end()
        );
    }
    Ok(())
}
