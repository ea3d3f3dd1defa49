//! As much of D-Bus as it takes to ask a running system for one of its properties
//! (D-Bus specification, version 0.43).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The most that is read until the answer is there: signals come before it.
const HEARD_BYTES_MAX: usize = 64 << 10;

/// Kinds of messages ("Message Types").
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// Header fields ("Header Fields").
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A property of some program's object.
pub(crate) struct Property<'a> {
    /// The program's name on a bus; nothing where there is no other.
    pub(crate) program: Option<&'a str>,
    /// Its object.
    pub(crate) path: &'a str,
    /// Which of the object's interfaces.
    pub(crate) interface: &'a str,
    /// The property's name.
    pub(crate) name: &'a str,
}

/// A connection as user 0.
pub(crate) struct Bus {
    stream: UnixStream,
    heard: Vec<u8>,
    serial: u32,
}

impl Bus {
    /// Connects to whoever listens at `path`; each answer takes at most `limit`.
    ///
    /// # Errors
    /// When nobody does, or it takes user 0 for somebody else.
    pub(crate) fn connect(path: &Path, limit: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut bus = Self {
            stream,
            heard: Vec::new(),
            serial: 0,
        };
        // "Authentication Protocol": user 0, in hex.
        bus.stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
        let line = bus.hear(|heard| heard.windows(2).position(|end| end == b"\r\n"))?;
        bus.heard.drain(..line + 2);
        Ok(bus)
    }

    /// Says to a message bus that this is a program on it ("Hello" of the bus).
    ///
    /// # Errors
    /// As for [`Bus::property`].
    pub(crate) fn hello(&mut self) -> io::Result<()> {
        let call = Property {
            program: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            name: "Hello",
        };
        self.call(&call, "", &[]).map(|_| ())
    }

    /// The variant that a property is, its signature first; nothing when the other end
    /// says that it cannot.
    ///
    /// # Errors
    /// When no answer comes in time, or one that is none.
    pub(crate) fn property(&mut self, property: &Property<'_>) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        string(&mut body, property.interface);
        string(&mut body, property.name);
        let get = Property {
            interface: "org.freedesktop.DBus.Properties",
            name: "Get",
            ..*property
        };
        self.call(&get, "ss", &body)
    }

    fn call(&mut self, what: &Property<'_>, signature: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        self.serial += 1;
        let message = question(self.serial, what, signature, body);
        self.stream.write_all(&message)?;
        let (answer, len) = self.hear(answer)?;
        self.heard.drain(..len);
        Ok(answer)
    }

