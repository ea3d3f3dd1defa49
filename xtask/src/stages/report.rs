//! Counting passes and failures, and showing them as they come.

use std::time::Duration;

/// What came of one program.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What it is called in the report.
    pub(crate) name: String,
    /// Its tests that passed.
    pub(crate) passed: u64,
    /// Its tests that failed, and what else was wrong with it.
    pub(crate) failed: u64,
    /// How long it ran.
    pub(crate) took: Duration,
    /// What it said, when something failed.
    pub(crate) why: String,
}

/// What has been run so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed, did not run, or took their program down.
    pub(crate) failed: u64,
    /// The programs' times, added up.
    pub(crate) took: Duration,
    failures: Vec<String>,
}

impl Tally {
    /// Counts what came of a program and shows it, unless it had nothing to run.
    pub(crate) fn record(&mut self, outcome: &Outcome) {
        let Outcome {
            name,
            passed,
            failed,
            took,
            why,
        } = outcome;
        match (passed, failed) {
            (0, 0) => {}
            (_, 0) => self.pass(name, *passed, *took),
            _ => self.fail(name, *passed, *failed, *took, why),
        }
    }

    /// Counts `count` passes of `name` and shows them.
    pub(crate) fn pass(&mut self, name: &str, count: u64, took: Duration) {
        self.passed += count;
        self.took += took;
        println!(
            "  ok     {name:<44} {count:>5} passed {:>8.1} s",
            took.as_secs_f32()
        );
    }

    /// Counts passes and failures of `name` and shows why.
    pub(crate) fn fail(&mut self, name: &str, passed: u64, failed: u64, took: Duration, why: &str) {
        self.passed += passed;
        self.failed += failed;
        self.took += took;
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
        self.took += other.took;
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
