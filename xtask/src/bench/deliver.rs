//! What delivery adds to a boot from a local disk, over links of 100 Mbit/s and 1 Gbit/s.
//!
//! The machine has a disk of its own. Where the image is on it already and boots by
//! itself is the zero point; the others begin with an empty disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use rootstock_core::units::HumanBytes;
use rootstock_tests::namespace::Namespace;
use rootstock_tests::{tool, wait};

use super::Bench;
use super::boot::{BOOT_LIMIT, BRIDGE, Site, TAP, rivals};
use super::report::{Better, ROOTSTOCK};
use crate::agent;

/// The bridge's port of a client that is no guest.
const CLIENT_LINK: &str = "client";
/// The links, in Mbit/s.
const LINKS_MBIT: [u32; 2] = [100, 1000];
/// Packets for so long may wait in the link's queue before they are dropped.
const QUEUE_MS: u32 = 50;
/// What the first stage says when the version is on the machine's disk.
const COMPLETE: &str = "the image is complete on this machine's disk";
/// Room for the image, twice.
const DISK_BYTES: u64 = 4 << 30;
const LOCAL: &str = "local disk";
const NBD: &str = "NBD root, nbdkit";
const COPIED: &str = "copied first";
/// Copying is mostly work of the processor, which an emulated machine does slowly.
const COPIED_UNEMULATED: &str = "copied first, unemulated";
const BOUND: &str = "bound: frames over the link";

/// Rows of one link, each with the figures of its candidates.
#[derive(Default)]
struct Rows {
    login: Figures,
    delay: Figures,
    complete: Figures,
}

type Figures = BTreeMap<String, Vec<f64>>;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let mut site = Site::new(bench)?;
    let frames_bytes = frames_bytes(&mut site)?;
    let client = client(&site)?;
    println!("deliver: a boot that is not measured, from which the daemon learns");
    rootstock(&mut site)?;
    let mut links = LINKS_MBIT.map(|mbit| (mbit, Rows::default()));
    for round in 1..=bench.args.rounds {
        let local = local(&site).context(LOCAL)?;
        println!("deliver, round {round} of {}", bench.args.rounds);
        println!("  {LOCAL}: {local:.1} s");
        for (mbit, rows) in &mut links {
            for device in [TAP, CLIENT_LINK] {
                shape(&site.namespace, device, *mbit)?;
            }
            println!("  {mbit} Mbit/s");
            enter(&mut rows.login, LOCAL, local);
            let (seconds, complete) = rootstock(&mut site).context(ROOTSTOCK)?;
            rows.enter(ROOTSTOCK, seconds, Some(complete), local);
            let seconds = rivals::nbd(&mut site).context(NBD)?.seconds;
            rows.enter(NBD, seconds, None, local);
            let seconds = rivals::copy(&mut site).context(COPIED)?.seconds;
            rows.enter(COPIED, seconds, Some(seconds), local);
            let seconds = rivals::copy_unemulated(&site, &client).context(COPIED_UNEMULATED)?;
            let seconds = seconds + local;
            rows.enter(COPIED_UNEMULATED, seconds, Some(seconds), local);
            let bound = frames_bytes as f64 * 8.0 / 1e6 / f64::from(*mbit);
            enter(&mut rows.complete, BOUND, bound);
        }
    }
    println!(
        "deliver: the version's frames are {}",
        HumanBytes(frames_bytes)
    );
    for (mbit, rows) in links {
        let row = |what: &str| format!("deliver at {mbit} Mbit/s, {what}");
        let report = &mut bench.report;
        report.add(&row("power to login"), "seconds", Better::Less, rows.login);
        let delay = row("added to a boot from a local disk");
        report.add(&delay, "seconds", Better::Less, rows.delay);
        let complete = row("power to complete");
        report.add(&complete, "seconds", Better::Less, rows.complete);
    }
    Ok(())
}

impl Rows {
    /// Enters the seconds to a login, and those until the disk had all of the image.
    fn enter(&mut self, name: &str, login: f64, complete: Option<f64>, local: f64) {
        let delay = login - local;
        enter(&mut self.login, name, login);
        enter(&mut self.delay, name, delay);
        let mut line = format!("  {name}: {login:.1} s, which is {delay:.1} s more");
        if let Some(complete) = complete {
            enter(&mut self.complete, name, complete);
            line.push_str(&format!(", complete after {complete:.1} s"));
        }
        println!("{line}");
    }
}

