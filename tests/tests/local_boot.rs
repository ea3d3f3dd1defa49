//! A machine starts from its own disk when its server is gone: real guests, real firmware.

use std::process::Command;

use anyhow::Result;
use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::lan::BOOT_LIMIT;
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{agent, boots, tool, wait};

/// Room for the image and what is written.
const DISK_BYTES: u64 = 3 << 30;

/// The digest of what the image's programs are, read from wherever they are.
const PROGRAMS: &str = "find /usr/bin /usr/sbin -xdev -type f -print0 | sort -z | \
    xargs -0 sha256sum | sha256sum | cut -c1-64";

/// Switches the machine on and logs in.
fn boot(desk: &Desk, firmware: Firmware) -> Result<PoweredOn> {
    let mut machine = desk
        .lan
        .power_on_with_own_disk("desk", 5, firmware, &desk.disk)?;
    desk.lan.log_in(&mut machine, "desk")?;
    Ok(machine)
}

/// A lab whose machine has an empty disk that was prepared to start from.
fn prepared() -> Result<Desk> {
    let desk = Desk::new(DISK_BYTES)?;
    let mut create = Command::new(agent::program()?);
    create.args(["cache", "create", "--boot"]).arg(&desk.disk);
    println!("{}", tool::run_command(&mut create)?);
    Ok(desk)
}

/// Waits until the agent has written these words into the kernel's log.
fn told(machine: &mut PoweredOn, words: &str) -> Result<()> {
    let found = wait::until(words, BOOT_LIMIT, || {
        let count = boots::shell(machine, &format!("dmesg | grep -c '{words}' || true"))?;
        Ok((count != "0").then_some(()))
    });
    found.map_err(|error| {
        let all = boots::shell(machine, "dmesg | grep rootstock || true");
        error.context(all.unwrap_or_default())
    })
}

/// Starts a machine from its own disk, without a server.
fn start_alone(firmware: Firmware) -> (Desk, PoweredOn) {
    let mut desk = prepared().expect("a lab");
    let mut machine = boot(&desk, firmware).expect("logged in");
    let programs = shell(&mut machine, PROGRAMS);
    let key = shell(&mut machine, "cat /etc/ssh/ssh_host_ed25519_key.pub");
    let identity = shell(&mut machine, "cat /etc/machine-id");
    told(&mut machine, "starts from /dev/vda when no server").expect("kept");
    machine.pull_plug().expect("off");
    desk.lan.daemon.kill().expect("killed");

    // A BIOS asks the network in vain, and goes on with the disk.
    let mut machine = boot(&desk, firmware).expect("logged in without a server");
    told(&mut machine, "debian:1 from its own disk").expect("told");
    assert_eq!(shell(&mut machine, PROGRAMS), programs);
    assert_eq!(shell(&mut machine, "cat /etc/machine-id"), identity);
    let same = shell(&mut machine, "cat /etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(same, key);
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    (desk, machine)
}

#[test]
fn a_bios_starts_without_a_server() {
    let (mut desk, mut machine) = start_alone(Firmware::Bios);
    shell(&mut machine, "echo mine > /root/mine && sync");
    // Its server is back, and hears of it.
    desk.lan.daemon.restart().expect("restarted");
    boots::reach(&desk.lan, "desk", "up").expect("up");
    machine.pull_plug().expect("off");
    desk.lan.daemon.kill().expect("killed");
    let mut machine = boot(&desk, Firmware::Bios).expect("logged in again");
    assert_eq!(shell(&mut machine, "ls /root"), "", "writes are forgotten");
}

#[test]
fn uefi_starts_without_a_server() {
    start_alone(Firmware::UefiSecure);
}
