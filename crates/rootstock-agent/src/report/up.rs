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
/// The most that is read until the answer is there: signals come before it.
const HEARD_BYTES_MAX: usize = 64 << 10;

/// Kinds of messages ("Message Types" of the D-Bus specification).
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// A record of `utmp(5)` on 64-bit machines, and its kind for a run level.
const UTMP_BYTES: usize = 384;
const RUN_LEVEL: u16 = 1;

/// What says that the system is up, if something does.
pub(crate) fn look() -> Option<&'static str> {
    if is_systemd() {
        return state().ok().and_then(|state| running(&state));
    }
    let utmp = fs::read(UTMP).unwrap_or_default();
    has_run_level(&utmp).then_some("a run level is reached")
}

/// Whether systemd is the image's init.
pub(crate) fn is_systemd() -> bool {
    Path::new(SYSTEMD).exists()
}

/// systemd's answer to a question for its `SystemState`.
fn state() -> io::Result<String> {
    let mut bus = UnixStream::connect(BUS)?;
    bus.set_read_timeout(Some(ANSWER_LIMIT))?;
    bus.set_write_timeout(Some(ANSWER_LIMIT))?;
    // "Authentication Protocol" of the D-Bus specification: user 0, in hex.
    bus.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
    let mut heard = Vec::new();
    hear(&mut bus, &mut heard, |heard| messages(heard).map(|_| ()))?;
    // Only now: systemd looks at what came with the authentication when something
    // else comes, and on a system that is up nothing does.
    bus.write_all(&question())?;
    hear(&mut bus, &mut heard, |heard| {
        answer(heard).map(str::to_owned)
    })
}

/// Hears more until `found` finds something in it.
fn hear<T>(
    bus: &mut UnixStream,
    heard: &mut Vec<u8>,
    found: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<T> {
    let mut buffer = [0; 1024];
    while heard.len() < HEARD_BYTES_MAX {
        if let Some(found) = found(heard) {
            return Ok(found);
        }
        match bus.read(&mut buffer)? {
            0 => break,
            len => heard.extend_from_slice(&buffer[..len]),
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// `SystemState` as `org.freedesktop.systemd1(5)` has it: up, if perhaps not all of it.
fn running(state: &str) -> Option<&'static str> {
    ["running", "degraded"]
        .into_iter()
        .find(|word| *word == state)
}

/// The text in the answer, once all of that was heard; none in an error. systemd
/// sends signals here that nobody asked for, and units too are `running`, so that
/// only the answer itself counts.
fn answer(heard: &[u8]) -> Option<&str> {
    let mut rest = messages(heard)?;
    loop {
        let (kind, body, after) = message(rest)?;
        match kind {
            METHOD_RETURN => return Some(text(body).unwrap_or_default()),
            ERROR => return Some(""),
            _ => rest = after,
        }
    }
}

/// What is behind the one line that answers the authentication.
fn messages(heard: &[u8]) -> Option<&[u8]> {
    let line = heard.windows(2).position(|end| end == b"\r\n")?;
    heard.get(line + 2..)
}

/// The kind and the body of the first message, and what is behind it, once all of
/// it was heard ("Message Format" of the D-Bus specification).
fn message(heard: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (body, fields) = (number(heard, 4)?, number(heard, 12)?);
    let head = fields.checked_add(16)?.checked_next_multiple_of(8)?;
    let end = head.checked_add(body)?;
    Some((*heard.get(1)?, heard.get(head..end)?, heard.get(end..)?))
}

/// A variant that holds a string: its signature, and the string behind padding.
fn text(body: &[u8]) -> Option<&str> {
    let text = body.strip_prefix(b"\x01s\0\0")?;
    let len = number(text, 0)?;
    std::str::from_utf8(text.get(4..len.checked_add(4)?)?).ok()
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
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

    const OK: &[u8] = b"OK 0123456789abcdef\r\n";
    const SIGNAL: u8 = 4;

    /// A message of this kind, with a path, that holds `state`.
    fn said(kind: u8, state: &str) -> Vec<u8> {
        let mut fields = vec![1, 1, b'o', 0];
        string(&mut fields, "/org/freedesktop/systemd1/unit/dbus");
        let mut body = b"\x01s\0\0".to_vec();
        string(&mut body, state);
        let mut message = vec![b'l', kind, 1, 1];
        message.extend((body.len() as u32).to_le_bytes());
        message.extend(7_u32.to_le_bytes());
        message.extend((fields.len() as u32).to_le_bytes());
        message.extend(fields);
        align(&mut message, 8);
        message.extend(body);
        message
    }

    #[test]
    fn the_answer_is_told_from_signals() {
        let signal = said(SIGNAL, "running");
        for (messages, expected) in [
            (vec![said(METHOD_RETURN, "running")], Some("running")),
            (vec![said(METHOD_RETURN, "degraded")], Some("degraded")),
            (vec![said(METHOD_RETURN, "starting")], None),
            (vec![signal.clone()], None),
            (vec![signal.clone(), said(METHOD_RETURN, "starting")], None),
            (
                vec![
                    signal.clone(),
                    signal.clone(),
                    said(METHOD_RETURN, "running"),
                ],
                Some("running"),
            ),
            (vec![signal, said(ERROR, "running")], None),
            (vec![said(METHOD_RETURN, "not running")], None),
        ] {
            let heard = [OK.to_vec(), messages.concat()].concat();
            assert_eq!(answer(&heard).and_then(running), expected, "{heard:?}");
        }
    }

    #[test]
    fn half_an_answer_is_none() {
        let heard = [OK, &said(SIGNAL, "a"), &said(METHOD_RETURN, "running")].concat();
        for len in 0..heard.len() {
            assert_eq!(answer(&heard[..len]), None, "{len}");
        }
        assert_eq!(answer(&heard), Some("running"));
        let endless = [OK, &[0xff; 64]].concat();
        assert_eq!(answer(&endless), None);
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
