//! Machines whose disk is a volume over iSCSI: firmware, boot loader and system as they are.

use anyhow::Result;
use rootstock_tests::boots::{self, reach, shell, steps};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan, SERVER};
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{tool, wait};

const TARGET: &str = "[iscsi]\nlisten = [\"0.0.0.0:3260\"]";

/// On two kinds of firmware.
#[test]
fn systems_start_from_volumes_and_keep_what_they_wrote() -> Result<()> {
    let mut lan = Lan::new("dhcp", TARGET)?;
    let image = "tools";
    lan.import(image, &boots::image(Golden::Iscsi)?)?;
    for (name, number, firmware) in [("pc", 1, Firmware::Bios), ("uefi", 2, Firmware::UefiPxe)] {
        lan.add_node(name, number, image)?;
        lan.daemon.run(["node", "set", name, "--mode", "iscsi"])?;
        let mut machine = lan.power_on(name, number, firmware)?;
        lan.log_in(&mut machine, "rootstock")?;
        reach(&lan, name, "up")?;
        let names: Vec<_> = steps(&lan, name)?.into_iter().map(|step| step.0).collect();
        assert!(names.contains(&"iscsi".to_owned()), "{names:?}");
        assert_eq!(lan.daemon.json(["node", "show", name])?["state"], "up");
        shell(&mut machine, "echo a-letter > /root/letter && sync")?;

        // The daemon starts anew under a machine that runs.
        lan.daemon.kill()?;
        lan.daemon.restart()?;
        write_and_read(&mut machine)?;

        // Somebody who asks in its name does not get its disk.
        let said = script(&lan, number)?;
        assert!(
            said.contains("is up") && !said.contains("sanboot"),
            "{said}"
        );
        write_and_read(&mut machine)?;

        // The machine breaks, and another one that was just found takes its place.
        machine.pull_plug()?;
        let other = number + 10;
        let said = script(&lan, other)?;
        assert!(said.contains("waits as node"), "{said}");
        let mac = Lan::mac(other);
        lan.daemon
            .run(["node", "replace", name, "--mac", &mac, "--force"])?;
        let mut machine = lan.power_on(name, other, firmware)?;
        lan.log_in(&mut machine, "rootstock")?;
        assert_eq!(shell(&mut machine, "cat /root/letter")?, "a-letter");
        boots::power_off(machine)?;
    }
    lan.daemon.stop()
}

/// Systems whose initrd, made by either tool, cannot log in, and which have nothing of
/// iSCSI besides: their kernels are started with an initrd that can.
#[test]
fn systems_without_an_initiator_are_given_one() -> Result<()> {
    let mut lan = Lan::new("dhcp", TARGET)?;
    for (name, number, firmware, golden, chap) in [
        ("tools", 1, Firmware::Bios, Golden::Debian, "yes"),
        ("dracut", 2, Firmware::UefiPxe, Golden::Dracut, "no"),
    ] {
        lan.import(name, &boots::image(golden)?)?;
        lan.add_node(name, number, name)?;
        lan.daemon
            .run(["node", "set", name, "--mode", "iscsi", "--chap", chap])?;
        let mut machine = lan.power_on(name, number, firmware)?;
        lan.log_in(&mut machine, "rootstock")?;
        reach(&lan, name, "up")?;
        let names: Vec<_> = steps(&lan, name)?.into_iter().map(|step| step.0).collect();
        for step in ["kernel-served", "initrd-served", "iscsi"] {
            assert!(names.contains(&step.to_owned()), "no {step} in {names:?}");
        }
        let root = shell(
            &mut machine,
            "lsblk -no TRAN $(findmnt -no SOURCE / | tr -d 0-9)",
        )?;
        assert_eq!(root, "iscsi");
        let programs = "command -v iscsid iscsiadm iscsistart || echo none";
        assert_eq!(shell(&mut machine, programs)?, "none");
        shell(&mut machine, "echo a-letter > /root/letter && sync")?;

        // What logs in again outlives the initrd.
        lan.daemon.kill()?;
        lan.daemon.restart()?;
        write_and_read(&mut machine)?;

        boots::power_off(machine)?;
        let mut machine = lan.power_on(name, number, firmware)?;
        lan.log_in(&mut machine, "rootstock")?;
        assert_eq!(shell(&mut machine, "cat /root/letter")?, "a-letter");
        boots::power_off(machine)?;
    }
    lan.daemon.stop()
}

/// What a machine is told that asks for its script.
fn script(lan: &Lan, number: u8) -> Result<String> {
    let script = format!("http://{SERVER}:8480/boot/ipxe/{}", Lan::mac(number));
    let mut curl = lan.namespace.command("curl");
    tool::run_command(curl.args(["-s", &script]))
}

/// What a frozen machine wrote is gone at its next boot, and a new version is there.
#[test]
fn a_frozen_system_is_fresh_at_every_boot() -> Result<()> {
    let mut lan = Lan::new("dhcp", TARGET)?;
    lan.import("tools", &boots::image(Golden::Iscsi)?)?;
    lan.add_node("pc", 1, "tools")?;
    lan.daemon
        .run(["node", "set", "pc", "--mode", "iscsi-frozen"])?;
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    lan.log_in(&mut machine, "rootstock")?;
    shell(&mut machine, "echo a-letter > /root/letter && sync")?;
    // What this one has becomes the next version, which it boots next.
    let made = lan.daemon.json(["node", "commit", "pc", "tools"])?;
    assert_eq!(made["version"], 2, "{made}");
    shell(&mut machine, "echo another > /root/letter && sync")?;
    machine.pull_plug()?;
    for _ in 0..2 {
        let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
        lan.log_in(&mut machine, "rootstock")?;
        assert_eq!(shell(&mut machine, "cat /root/letter")?, "a-letter");
        shell(&mut machine, "echo gone > /root/letter && sync")?;
        boots::power_off(machine)?;
    }
    wait::until("pc is gone", BOOT_LIMIT, || {
        let state = &lan.daemon.json(["node", "show", "pc"])?["state"];
        Ok((state == "gone").then_some(()))
    })?;
    lan.daemon.stop()
}

/// A write that reaches the disk, and a read that comes from there.
fn write_and_read(machine: &mut PoweredOn) -> Result<()> {
    let command = "date +%N > /root/now && sync && cp /root/now /dev/shm/now \
                   && echo 3 > /proc/sys/vm/drop_caches && cmp /root/now /dev/shm/now && echo same";
    assert_eq!(shell(machine, command)?, "same");
    Ok(())
}
