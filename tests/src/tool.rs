//! Running a tool to its end, with an error that shows what it said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How much of what a failed tool said is repeated.
const OUTPUT_BYTES_MAX: usize = 8 * 1024;

/// Runs `program` and gives what it wrote to standard output.
///
/// # Errors
/// When it cannot be started or ends in failure; the message holds its output.
pub fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String> {
    run_command(Command::new(program).args(arguments))
}

/// Runs `command` and gives what it wrote to standard output.
///
/// # Errors
/// As for [`run`].
pub fn run_command(command: &mut Command) -> Result<String> {
    let output = output(command.stdin(Stdio::null()))?;
    checked(command, &output)
}

/// Runs `command` with `input` as its standard input.
///
/// # Errors
/// As for [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", shown(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = child.wait_with_output()?;
    checked(command, &output)
}

/// Runs `command`, whose failure may be what a test wants to see.
///
/// # Errors
/// Only when it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .output()
        .with_context(|| format!("start {}", shown(command)))
}

/// The command as one would type it, without quoting.
#[must_use]
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn checked(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{} ended with {}\n{}{}",
        shown(command),
        output.status,
        end_of(&stdout),
        end_of(&stderr)
    );
}

/// The last part of `text`, cut at a character.
#[must_use]
pub fn end_of(text: &str) -> &str {
    let mut start = text.len().saturating_sub(OUTPUT_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_command_and_what_it_said() {
        let error = run("sh", ["-c", "echo no room >&2; exit 3"]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.contains("no room"), "{message}");
        assert_eq!(run("echo", ["a", "b"]).unwrap(), "a b\n");
    }

    #[test]
    fn input_reaches_the_tool() {
        let text = run_with_input(&mut Command::new("cat"), b"hello").unwrap();
        assert_eq!(text, "hello");
    }
}
