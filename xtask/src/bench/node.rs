//! What a machine with a disk of its own reads, and how quickly: beside its fill, and
//! when its version is complete.
//!
//! One machine boots once. While its version lacks most, it reads what must come over a
//! link of 100 Mbit/s, with its fill paused and not, in turn. Then the rest is filled
//! in, and the same bytes of the same disk are read as the root, as the bare disk and
//! through the agent.

mod beside_fill;
mod image;
mod native;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rootstock_tests::golden::PASSWORD;
use rootstock_tests::namespace::Namespace;
use rootstock_tests::pxe::{Firmware, Machine, PoweredOn};
use rootstock_tests::{Daemon, wait};

use super::Bench;
use super::boot::{BOOT_LIMIT, BRIDGE, MAC, MEMORY_MIB, TAP};
use super::deliver;
use super::lab::{self, Port, SERVER};
use crate::agent;

const NODE: &str = "node";
/// How long what is typed at the machine may take.
const SHELL_LIMIT: Duration = Duration::from_secs(600);
/// Where files are put that are read there.
const FIO_JSON: &str = "/run/fio.json";

/// A node that is on, its network and its daemon.
struct Node {
    machine: PoweredOn,
    daemon: Daemon,
    namespace: Namespace,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let directory = lab::fresh(bench, "node")?;
    println!("node: making the image");
    let image = image::make(&directory, bench.args.rounds)?;
    let mut node = Node::start(bench, &directory, &image)?;
    beside_fill::run(bench, &mut node)?;
    node.complete()?;
    native::run(bench, &mut node)?;
    node.machine.pull_plug()?;
    node.daemon.stop()
}

impl Node {
    /// Switches on a machine with an empty disk, whose fill is paused, and logs in.
    fn start(bench: &Bench, directory: &Path, image: &Path) -> Result<Self> {
        let namespace = Namespace::new("node")?;
        namespace.bridge(BRIDGE, &format!("{SERVER}/24"))?;
        namespace.tap(TAP, BRIDGE)?;
        let config = format!(
            "[boot]\ninterfaces = [\"{BRIDGE}=dhcp\"]\nagent = \"{}\"\n",
            agent::run()?.display()
        );
        let own = directory.join("rootstock");
        let daemon = lab::rootstock(bench, &namespace, &own, config, Port::Udp(67))?;
        let image = image.to_str().context("the image's path is text")?;
        daemon.run(["image", "import", "debian", image])?;
        let words = ["node", "add", NODE, "--mac", MAC, "--image", "debian"];
        let more = ["--console", "ttyS0", "--fill", "paused"];
        daemon.run(words.into_iter().chain(more))?;
        let disk = directory.join("cache.disk");
        deliver::prepare(&disk)?;
        println!("node: a boot from an empty disk");
        let machine = Machine {
            name: NODE.to_owned(),
            firmware: Firmware::Bios,
            mac: MAC.to_owned(),
            tap: TAP.to_owned(),
            memory_mib: MEMORY_MIB,
            uuid: None,
        };
        let inside = |program: &str| namespace.command(program);
        let mut machine = machine.power_on_beside_disk(inside, directory, &disk)?;
        machine.console.log_in(PASSWORD, BOOT_LIMIT)?;
        let mut node = Self {
            machine,
            daemon,
            namespace,
        };
        // What the kernel remarks from now on stays out of the answers.
        node.shell("dmesg -n 1")?;
        Ok(node)
    }

    /// What a command prints in the machine's shell.
    fn shell(&mut self, command: &str) -> Result<String> {
        let output = self.machine.console.shell(command, SHELL_LIMIT)?;
        Ok(output.trim().to_owned())
    }

    /// Runs fio in the machine, and gives its report.
    fn fio(&mut self, words: &str) -> Result<serde_json::Value> {
        let fio = "fio --name=x --readonly --direct=1 --invalidate=0 --output-format=json";
        let run = format!("{fio} --output={FIO_JSON} {words} && cat {FIO_JSON}");
        let printed = self.shell(&run)?;
        let start = printed.find('{').context("fio prints JSON")?;
        Ok(serde_json::from_str(&printed[start..])?)
    }

    fn set_fill(&self, fill: &str) -> Result<()> {
        let words = ["node", "set", NODE, "--fill", fill, "--yes"];
        self.daemon.run(words).map(|_| ())
    }

    /// What the machine was sent so far.
    fn sent_bytes(&self) -> Result<u64> {
        let shown = self.namespace.ip(&format!("-j -s link show {TAP}"))?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let sent = shown[0]["stats64"]["tx"]["bytes"].as_u64();
        sent.context("ip shows no bytes of the tap device")
    }

    /// Fills the rest in, over a link that nothing slows down, until the kernel reads
    /// all of the root by itself.
    fn complete(&mut self) -> Result<()> {
        let mut tc = self.namespace.command("tc");
        rootstock_tests::tool::run_command(tc.args(["qdisc", "del", "dev", TAP, "root"]))?;
        self.set_fill("on")?;
        println!("node: the rest is filled in");
        wait::until("a root that is native", BOOT_LIMIT, || {
            let words = "dmesg | grep ' 100 % of the root are read from' || true";
            let told = self.shell(words)?;
            Ok((!told.is_empty()).then_some(()))
        })
        .with_context(|| {
            let all = self.shell("dmesg | grep rootstock || true");
            format!("the machine said: {}", all.unwrap_or_default())
        })
    }
}
