//! A machine whose root is mounted over NFS, and what may happen to those who serve it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rootstock_tests::boots::{self, ALL_READ, Peer, reach, shell};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan};
use rootstock_tests::process::Process;
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{daemon, tool, wait};

/// Where the root's partition begins, in bytes.
const ROOT_AT: u64 = 1 << 20;
/// What the other version has more.
const MARKER: &str = "the other version";

/// The head's part of it, beside the daemon.
struct Head {
    process: Process,
    log: PathBuf,
}

impl Head {
    fn start(lan: &Lan) -> Result<Self> {
        let log = lan.path("nfs.log");
        let program = daemon::binary()?;
        let mut command = lan.namespace.command(&program.display().to_string());
        command
            .args(["--api", &lan.daemon.api(), "nfs", "serve", "--linger", "1"])
            .args(["--nbd", &format!("127.0.0.1:{}", lan.daemon.nbd_port())])
            .arg("--run-dir")
            .arg(lan.path("nfs-run"))
            .arg("--state-dir")
            .arg(lan.path("nfs-state"));
        let process = Process::start("nfs serve", &mut command, &log)?;
        Ok(Self { process, log })
    }

    /// Waits until its log has this so often.
    fn says(&mut self, words: &str, count: usize) -> Result<()> {
        let log = self.log.clone();
        let process = &mut self.process;
        wait::until(
            &format!("'{words}' in {}", log.display()),
            BOOT_LIMIT,
            || {
                process.check_runs()?;
                let text = fs::read_to_string(&log)?;
                Ok((text.matches(words).count() >= count).then_some(()))
            },
        )
    }
}

/// The image with one more file: the same file system, by its UUID, and another version.
fn changed(lan: &Lan, image: &Path) -> Result<PathBuf> {
    let (copy, marker) = (lan.path("changed.img"), lan.path("marker"));
    fs::write(&marker, MARKER)?;
    let copied = [image, &copy].map(Path::as_os_str);
    tool::run("cp", ["--sparse=always".as_ref()].into_iter().chain(copied))?;
    let place = format!("{}?offset={ROOT_AT}", copy.display());
    let write = format!("write {} /marker", marker.display());
    tool::run("debugfs", ["-w", "-R", &write, &place])?;
    Ok(copy)
}

fn set_nfs(lan: &Lan, node: &str) -> Result<()> {
    lan.daemon.run(["node", "set", node, "--mode", "nfs"])?;
    Ok(())
}

/// What lies below the writes, and that nobody has to take it away at the end.
fn assert_root_is_nfs(machine: &mut PoweredOn) -> Result<()> {
    assert_eq!(shell(machine, "findmnt -n -o FSTYPE /")?, "overlay");
    let servers = shell(machine, "grep -c ^v4 /proc/fs/nfsfs/servers")?;
    assert_eq!(servers, "1");
    let failed = shell(machine, "systemctl --failed --no-legend --plain")?;
    assert_eq!(failed, "", "units failed");
    assert_eq!(
        shell(machine, "grep -c ' nfs4* ' /proc/mounts || true")?,
        "0"
    );
    Ok(())
}

/// The daemon and the head's server die while the machine reads; another version is
/// exported beside it; what it wrote is gone at its next boot, which is of that version.
#[test]
fn a_root_over_nfs_outlives_those_who_serve_it() -> Result<()> {
    let mut lan = Lan::new("dhcp", "")?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    lan.add_node("pc", 1, "debian:1")?;
    set_nfs(&lan, "pc")?;
    let refused = Peer::new(&lan, 21)?.script(&Lan::mac(1))?;
    assert!(refused.contains("--nfs yes"), "{refused}");
    lan.daemon.run(["image", "set", "debian", "--nfs", "yes"])?;

    let mut head = Head::start(&lan)?;
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    lan.log_in(&mut machine, "pc")?;
    reach(&lan, "pc", "up")?;
    assert_root_is_nfs(&mut machine)?;
    assert_eq!(
        shell(&mut machine, "touch /root/here /usr/bin/there && hostname")?,
        "pc"
    );

    boots::begin_to_read(&mut machine, "/usr")?;
    lan.daemon.kill()?;
    lan.daemon.restart()?;
    machine.console.expect(ALL_READ, BOOT_LIMIT)?;

    boots::begin_to_read(&mut machine, "/usr")?;
    head.process.kill()?;
    head = Head::start(&lan)?;
    machine.console.expect(ALL_READ, BOOT_LIMIT)?;
    assert_eq!(shell(&mut machine, "dmesg | grep -i stale || true")?, "");

    lan.import("debian", &changed(&lan, &boots::image(Golden::Debian)?)?)?;
    lan.add_node("other", 2, "debian:2")?;
    set_nfs(&lan, "other")?;
    let mut other = lan.power_on("other", 2, Firmware::Bios)?;
    lan.log_in(&mut other, "other")?;
    assert_root_is_nfs(&mut other)?;
    assert_eq!(shell(&mut other, "cat /marker")?, MARKER);
    assert_eq!(shell(&mut machine, "ls / | grep -c marker || true")?, "0");
    boots::begin_to_read(&mut machine, "/etc")?;
    machine.console.expect(ALL_READ, BOOT_LIMIT)?;
    boots::power_off(other)?;
    boots::power_off(machine)?;

    lan.daemon
        .run(["node", "set", "pc", "--image", "debian:2"])?;
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    lan.log_in(&mut machine, "pc")?;
    let looked = shell(
        &mut machine,
        "ls /root/here /usr/bin/there 2>&1 | grep -c 'No such' || true",
    )?;
    assert_eq!(looked, "2", "what was written is gone");
    assert_eq!(shell(&mut machine, "cat /marker")?, MARKER);
    // Its connection of before is found to be dead.
    head.says("nobody uses it", 1)?;
    boots::power_off(machine)
}

/// An image with XFS. While nothing exports it the machine says so, and it goes on when
/// something does.
#[test]
fn a_machine_says_what_its_root_lacks_and_goes_on() -> Result<()> {
    let lan = Lan::new("dhcp", "")?;
    lan.import("xfs", &boots::image(Golden::Xfs)?)?;
    lan.add_node("pc", 1, "xfs")?;
    set_nfs(&lan, "pc")?;
    lan.daemon.run(["image", "set", "xfs", "--nfs", "yes"])?;
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    machine
        .console
        .expect("nothing on the head does that", BOOT_LIMIT)?;
    let doctor = lan.daemon.run(["boot", "doctor"])?;
    assert!(doctor.contains("need `rootstock nfs serve`"), "{doctor}");

    let _head = Head::start(&lan)?;
    lan.log_in(&mut machine, "pc")?;
    assert_root_is_nfs(&mut machine)?;
    let doctor = lan.daemon.run(["boot", "doctor"])?;
    assert!(
        doctor.contains("ok       xfs:1 at port 2049, for 1"),
        "{doctor}"
    );
    boots::power_off(machine)
}
