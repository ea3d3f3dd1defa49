//! A lab with one machine, `desk`, that has a disk of its own.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Result;

use crate::boots;
use crate::golden::Golden;
use crate::lan::Lan;
use crate::pxe::PoweredOn;

/// The lab: the image is in it as `debian`, and the node runs `debian@production`.
pub struct Desk {
    /// The network and the daemon.
    pub lan: Lan,
    /// The machine's disk, zeros at first.
    pub disk: PathBuf,
}

impl Desk {
    /// The machine is off.
    ///
    /// # Errors
    /// Whatever is missing.
    pub fn new(disk_bytes: u64) -> Result<Self> {
        let lan = Lan::new("dhcp", "")?;
        lan.import("debian", &boots::image(Golden::Debian)?)?;
        let disk = lan.path("desk.disk");
        File::create(&disk)?.set_len(disk_bytes)?;
        let desk = Self { lan, disk };
        desk.assign("debian:1")?;
        desk.lan.add_node("desk", 5, "debian@production")?;
        Ok(desk)
    }

    /// Points the tag that the node runs at a version.
    ///
    /// # Errors
    /// The daemon's.
    pub fn assign(&self, version: &str) -> Result<()> {
        let words = ["image", "tag", version, "production"];
        self.lan.daemon.run(words).map(|_| ())
    }

    /// Switches the machine on, and logs in.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&self) -> Result<PoweredOn> {
        let mut machine = self.lan.power_on_beside_disk("desk", 5, &self.disk)?;
        self.lan.log_in(&mut machine, "desk")?;
        Ok(machine)
    }
}

/// What a command prints in the machine's shell.
///
/// # Panics
/// When it fails there.
pub fn shell(machine: &mut PoweredOn, command: &str) -> String {
    boots::shell(machine, command).expect("the guest runs it")
}
