//! Whether the image's own init says that the system is up, without running anything.
//!
//! All paths are below `/run`, which is this process's directory: its root is
//! the first stage, which is empty by now.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::dbus::{self, Bus, Property};

/// systemd's own bus, for root alone.
const BUS: &str = "systemd/private";
/// Whether systemd is the init, as `sd_booted(3)` has it.
const SYSTEMD: &str = "systemd/system";
/// Where sysvinit and systemd before 256 say that a run level is reached.
const UTMP: &str = "utmp";
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

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
    // Its own bus has no other programs: it is not said hello to.
    let mut bus = Bus::connect(Path::new(BUS), ANSWER_LIMIT)?;
    let answer = bus.property(&Property {
        program: None,
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        name: "SystemState",
    })?;
    Ok(dbus::text(&answer).unwrap_or_default().to_owned())
}

/// `SystemState` as `org.freedesktop.systemd1(5)` has it: up, if perhaps not all of it.
fn running(state: &str) -> Option<&'static str> {
    ["running", "degraded"]
        .into_iter()
        .find(|word| *word == state)
}

fn has_run_level(utmp: &[u8]) -> bool {
    utmp.chunks_exact(UTMP_BYTES)
        .any(|record| record[..2] == RUN_LEVEL.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_up_when_it_says_so() {
        for (state, expected) in [
            ("running", Some("running")),
            ("degraded", Some("degraded")),
            ("starting", None),
            ("not running", None),
            ("", None),
        ] {
            assert_eq!(running(state), expected, "{state}");
        }
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
