//! Machines hold the image among them.

use anyhow::Result;
use rootstock_tests::desk::shell;
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan};
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::{boots, wait};
use serde_json::Value;

const NAMES: [&str; 4] = ["n1", "n2", "n3", "n4"];

fn lab(mode: &str) -> Result<Lan> {
    let lan = Lan::new("dhcp", "")?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    for (number, name) in (1..).zip(NAMES) {
        lan.add_node(name, number, "debian:1")?;
        let words = ["node", "set", name, "--swarm", mode, "--yes"];
        lan.daemon.run(words)?;
    }
    Ok(lan)
}

fn power_on(lan: &Lan) -> Result<Vec<PoweredOn>> {
    let all = (1..).zip(NAMES);
    let all: Result<Vec<PoweredOn>> = all
        .map(|(number, name)| lan.power_on(name, number, Firmware::Bios))
        .collect();
    let mut all = all?;
    for (machine, name) in all.iter_mut().zip(NAMES) {
        lan.log_in(machine, name)?;
    }
    Ok(all)
}

/// What a machine got of others, in bytes.
fn received(lan: &Lan, name: &str) -> Result<u64> {
    let node = lan.daemon.json(["node", "show", name])?;
    Ok(node["swarm"]["received_bytes"].as_u64().unwrap_or(0))
}

/// How many machines hold the rarest chunk, and how many hold any.
fn copies(lan: &Lan) -> Result<(u64, u64)> {
    let shown = lan.daemon.json(["image", "show", "debian:1"])?;
    let number = |of: &Value| of.as_u64().unwrap_or(0);
    let copies = &shown["live_copies"];
    Ok((
        number(&copies["rarest_count"]),
        number(&copies["machine_count"]),
    ))
}

#[test]
fn machines_without_disks_go_on_from_each_others_memory_when_the_head_is_gone() {
    let mut lan = lab("tls").expect("a lab");
    let mut machines = power_on(&lan).expect("all are up");
    let settled = wait::until("two copies of each chunk", BOOT_LIMIT, || {
        let (rarest, holders) = copies(&lan)?;
        Ok((rarest >= 2 && holders == 4).then_some(()))
    });
    settled.unwrap_or_else(|error| {
        let log = shell(&mut machines[0], "dmesg | grep rootstock || true");
        panic!("{error:#}: {:?}; {log}", copies(&lan))
    });
    for name in NAMES {
        let bytes = received(&lan, name).expect("told");
        println!("{name} got {bytes} B from others");
        assert!(bytes > 0, "{name}");
    }
    lan.daemon.kill().expect("killed");
    for machine in &mut machines[..2] {
        boots::begin_to_read(machine, "/usr/bin /usr/sbin /etc").expect("begun");
    }
    for machine in &mut machines[..2] {
        machine
            .console
            .expect(boots::ALL_READ, BOOT_LIMIT)
            .expect("nothing waits for the head");
        assert_eq!(boots::disk_errors(machine).expect("told"), "");
    }
}
