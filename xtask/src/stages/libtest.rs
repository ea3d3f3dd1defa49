//! Running a test program and reading what Rust's test harness reports.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rootstock_tests::undo::{Action, Undo};
use rootstock_tests::{tool, wait};

use crate::agent;
use crate::command;
use crate::stages::build::{Program, Selection};
use crate::stages::report::Outcome;

/// How long one test program may run. The longest boots guests without acceleration,
/// and takes a third of this on two processors that others use as well.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What one run of the harness reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    results: u64,
}

/// Runs what is selected of one program and counts its tests.
pub(crate) fn run_program(program: &Program, selection: Selection) -> Outcome {
    let name = if program.integration {
        format!("{}::{}", program.package, program.target)
    } else {
        program.target.clone()
    };
    let mut run = Command::new(&program.path);
    // What cargo would tell it, and what the harness of the end-to-end tests asks for.
    run.args(selection.arguments())
        .current_dir(&program.directory)
        .env("CARGO_MANIFEST_DIR", &program.directory)
        .env("CARGO", command::cargo().get_program())
        .env("ROOTSTOCK_BIN", command::target().join("debug/rootstock"))
        .env("ROOTSTOCK_AGENT", agent::path())
        .env("PATH", command::search_path())
        .env("INSTA_WORKSPACE_ROOT", command::root())
        .env("INSTA_UPDATE", "no")
        // Errors of the harness say what happened; their backtraces would bury it.
        .env("RUST_LIB_BACKTRACE", "0");
    outcome(&name, &mut run)
}

/// Runs the examples in the documentation of all crates.
pub(crate) fn run_examples() -> Outcome {
    let mut run = command::cargo();
    run.args(["test", "--doc", "--workspace", "--locked", "--quiet"]);
    outcome("examples in documentation", &mut run)
}

fn outcome(name: &str, run: &mut Command) -> Outcome {
    let start = Instant::now();
    let ended = run_within_limit(run);
    let took = start.elapsed();
    let (counts, faults, said) = match ended {
        Ok((status, output)) => {
            let counts = counts(&output);
            let faults = faults(&counts, status);
            (counts, faults, output)
        }
        Err(error) => {
            let fault = format!("it could not be run: {error:#}");
            (Counts::default(), vec![fault], String::new())
        }
    };
    Outcome {
        name: name.to_owned(),
        passed: counts.passed,
        failed: counts.failed + faults.len() as u64,
        took,
        why: format!("{}\n{}", tool::end_of(&said), faults.join("\n")),
    }
}

/// What the harness's own count of failures does not hold.
fn faults(counts: &Counts, status: Option<ExitStatus>) -> Vec<String> {
    let mut faults = Vec::new();
    if counts.ignored > 0 {
        faults.push(format!(
            "{} tests are ignored: every test runs",
            counts.ignored
        ));
    }
    match status {
        None => faults.push(format!(
            "it ran for more than {} s and was ended",
            PROGRAM_LIMIT.as_secs()
        )),
        Some(status) if !status.success() && counts.failed == 0 => {
            faults.push(format!("it ended with {status}, though no test failed"));
        }
        Some(_) if counts.results == 0 => faults.push("it reported no result".to_owned()),
        Some(_) => {}
    }
    faults
}

/// Runs it to its end, or kills it with all it started; gives what it wrote in both streams.
fn run_within_limit(run: &mut Command) -> Result<(Option<ExitStatus>, String)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("output");
    let file = File::create(&path)?;
    let mut child = run
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // A group of its own, so that what it started can be ended with it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", tool::shown(run)))?;
    let group = Undo::new(Action::KillGroup(child.id()));
    let status = wait::until("its end", PROGRAM_LIMIT, || Ok(child.try_wait()?)).ok();
    group.now()?;
    if status.is_none() {
        child.wait()?;
    }
    let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    Ok((status, output))
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn counts(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output.lines() {
        let Some(result) = line.trim().strip_prefix("test result: ") else {
            continue;
        };
        counts.results += 1;
        let numbers = result.split_once(". ").map_or("", |(_, rest)| rest);
        for part in numbers.split("; ") {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let number = number.parse::<u64>().unwrap_or(0);
            match what {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                "ignored" => counts.ignored += number,
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const OK: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
    const BAD: &str = "test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    #[test]
    fn results_are_added_up() {
        let text = format!("running 3 tests\n...\n\n{OK}\n\nrunning 4 tests\n{BAD}\n");
        let expected = Counts {
            passed: 4,
            failed: 2,
            ignored: 1,
            results: 2,
        };
        assert_eq!(counts(&text), expected);
    }

    #[test]
    fn what_the_harness_does_not_count_is_a_failure_too() {
        let good = Some(ExitStatus::from_raw(0));
        let aborted = Some(ExitStatus::from_raw(6));
        for (output, status, expected) in [
            (OK, good, 0),
            (OK, aborted, 1),
            ("", good, 1),
            ("", aborted, 1),
            (OK, None, 1),
            (BAD, aborted, 1),
        ] {
            assert_eq!(
                faults(&counts(output), status).len(),
                expected,
                "{output} {status:?}"
            );
        }
    }

    #[test]
    fn a_program_is_run_to_its_end() {
        for (program, says, expected) in [
            ("echo", OK, (3, 0)),
            ("echo", BAD, (1, 3)),
            ("true", "", (0, 1)),
            ("/no/such/program", "", (0, 1)),
        ] {
            let outcome = outcome("it", Command::new(program).arg(says));
            let found = (outcome.passed, outcome.failed);
            assert_eq!(found, expected, "{program} {says}: {}", outcome.why);
        }
    }
}
