//! `cargo xtask agent`: the first stage's program, linked statically.
//!
//! It runs where there is no C library, so it brings its own. Only its build is
//! told so: with a target named, flags reach what is built for that target and
//! not the build scripts and macros that run here, and a directory of its own
//! keeps both builds from replacing each other's.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::command;

/// The C library's static parts come with every system that builds for it.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What machines fetch at each boot is at most this long.
const AGENT_BYTES_MAX: u64 = 10 << 20;

/// Builds it, checks that it is static and small, and gives its path.
///
/// # Errors
/// When the build fails, or what it makes cannot be an `/init`.
pub(crate) fn run() -> Result<PathBuf> {
    let target = directory();
    let mut build = command::cargo();
    build
        .args(["build", "--locked", "--package", "rootstock-agent"])
        .args(["--profile", "agent", "--target", TARGET])
        .arg("--config")
        .arg(format!(
            "target.{TARGET}.rustflags=[\"-C\",\"target-feature=+crt-static\"]"
        ))
        .arg("--target-dir")
        .arg(&target);
    command::show(&mut build)?;
    let path = path();
    let program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        !has_interpreter(&program),
        "{} asks for a dynamic loader: an initrd has none",
        path.display()
    );
    ensure!(
        program.len() as u64 <= AGENT_BYTES_MAX,
        "{} has {} bytes, and the limit is {AGENT_BYTES_MAX}",
        path.display(),
        program.len()
    );
    Ok(path)
}

/// Where [`run`] puts it.
#[must_use]
pub(crate) fn path() -> PathBuf {
    directory().join(TARGET).join("agent/rootstock-agent")
}

fn directory() -> PathBuf {
    command::target().join("agent")
}

/// Whether an ELF file has a segment that names a loader (`PT_INTERP`, `elf(5)`).
fn has_interpreter(elf: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, len: usize| {
        let bytes = elf.get(at..at + len).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    // The 64-bit header: program headers' place, their size and their number.
    let (at, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|entry| number((at + entry * size) as usize, 4) == u64::from(INTERPRETER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_itself_needs_a_loader() {
        let own = std::env::current_exe().expect("a path");
        let mut program = fs::read(own).expect("readable");
        assert!(has_interpreter(&program));
        // No program headers at all.
        program[56..58].fill(0);
        assert!(!has_interpreter(&program));
    }
}
