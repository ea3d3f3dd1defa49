//! `rootstock serve` with nothing configured: where it boots machines, and with which rights.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rootstock_tests::daemon::{self, Daemon, DaemonOptions};
use rootstock_tests::namespace::Namespace;
use rootstock_tests::{tool, wait};
use tempfile::TempDir;

/// The server's bridge: no network card is below it.
const BRIDGE: &str = "br0";
const SERVER: &str = "10.98.0.1";

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;

/// How long anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What the log says of each thing that the boot services cannot do.
const LACK: &str = "boot services lack something";

/// A boot program's length in bytes: more than one packet.
const PROGRAM_BYTES: usize = 5000;

/// A server's namespace with a bridge, and a machine's that is plugged into it.
struct Lab {
    server: Namespace,
    client: Namespace,
    directory: TempDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let server = Namespace::new("auto")?;
        server.bridge(BRIDGE, &format!("{SERVER}/24"))?;
        let client = Namespace::new("client")?;
        server.cable("port0", &client, "eth0")?;
        server.ip(&format!("link set port0 master {BRIDGE}"))?;
        let directory = tempfile::tempdir()?;
        // For daemons of other users.
        chown(directory.path(), Some(NOBODY), Some(NOBODY))?;
        fs::create_dir(directory.path().join("files"))?;
        fs::write(
            directory.path().join("files/snponly.efi"),
            vec![7; PROGRAM_BYTES],
        )?;
        Ok(Self {
            server,
            client,
            directory,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A daemon's options: `name` is its directory, `boot` follows `[boot]`.
    fn options(&self, name: &str, boot: &str) -> Result<DaemonOptions> {
        let directory = self.path(name);
        fs::create_dir_all(&directory)?;
        chown(&directory, Some(NOBODY), Some(NOBODY))?;
        let mut options = DaemonOptions::new(&directory)?;
        options.namespace = Some(self.server.name().to_owned());
        options.config = format!(
            "[boot]\nfiles = [\"{}\"]\n{boot}\n",
            self.path("files").display()
        );
        Ok(options)
    }

    /// The program as `nobody` with these `rights`, in the words of setpriv.
    fn nobody(&self, rights: &str) -> Result<PathBuf> {
        let program = self.path("rootstock");
        if !program.exists() {
            let binary = daemon::binary()?;
            // `nobody` need not get to where it was built.
            fs::hard_link(&binary, &program).or_else(|_| fs::copy(&binary, &program).map(drop))?;
        }
        let script = self.path("rootstock-of-nobody");
        let text = format!(
            "#!/bin/sh\nexec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups \
             --no-new-privs {rights} '{}' \"$@\"\n",
            program.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        Ok(script)
    }

    /// Gets the machine an address by `udhcpc`.
    fn address(&self) -> Result<String> {
        let hook = self.path("hook");
        let out = self.path("address");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip address add \"$ip/$mask\" dev eth0\n\
             echo \"$ip\" > '{}'\n",
            out.display()
        );
        fs::write(&hook, text)?;
        fs::set_permissions(&hook, PermissionsExt::from_mode(0o755))?;
        let mut udhcpc = self.client.command("busybox");
        udhcpc.args(["udhcpc", "-f", "-q", "-n", "-t", "30", "-T", "2"]);
        tool::run_command(udhcpc.args(["-i", "eth0", "-s"]).arg(&hook))?;
        Ok(fs::read_to_string(out)?)
    }
}

fn log(options: &DaemonOptions) -> Result<String> {
    Ok(fs::read_to_string(options.directory.join("daemon.log"))?)
}

/// Waits for a text in a daemon's log, and gives the log.
fn says(daemon: &mut Daemon, options: &DaemonOptions, text: &str) -> Result<String> {
    wait::until(&format!("'{text}' in the log"), LIMIT, || {
        daemon.process().check_runs()?;
        Ok(Some(log(options)?).filter(|log| log.contains(text)))
    })
}

/// The error of a daemon that must not start.
fn refused(options: DaemonOptions) -> Result<String> {
    let error = Daemon::start_with(options).err();
    Ok(format!("{:#}", error.context("the daemon started")?))
}

#[test]
fn an_ordinary_user_gets_one_line_and_everything_else() -> Result<()> {
    let lab = Lab::new()?;
    let mut options = lab.options("user", "")?;
    options.binary = lab.nobody("--inh-caps=-all")?;
    let mut daemon = Daemon::start_with(options.clone())?;
    let log = says(&mut daemon, &options, LACK)?;
    assert_eq!(log.matches(LACK).count(), 1, "{log}");
    for part in [
        "no machine is booted",
        "CAP_NET_BIND_SERVICE and CAP_NET_RAW",
        "--boot off",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    daemon.run(["image", "list"])?;
    daemon.stop()?;

    // Who names an interface means it.
    let mut named = lab.options("named", &format!("interfaces = [\"{BRIDGE}=dhcp\"]"))?;
    named.binary = options.binary;
    let said = refused(named)?;
    assert!(said.contains("cannot boot machines on br0"), "{said}");
    assert!(said.contains("CAP_NET_BIND_SERVICE"), "{said}");
    Ok(())
}

#[test]
fn the_rights_of_the_unit_are_enough() -> Result<()> {
    let lab = Lab::new()?;
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/rootstock.service");
    let unit = fs::read_to_string(unit)?;
    let granted = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key));
        let names = line.unwrap_or_default().split_whitespace();
        let names: Vec<_> = names
            .map(|name| name.trim_start_matches("CAP_").to_lowercase())
            .collect();
        format!("-all,+{}", names.join(",+"))
    };
    let ambient = granted("AmbientCapabilities=");
    let bounding = granted("CapabilityBoundingSet=");
    let mut options = lab.options("unit", &format!("interfaces = [\"{BRIDGE}=dhcp\"]"))?;
    options.binary = lab.nobody(&format!(
        "--inh-caps={ambient} --ambient-caps={ambient} --bounding-set={bounding}"
    ))?;
    let mut daemon = Daemon::start_with(options)?;

