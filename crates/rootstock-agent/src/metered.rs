//! Whether the machine's line is paid for by the byte, as its own NetworkManager knows.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::dbus::{self, Bus, Property};

/// The system's bus, below `/run`.
const BUS: &str = "dbus/system_bus_socket";

/// Between two looks, and how long one may take: others wait meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// `NMMetered` of NetworkManager's D-Bus interface: yes, and probably.
const METERED: [u32; 2] = [1, 3];

/// Looks now and then.
pub(crate) struct Line {
    bus: PathBuf,
    look_at: Instant,
    is_metered: bool,
}

impl Line {
    /// Of the system whose `/run` this is.
    pub(crate) fn new(run: &Path) -> Self {
        Self {
            bus: run.join(BUS),
            look_at: Instant::now(),
            is_metered: false,
        }
    }

    /// Whether it is, as of some seconds ago. Who has no NetworkManager, or one that does
    /// not answer, is not told.
    pub(crate) fn is_metered(&mut self) -> bool {
        if Instant::now() >= self.look_at {
            self.is_metered = ask(&self.bus).is_ok_and(|is_metered| is_metered);
            self.look_at = Instant::now() + LOOK_EVERY;
        }
        self.is_metered
    }
}

/// Of the connection by which the machine reaches the world.
fn ask(bus: &Path) -> io::Result<bool> {
    let mut bus = Bus::connect(bus, ANSWER_LIMIT)?;
    bus.hello()?;
    let answer = bus.property(&Property {
        program: Some("org.freedesktop.NetworkManager"),
        path: "/org/freedesktop/NetworkManager",
        interface: "org.freedesktop.NetworkManager",
        name: "Metered",
    })?;
    Ok(dbus::unsigned(&answer).is_some_and(|word| METERED.contains(&word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dbus::tests::{answerer, text_variant};

    #[test]
    fn a_line_is_metered_when_its_manager_says_so() {
        for (word, expected) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
            let run = tempfile::tempdir().expect("a directory");
            std::fs::create_dir(run.path().join("dbus")).expect("is made");
            let answer = [b"\x01u\0\0\0\0\0"[..4].to_vec(), vec![word, 0, 0, 0]].concat();
            let bodies = vec![text_variant(":1.7"), answer];
            let answers = answerer(&run.path().join(BUS), bodies);
            let mut line = Line::new(run.path());
            assert_eq!(line.is_metered(), expected, "{word}");
            answers.join().expect("was asked");
            assert_eq!(line.is_metered(), expected, "nobody is asked so soon");
        }
        assert!(!Line::new(Path::new("/nonexistent")).is_metered());
    }
}