    /// Hears more until `found` finds something in it.
    fn hear<T>(&mut self, found: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut buffer = [0; 1024];
        while self.heard.len() < HEARD_BYTES_MAX {
            if let Some(found) = found(&self.heard) {
                return Ok(found);
            }
            match self.stream.read(&mut buffer)? {
                0 => break,
                len => self.heard.extend_from_slice(&buffer[..len]),
            }
        }
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

/// The body of the first answer, once all of that was heard, and where it ends; nothing
/// is in an error. Signals come that nobody asked for: only an answer counts.
fn answer(heard: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut rest = heard;
    loop {
        let (kind, body, after) = message(rest)?;
        let end = heard.len() - after.len();
        match kind {
            METHOD_RETURN => return Some((body.to_vec(), end)),
            ERROR => return Some((Vec::new(), end)),
            _ => rest = after,
        }
    }
}

/// The kind and the body of the first message, and what is behind it, once all of
/// it was heard ("Message Format").
fn message(heard: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (body, fields) = (number(heard, 4)?, number(heard, 12)?);
    let head = fields.checked_add(16)?.checked_next_multiple_of(8)?;
    let end = head.checked_add(body)?;
    Some((*heard.get(1)?, heard.get(head..end)?, heard.get(end..)?))
}

/// A variant that holds a string: its signature, and the string behind padding.
pub(crate) fn text(variant: &[u8]) -> Option<&str> {
    let text = variant.strip_prefix(b"\x01s\0\0")?;
    let len = number(text, 0)?;
    std::str::from_utf8(text.get(4..len.checked_add(4)?)?).ok()
}

/// A variant that holds an unsigned number of 32 bits.
pub(crate) fn unsigned(variant: &[u8]) -> Option<u32> {
    let number = variant.strip_prefix(b"\x01u\0\0")?;
    Some(u32::from_le_bytes(number.get(..4)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

/// A method call ("Message Format").
fn question(serial: u32, what: &Property<'_>, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    for (code, kind, value) in [
        (PATH, b'o', Some(what.path)),
        (INTERFACE, b's', Some(what.interface)),
        (MEMBER, b's', Some(what.name)),
        (DESTINATION, b's', what.program),
    ] {
        if let Some(value) = value {
            align(&mut fields, 8);
            fields.extend([code, 1, kind, 0]);
            string(&mut fields, value);
        }
    }
    if !signature.is_empty() {
        align(&mut fields, 8);
        fields.extend([SIGNATURE, 1, b'g', 0, signature.len() as u8]);
        fields.extend(signature.bytes().chain([0]));
    }
    // Little endian, no flags, version 1.
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    message.extend((body.len() as u32).to_le_bytes());
    message.extend(serial.to_le_bytes());
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

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    const SIGNAL: u8 = 4;

    /// A message of this kind, with a path.
    fn said(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut fields = vec![1, 1, b'o', 0];
        string(&mut fields, "/org/freedesktop/systemd1/unit/dbus");
        let mut message = vec![b'l', kind, 1, 1];
        message.extend((body.len() as u32).to_le_bytes());
        message.extend(7_u32.to_le_bytes());
        message.extend((fields.len() as u32).to_le_bytes());
        message.extend(fields);
        align(&mut message, 8);
        message.extend(body);
        message
    }

    /// A variant that holds this string.
    pub(crate) fn text_variant(text: &str) -> Vec<u8> {
        let mut variant = b"\x01s\0\0".to_vec();
        string(&mut variant, text);
        variant
    }

    /// Somebody who answers each call of one connection with these bodies, signals before
    /// each.
    pub(crate) fn answerer(path: &Path, bodies: Vec<Vec<u8>>) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).expect("a socket");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            let mut heard = vec![0; 1024];
            // The authentication, and then each call.
            let _ = stream.read(&mut heard).expect("asks");
            stream.write_all(b"OK 0123456789abcdef\r\n").expect("takes");
            for body in bodies {
                let _ = stream.read(&mut heard).expect("asks");
                let signal = said(SIGNAL, &text_variant("running"));
                let answer = said(METHOD_RETURN, &body);
                stream
                    .write_all(&[signal, answer].concat())
                    .expect("takes it");
            }
        })
    }

    #[test]
    fn the_answer_is_told_from_signals() {
        let signal = said(SIGNAL, b"signal");
        let (right, wrong) = (said(METHOD_RETURN, b"answer"), said(ERROR, b"answer"));
        for (messages, expected) in [
            (vec![right.clone()], Some(&b"answer"[..])),
            (vec![signal.clone()], None),
            (vec![signal.clone(), signal.clone(), right], Some(b"answer")),
            (vec![signal, wrong], Some(b"")),
        ] {
            let heard = messages.concat();
            let found = answer(&heard);
            assert_eq!(found.as_ref().map(|(body, _)| &body[..]), expected);
            assert!(found.is_none_or(|(_, end)| end == heard.len()));
        }
    }

    #[test]
    fn half_an_answer_is_none() {
        let heard = [said(SIGNAL, b"a"), said(METHOD_RETURN, b"running")].concat();
        for len in 0..heard.len() {
            assert_eq!(answer(&heard[..len]), None, "{len}");
        }
        assert!(answer(&heard).is_some());
        assert_eq!(answer(&[0xff; 64]), None);
    }

    #[test]
    fn a_question_is_laid_out_as_specified() {
        let what = Property {
            program: Some("org.example"),
            path: "/org/example",
            interface: "org.example",
            name: "Get",
        };
        for (program, signature, body) in [(what.program, "ss", &b"12345678"[..]), (None, "", b"")]
        {
            let what = Property { program, ..what };
            let message = question(1, &what, signature, body);
            assert_eq!(message[..4], *b"l\x01\0\x01");
            let word = |at| number(&message, at).expect("a number");
            let head = (16 + word(12)).next_multiple_of(8);
            assert_eq!(message.len(), head + word(4));
        }
    }

    #[test]
    fn variants_are_read() {
        assert_eq!(text(&text_variant("running")), Some("running"));
        assert_eq!(unsigned(b"\x01u\0\0\x04\0\0\0"), Some(4));
        for wrong in [
            &b""[..],
            b"\x01u\0\0\x04",
            b"\x01s\0\0\xff\xff\xff\xff",
            b"u",
        ] {
            assert_eq!((text(wrong), unsigned(wrong)), (None, None), "{wrong:?}");
        }
    }
}
