//! Finding the workspace and running cargo in it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rootstock_tests::tool;
use rootstock_tests::undo::{Action, Undo};
use serde_json::Value;

/// The directories that hold programs which only root usually has in its path.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How the variables begin that `cargo run` sets for the package it runs.
const OF_CARGO_RUN: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];

/// The workspace's root.
#[must_use]
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where cargo builds.
#[must_use]
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo, in the workspace.
#[must_use]
pub(crate) fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    // What `cargo run` says of xtask itself: build scripts that look at it would run
    // again, and all that depends on them be built again, at each change between
    // `cargo xtask` and `cargo`.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if OF_CARGO_RUN.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    command
}

/// Runs `command` with its output shown as it comes.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", tool::shown(command)))?;
    let undo = Undo::new(Action::Kill(child.id()));
    let status = child.wait()?;
    undo.forget();
    if !status.success() {
        bail!("{} ended with {status}", tool::shown(command));
    }
    Ok(())
}

/// What cargo knows of the workspace and of all it is made of on this platform.
///
/// # Errors
/// When cargo fails.
pub(crate) fn metadata() -> Result<Value> {
    let host = host()?;
    let mut command = cargo();
    command.args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &host,
    ]);
    let text = tool::run_command(&mut command)?;
    serde_json::from_str(&text).context("read what cargo metadata says")
}

/// The platform's name for the compiler, such as `x86_64-unknown-linux-gnu`.
fn host() -> Result<String> {
    let text = tool::run("rustc", ["-vV"])?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// Where the program `name` is, also in the directories of the system's own programs.
#[must_use]
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Makes the system's own programs findable for what xtask starts.
#[must_use]
pub(crate) fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from));
    env::join_paths(directories).unwrap_or(path)
}