    let address = lab.address()?;
    assert!(address.starts_with("10.98.0."), "{address}");
    let mut tftp = lab.client.command("busybox");
    tftp.args(["tftp", "-g", "-r", "snponly.efi", "-l"]);
    let file = lab.path("by-tftp");
    tool::run_command(tftp.arg(&file).arg(SERVER))?;
    assert_eq!(fs::read(file)?.len(), PROGRAM_BYTES);
    let mut curl = lab.client.command("curl");
    curl.args([
        "-sSf",
        &format!("http://{SERVER}:8480/boot/file/snponly.efi"),
    ]);
    assert_eq!(tool::output(&mut curl)?.stdout.len(), PROGRAM_BYTES);

    // Plug-ins and tools that it starts inherit nothing.
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process().id()))?;
    let of = |set: &str| status.lines().find_map(|line| line.strip_prefix(set));
    assert_eq!(of("CapAmb:\t"), Some("0000000000000000"), "{status}");
    assert_ne!(of("CapEff:\t"), Some("0000000000000000"), "{status}");
    daemon.stop()
}

#[test]
fn auto_takes_a_bridge_of_no_card_only_by_name_and_nobody_answers_twice() -> Result<()> {
    let lab = Lab::new()?;
    let options = lab.options("unnamed", "")?;
    let mut unnamed = Daemon::start_with(options.clone())?;
    let log = says(&mut unnamed, &options, "no interface on which machines")?;
    assert!(log.contains("br0: no network card is below it"), "{log}");
    unnamed.stop()?;

    let network = format!("[[network]]\ninterface = \"{BRIDGE}\"");
    let options = lab.options("named", &network)?;
    let mut named = Daemon::start_with(options.clone())?;
    says(&mut named, &options, "boot mode decided")?;
    let address = lab.address()?;
    assert!(address.starts_with("10.98.0."), "{address}");

    // A second daemon does not take part by itself, and not at all when it is told to.
    let mut options = lab.options("second", &network)?;
    let other_ports = "http_port = 9480\nhttps_port = 9481\nnbd_port = 9482\nswarm_port = 9486";
    options.config = options
        .config
        .replace("[boot]", &format!("[boot]\n{other_ports}"));
    let mut second = Daemon::start_with(options.clone())?;
    let log = says(&mut second, &options, "no DHCP for booting machines")?;
    assert!(log.contains("open UDP port 67 on br0"), "{log}");
    second.run(["image", "list"])?;
    second.stop()?;
    let third = lab.options("third", &format!("interfaces = [\"{BRIDGE}=dhcp\"]"))?;
    let said = refused(third)?;
    ensure!(said.contains("open UDP port 67 on br0"), "{said}");

    // A restart has its ports back at once.
    named.stop()?;
    named.restart()?;
    named.stop()
}
