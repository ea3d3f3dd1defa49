//! Saying where the demo is.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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
