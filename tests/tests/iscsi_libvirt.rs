//! libvirt: its own initiator, and a virtual machine that starts from a volume over iSCSI.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rootstock_tests::daemon::DaemonOptions;
use rootstock_tests::golden::Golden;
use rootstock_tests::{Daemon, Process, boots, tool, wait};

const INITIATOR: &str = "iqn.2026-11.example:libvirt";
const TARGET: &str = "iqn.2026-11.example.site:volume.v";
/// What it keeps the secret for.
const USAGE: &str = "rootstock";
const MACHINE: &str = "rootstock-vm";
const START_LIMIT: Duration = Duration::from_secs(60);
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Its directories are the machine's own, so it gets empty ones that nobody else sees, and
/// the user that its package would have made.
const START: &str = "set -e
for dir in /run/libvirt /var/lib/libvirt /etc/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p $dir
    mount -t tmpfs tmpfs $dir
done
printf '%s\\n' 'user = \"root\"' 'group = \"root\"' 'remember_owner = 0' 'namespaces = []' \\
    'security_driver = \"none\"' 'stdio_handler = \"file\"' 'cgroup_controllers = []' > /etc/libvirt/qemu.conf
cd \"$1\"
for file in passwd group; do
    cp /etc/$file $file
done
echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >> passwd
echo 'libvirt-qemu:x:64055:' >> group
for file in passwd group; do
    mount --bind $file /etc/$file
done
printf '%s\\n' \"unix_sock_dir = \\\"$1\\\"\" 'auth_unix_rw = \"none\"' > libvirtd.conf
exec libvirtd --config \"$1/libvirtd.conf\" --pid-file \"$1/pid\"";

struct Libvirt {
    process: Process,
    directory: PathBuf,
}

impl Libvirt {
    fn start(directory: &Path) -> Result<Self> {
        let directory = directory.join("libvirt");
        fs::create_dir(&directory)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", START, "sh"]);
        let process = Process::start(
            "libvirtd",
            command.arg(&directory),
            &directory.join("libvirtd.log"),
        )?;
        let mut it = Self { process, directory };
        wait::until("libvirt to answer", START_LIMIT, || {
            it.process.check_runs()?;
            Ok(it.virsh(&["version"]).ok())
        })?;
        Ok(it)
    }

    fn virsh(&self, words: &[&str]) -> Result<String> {
        let socket = self.directory.join("libvirt-sock");
        let uri = format!("qemu+unix:///system?socket={}", socket.display());
        let mut command = Command::new("virsh");
        tool::run_command(command.args(["--quiet", "--connect", &uri]).args(words))
    }

    /// Gives it a definition, for `command`.
    fn define(&self, command: &str, xml: &str) -> Result<()> {
        let file = self.directory.join("definition.xml");
        fs::write(&file, xml)?;
        self.virsh(&[command, file.to_str().context("text")?])?;
        Ok(())
    }

    /// Has it know that there is a secret.
    fn define_secret(&self) -> Result<()> {
        self.define(
            "secret-define",
            &format!(
                "<secret ephemeral='no' private='yes'><usage type='iscsi'>\
                 <target>{USAGE}</target></usage></secret>"
            ),
        )
    }

    fn keep(&self, secret: &str) -> Result<()> {
        let listed = self.virsh(&["secret-list"])?;
        let uuid = listed.split_whitespace().next().context("a secret")?;
        let file = self.directory.join("secret");
        fs::write(&file, secret)?;
        let file = file.to_str().context("text")?;
        self.virsh(&["secret-set-value", uuid, "--file", file, "--plain"])?;
        Ok(())
    }
}

impl Drop for Libvirt {
    /// Its machines would outlive it.
    fn drop(&mut self) {
        let _ = self.virsh(&["destroy", MACHINE]);
    }
}

