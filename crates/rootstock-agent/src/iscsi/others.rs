//! How a session is, and whether the system has an initiator's daemon of its own, which
//! takes over what there is: by files that are opened before the first stage's are gone.

use std::os::fd::OwnedFd;

use rustix::fs::{Dir, Mode, OFlags, open, openat};

/// What open-iscsi's daemon is called.
const DAEMON: &[u8] = b"iscsid";
/// A session's state while it has no connection.
const FAILED: &[u8] = b"FAILED";
/// The longest name of a process, with its end.
const NAME_BYTES: usize = 17;

/// Directories of the kernel, which stay this process's.
pub(super) struct Others {
    /// `/proc`.
    processes: Option<OwnedFd>,
    /// The session's, below `/sys/class/iscsi_session`.
    session: Option<OwnedFd>,
}

impl Others {
    /// Opens what there is.
    pub(super) fn open(session: u32) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = |path: String| open(path, flags, Mode::empty()).ok();
        Self {
            processes: directory("/proc".to_owned()),
            session: directory(format!("/sys/class/iscsi_session/session{session}")),
        }
    }

    /// Whether the session has no connection.
    pub(super) fn has_failed(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| is(session, "state", FAILED))
    }

    /// Whether open-iscsi's daemon runs. Its socket is not asked: that might start it,
    /// from the very disk that is away.
    pub(super) fn have_iscsid(&self) -> bool {
        let Some(processes) = &self.processes else {
            return false;
        };
        let entries = Dir::read_from(processes).into_iter().flatten();
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let is_process = name.to_bytes().first().is_some_and(u8::is_ascii_digit);
            is_process
                && is(
                    processes,
                    &format!("{}/comm", name.to_string_lossy()),
                    DAEMON,
                )
        })
    }
}

/// Whether a short file says this.
fn is(directory: &OwnedFd, path: &str, text: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(file) = openat(directory, path, flags, Mode::empty()) else {
        return false;
    };
    let mut found = [0; NAME_BYTES];
    let len = rustix::io::read(&file, &mut found[..]).unwrap_or(0);
    found
        .get(..len)
        .is_some_and(|found| found.trim_ascii_end() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_here_is_an_initiators_daemon() {
        let others = Others::open(u32::MAX);
        assert!(!others.have_iscsid() && !others.has_failed());
        let none = Others {
            processes: None,
            session: None,
        };
        assert!(!none.have_iscsid() && !none.has_failed());
    }
}
