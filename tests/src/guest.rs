//! A QEMU guest without acceleration, driven over its serial console.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::console::Console;
use crate::process::Process;

/// How a guest is made.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Names the guest in messages and in its files.
    pub name: String,
    /// Its memory.
    pub memory_mib: u32,
    /// QEMU's words for each virtio disk, such as `driver=nbd,...` block device options.
    pub disks: Vec<String>,
    /// Boots this kernel, instead of what the first disk's boot sector says.
    pub kernel: Option<Kernel>,
    /// Whether it can reach the host, as 10.0.2.2.
    pub network: Network,
}

/// A kernel that QEMU loads itself.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel's file.
    pub image: PathBuf,
    /// Its first file system.
    pub initrd: PathBuf,
    /// Its command line.
    pub arguments: String,
}

/// What a guest's network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None.
    None,
    /// QEMU's user network, with the host at 10.0.2.2.
    User,
}

/// A running guest, ended when dropped.
pub struct Guest {
    /// Its serial line.
    pub console: Console,
    process: Process,
}

impl GuestOptions {
    /// A guest with 512 MiB and nothing else.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 512,
            disks: Vec::new(),
            kernel: None,
            network: Network::None,
        }
    }

    /// Adds a disk that is the NBD export `export` of the server at `host:port`.
    #[must_use]
    pub fn nbd_disk(mut self, host: &str, port: u16, export: &str) -> Self {
        self.disks.push(format!(
            "driver=nbd,server.type=inet,server.host={host},server.port={port},export={export}"
        ));
        self
    }
}

impl Guest {
    /// Starts it, with its log and its console's copy in `directory`.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(options: &GuestOptions, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{}.qemu.log", options.name));
        let copy = directory.join(format!("{}.console.log", options.name));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(arguments(options));
        let name = format!("guest {}", options.name);
        let mut process = Process::start_piped(&name, &mut command, &log)?;
        let child = process.child();
        let input = child.stdin.take().context("the guest has no input")?;
        let output = child.stdout.take().context("the guest has no output")?;
        let console = Console::new(input, output, &copy)?;
        Ok(Self { console, process })
    }

    /// Logs in as root at the prompt, which must come within `limit`.
    ///
    /// # Errors
    /// When the prompt does not come or the password is refused.
    pub fn log_in(&mut self, password: &str, limit: Duration) -> Result<()> {
        self.console.log_in(password, limit)
    }

    /// Waits until it has powered itself off.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait_off(mut self, limit: Duration) -> Result<ExitStatus> {
        self.process
            .wait(limit)
            .with_context(|| format!("the console said last:\n{}", self.console.text()))
    }

    /// Pulls its plug.
    ///
    /// # Errors
    /// When it has already ended.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn arguments(options: &GuestOptions) -> Vec<String> {
    let mut words: Vec<String> = [
        "-nodefaults",
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-smp",
        "1",
    ]
    .map(String::from)
    .to_vec();
    words.extend(["-m".to_owned(), format!("{}M", options.memory_mib)]);
    for (number, disk) in options.disks.iter().enumerate() {
        let mut device = format!("virtio-blk-pci,drive=disk{number}");
        if options.kernel.is_none() {
            // A kernel that QEMU loads has the first place for itself.
            device.push_str(&format!(",bootindex={number}"));
        }
        words.extend([
            "-blockdev".to_owned(),
            format!("{disk},node-name=disk{number},discard=unmap"),
            "-device".to_owned(),
            device,
        ]);
    }
    if let Some(kernel) = &options.kernel {
        words.extend([
            "-kernel".to_owned(),
            kernel.image.display().to_string(),
            "-initrd".to_owned(),
            kernel.initrd.display().to_string(),
            "-append".to_owned(),
            kernel.arguments.clone(),
        ]);
    }
    if options.network == Network::User {
        words.extend(
            [
                "-netdev",
                "user,id=net0",
                "-device",
                "virtio-net-pci,netdev=net0,romfile=",
            ]
            .map(String::from),
        );
    }
    words.extend(["-device", "virtio-rng-pci"].map(String::from));
    words
}
