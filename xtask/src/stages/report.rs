//! Counting passes and failures, and showing them as they come.

use std::time::Duration;

/// What has been run so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed, did not run, or took their program down.
    pub(crate) failed: u64,
    failures: Vec<String>,
}

impl Tally {
    /// Counts `count` passes of `name` and shows them.
    pub(crate) fn pass(&mut self, name: &str, count: u64, took: Duration) {
        self.passed += count;
        println!(
            "  ok     {name:<44} {count:>5} passed {:>8.1} s",
            took.as_secs_f32()
        );
    }

    /// Counts passes and failures of `name` and shows why.
    pub(crate) fn fail(&mut self, name: &str, passed: u64, failed: u64, took: Duration, why: &str) {
        self.passed += passed;
        self.failed += failed;
        println!(
            "  FAILED {name:<44} {passed:>5} passed, {failed} failed {:>8.1} s",
            took.as_secs_f32()
        );
        for line in why.lines() {
            println!("         {line}");
        }
        self.failures.push(format!("{name}: {failed} failed"));
    }

    /// Adds another stage's count.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }

    /// Names again at the end what failed, which may have scrolled away.
    pub(crate) fn print_failures(&self) {
        if self.failures.is_empty() {
            return;
        }
        println!("\n== failures");
        for failure in &self.failures {
            println!("  {failure}");
        }
    }
}
