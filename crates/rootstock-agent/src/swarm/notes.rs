//! Writing down who this machine is in the swarm, seldom: for a start without a server.

use std::io;
use std::time::{Duration, Instant};

use rootstock_api::boot::SiteFile;

use super::membership::Membership;
use crate::console;
use crate::local::member::MemberDisk;

/// By then a machine that joined knows the others, mostly.
const FIRST_AFTER: Duration = Duration::from_secs(10);

/// Between two changes of the disk.
const WRITE_PAUSE: Duration = Duration::from_secs(300);

/// Between two looks at whether something changed.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// After the disk could not be written; it may be in use.
const RETRY: Duration = Duration::from_secs(30);

/// What was written of a membership, and when to look again.
pub(super) struct Notes {
    written: Option<Membership>,
    look_at: Instant,
    /// Whether it was said what became of the first one.
    is_told: bool,
}

impl Notes {
    /// Nothing is written by this boot yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            written: None,
            look_at: now + FIRST_AFTER,
            is_told: false,
        }
    }

    /// Whether to look at what changed.
    pub(super) fn is_time(&self, now: Instant) -> bool {
        now >= self.look_at
    }

    /// Writes what the machine is now, unless that was written. At first it takes over
    /// whom an earlier boot knew.
    pub(super) fn take(
        &mut self,
        now: Instant,
        own: &mut Membership,
        site: &SiteFile,
        disk: &MemberDisk,
    ) {
        if self.written.is_none()
            && let Some(text) = disk.read()
        {
            own.take_over(&text, site);
        }
        let written = self.write_once(now, own, |own| write(own, site, disk));
        let is_first = !std::mem::replace(&mut self.is_told, true);
        match written {
            Ok(()) if is_first => console::info(format_args!(
                "kept for a start without a server: {} others of the swarm",
                own.peers.len()
            )),
            Ok(()) => {}
            // A start is being written: its turn comes.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => self.is_told = !is_first,
            Err(error) if is_first => console::info(format_args!(
                "others of the swarm are not kept on this machine's disk by now: {error}"
            )),
            Err(_) => {}
        }
    }

    fn write_once(
        &mut self,
        now: Instant,
        own: &Membership,
        write: impl FnOnce(&Membership) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.written.as_ref() == Some(own) {
            self.look_at = now + LOOK_PAUSE;
            return Ok(());
        }
        let written = write(own);
        self.look_at = match written {
            Ok(()) => {
                self.written = Some(own.clone());
                now + WRITE_PAUSE
            }
            Err(_) => now + RETRY,
        };
        written
    }
}

fn write(own: &Membership, site: &SiteFile, disk: &MemberDisk) -> io::Result<()> {
    disk.write(|number| own.encode(site, number).map_err(io::Error::other))
}

#[cfg(test)]
mod tests {
    use super::super::membership::tests::membership;
    use super::*;

    #[test]
    fn what_changes_is_written_once_in_some_minutes() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut notes = Notes::new(began);
        let mut own = membership();
        // When it is looked at: the rack then, whether the disk takes it, and whether it
        // is written.
        for (seconds, rack, takes, expected) in [
            (9, "a", true, false),
            (10, "a", false, true),
            (39, "a", true, false),
            (40, "a", true, true),
            (41, "b", true, false),
            (340, "a", true, false),
            (341, "b", true, false),
            (350, "b", true, true),
            (649, "c", true, false),
            (650, "c", true, true),
        ] {
            own.rack = rack.to_owned();
            let mut is_written = false;
            if notes.is_time(at(seconds)) {
                let _ = notes.write_once(at(seconds), &own, |_| {
                    is_written = true;
                    match takes {
                        true => Ok(()),
                        false => Err(io::ErrorKind::ResourceBusy.into()),
                    }
                });
            }
            assert_eq!(is_written, expected, "at {seconds} s");
        }
    }
}
