//! Rootstock: a daemon as the head, and on each node an agent that holds the image.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rootstock_tests::Daemon;
use rootstock_tests::namespace::Namespace;

use super::clients::{Done, Outcome, gated};
use super::net::{LINK, Net};
use super::{NODES_MAX, Site, warm};
use crate::agent;
use crate::bench::lab::{self, Port, SERVER};

/// Where the daemon gives sessions and orders, by HTTPS.
const NODE_PORT: u16 = 8481;
const IMAGE: &str = "image";
/// Beyond the image: what is on its way, and the pages.
const MEMORY_SPARE_MIB: u64 = 64;

pub(super) fn tls(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    run(site, net, "tls")
}

pub(super) fn plain(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    run(site, net, "plain")
}

fn run(site: &Site<'_>, net: &Net, mode: &str) -> Result<Outcome> {
    let mut head = Head::start(site, net, mode)?;
    let outcome = site.fetch(net, Done::Says, |number, node| head.agent(number, node))?;
    head.daemon.stop()?;
    Ok(outcome)
}

/// A daemon whose nodes hold the image.
pub(super) struct Head {
    pub(super) daemon: Daemon,
    /// What agents are told of the site.
    told: PathBuf,
}

impl Head {
    /// It has just started, so that it knows no members of an earlier measurement.
    pub(super) fn start(site: &Site<'_>, net: &Net, mode: &str) -> Result<Self> {
        let directory = site.directory.join("rootstock");
        let is_new = !directory.exists();
        let daemon = start(site, net, &directory)?;
        if is_new {
            prepare(site, &daemon, &directory)?;
        }
        let all = all_nodes();
        daemon.run(["node", "set", &all, "--swarm", mode, "--yes"])?;
        let told = directory.join("site.json");
        fs::write(&told, daemon.run(["boot", "site"])?)?;
        warm(daemon.data())?;
        Ok(Self { daemon, told })
    }

    /// The agent of the node with this number, from 0.
    pub(super) fn agent(&self, number: usize, node: &Namespace) -> Command {
        let mut agent = gated(node, &[]);
        agent.arg(agent::path()).arg("hold");
        agent
            .arg("--server")
            .arg(format!("https://{SERVER}:{NODE_PORT}"));
        agent
            .args(["--mac", &mac(number)])
            .arg("--site")
            .arg(&self.told);
        agent
    }
}

fn start(site: &Site<'_>, net: &Net, directory: &Path) -> Result<Daemon> {
    // Nothing else is to be on the processors or to read the packs.
    let config = format!(
        "[store]\nscrub_rate_bytes = 0\nrecipe_load_percent = 0\n\
         [boot]\ninterfaces = [\"{LINK}=dhcp\"]\nagent = \"{}\"\n",
        agent::path().display()
    );
    let port = Port::Tcp(NODE_PORT);
    lab::rootstock(site.bench, &net.head, directory, config, port)
}

/// Imports the image and adds the nodes.
fn prepare(site: &Site<'_>, daemon: &Daemon, directory: &Path) -> Result<()> {
    let image = site.image();
    let image = image.to_str().context("the image's path is text")?;
    daemon.run(["image", "import", IMAGE, image])?;
    let macs = directory.join("macs");
    let mut list = String::new();
    for number in 0..NODES_MAX as usize {
        writeln!(list, "{}", mac(number))?;
    }
    fs::write(&macs, list)?;
    let macs = macs.to_str().context("the list's path is text")?;
    let memory = format!("{}M", (site.image_bytes >> 20) + MEMORY_SPARE_MIB);
    let all = all_nodes();
    let words = ["node", "add", &all, "--macs", macs, "--image", IMAGE];
    let more = ["--mode", "hold", "--swarm-memory", &memory];
    daemon.run(words.into_iter().chain(more))?;
    Ok(())
}

fn all_nodes() -> String {
    format!("n[01-{NODES_MAX}]")
}

/// Of the node with this number, from 0.
fn mac(number: usize) -> String {
    format!("52:54:00:77:01:{number:02x}")
}
