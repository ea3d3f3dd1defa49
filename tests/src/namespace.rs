//! Network namespaces: a lab's network inside this machine, from which nothing gets out.

use std::fs;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::tool;
use crate::undo::{Action, Undo};

/// A network namespace with its loopback up, deleted when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    _undo: Undo,
}

/// Tells the namespaces of this process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Neighbours that the kernel may know. It keeps one table for all namespaces, and 33
/// machines that know each other fill the 1,024 entries that it has by itself.
const NEIGHBOURS: u32 = 8192;

/// Makes room for them in this machine's settings, once.
fn make_room_for_neighbours() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut made = Ok(());
    ONCE.call_once(|| made = raise("gc_thresh3").and_then(|()| raise("gc_thresh2")));
    made
}

fn raise(name: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/neigh/default/{name}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    if text.trim().parse::<u32>()? < NEIGHBOURS {
        fs::write(&path, NEIGHBOURS.to_string()).with_context(|| path.clone())?;
    }
    Ok(())
}

impl Namespace {
    /// Makes an empty one; `purpose` is in its name.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses.
    pub fn new(purpose: &str) -> Result<Self> {
        make_room_for_neighbours()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rootstock-{purpose}-{}-{number}", std::process::id());
        tool::run("ip", ["netns", "add", &name])?;
        let undo = Undo::new(Action::DeleteNamespace(name.clone()));
        let namespace = Self { name, _undo: undo };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside, still to be given its words.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        inside(&self.name, program)
    }

    /// Runs `ip` inside with `words`, parted by spaces.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name]).args(words.split_whitespace());
        tool::run_command(&mut ip)
    }

    /// Makes a bridge with `address`, such as `10.77.0.1/24`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bridge(&self, name: &str, address: &str) -> Result<()> {
        // No spanning tree and no delay: a port forwards as soon as it is up.
        self.ip(&format!("link add {name} type bridge forward_delay 0"))?;
        self.ip(&format!("addr add {address} dev {name}"))?;
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Makes a tap device for a guest's card, plugged into `bridge`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tap(&self, name: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("tuntap add {name} mode tap"))?;
        self.ip(&format!("link set {name} master {bridge} up"))?;
        Ok(())
    }

    /// Lays a cable from `here`, a new device of this namespace, to `there`, a new
    /// device of the `other`; both are up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cable(&self, here: &str, other: &Self, there: &str) -> Result<()> {
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {}",
            other.name
        ))?;
        self.ip(&format!("link set {here} up"))?;
        other.ip(&format!("link set {there} up"))?;
        Ok(())
    }
}

/// A command that runs inside the namespace `name`.
#[must_use]
pub fn inside(name: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name, program]);
    command
}
