//! A machine with a system of its own, in a namespace, that holds an image for others.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::boots::Peer;
use crate::lan::{Lan, SERVER};
use crate::process::Process;
use crate::{tool, wait};

/// The longest that anything takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The machine.
pub struct Holder {
    /// Of its card and its address.
    pub number: u8,
    /// Where it is.
    pub peer: Peer,
    /// What the agent is started with besides.
    pub more: Vec<String>,
    /// The agent, once it was started.
    pub process: Option<Process>,
    /// What the agent says.
    pub log: PathBuf,
}

impl Holder {
    /// Plugs machine `number` in, whose link carries `link_mbit` each way, and has its
    /// node, named `h` and the number, hold this image.
    ///
    /// # Errors
    /// When the kernel or the program refuses.
    pub fn new(lan: &Lan, number: u8, image: &str, link_mbit: u32) -> Result<Self> {
        let name = format!("h{number}");
        lan.add_node(&name, number, image)?;
        let words = ["node", "set", &name, "--mode", "hold", "--swarm", "tls"];
        lan.daemon.run(words.into_iter().chain(["--yes"]))?;
        let peer = Peer::new(lan, number)?;
        let port = format!("peer{number}");
        for (namespace, device) in [(&lan.namespace, port.as_str()), (&peer.namespace, "eth0")] {
            let rate = format!(
                "qdisc replace dev {device} root tbf rate {link_mbit}mbit burst 64kb latency 50ms"
            );
            tool::run_command(namespace.command("tc").args(rate.split_whitespace()))?;
        }
        Ok(Self {
            number,
            peer,
            more: Vec::new(),
            process: None,
            log: lan.path(&name),
        })
    }

    /// Starts the agent, which knows the site by this file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, program: &Path, site: &Path) -> Result<()> {
        // What it said the last time is not what it says now.
        let _ = fs::remove_file(&self.log);
        let mut hold = self
            .peer
            .namespace
            .command(program.to_str().context("text")?);
        hold.args(["hold", "--mac", &self.peer.mac, "--site"])
            .arg(site);
        hold.args(["--server", &format!("https://{SERVER}:8481")]);
        hold.args(&self.more);
        self.process = Some(Process::start("holder", &mut hold, &self.log)?);
        Ok(())
    }

    /// What came to it, in bytes.
    ///
    /// # Errors
    /// When `ip` does not tell.
    pub fn came(&self, lan: &Lan) -> Result<u64> {
        let port = format!("peer{}", self.number);
        let shown = lan.namespace.ip(&format!("-j -s link show {port}"))?;
        let shown: Value = serde_json::from_str(&shown)?;
        let bytes = shown[0]["stats64"]["tx"]["bytes"].as_u64();
        bytes.context("ip shows the bytes of a port")
    }

    /// Ends the agent from one moment to the next.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("it runs")?.kill()
    }

    /// Waits until it says something with these words in it.
    ///
    /// # Errors
    /// With what it said, when it does not.
    pub fn says(&self, words: &str) -> Result<()> {
        let said = wait::until("what it says", LIMIT, || {
            let log = fs::read_to_string(&self.log)?;
            Ok(log.contains(words).then_some(()))
        });
        said.with_context(|| fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Waits until it has all of a version.
    ///
    /// # Errors
    /// With what it said, when it has not.
    pub fn completes(&self, version: &str) -> Result<()> {
        let done = wait::until("a complete version", LIMIT, || {
            Ok(self.is_complete(version)?.then_some(()))
        });
        done.with_context(|| fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Whether it has said that it has all of a version.
    ///
    /// # Errors
    /// When it was not started.
    pub fn is_complete(&self, version: &str) -> Result<bool> {
        let wanted = format!("chunks of {version} ");
        let log = fs::read_to_string(&self.log)?;
        let mut lines = log.lines();
        Ok(lines.any(|line| line.starts_with("complete") && line.contains(&wanted)))
    }
}
