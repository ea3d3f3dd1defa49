//! An image is laid out on a machine's own disk while the machine runs it, and boots from there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::disk::{FIRST_PARTITION_BYTES, allocated_bytes};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::BOOT_LIMIT;
use rootstock_tests::pxe::PoweredOn;
use rootstock_tests::{boots, tool, wait};
use serde_json::Value;

/// Longer than the image.
const DISK_BYTES: u64 = 3 << 30;
/// So much is on the disk when the plug is pulled.
const CUT_AT_BYTES: u64 = 100 << 20;

const ROOT_DEVICE: &str = "findmnt --noheadings --output SOURCE /";
const MACHINE_ID: &str = "cat /etc/machine-id";
const HAS_DRACUT: &str = "test -d /usr/lib/dracut && echo yes || echo no";

/// Boots over the network; the system is up.
fn boot(desk: &Desk) -> PoweredOn {
    let machine = desk.boot().expect("logged in");
    boots::reach(&desk.lan, "desk", "up").expect("up");
    machine
}

fn node(desk: &Desk) -> Result<Value> {
    desk.lan.daemon.json(["node", "show", "desk"])
}

/// Waits until the version is installed; the bytes that were fetched for that.
fn installed(desk: &Desk, machine: &mut PoweredOn, version: &str) -> u64 {
    let report = wait::until(&format!("{version} is installed"), BOOT_LIMIT, || {
        let node = node(desk)?;
        let is_there = node["installed"]["version"] == version;
        Ok(is_there.then(|| node["report"]["install"].clone()))
    });
    let report = report.map_err(|error| {
        let told = boots::shell(machine, "dmesg | grep rootstock || true");
        error.context(told.unwrap_or_default())
    });
    let report = report.expect("installed");
    println!("{version}: {report}");
    let fetched = report["fetched_bytes"].as_u64();
    fetched.expect("is reported")
}

/// Has the machine start anew by itself, and logs in: it must be on its own disk.
fn restart(desk: &Desk, machine: &mut PoweredOn) {
    machine.console.send("systemctl reboot\n").expect("sent");
    desk.lan.log_in(machine, "desk").expect("logged in");
    assert_eq!(shell(machine, ROOT_DEVICE), "/dev/vda1");
    assert_eq!(shell(machine, "ls /sys/block | grep -c nbd || true"), "0");
    let node = node(desk).expect("shown");
    assert_eq!(node["state"], "own-disk", "{node}");
    let steps = boots::steps(&desk.lan, "desk").expect("steps");
    let (step, detail) = steps.last().expect("a step");
    assert!(
        step == "own-disk" && detail.contains("is installed on /dev/vda"),
        "{steps:?}"
    );
}

fn first_sector(disk: &Path) -> Result<[u8; 512]> {
    let mut sector = [0; 512];
    File::open(disk)?.read_exact_at(&mut sector, 0)?;
    Ok(sector)
}

/// Looks at the root's file system on the disk of a machine that is off.
fn check_root(disk: &Path) -> Result<()> {
    let place = format!("{}?offset={FIRST_PARTITION_BYTES}", disk.display());
    let mut e2fsck = Command::new("e2fsck");
    let output = tool::output(e2fsck.args(["-fn", &place]))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output
        .status
        .success()
        .then_some(())
        .with_context(|| format!("e2fsck: {said}"))
}

#[test]
fn a_machine_is_installed_while_it_runs_and_updated_by_difference() {
    let desk = Desk::new(DISK_BYTES).expect("a lab");
    let set = ["node", "set", "desk", "--mode", "install", "--yes"];
    desk.lan.daemon.run(set).expect("set");
    // The plug is pulled in the middle: the disk does not boot, and holds a part.
    let mut machine = boot(&desk);
    let machine_id = shell(&mut machine, MACHINE_ID);
    wait::until("a part is on the disk", BOOT_LIMIT, || {
        Ok((allocated_bytes(&desk.disk)? > CUT_AT_BYTES).then_some(()))
    })
    .expect("it is laid out");
    machine.pull_plug().expect("off");
    assert_eq!(first_sector(&desk.disk).expect("read"), [0; 512]);
    assert_eq!(node(&desk).expect("shown")["installed"], Value::Null);

    let mut machine = boot(&desk);
    assert_ne!(shell(&mut machine, ROOT_DEVICE), "/dev/vda1");
    let rest = installed(&desk, &mut machine, "debian:1");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    restart(&desk, &mut machine);
    assert_eq!(shell(&mut machine, MACHINE_ID), machine_id);
    shell(&mut machine, "echo mine > /root/own && sync");
    boots::power_off(machine).expect("off");
    check_root(&desk.disk).expect("clean");

    // Another version is assigned: it runs at once, and what differs is written.
    let image = boots::image(Golden::Dracut).expect("an image");
    desk.lan.import("debian", &image).expect("imported");
    desk.assign("debian:2").expect("tagged");
    let mut machine = boot(&desk);
    assert_eq!(shell(&mut machine, HAS_DRACUT), "yes");
    let difference = installed(&desk, &mut machine, "debian:2");
    restart(&desk, &mut machine);
    assert_eq!(shell(&mut machine, HAS_DRACUT), "yes");
    assert_eq!(shell(&mut machine, MACHINE_ID), machine_id);
    assert_eq!(shell(&mut machine, "ls /root"), "");
    boots::power_off(machine).expect("off");
    check_root(&desk.disk).expect("clean");
    assert!(difference < rest / 2, "{difference} B of {rest} B");
    println!("{rest} B were fetched after the cut, {difference} B for the second version");
}
