//! One command for everything in this repository.

mod agent;
mod bench;
mod command;
mod demo;
mod fuzz;
mod licences;
mod package;
mod setup;
mod signals;
mod stages;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use rootstock_tests::undo;

use crate::setup::Purpose;
use crate::stages::Stage;

/// Sets up the machine, tests, shows, measures and packs Rootstock.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks to build and test, and say why.
    Setup,
    /// Set up, then run every test in stages; ends with "N passed, N failed".
    Test {
        /// Only this stage; may be given more than once.
        #[arg(long, value_enum)]
        stage: Vec<Stage>,
    },
    /// Make a Debian package of the release build in target/debian.
    Package {
        /// Pack this program instead.
        #[arg(long)]
        binary: Option<PathBuf>,
        /// Pack this first stage's program instead.
        #[arg(long)]
        agent: Option<PathBuf>,
        /// Write the package into this directory.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Take a real Debian through import, upgrade, clone, boot and commit; then boot five machines.
    Demo {
        /// Show this program instead of building one.
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Measure imports, NBD and memory against real rivals, as ratios of one run.
    Bench(bench::Args),
    /// Feed the parsers hostile input, after a check that this finds mistakes.
    Fuzz(fuzz::Args),
    /// Build the first stage's program, linked statically, and print its path.
    Agent,
    /// Make the demo's Debian disk image, or take the cached one, and print its path.
    Image,
}

fn main() -> ExitCode {
    let result = run(&Arguments::parse().task);
    undo::stop_if_leaving();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<ExitCode> {
    signals::clean_up_on_signals()?;
    match task {
        Task::Setup => setup::run(&[Purpose::Test])?,
        Task::Test { stage } => return stages::run(stage),
        Task::Package {
            binary,
            agent,
            output,
        } => {
            let programs = package::Programs {
                binary: binary.as_deref(),
                agent: agent.as_deref(),
            };
            let path = package::run(programs, output.as_deref())?;
            println!("{}", path.display());
        }
        Task::Demo { binary } => demo::run(binary.as_deref())?,
        Task::Bench(args) => bench::run(args)?,
        Task::Fuzz(args) => fuzz::run(args)?,
        Task::Agent => println!("{}", agent::run()?.display()),
        Task::Image => println!("{}", demo::golden_image()?.display()),
    }
    Ok(ExitCode::SUCCESS)
}
