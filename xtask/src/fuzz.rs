//! `cargo xtask fuzz`: builds the fuzz targets, gives each its seeds and runs it.
//!
//! The target with a planted mistake runs first: when fuzzing does not find that
//! one, that it finds nothing elsewhere would mean nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use rootstock_tests::tool;
use rootstock_tests::undo::{Action, Undo};

use crate::command::{self, root};

/// The target whose mistake has to be found.
const PLANTED: &str = "planted";
/// How long the planted mistake may stay unfound.
const PLANTED_SECONDS_MAX: u64 = 60;
/// The memory that a target may take, the sanitizer's own included, in MiB.
const MEMORY_MIB_MAX: u32 = 1024;
/// The memory that the sanitizer holds back after it was freed, in MiB.
const QUARANTINE_MIB: u32 = 16;
/// The largest single allocation of a target, in MiB.
const ALLOCATION_MIB_MAX: u32 = 256;
/// How long one input may take.
const INPUT_SECONDS_MAX: u32 = 10;
/// The longest input that is made, in bytes.
const INPUT_BYTES_MAX: u32 = 64 * 1024;

/// What to fuzz, and for how long.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only this target; otherwise all, one after the other.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

/// Runs the target, or all of them; the first finding ends it.
///
/// # Errors
/// When a tool is missing (the message says what installs it), a target does not
/// build, the planted mistake is not found, or something else is.
pub(crate) fn run(args: &Args) -> Result<()> {
    check_tools()?;
    let targets = targets(&root().join("fuzz/fuzz_targets"))?;
    let chosen: Vec<&String> = match &args.target {
        Some(wanted) if targets.contains(wanted) => vec![wanted],
        Some(wanted) => bail!("there is no target {wanted}: {}", targets.join(", ")),
        None => targets.iter().filter(|name| *name != PLANTED).collect(),
    };
    println!("building {}", targets.join(", "));
    command::show(&mut fuzz(&["build"]))?;
    let corpus = root().join("fuzz/corpus");
    command::show(
        cargo()
            .args(["run", "--quiet", "--example", "seeds", "--"])
            .arg(&corpus),
    )?;
    find_planted()?;
    for target in chosen.iter().filter(|name| **name != PLANTED) {
        println!("{target}: {} s", args.seconds);
        let status = fuzz_for(target, args.seconds, Stdio::inherit())?;
        if !status.success() {
            bail!(
                "{target} found something: the input is below fuzz/artifacts/{target}; \
                 'cargo +nightly fuzz run {target} INPUT' shows it again. Mend it, and keep \
                 the input as a test of the crate"
            );
        }
    }
    println!("nothing found");
    Ok(())
}

/// Runs the target with the planted mistake, which has to fail.
fn find_planted() -> Result<()> {
    let artifacts = root().join("fuzz/artifacts").join(PLANTED);
    remove(&artifacts)?;
    let status = fuzz_for(PLANTED, PLANTED_SECONDS_MAX, Stdio::null())?;
    let found = artifacts
        .read_dir()
        .is_ok_and(|mut inputs| inputs.next().is_some());
    remove(&artifacts)?;
    if status.success() || !found {
        bail!("the planted mistake was not found: fuzzing as it runs here finds nothing");
    }
    println!("{PLANTED}: found, as it must be");
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    Ok(())
}

fn fuzz_for(target: &str, seconds: u64, said: Stdio) -> Result<ExitStatus> {
    let mut command = fuzz(&["run", target, "--"]);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg("-verbosity=0")
        .arg("-print_final_stats=1")
        .env(
            "ASAN_OPTIONS",
            format!("quarantine_size_mb={QUARANTINE_MIB}"),
        )
        .stdin(Stdio::null())
        .stderr(said);
    let mut child = command.spawn().context("start cargo fuzz")?;
    let undo = Undo::new(Action::Kill(child.id()));
    let status = child.wait()?;
    undo.forget();
    Ok(status)
}

/// `cargo fuzz` with the compiler that knows the sanitizers.
fn fuzz(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.arg("fuzz").args(arguments);
    command
}

/// The nightly cargo, in the directory of the targets. The toolchain of the
/// running cargo must not decide.
fn cargo() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .current_dir(root().join("fuzz"));
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

/// The names of all targets, which are those of their files.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path: PathBuf = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.extend(name.map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

/// Says what installs what is missing.
fn check_tools() -> Result<()> {
    let toolchains = tool::run("rustup", ["toolchain", "list"])
        .context("fuzzing needs rustup and its nightly toolchain: see https://rustup.rs")?;
    if !toolchains.lines().any(|line| line.starts_with("nightly")) {
        bail!(
            "fuzzing needs the nightly compiler, for its sanitizers: \
             rustup toolchain install nightly --profile minimal"
        );
    }
    let known = cargo().args(["fuzz", "--version"]).output();
    if !known.is_ok_and(|output| output.status.success()) {
        bail!("fuzzing needs cargo-fuzz: cargo install cargo-fuzz --locked");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_manifest_and_one_is_planted() {
        let fuzz = root().join("fuzz");
        let targets = targets(&fuzz.join("fuzz_targets")).unwrap();
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for target in &targets {
            let path = format!("path = \"fuzz_targets/{target}.rs\"");
            assert!(
                manifest.contains(&path),
                "{target} is not in fuzz/Cargo.toml"
            );
        }
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
        assert!(targets.iter().any(|name| name == PLANTED));
    }
}
