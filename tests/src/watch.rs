//! Running a long command so that one can watch it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{Process, tool, wait};

/// Takes the lines that are to be shown.
pub type Say<'a> = &'a dyn Fn(&str);

/// Runs a long `command` and says those lines of its output that begin with `mark`.
///
/// # Errors
/// When it fails or is not done within `limit`; the message holds the end of its output.
pub fn watch(
    command: &mut Command,
    log: &Path,
    mark: &str,
    limit: Duration,
    say: Say<'_>,
) -> Result<()> {
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
                say(said.trim());
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
