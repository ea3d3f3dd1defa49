//! `cargo xtask test`: set-up, then every test of the repository in stages.
//!
//! The test programs are built once and run directly, so that one that crashes,
//! hangs or prints no result counts as a failure, and the numbers at the end are
//! those that the programs themselves reported. The programs of the later
//! stages run side by side, but for those that need the machine for themselves
//! (`stages/queue.rs`).
//!
//! Which stage a test belongs to is told by its name:
//!
//! | test | stage |
//! |---|---|
//! | of a crate, with `crash` in its path | crash |
//! | every other of a crate, and the examples in documentation | unit |
//! | in `tests/tests/crash_*.rs` | crash |
//! | in `tests/tests/nbd_*.rs`, `dhcp_*.rs` and `tftp_*.rs` | protocol |
//! | in every other file of `tests/tests/` | e2e |

mod build;
mod libtest;
mod queue;
pub(crate) mod report;
mod side_by_side;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use crate::agent;
use crate::setup::{self, Purpose};
use crate::stages::build::Program;
use crate::stages::queue::Queue;
use crate::stages::report::Tally;
use crate::tidy;

/// A part of all tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Style, layers, licences, lints, documents.
    Tidy,
    /// The crates by themselves.
    Unit,
    /// Real clients of the protocols that we serve.
    Protocol,
    /// Power cuts and kills.
    Crash,
    /// The real program with real tools and guests.
    #[value(name = "e2e")]
    EndToEnd,
}

const STAGES: [Stage; 5] = [
    Stage::Tidy,
    Stage::Unit,
    Stage::Protocol,
    Stage::Crash,
    Stage::EndToEnd,
];

/// Runs `only` these stages, or all, and prints the count of all tests last.
///
/// # Errors
/// When the machine cannot be set up or the tests cannot be built: then there is
/// nothing to count.
pub(crate) fn run(only: &[Stage]) -> Result<ExitCode> {
    let start = Instant::now();
    heading("set-up", "what the tests need");
    setup::run(&[Purpose::Test])?;
    let wanted = |stage: &Stage| only.is_empty() || only.contains(stage);

    let mut total = Tally::default();
    if wanted(&Stage::Tidy) {
        heading("tidy", Stage::Tidy.describe());
        total.add(tidy::run());
    }
    let later: Vec<Stage> = STAGES.into_iter().skip(1).filter(wanted).collect();
    if !later.is_empty() {
        heading("build", "all programs and tests");
        let programs = build::run()?;
        if later.iter().any(|stage| stage.boots_machines()) {
            // Machines that boot in tests fetch it.
            agent::run()?;
        }
        for stage in later {
            heading(stage.name(), stage.describe());
            total.add(run_stage(stage, &programs));
        }
    }
    total.print_failures();
    println!("\nall stages took {:.0} s", start.elapsed().as_secs_f32());
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_stage(stage: Stage, programs: &[Program]) -> Tally {
    let start = Instant::now();
    let mut tally = Queue::of(stage, programs).run();
    if tally.passed + tally.failed == 0 {
        let name = format!("stage {}", stage.name());
        tally.fail(&name, 0, 1, Duration::ZERO, "it has no test");
    }
    println!(
        "  the stage took {:.1} s, its programs {:.1} s",
        start.elapsed().as_secs_f32(),
        tally.took.as_secs_f32()
    );
    tally
}

fn heading(name: &str, what: &str) {
    println!("\n== {name}: {what}");
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Tidy => "tidy",
            Self::Unit => "unit",
            Self::Protocol => "protocol",
            Self::Crash => "crash",
            Self::EndToEnd => "e2e",
        }
    }

    fn boots_machines(self) -> bool {
        matches!(self, Self::Crash | Self::EndToEnd)
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Tidy => "style, layers, licences, lints, documents",
            Self::Unit => "the crates by themselves",
            Self::Protocol => "real clients of the protocols that we serve",
            Self::Crash => "power cuts and kills",
            Self::EndToEnd => "the real program with real tools and guests",
        }
    }
}
