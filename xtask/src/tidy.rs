//! The checks that need no build of their own: style, layers, licences, links.

mod docs;
pub(crate) mod files;
mod layers;

use std::time::Instant;

use anyhow::{Result, bail};
use rootstock_tests::tool;

use crate::command;
use crate::licences;
use crate::stages::report::Tally;

/// One check: what it says when it passes, or why it does not.
type Check = fn() -> Result<Vec<String>>;

/// Every check with its name, quick ones first.
const CHECKS: [(&str, Check); 8] = [
    ("layers", || layers::check(&command::metadata()?)),
    ("first lines and lengths of files", files::check_shape),
    ("no sleeping or ignored tests", files::check_tests),
    ("licences, bans and sources", || {
        licences::check(&command::metadata()?)
    }),
    ("reasons of dependencies", docs::check_reasons),
    ("links of the documents", docs::check_links),
    ("rustfmt", formatting),
    ("clippy", lints),
];

/// Runs all of them.
pub(crate) fn run() -> Tally {
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        let start = Instant::now();
        match check() {
            Ok(notes) => {
                tally.pass(name, 1, start.elapsed());
                for note in notes {
                    println!("         note: {note}");
                }
            }
            Err(error) => tally.fail(name, 0, 1, start.elapsed(), &format!("{error:#}")),
        }
    }
    tally
}

fn formatting() -> Result<Vec<String>> {
    let mut command = command::cargo();
    quiet_unless_failed(command.args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<Vec<String>> {
    let mut command = command::cargo();
    quiet_unless_failed(command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))
}

fn quiet_unless_failed(command: &mut std::process::Command) -> Result<Vec<String>> {
    let output = tool::output(command)?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    bail!(
        "{} failed\n{}{}",
        tool::shown(command),
        tool::end_of(&String::from_utf8_lossy(&output.stdout)),
        tool::end_of(&String::from_utf8_lossy(&output.stderr))
    );
}
