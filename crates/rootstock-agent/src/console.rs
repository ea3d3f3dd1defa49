//! What people read: lines in the kernel's log, and so on every console.
//!
//! The kernel decides what its consoles show (`quiet`, `loglevel=`), and keeps
//! the rest for `dmesg`. Its log is also the only place that a server of the root
//! may write to: a file could lie on the disk that it serves.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::sync::OnceLock;

pub(crate) use rootstock_core::chain;

/// How important a line is: syslog's numbers (RFC 5424, section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Shown on a console that is `quiet`, too.
    Error = 3,
    /// Something to look at.
    Warning = 4,
    /// The way of the boot.
    Info = 6,
}

static LOG: OnceLock<Option<File>> = OnceLock::new();

/// Opens the kernel's log, and lets it take more than ten lines in five seconds.
/// Needs `/dev` and `/proc`; a second call does nothing.
pub(crate) fn open() {
    // The image's own systemd does the same; without it the limit stays.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    LOG.get_or_init(|| OpenOptions::new().write(true).open("/dev/kmsg").ok());
}

/// Writes a line.
pub(crate) fn say(level: Level, text: impl Display) {
    let line = format!("<{}>rootstock: {text}\n", level as u8);
    match LOG.get() {
        Some(Some(log)) => {
            // A full log drops its oldest lines; there is no one to tell of more.
            let mut log = log;
            let _ = log.write_all(line.as_bytes());
        }
        _ => {
            let _ = writeln!(io::stderr(), "rootstock: {text}");
        }
    }
}

/// A line of the boot's way.
pub(crate) fn info(text: impl Display) {
    say(Level::Info, text);
}

/// A line to look at.
pub(crate) fn warn(text: impl Display) {
    say(Level::Warning, text);
}

/// A line that is shown whatever the console hides.
pub(crate) fn error(text: impl Display) {
    say(Level::Error, text);
}
