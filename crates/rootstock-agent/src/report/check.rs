//! The administrator's check: a command of the image that says whether its system works.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::console;
use crate::sys;

/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Between runs that failed: what it looks for may come a little later.
const PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether a run has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The most that is kept of what it says: the end.
const SAID_BYTES_MAX: usize = 4096;
/// The most of a line that is told.
const LINE_CHARS_MAX: usize = 200;

/// Runs a check again and again, and calls `failed` once, with why, when it does not
/// pass within its limit. Returns when it passes: late is better than never.
pub(crate) fn until_passed(command: &str, limit: Duration, failed: impl FnOnce(String)) {
    let began = Instant::now();
    let mut failed = Some(failed);
    let mut said = None;
    while let Err(why) = run(in_image(command), RUN_LIMIT) {
        if said.as_ref() != Some(&why) {
            console::info(format_args!("the check does not pass yet: {why}"));
            said = Some(why.clone());
        }
        if began.elapsed() >= limit
            && let Some(failed) = failed.take()
        {
            console::error(format_args!("the check does not pass: {why}"));
            failed(format!("the check does not pass: {why}"));
        }
        thread::sleep(PAUSE);
    }
}

/// The command as the image's own shell runs it.
fn in_image(command: &str) -> Command {
    let mut shell = shell(command);
    shell
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root");
    sys::enter_image(&mut shell);
    shell
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    // The kernel spares the root's server when memory is short, and not this.
    let script =
        format!("exec 2>&1\n{{ echo 0 >/proc/self/oom_score_adj; }} 2>/dev/null\n{command}");
    shell.arg("-c").arg(script);
    shell
}

/// Runs it once; why it did not pass.
fn run(mut command: Command, limit: Duration) -> Result<(), String> {
    // No `/dev/null`: this process's root is empty.
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "the image has no /bin/sh".to_owned(),
        _ => format!("it cannot be run: {error}"),
    })?;
    drop((child.stdin.take(), child.stderr.take()));
    let said = listen(&mut child).map_err(|error| error.to_string())?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < limit => thread::sleep(LOOK_EVERY),
            Ok(None) => {
                end(&mut child);
                return Err(format!("it took longer than {} s", limit.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    if status.success() {
        return Ok(());
    }
    // Whoever it left behind may hold the other end.
    let said = said
        .recv_timeout(Duration::from_secs(1))
        .unwrap_or_default();
    end(&mut child);
    Err(match last_line(&said) {
        Some(line) => line,
        None => format!("it ended with {status}"),
    })
}

/// Hears what it says, on a thread of its own.
fn listen(child: &mut Child) -> io::Result<Receiver<Vec<u8>>> {
    let (tell, said) = sync_channel(1);
    let Some(mut pipe) = child.stdout.take() else {
        return Ok(said);
    };
    let listen = move || {
        let mut end = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = pipe.read(&mut buffer) {
            end.extend_from_slice(&buffer[..len]);
            let over = end.len().saturating_sub(SAID_BYTES_MAX);
            end.drain(..over);
        }
        let _ = tell.try_send(end);
    };
    thread::Builder::new()
        .name("check-says".to_owned())
        .spawn(listen)?;
    Ok(said)
}

/// Ends it with all that it started.
fn end(child: &mut Child) {
    // An error means that nobody is left.
    let _ = sys::kill_group(child.id());
    let _ = child.wait();
}

fn last_line(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let plain = line.chars().filter(|c| !c.is_control());
    Some(plain.take(LINE_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: &str, limit: Duration) -> Result<(), String> {
        run(shell(command), limit)
    }

    #[test]
    fn what_does_not_pass_says_why() {
        for (command, expected) in [
            ("true", Ok(())),
            ("echo all is well", Ok(())),
            (
                "echo first; echo 'no display' >&2; exit 3",
                Err("no display"),
            ),
            ("false", Err("it ended with exit status: 1")),
            ("kill -9 $$", Err("it ended with signal: 9 (SIGKILL)")),
            ("no-such-program-here", Err("not found")),
            (
                "yes long | head -c 100000; echo; echo end; exit 1",
                Err("end"),
            ),
            // Somebody that it leaves behind does not hold it up.
            ("sleep 100 & echo gone; exit 1", Err("")),
        ] {
            let result = check(command, Duration::from_secs(20));
            match (&result, expected) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(part)) => assert!(why.contains(part), "{command}: {why}"),
                _ => panic!("{command}: {result:?}"),
            }
        }
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let result = check("sleep 100", Duration::from_millis(100));
        assert_eq!(result, Err("it took longer than 0 s".to_owned()));
    }

    #[test]
    fn lines_are_told_without_what_moves_the_cursor() {
        assert_eq!(last_line(b"a\n\x1b[2Jb\n\n"), Some("[2Jb".to_owned()));
        assert_eq!(last_line(b" \n"), None);
        let long = last_line(&[b'x'; 4096]).unwrap_or_default();
        assert_eq!(long.len(), LINE_CHARS_MAX);
    }
}
