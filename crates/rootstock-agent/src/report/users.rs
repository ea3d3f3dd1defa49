//! How many people are logged in, without running anything.
//!
//! All paths are below `/run`, which is this process's directory: its root is
//! the first stage, which is empty by now.

use std::fs;
use std::path::Path;

/// Where systemd's login manager keeps one file for each session; what it says of
/// itself is read by `sd-login(3)` from there, too.
const SESSIONS: &str = "systemd/sessions";
/// Where login programs enter who is there.
const UTMP: &str = "utmp";

/// The most sessions that are looked at.
const SESSIONS_MAX: usize = 1024;

/// A record of `utmp(5)` on 64-bit machines, and its kind for somebody who is there.
const UTMP_BYTES: usize = 384;
const USER_PROCESS: u16 = 7;

/// How many sessions of people there are.
pub(crate) fn count() -> u32 {
    let entered = in_utmp(&fs::read(UTMP).unwrap_or_default());
    entered.max(in_sessions(Path::new(SESSIONS)))
}

fn in_utmp(utmp: &[u8]) -> u32 {
    let records = utmp.chunks_exact(UTMP_BYTES);
    records
        .filter(|record| record[..2] == USER_PROCESS.to_le_bytes())
        .count() as u32
}

fn in_sessions(dir: &Path) -> u32 {
    let Ok(files) = fs::read_dir(dir) else {
        return 0;
    };
    let texts = files
        .take(SESSIONS_MAX)
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    texts.filter(|text| is_of_a_person(text)).count() as u32
}

/// A greeter, a service manager or a session that was left is none.
fn is_of_a_person(session: &str) -> bool {
    let mut lines = session.lines();
    // `user`, and since systemd 256 `user-early` (root's), `user-light` and more.
    let is_of_a_user = lines.any(|line| line.starts_with("CLASS=user"));
    is_of_a_user && !session.lines().any(|line| line == "STATE=closing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_counted_in_utmp() {
        let mut utmp = vec![0; 4 * UTMP_BYTES];
        for (at, kind) in [1_u8, 7, 8, 7].into_iter().enumerate() {
            utmp[at * UTMP_BYTES] = kind;
        }
        assert_eq!(in_utmp(&utmp), 2);
        assert_eq!(in_utmp(&utmp[..UTMP_BYTES * 2 + 5]), 1);
        assert_eq!(in_utmp(b""), 0);
    }

    #[test]
    fn people_are_told_from_greeters_and_managers() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(in_sessions(&dir.path().join("none")), 0);
        for (name, text) in [
            ("1", "UID=0\nSTATE=active\nCLASS=user\n"),
            ("2", "UID=0\nSTATE=online\nCLASS=user-early\n"),
            ("3", "UID=1000\nSTATE=closing\nCLASS=user\n"),
            ("c1", "UID=115\nSTATE=active\nCLASS=greeter\n"),
            ("4", "UID=1000\nSTATE=active\nCLASS=manager\n"),
            ("5", ""),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        fs::write(dir.path().join("6"), [0xff; 8]).expect("written");
        assert_eq!(in_sessions(dir.path()), 2);
    }
}
