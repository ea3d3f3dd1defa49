//! Debian's own installer, from the network onto an empty volume over iSCSI, and the system
//! that it installed from there.
//!
//! It takes an hour or two where nothing but the mirror's packages is quick, and is run only
//! when it is asked for by name.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rootstock_tests::golden::PASSWORD;
use rootstock_tests::lan::{Lan, SERVER};
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{DaemonOptions, boots, relay, tool, wait};

use super::report::{Better, ROOTSTOCK};
use super::{Bench, lab};
use crate::agent;

/// What the administrator's package has, and what is installed here.
const FOLDER: &str = "packaging/installers/debian-12";
/// Where the lab reaches its mirror.
const PROXY_PORT: u16 = 3128;
const NODE: &str = "pc";
/// From power on to an installed machine.
const INSTALL_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// To the prompt of a full Debian.
const START_LIMIT: Duration = Duration::from_secs(1200);
/// A node of a cluster, for those who compute: with Debian 13's standard system half a
/// thousand packages.
const PACKAGES: [&str; 14] = [
    "openssh-server",
    "build-essential",
    "gfortran",
    "gdb",
    "git",
    "libopenmpi-dev",
    "openmpi-bin",
    "python3-numpy",
    "vim",
    "tmux",
    "nfs-common",
    "hwloc",
    "sysstat",
    "strace",
];

/// What the part `install` can be told.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Options of install")]
pub(crate) struct InstallOptions {
    /// The directory of the installer's kernel `linux` and its `initrd.gz`.
    #[arg(
        long,
        default_value = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
    )]
    installer: PathBuf,
    /// The mirror, as HOST:PORT: a web server that answers for any name, as proxies do.
    #[arg(long, default_value = "deb.debian.org:80")]
    mirror: String,
    /// Further arguments of the installer's kernel.
    #[arg(long, default_value = "")]
    installer_arguments: String,
    /// Start the machine as UEFI, and not with a BIOS.
    #[arg(long)]
    uefi: bool,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let options = bench.args.install.clone();
    let directory = lab::fresh(bench, "install")?;
    let installers = directory.join("installers");
    folder(&installers.join("debian"), &options)?;
    let rootstock = directory.join("rootstock");
    fs::create_dir_all(&rootstock)?;
    let daemon = DaemonOptions {
        binary: bench.rootstock.clone(),
        data: rootstock.join("data"),
        directory: rootstock,
        config: String::new(),
        boot: None,
        namespace: None,
    };
    let more = format!("installers = {installers:?}\n[iscsi]\nlisten = [\"0.0.0.0:3260\"]");
    let mut lan = Lan::around(daemon, &agent::run()?, "dhcp", &more)?;
    let inside = SocketAddr::new(SERVER.parse()?, PROXY_PORT);
    relay::open(&lan.namespace, inside, &options.mirror)?;
    let mac = Lan::mac(1);
    let add = ["node", "add", NODE, "--mac", &mac, "--mode", "iscsi"];
    lan.daemon
        .run(add.into_iter().chain(["--console", "ttyS0"]))?;
    let install = ["node", "install", NODE, "--installer", "debian"];
    lan.daemon
        .run(install.into_iter().chain(["--size", "20G"]))?;

    let begin = Instant::now();
    let firmware = match options.uefi {
        true => Firmware::UefiPxe,
        false => Firmware::Bios,
    };
    let mut machine = lan.power_on(NODE, 1, firmware)?;
    let installed = installed(&lan, &mut machine, begin);
    let installed = installed.with_context(|| tail(&machine.console.text()))?;
    let begin_start = Instant::now();
    let prompt = format!("{NODE} login: ");
    machine.console.expect(&prompt, START_LIMIT)?;
    let started = begin_start.elapsed();
    println!("  its prompt {:.0} s after that", started.as_secs_f64());
    machine.console.send("\n")?;
    machine.console.log_in(PASSWORD, START_LIMIT)?;
    let mut say = |command: &str| -> Result<String> {
        let said = boots::shell(&mut machine, command)?;
        println!("  {command}: {said}");
        Ok(said)
    };
    let packages = say("dpkg-query -W -f '${db:Status-Status}\\n' | grep -c ^installed")?;
    say(
        "uname -r; lsblk --scsi --noheadings --output NAME,TRAN,VENDOR,MODEL; findmnt -no SOURCE,FSTYPE /",
    )?;
    let transports = say("lsblk --scsi --noheadings --output TRAN | sort -u")?;
    ensure!(transports == "iscsi", "its disk is {transports}");
    boots::power_off(machine)?;
    let volume = lan.daemon.json(["volume", "show", NODE])?;
    println!("  the volume: {volume}");

    for (row, unit, figure) in [
        ("power to installed", "seconds", installed.as_secs_f64()),
        ("installed to prompt", "seconds", started.as_secs_f64()),
        ("packages", "packages", packages.parse()?),
    ] {
        let figures = BTreeMap::from([(ROOTSTOCK.to_owned(), vec![figure])]);
        let row = format!("install onto iSCSI, {row}");
        bench.report.add(&row, unit, Better::Less, figures);
    }
    lan.daemon.stop()
}