/// A system's disk, the volume `v`, for one initiator with a secret.
fn share(directory: &Path) -> Result<(Daemon, u16, String)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut options = DaemonOptions::new(&directory.join("run"))?;
    options.config = format!(
        "[iscsi]\nlisten = [\"127.0.0.1:{port}\"]\nprefix = \"iqn.2026-11.example.site\"\n"
    );
    let daemon = Daemon::start_with(options)?;
    let image = boots::image(Golden::Debian)?;
    daemon.run(["image", "import", "lab", image.to_str().context("text")?])?;
    daemon.run(["volume", "create", "v", "--from", "lab"])?;
    let share = ["volume", "share", "v", "--initiator", INITIATOR, "--chap"];
    let secret = daemon.json(share)?["secret"].as_str().map(str::to_owned);
    Ok((daemon, port, secret.context("a secret")?))
}

/// What the volume has of its own.
fn used_bytes(daemon: &Daemon) -> Result<u64> {
    let shown = daemon.json(["volume", "show", "v"])?;
    shown["used_bytes"].as_u64().context("its own bytes")
}

#[test]
fn libvirt_lists_a_target_and_its_machine_starts_from_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (mut daemon, port, secret) = share(directory.path())?;
    let mut libvirt = Libvirt::start(directory.path())?;

    // A pool of the storage driver, which logs in by itself.
    libvirt.define(
        "pool-define",
        &format!(
            "<pool type='iscsi-direct'><name>pool</name><source>\
             <host name='127.0.0.1' port='{port}'/><device path='{TARGET}'/>\
             <auth type='chap' username='me'><secret usage='{USAGE}'/></auth>\
             <initiator><iqn name='{INITIATOR}'/></initiator></source></pool>"
        ),
    )?;
    libvirt.define_secret()?;
    libvirt.keep("wrong-wrong-wrong")?;
    let refused = libvirt.virsh(&["pool-start", "pool"]);
    let refused = format!("{:#}", refused.expect_err("has no secret"));
    assert!(refused.contains("Authentication failure"), "{refused}");
    libvirt.keep(&secret)?;
    libvirt.virsh(&["pool-start", "pool"])?;
    let info = ["vol-info", "--bytes", "--pool", "pool", "unit:0:0:0"];
    let info = libvirt.virsh(&info)?;
    let shown = daemon.json(["volume", "show", "v"])?;
    let size_bytes = shown["size_bytes"].as_u64().context("a size")?;
    // It takes the address of the last block (READ CAPACITY) for their number.
    let capacity = format!("{} bytes", size_bytes - 512);
    assert!(info.contains(&capacity), "{info}, not {capacity}");
    libvirt.virsh(&["pool-destroy", "pool"])?;

    // A machine whose disk it is.
    let console = directory.path().join("console.log");
    libvirt.define(
        "define",
        &format!(
            "<domain type='qemu'><name>{MACHINE}</name><memory unit='MiB'>768</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <cpu mode='maximum'/><on_reboot>destroy</on_reboot><devices>\
             <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>\
             <auth username='me'><secret type='iscsi' usage='{USAGE}'/></auth>\
             <source protocol='iscsi' name='{TARGET}/0'><host name='127.0.0.1' port='{port}'/>\
             <initiator><iqn name='{INITIATOR}'/></initiator></source>\
             <target dev='vda' bus='virtio'/></disk>\
             <serial type='file'><source path='{}'/></serial></devices></domain>",
            console.display()
        ),
    )?;
    let before = used_bytes(&daemon)?;
    libvirt.virsh(&["start", MACHINE])?;
    wait::until("the machine's prompt", BOOT_LIMIT, || {
        libvirt.process.check_runs()?;
        let said = fs::read(&console).unwrap_or_default();
        Ok(String::from_utf8_lossy(&said)
            .contains(" login: ")
            .then_some(()))
    })
    .with_context(|| fs::read_to_string(&console).unwrap_or_default())?;
    // What its journal has written is in the volume.
    wait::until("the machine's writes", BOOT_LIMIT, || {
        Ok((used_bytes(&daemon)? > before).then_some(()))
    })?;
    libvirt.virsh(&["destroy", MACHINE])?;
    let log = daemon.process().log_end();
    assert!(!log.contains(&secret), "{log}");
    libvirt.process.ask_to_end()?;
    libvirt.process.wait(START_LIMIT)?;
    daemon.stop()
}
