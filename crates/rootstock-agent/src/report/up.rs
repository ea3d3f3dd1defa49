//! Whether the image's own init says that the system is up, without running anything.
//!
//! All paths are below `/run`, which is this process's directory: its root is
//! the first stage, which is empty by now.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// systemd's own bus, for root alone.
const BUS: &str = "systemd/private";
/// Whether systemd is the init, as `sd_booted(3)` has it.
const SYSTEMD: &str = "systemd/system";
/// Where sysvinit and systemd before 256 say that a run level is reached.
const UTMP: &str = "utmp";
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// A record of `utmp(5)` on 64-bit machines, and its kind for a run level.
const UTMP_BYTES: usize = 384;
const RUN_LEVEL: u16 = 1;

/// What says that the system is up, if something does.
pub(crate) fn look() -> Option<&'static str> {
    if Path::new(SYSTEMD).exists() {
        return match state() {
            Ok(text) => running(&text),
            Err(_) => None,
        };
    }
    let utmp = fs::read(UTMP).unwrap_or_default();
    has_run_level(&utmp).then_some("a run level is reached")
}

/// systemd's answer to a question for its `SystemState`.
fn state() -> io::Result<Vec<u8>> {
    let mut bus = UnixStream::connect(BUS)?;
    bus.set_read_timeout(Some(ANSWER_LIMIT))?;
    bus.set_write_timeout(Some(ANSWER_LIMIT))?;
    // "Authentication Protocol" of the D-Bus specification: user 0, in hex.
    bus.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
    bus.write_all(&question())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while answer.len() < ANSWER_BYTES_MAX && running(&answer).is_none() && !is_other(&answer) {
        match bus.read(&mut buffer)? {
            0 => break,
            len => answer.extend_from_slice(&buffer[..len]),
        }
    }
    Ok(answer)
}

/// `SystemState` as `org.freedesktop.systemd1(5)` has it: up, if perhaps not all of it.
fn running(answer: &[u8]) -> Option<&'static str> {
    [("\0running\0", "running"), ("\0degraded\0", "degraded")]
        .into_iter()
        .find(|(text, _)| contains(answer, text))
        .map(|(_, word)| word)
}

fn is_other(answer: &[u8]) -> bool {
    ["initializing", "starting", "maintenance", "stopping"]
        .iter()
        .any(|word| contains(answer, &format!("\0{word}\0")))
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// `Get` of `SystemState` ("Message Format" of the D-Bus specification).
fn question() -> Vec<u8> {
    let mut body = Vec::new();
    string(&mut body, "org.freedesktop.systemd1.Manager");
    string(&mut body, "SystemState");
    let mut fields = Vec::new();
    for (code, kind, value) in [
        (1, b'o', "/org/freedesktop/systemd1"),
        (2, b's', "org.freedesktop.DBus.Properties"),
        (3, b's', "Get"),
        (6, b's', "org.freedesktop.systemd1"),
    ] {
        align(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        string(&mut fields, value);
    }
    align(&mut fields, 8);
    fields.extend([8, 1, b'g', 0, 2, b's', b's', 0]);
    // Little endian, a method call, no flags, version 1.
    let mut message = vec![b'l', 1, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(1_u32.to_le_bytes());
    message.extend((fields.len() as u32).to_le_bytes());
    message.extend(fields);
    align(&mut message, 8);
    message.extend(body);
    message
}

fn string(out: &mut Vec<u8>, text: &str) {
    align(out, 4);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
    out.push(0);
}

fn align(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn has_run_level(utmp: &[u8]) -> bool {
    utmp.chunks_exact(UTMP_BYTES)
        .any(|record| record[..2] == RUN_LEVEL.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        for (answer, expected) in [
            (&b"l\x02..\x07\0\0\0running\0"[..], Some("running")),
            (b"\x08\0\0\0degraded\0", Some("degraded")),
            (b"\x08\0\0\0starting\0", None),
            (b"not running", None),
        ] {
            assert_eq!(running(answer), expected);
        }
        assert!(is_other(b"\x08\0\0\0starting\0"));
    }

    #[test]
    fn a_question_is_laid_out_as_specified() {
        let message = question();
        assert_eq!(message[..4], *b"l\x01\0\x01");
        let body = u32::from_le_bytes([message[4], message[5], message[6], message[7]]);
        let fields = u32::from_le_bytes([message[12], message[13], message[14], message[15]]);
        let head = (16 + fields as usize).next_multiple_of(8);
        assert_eq!(message.len(), head + body as usize);
        assert_eq!(message[head..head + 4], 32_u32.to_le_bytes());
    }

    #[test]
    fn run_levels_are_found_in_utmp() {
        let mut utmp = vec![0; 3 * UTMP_BYTES];
        utmp[0] = 2;
        assert!(!has_run_level(&utmp));
        utmp[UTMP_BYTES] = 1;
        assert!(has_run_level(&utmp));
        assert!(!has_run_level(b"short"));
    }
}
