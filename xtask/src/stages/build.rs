//! Building every program and test once, and learning from cargo where they are.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;
use crate::stages::Stage;

/// The package with the end-to-end tests.
pub(crate) const TESTS_PACKAGE: &str = "rootstock-tests";

/// Marks tests of crashes: in the name of a file of the end-to-end tests, and in
/// the path of any other test.
const CRASH: &str = "crash";

/// A built test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its package.
    pub(crate) package: String,
    /// Its target's name: the crate's, or the file's below `tests/`.
    pub(crate) target: String,
    /// Whether it is a file below `tests/`, rather than a crate's own unit tests.
    pub(crate) integration: bool,
    /// The file to run.
    pub(crate) path: PathBuf,
    /// Its package's directory, where tests expect to be run.
    pub(crate) directory: PathBuf,
}

/// Which of a program's tests a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    All,
    /// Those with [`CRASH`] in their path.
    Crash,
    /// The others.
    NotCrash,
}

impl Program {
    /// What of this program runs in `stage`: every test runs in exactly one.
    #[must_use]
    pub(crate) fn selection(&self, stage: Stage) -> Option<Selection> {
        if self.integration && self.package == TESTS_PACKAGE {
            let prefix = self.target.split('_').next().unwrap_or_default();
            let own = match prefix {
                CRASH => Stage::Crash,
                "nbd" | "iscsi" | "dhcp" | "tftp" => Stage::Protocol,
                _ => Stage::EndToEnd,
            };
            return (stage == own).then_some(Selection::All);
        }
        match stage {
            Stage::Unit => Some(Selection::NotCrash),
            Stage::Crash => Some(Selection::Crash),
            Stage::Tidy | Stage::Protocol | Stage::EndToEnd => None,
        }
    }
}

impl Selection {
    /// The words that make the test harness select.
    #[must_use]
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::All => &[],
            Self::Crash => &[CRASH],
            Self::NotCrash => &["--skip", CRASH],
        }
    }
}

/// Builds all of the workspace in the dev profile.
///
/// # Errors
/// When it does not compile.
pub(crate) fn run() -> Result<Vec<Program>> {
    let start = Instant::now();
    let mut build = command::cargo();
    let output = build
        .args(["build", "--workspace", "--all-targets", "--locked"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo build")?;
    if !output.status.success() {
        bail!("the build failed, so there is nothing to test");
    }
    let mut programs = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: Value = serde_json::from_str(line)?;
        programs.extend(program(&message));
    }
    // The order in which cargo finished them changes from run to run.
    programs.sort_by(|a, b| {
        (&a.package, a.integration, &a.target).cmp(&(&b.package, b.integration, &b.target))
    });
    println!(
        "  {} test programs {:>8.1} s",
        programs.len(),
        start.elapsed().as_secs_f32()
    );
    Ok(programs)
}

/// The test program that a message of cargo tells of, if it does.
fn program(message: &Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
    let kind = message["target"]["kind"][0].as_str()?;
    Some(Program {
        package: package_name(message["package_id"].as_str()?),
        target: message["target"]["name"].as_str()?.to_owned(),
        integration: kind == "test",
        path,
        directory: directory.to_owned(),
    })
}

/// `path+file:///a/b#name@0.1.0`, or `path+file:///a/name#0.1.0` where both names agree.
fn package_name(id: &str) -> String {
    let (path, rest) = id.rsplit_once('#').unwrap_or((id, id));
    let name = match rest.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_tell_the_stage() {
        use Selection::{All, Crash, NotCrash};
        let split = vec![(Stage::Unit, NotCrash), (Stage::Crash, Crash)];
        for (package, target, integration, expected) in [
            ("rootstock-core", "rootstock_core", false, split.clone()),
            ("rootstock-store", "crash", true, split.clone()),
            ("rootstock-nbd", "nbd_vectors", true, split.clone()),
            ("rootstock-tests", "rootstock_tests", false, split),
            (
                "rootstock-tests",
                "nbd_qemu",
                true,
                vec![(Stage::Protocol, All)],
            ),
            (
                "rootstock-tests",
                "dhcp_peers",
                true,
                vec![(Stage::Protocol, All)],
            ),
            (
                "rootstock-tests",
                "tftp_peers",
                true,
                vec![(Stage::Protocol, All)],
            ),
            (
                "rootstock-tests",
                "crash_daemon",
                true,
                vec![(Stage::Crash, All)],
            ),
            (
                "rootstock-tests",
                "import_qcow2",
                true,
                vec![(Stage::EndToEnd, All)],
            ),
        ] {
            let program = Program {
                package: package.to_owned(),
                target: target.to_owned(),
                integration,
                path: PathBuf::new(),
                directory: PathBuf::new(),
            };
            let found: Vec<_> = crate::stages::STAGES
                .into_iter()
                .filter_map(|stage| Some((stage, program.selection(stage)?)))
                .collect();
            assert_eq!(found, expected, "{package} {target}");
        }
    }

    #[test]
    fn test_programs_are_told_from_others() {
        let message = |test| {
            json!({
                "reason": "compiler-artifact",
                "package_id": "path+file:///w/tests#rootstock-tests@0.1.0",
                "manifest_path": "/w/tests/Cargo.toml",
                "target": { "kind": ["test"], "name": "nbd_qemu" },
                "profile": { "test": test },
                "executable": "/t/deps/nbd_qemu-1",
            })
        };
        assert_eq!(program(&message(false)), None);
        let found = program(&message(true)).unwrap();
        assert_eq!(found.package, "rootstock-tests");
        assert_eq!(found.directory, Path::new("/w/tests"));
        assert_eq!(package_name("path+file:///w/xtask#0.1.0"), "xtask");
    }
}
