//! A lab's network: a bridge in a namespace, a daemon that boots what is plugged in, machines.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::golden::PASSWORD;
use crate::namespace::Namespace;
use crate::pxe::{Firmware, Machine, PoweredOn};
use crate::{Daemon, DaemonOptions, agent};

/// The server's interface, to which all machines are plugged.
pub const BRIDGE: &str = "br0";
/// The server's address.
pub const SERVER: &str = "10.77.0.1";
/// Emulated machines on shared cores boot in half a minute to a minute.
pub const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// A lab.
pub struct Lan {
    /// The daemon.
    pub daemon: Daemon,
    /// Where it runs.
    pub namespace: Namespace,
    directory: TempDir,
}

impl Lan {
    /// A lab whose daemon answers on the bridge as `mode` says: `dhcp`, `proxy`;
    /// `more` is added to its configuration.
    ///
    /// # Errors
    /// When the namespace, the agent or the daemon cannot be made.
    pub fn new(mode: &str, more: &str) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("rootstock-lan-")
            .tempdir()?;
        let namespace = Namespace::new("lan")?;
        namespace.bridge(BRIDGE, &format!("{SERVER}/24"))?;
        let agent = agent::program()?;
        let mut options = DaemonOptions::new(directory.path())?;
        options.config = format!(
            "[boot]\ninterfaces = [\"{BRIDGE}={mode}\"]\nagent = \"{}\"\n{more}\n",
            agent.display()
        );
        options.namespace = Some(namespace.name().to_owned());
        let daemon = Daemon::start_with(options)?;
        Ok(Self {
            daemon,
            namespace,
            directory,
        })
    }

    /// Imports a disk image as the next version of `name`.
    ///
    /// # Errors
    /// When the program refuses it.
    pub fn import(&self, name: &str, image: &std::path::Path) -> Result<()> {
        let image = image.to_str().context("the image's path is text")?;
        self.daemon.run(["image", "import", name, image])?;
        Ok(())
    }

    /// The address of machine number `number`.
    #[must_use]
    pub fn mac(number: u8) -> String {
        format!("52:54:00:77:00:{number:02x}")
    }

    /// Makes machine `number` a node that runs `image`.
    ///
    /// # Errors
    /// When the program refuses it.
    pub fn add_node(&self, name: &str, number: u8, image: &str) -> Result<()> {
        let mac = Self::mac(number);
        let words = ["node", "add", name, "--mac", &mac, "--image", image];
        self.daemon
            .run(words.into_iter().chain(["--console", "ttyS0"]))?;
        Ok(())
    }

    /// Plugs machine `number` in and powers it on.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on(&self, name: &str, number: u8, firmware: Firmware) -> Result<PoweredOn> {
        let tap = format!("tap{number}");
        // A machine that is powered on again is plugged in already.
        if self.namespace.ip(&format!("link show {tap}")).is_err() {
            self.namespace.tap(&tap, BRIDGE)?;
        }
        let machine = Machine {
            name: name.to_owned(),
            firmware,
            mac: Self::mac(number),
            tap,
            memory_mib: 1024,
            uuid: Some(format!("00000000-0000-4000-8000-0000000000{number:02x}")),
        };
        machine.power_on(
            |program| self.namespace.command(program),
            self.directory.path(),
        )
    }

    /// Waits for the prompt of `machine`, which must show `name`, and logs in.
    ///
    /// # Errors
    /// With what the console and the daemon said last, when it does not come.
    pub fn log_in(&self, machine: &mut PoweredOn, name: &str) -> Result<()> {
        let booted = machine
            .console
            .expect(&format!("{name} login: "), BOOT_LIMIT)
            .and_then(|_| {
                machine.console.send("\n")?;
                machine.console.log_in(PASSWORD, BOOT_LIMIT)
            });
        booted.with_context(|| {
            let log = self.daemon.run(["node", "log", name]);
            format!("{name} did not boot; its log: {log:?}")
        })
    }

    /// A place for files of the test.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
