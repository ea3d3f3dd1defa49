//! One emulated machine from its power switch to its login prompt, with nothing but the
//! root differing between the candidates.
//!
//! The rivals get their address and the iPXE script from dnsmasq, kernel and first file
//! system from nginx, and mount the root as Debian's initramfs-tools do it.

pub(crate) mod rivals;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rootstock_tests::golden::{self, Golden};
use rootstock_tests::namespace::Namespace;
use rootstock_tests::pxe::{Firmware, Machine, PoweredOn};
use rootstock_tests::{Daemon, undo::Undo};

use super::Bench;
use super::lab::{self, Port, SERVER};
use super::report::{Better, ROOTSTOCK};
use crate::{agent, command};

pub(crate) const BRIDGE: &str = "br0";
pub(crate) const TAP: &str = "tap0";
pub(crate) const MAC: &str = "52:54:00:77:00:01";
pub(crate) const MEMORY_MIB: u32 = 1024;
/// The first words of a kernel's log.
const FIRST_WORDS: &str = "Linux version ";
const PROMPT: &str = " login: ";
/// An emulated machine that copies a disk first takes minutes, and very many of them
/// beside other work.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(1500);

/// What a boot came to.
pub(crate) struct Boot {
    /// From the power switch to the prompt.
    pub(crate) seconds: f64,
    /// From the kernel's first words to the prompt.
    pub(crate) kernel_seconds: f64,
    /// What the wire carried before the kernel's first words, in both directions.
    kernel_bytes: u64,
    /// What it carried from there to the prompt.
    root_bytes: u64,
}

/// One way to have a root.
struct Candidate {
    name: &'static str,
    /// It takes part in so many rounds: what takes many times as long needs no median.
    rounds_max: u32,
    run: fn(&mut Site) -> Result<Boot>,
}

const CANDIDATES: [Candidate; 4] = [
    Candidate {
        name: ROOTSTOCK,
        rounds_max: u32::MAX,
        run: rootstock,
    },
    Candidate {
        name: "NBD root, nbdkit",
        rounds_max: u32::MAX,
        run: rivals::nbd,
    },
    Candidate {
        name: "NFS root, ganesha",
        rounds_max: u32::MAX,
        run: rivals::nfs,
    },
    Candidate {
        name: "whole image, copied first",
        rounds_max: 1,
        run: rivals::copy,
    },
];

/// Where machines boot: a bridge with one card on it, and what is served there.
pub(crate) struct Site {
    pub(crate) namespace: Namespace,
    pub(crate) directory: PathBuf,
    pub(crate) daemon: Daemon,
    /// The image as it is.
    pub(crate) image: PathBuf,
    /// The disk image for roots on NBD.
    disk: PathBuf,
    /// The files of that image, mounted.
    tree: PathBuf,
    /// What nginx serves.
    files: PathBuf,
    _mounted: Undo,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let mut site = Site::new(bench)?;
    let mut rows: BTreeMap<(&str, &str), BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for round in 1..=bench.args.rounds {
        println!("boot, round {round} of {}", bench.args.rounds);
        let takes_part = |candidate: &Candidate| round <= candidate.rounds_max;
        for candidate in CANDIDATES.into_iter().filter(takes_part) {
            let boot = (candidate.run)(&mut site).context(candidate.name)?;
            println!(
                "  {}: {:.1} s, {:.1} s of them from the kernel's first words; {:.1} MB and then {:.1} MB",
                candidate.name,
                boot.seconds,
                boot.kernel_seconds,
                boot.kernel_bytes as f64 / 1e6,
                boot.root_bytes as f64 / 1e6
            );
            for (row, unit, figure) in [
                ("boot, power to login", "seconds", boot.seconds),
                ("boot, kernel to login", "seconds", boot.kernel_seconds),
                (
                    "boot, bytes of the root",
                    "MB",
                    boot.root_bytes as f64 / 1e6,
                ),
                (
                    "boot, bytes of kernel and first stage",
                    "MB",
                    boot.kernel_bytes as f64 / 1e6,
                ),
            ] {
                let row = rows.entry((row, unit)).or_default();
                row.entry(candidate.name.into()).or_default().push(figure);
            }
        }
    }
    for ((row, unit), figures) in rows {
        bench.report.add(row, unit, Better::Less, figures);
    }
    Ok(())
}

