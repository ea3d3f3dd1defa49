//! A lab's network: a bridge in a namespace, a daemon that boots what is plugged in, machines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::golden::PASSWORD;
use crate::namespace::Namespace;
use crate::pxe::{Firmware, Machine, PoweredOn};
use crate::undo::{Action, Undo};
use crate::{Daemon, DaemonOptions, agent};

/// The server's interface, to which all machines are plugged.
pub const BRIDGE: &str = "br0";
/// The server's address.
pub const SERVER: &str = "10.77.0.1";
/// Emulated machines on shared cores boot in half a minute to a minute; several at once,
/// beside those of other tests, in some minutes.
pub const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// A lab.
pub struct Lan {
    /// The daemon.
    pub daemon: Daemon,
    /// Where it runs.
    pub namespace: Namespace,
    directory: PathBuf,
    _directory_undo: Option<Undo>,
}

/// Bytes that were sent, by device.
#[derive(Clone, Debug)]
pub struct Sent(BTreeMap<String, u64>);

impl Sent {
    /// By the server itself, to all machines.
    #[must_use]
    pub fn by_server(&self) -> u64 {
        self.0.get(BRIDGE).copied().unwrap_or(0)
    }

    /// To machine `number`, by whoever.
    #[must_use]
    pub fn to_machine(&self, number: u8) -> u64 {
        self.0.get(&tap(number)).copied().unwrap_or(0)
    }
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
            .tempdir()?
            .keep();
        let undo = Undo::new(Action::RemoveTree(directory.clone()));
        let options = DaemonOptions::new(&directory)?;
        let mut lan = Self::around(options, &agent::program()?, mode, more)?;
        lan._directory_undo = Some(undo);
        Ok(lan)
    }

    /// A lab with the program and the data that `options` name, and `agent` as the
    /// program of first stages; `mode` and `more` as for [`Lan::new`].
    ///
    /// # Errors
    /// As for [`Lan::new`].
    pub fn around(
        mut options: DaemonOptions,
        agent: &Path,
        mode: &str,
        more: &str,
    ) -> Result<Self> {
        let namespace = Namespace::new("lan")?;
        namespace.bridge(BRIDGE, &format!("{SERVER}/24"))?;
        options.config = format!(
            "[boot]\ninterfaces = [\"{BRIDGE}={mode}\"]\nagent = \"{}\"\n{more}\n",
            agent.display()
        );
        options.namespace = Some(namespace.name().to_owned());
        let directory = options.directory.clone();
        let daemon = Daemon::start_with(options)?;
        Ok(Self {
            daemon,
            namespace,
            directory,
            _directory_undo: None,
        })
    }

    /// Imports a disk image as the next version of `name`.
    ///
    /// # Errors
    /// When the program refuses it.
    pub fn import(&self, name: &str, image: &Path) -> Result<()> {
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

    /// Plugs machine `number` in, unless it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug_in(&self, number: u8) -> Result<()> {
        let tap = tap(number);
        if self.namespace.ip(&format!("link show {tap}")).is_err() {
            self.namespace.tap(&tap, BRIDGE)?;
        }
        Ok(())
    }

    /// Plugs machine `number` in and powers it on.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on(&self, name: &str, number: u8, firmware: Firmware) -> Result<PoweredOn> {
        self.plug_in(number)?;
        let machine = machine(name, number, firmware);
        machine.power_on(|program| self.namespace.command(program), &self.directory)
    }

    /// As [`Lan::power_on`], with a BIOS and a disk of the machine's own.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on_beside_disk(&self, name: &str, number: u8, disk: &Path) -> Result<PoweredOn> {
        self.plug_in(number)?;
        let machine = machine(name, number, Firmware::Bios);
        let command = |program: &str| self.namespace.command(program);
        machine.power_on_beside_disk(command, &self.directory, disk)
    }

    /// As [`Lan::power_on`], with a disk of its own that it boots from, too.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn power_on_with_own_disk(
        &self,
        name: &str,
        number: u8,
        firmware: Firmware,
        disk: &Path,
    ) -> Result<PoweredOn> {
        self.plug_in(number)?;
        let machine = machine(name, number, firmware);
        let command = |program: &str| self.namespace.command(program);
        machine.power_on_with_own_disk(command, &self.directory, disk)
    }

    /// What was sent so far, as the kernel counts it: frames with their headers,
    /// long sends before they are cut into packets.
    ///
    /// # Errors
    /// When `ip` does not tell.
    pub fn sent(&self) -> Result<Sent> {
        let text = self.namespace.ip("-json -statistics link show")?;
        let links: Vec<Value> = serde_json::from_str(&text)?;
        let bytes = |link: &Value| {
            let name = link["ifname"].as_str()?.to_owned();
            Some((name, link["stats64"]["tx"]["bytes"].as_u64()?))
        };
        Ok(Sent(links.iter().filter_map(bytes).collect()))
    }

    /// Waits for the prompt of `machine`, which must show `name`, and logs in. From
    /// then on the kernel's mere remarks do not get into the shell's answers.
    ///
    /// # Errors
    /// With what the console and the daemon said last, when it does not come.
    pub fn log_in(&self, machine: &mut PoweredOn, name: &str) -> Result<()> {
        let booted = machine
            .console
            .expect(&format!("{name} login: "), BOOT_LIMIT)
            .and_then(|_| {
                machine.console.send("\n")?;
                machine.console.log_in(PASSWORD, BOOT_LIMIT)?;
                machine.console.shell("dmesg -n 4", BOOT_LIMIT)
            });
        booted.with_context(|| {
            let log = self.daemon.run(["node", "log", name]);
            format!("{name} did not boot; its log: {log:?}")
        })?;
        Ok(())
    }

    /// A place for files of the test.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Machine `number`, as all of them are.
fn machine(name: &str, number: u8, firmware: Firmware) -> Machine {
    Machine {
        name: name.to_owned(),
        firmware,
        mac: Lan::mac(number),
        tap: tap(number),
        memory_mib: 1024,
        uuid: Some(format!("00000000-0000-4000-8000-0000000000{number:02x}")),
    }
}

/// The device that machine `number` is plugged into.
fn tap(number: u8) -> String {
    format!("tap{number}")
}