/// The package's own folder, for this installer and this mirror.
fn folder(folder: &Path, options: &InstallOptions) -> Result<()> {
    fs::create_dir_all(folder)?;
    for file in ["preseed.cfg", "disk.sh"] {
        fs::copy(Path::new(FOLDER).join(file), folder.join(file)).context(file)?;
    }
    let text = fs::read_to_string(Path::new(FOLDER).join("installer.toml"))?;
    let mut description: toml::Table = text.parse()?;
    let file = |name: &str| toml::Value::from(options.installer.join(name).display().to_string());
    description.insert("kernel".to_owned(), file("linux"));
    description.insert("initrd".to_owned(), vec![file("initrd.gz")].into());
    let arguments = description["arguments"].as_str().unwrap_or_default();
    let arguments = format!("{arguments} {}", options.installer_arguments);
    description.insert("arguments".to_owned(), arguments.into());
    let values = description["values"].as_table_mut();
    let values = values.context("installer.toml has values")?;
    let proxy = format!("http://{SERVER}:{PROXY_PORT}");
    let mut openssl = Command::new("openssl");
    let password = tool::run_command(openssl.args(["passwd", "-6", PASSWORD]))?;
    values.insert("proxy".to_owned(), proxy.into());
    values.insert("security".to_owned(), "deb.debian.org".into());
    values.insert("packages".to_owned(), PACKAGES.to_vec().into());
    values.insert("root_password".to_owned(), password.trim().into());
    let text = toml::to_string(&description)?;
    fs::write(folder.join("installer.toml"), text)?;
    Ok(())
}

/// Waits for the installer's call, and tells what it says on the way.
fn installed(lan: &Lan, machine: &mut PoweredOn, begin: Instant) -> Result<Duration> {
    let mut said = 0;
    wait::until_at_intervals(LOOK_EVERY, "the installer is done", INSTALL_LIMIT, || {
        machine.process().check_runs()?;
        let steps = boots::steps(lan, NODE)?;
        for (step, detail) in steps.iter().skip(said) {
            let seconds = begin.elapsed().as_secs();
            println!("  {seconds:>5} s  {step} {detail}");
        }
        said = steps.len().max(said);
        let shown = lan.daemon.json(["node", "show", NODE])?;
        let state = &shown["installer"]["state"];
        ensure!(state != "failed", "it failed: {}", shown["installer"]);
        Ok((state == "done").then(|| begin.elapsed()))
    })
}

fn tail(text: &str) -> String {
    let from = text.len().saturating_sub(4000);
    let from = text.ceil_char_boundary(from);
    format!("its console: {}", &text[from..])
}