impl Site {
    pub(crate) fn new(bench: &Bench) -> Result<Self> {
        let directory = lab::fresh(bench, "boot")?;
        let cache = command::target().join("demo-cache");
        let say = |line: &str| println!("  {line}");
        let golden = golden::build(&cache, Golden::Debian, &say)?;
        let (disk, tree, mounted) = rivals::images(&cache, &directory, &say)?;
        let namespace = Namespace::new("boot")?;
        namespace.bridge(BRIDGE, &format!("{SERVER}/24"))?;
        namespace.tap(TAP, BRIDGE)?;
        let config = format!(
            "[boot]\ninterfaces = [\"{BRIDGE}=dhcp\"]\nagent = \"{}\"\n",
            agent::run()?.display()
        );
        let own = directory.join("rootstock");
        let mut daemon = lab::rootstock(bench, &namespace, &own, config, Port::Udp(67))?;
        let image = golden.to_str().context("the image's path is text")?;
        daemon.run(["image", "import", "debian", image])?;
        daemon.run([
            "node",
            "add",
            "node",
            "--mac",
            MAC,
            "--image",
            "debian",
            "--console",
            "ttyS0",
        ])?;
        daemon.stop()?;
        let files = directory.join("files");
        fs::create_dir(&files)?;
        Ok(Self {
            namespace,
            directory,
            daemon,
            image: golden,
            disk,
            tree,
            files,
            _mounted: mounted,
        })
    }

    pub(crate) fn machine(&self, name: &str) -> Machine {
        Machine {
            name: name.to_owned(),
            firmware: Firmware::Bios,
            mac: MAC.to_owned(),
            tap: TAP.to_owned(),
            memory_mib: MEMORY_MIB,
            uuid: None,
        }
    }

    pub(crate) fn inside(&self) -> impl Fn(&str) -> Command {
        |program| self.namespace.command(program)
    }

    /// Waits for the kernel and then for the prompt of a machine that was just powered
    /// on, and pulls its plug.
    fn watch(&self, start: Instant, wire: u64, mut machine: PoweredOn) -> Result<Boot> {
        let boot = self.watch_to_prompt(start, wire, &mut machine)?;
        machine.pull_plug()?;
        Ok(boot)
    }

    /// As [`Site::watch`], and leaves it on.
    pub(crate) fn watch_to_prompt(
        &self,
        start: Instant,
        wire: u64,
        machine: &mut PoweredOn,
    ) -> Result<Boot> {
        let console = &mut machine.console;
        console.expect(FIRST_WORDS, BOOT_LIMIT)?;
        let (kernel, at_kernel) = (start.elapsed(), self.wire_bytes()?);
        console.expect(PROMPT, BOOT_LIMIT)?;
        let (prompt, at_prompt) = (start.elapsed(), self.wire_bytes()?);
        Ok(Boot {
            seconds: prompt.as_secs_f64(),
            kernel_seconds: (prompt - kernel).as_secs_f64(),
            kernel_bytes: at_kernel - wire,
            root_bytes: at_prompt - at_kernel,
        })
    }

    /// What the machine's cable has carried so far, in both directions.
    pub(crate) fn wire_bytes(&self) -> Result<u64> {
        let shown = self.namespace.ip(&format!("-j -s link show {TAP}"))?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let count = |way: &str| shown[0]["stats64"][way]["bytes"].as_u64();
        count("rx")
            .zip(count("tx"))
            .map(|(received, sent)| received + sent)
            .context("ip shows no bytes of the tap device")
    }
}

fn rootstock(site: &mut Site) -> Result<Boot> {
    site.daemon.restart()?;
    let wire = site.wire_bytes()?;
    let start = Instant::now();
    let machine = site.machine("rootstock");
    let machine = machine.power_on(site.inside(), &site.directory)?;
    let boot = site.watch(start, wire, machine)?;
    site.daemon.stop()?;
    Ok(boot)
}
