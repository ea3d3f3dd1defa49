//! The shape of source files, and what tests must not do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command;

/// Directories that hold source files.
const SOURCES: [&str; 4] = ["crates", "tests", "xtask", "fuzz"];
/// Above this a file is asking to be two.
const LINES_GOOD_MAX: usize = 700;
/// Above this it is refused.
const LINES_MAX: usize = 1000;

/// Every file begins with its one sentence and has a bearable length.
///
/// # Errors
/// With every file that does not.
pub(crate) fn check_shape() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut notes = Vec::new();
    let mut lengths = Vec::new();
    for (name, text) in rust_files()? {
        let lines = text.lines().count();
        lengths.push(lines);
        if !text.starts_with("//! ") {
            faults.push(format!("{name} does not begin with `//!` and one sentence"));
        }
        if name.ends_with("/mod.rs") {
            faults.push(format!("{name}: write `foo.rs` beside `foo/`"));
        }
        if lines > LINES_MAX {
            faults.push(format!("{name} has {lines} lines, above {LINES_MAX}"));
        } else if lines > LINES_GOOD_MAX {
            notes.push(format!("{name} has {lines} lines and asks to be two files"));
        }
    }
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    notes.push(format!(
        "{} files, {median} lines in the median",
        lengths.len()
    ));
    finish(&faults, notes)
}

/// Tests wait for what happens, not for time to pass, and all of them run.
///
/// # Errors
/// With every line that does otherwise.
pub(crate) fn check_tests() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (name, text) in rust_files()? {
        for (number, line) in test_lines(&name, &text) {
            if let Some(word) = forbidden(line) {
                faults.push(format!("{name}:{number} has {word}"));
            }
        }
    }
    finish(&faults, Vec::new())
}

fn finish(faults: &[String], notes: Vec<String>) -> Result<Vec<String>> {
    if faults.is_empty() {
        return Ok(notes);
    }
    bail!("{}", faults.join("\n"));
}

/// The lines that only run in tests: all of a test's file, or what follows `cfg(test)`,
/// unless that only names a file of tests.
fn test_lines<'a>(name: &str, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let only_tests = name.contains("/tests/") || name.ends_with("/tests.rs");
    let start = if only_tests {
        0
    } else {
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.windows(2).position(|pair| {
            pair[0].trim() == "#[cfg(test)]" && !pair[1].trim_end().ends_with(';')
        });
        found.unwrap_or(usize::MAX)
    };
    text.lines()
        .enumerate()
        .skip(start)
        .map(|(index, line)| (index + 1, line))
}

fn forbidden(line: &str) -> Option<&'static str> {
    let code = line.trim_start();
    if code.starts_with("//") {
        return None;
    }
    if code.starts_with("#[ignore") {
        return Some("an ignored test");
    }
    ["thread::sleep(", "time::sleep("]
        .iter()
        .any(|word| code.contains(word) && !code.contains('"'))
        .then_some("a sleep; wait for what should happen, within a limit")
}

/// Every source file with its path from the workspace's root.
fn rust_files() -> Result<Vec<(String, String)>> {
    let root = command::root();
    let mut files = Vec::new();
    for directory in SOURCES {
        collect(&root, &root.join(directory), "rs", &mut files)?;
    }
    files.sort();
    let mut texts = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
        texts.push((name, text));
    }
    Ok(texts)
}

/// Adds the files below `directory` that end with `extension`, what is built left out.
pub(crate) fn collect(
    root: &Path,
    directory: &Path,
    extension: &str,
    into: &mut Vec<PathBuf>,
) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            if !hidden && name != "target" && path != root.join("docs/book") {
                collect(root, &path, extension, into)?;
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_and_ignored_tests_are_found() {
        let sleep = concat!("    std::thread::", "sleep(A_SECOND);");
        let ignored = concat!("    #[ign", "ore]");
        assert!(forbidden(sleep).is_some());
        assert!(forbidden(ignored).is_some());
        assert!(forbidden("    // never thread::sleep() here").is_none());
        assert!(forbidden("    sleeper.wake();").is_none());
    }

    #[test]
    fn only_the_tests_of_a_file_are_looked_at() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {}\n";
        let lines = |name| {
            test_lines(name, text)
                .map(|(number, _)| number)
                .collect::<Vec<_>>()
        };
        assert_eq!(lines("crates/a/src/lib.rs"), [2, 3]);
        assert_eq!(lines("crates/a/tests/all.rs"), [1, 2, 3]);
        let text = "#[cfg(test)]\nmod tests;\nfn a() {}\n";
        assert_eq!(test_lines("crates/a/src/lib.rs", text).count(), 0);
    }
}