fn enter(row: &mut Figures, name: &str, figure: f64) {
    row.entry(name.to_owned()).or_default().push(figure);
}

/// Plugs a client into the bridge, for which nothing is emulated.
fn client(site: &Site) -> Result<Namespace> {
    let client = Namespace::new("client")?;
    site.namespace.cable(CLIENT_LINK, &client, "eth0")?;
    let bridge = format!("link set {CLIENT_LINK} master {BRIDGE}");
    site.namespace.ip(&bridge)?;
    client.ip("addr add 10.77.0.98/24 dev eth0")?;
    Ok(client)
}

/// Lets no more than this through to what is plugged in at `device`.
pub(super) fn shape(namespace: &Namespace, device: &str, mbit: u32) -> Result<()> {
    // So much at once that a timer of the kernel, which comes each 4 ms, keeps the rate.
    let burst_kib = mbit.max(256) / 2;
    let words = format!(
        "qdisc replace dev {device} root tbf rate {mbit}mbit burst {burst_kib}kb latency {QUEUE_MS}ms"
    );
    let mut tc = namespace.command("tc");
    tool::run_command(tc.args(words.split_whitespace()))?;
    Ok(())
}

/// The bytes of the version's frames, of which nothing else is in the store.
fn frames_bytes(site: &mut Site) -> Result<u64> {
    site.daemon.restart()?;
    let shown = site.daemon.json(["image", "show", "debian:1"])?;
    site.daemon.stop()?;
    let bytes = shown["size"]["stored_bytes"].as_u64();
    bytes.with_context(|| format!("image show tells no bytes of frames: {shown}"))
}

/// From the image itself as the machine's disk: the seconds to its prompt.
fn local(site: &Site) -> Result<f64> {
    let disk = site.directory.join("local.img");
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]);
    tool::run_command(cp.arg(&site.image).arg(&disk))?;
    let wire = site.wire_bytes()?;
    let start = Instant::now();
    let machine = site.machine("local");
    let mut machine = machine.power_on_from_disk(site.inside(), &site.directory, &disk)?;
    let boot = site.watch_to_prompt(start, wire, &mut machine)?;
    machine.pull_plug()?;
    fs::remove_file(&disk)?;
    Ok(boot.seconds)
}

/// With an empty disk that was prepared: the seconds to the prompt, and until the disk
/// was complete.
fn rootstock(site: &mut Site) -> Result<(f64, f64)> {
    let disk = site.directory.join("cache.disk");
    prepare(&disk)?;
    site.daemon.restart()?;
    let wire = site.wire_bytes()?;
    let start = Instant::now();
    let machine = site.machine("cached");
    let mut machine = machine.power_on_beside_disk(site.inside(), &site.directory, &disk)?;
    let boot = site.watch_to_prompt(start, wire, &mut machine)?;
    // It may have been complete before the prompt.
    let console = &machine.console;
    let uptime = wait::until(COMPLETE, BOOT_LIMIT, || {
        Ok(said_at(&console.text(), COMPLETE))
    })?;
    let complete = boot.seconds - boot.kernel_seconds + uptime;
    machine.pull_plug()?;
    site.daemon.stop()?;
    fs::remove_file(&disk)?;
    Ok((boot.seconds, complete))
}

/// When a kernel's log says `words`, in seconds from its start.
fn said_at(log: &str, words: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains(words))?;
    let (_, rest) = line.split_once('[')?;
    let (stamp, _) = rest.split_once(']')?;
    stamp.trim().parse().ok()
}

/// Makes an empty disk that is prepared as a cache.
pub(super) fn prepare(disk: &Path) -> Result<()> {
    File::create(disk)?.set_len(DISK_BYTES)?;
    let mut create = Command::new(agent::path());
    tool::run_command(create.args(["cache", "create"]).arg(disk))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_when() {
        let log = "login: [   71.214041] rootstock: the boot read\n\
                   [   59.521659] rootstock: the image is complete on this machine's disk\r\n";
        assert_eq!(said_at(log, COMPLETE), Some(59.521_659));
        assert_eq!(said_at("nothing", COMPLETE), None);
    }
}
