//! Machines without disks power on and come up from an image: real firmware, real
//! iPXE and GRUB, a real Debian, with nothing beside the daemon but what is named.

use std::path::PathBuf;

use rootstock_tests::boots::{self, Peer};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, BRIDGE, Lan};
use rootstock_tests::pxe::{Firmware, PoweredOn};
use rootstock_tests::wait;

/// A name, a number and firmware for each machine that boots in its own way.
const FIRMWARES: [(&str, u8, Firmware); 3] = [
    ("bios", 1, Firmware::Bios),
    ("uefi", 2, Firmware::UefiPxe),
    ("http", 3, Firmware::UefiHttp),
];

/// Makes nodes of all firmwares and powers them on at once.
fn power_on_all(lan: &Lan) -> Vec<PoweredOn> {
    for (name, number, _) in FIRMWARES {
        lan.add_node(name, number, "debian").expect("a node");
    }
    let on = FIRMWARES.map(|(name, number, firmware)| lan.power_on(name, number, firmware));
    on.into_iter().map(|on| on.expect("on")).collect()
}

fn image(golden: Golden) -> PathBuf {
    boots::image(golden).expect("an image")
}

fn shell(machine: &mut PoweredOn, command: &str) -> String {
    boots::shell(machine, command).expect("the guest runs it")
}

/// Waits until the server has heard that the node is up.
fn expect_up(lan: &Lan, node: &str) {
    boots::reach(lan, node, "up").expect("up");
}

/// FIRMWARE: SeaBIOS with iPXE's ROM, OVMF's PXE and OVMF's HTTP boot, all with
/// nothing but the daemon on the wire.
#[test]
fn three_firmwares_boot_from_our_dhcp() {
    let mut lan = Lan::new("dhcp", "").expect("a lab");
    lan.import("debian", &image(Golden::Debian))
        .expect("imported");
    let mut identities = Vec::new();
    let mut machines = power_on_all(&lan);
    for (machine, (name, ..)) in machines.iter_mut().zip(FIRMWARES) {
        lan.log_in(machine, name).expect("logged in");
        assert_eq!(shell(machine, "hostname"), name);
        let key = shell(machine, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub");
        let id = shell(machine, "cat /etc/machine-id");
        let address = shell(
            machine,
            "ip -4 -o addr show scope global | awk '{print $4}'",
        );
        assert!(key.len() > 40 && id.len() == 32 && address.ends_with("/24"));
        identities.extend([key, id, address]);
        expect_up(&lan, name);
    }
    let all = identities.len();
    identities.sort();
    identities.dedup();
    assert_eq!(identities.len(), all, "what is a machine's own is shared");

    // The server goes and comes back; a read that needs it waits and goes on.
    let machine = &mut machines[0];
    lan.daemon.kill().expect("killed");
    machine
        .console
        .send("find /usr/share /usr/lib -type f -print0 | xargs -0 cat | sha256sum > /tmp/sum; echo all-\"\"read\n")
        .expect("sent");
    lan.daemon.restart().expect("restarted");
    machine
        .console
        .expect("all-read", BOOT_LIMIT)
        .expect("reads go on when the server is back");
    assert_eq!(shell(machine, "dmesg | grep -c 'I/O error' || true"), "0");
    // Every boot is fresh: what was written is in memory only.
    assert_eq!(
        shell(machine, "touch /root/written; ls /root/written"),
        "/root/written"
    );
}

/// A site keeps its own DHCP server; Rootstock only says how to boot.
#[test]
fn firmwares_boot_beside_a_sites_dnsmasq() {
    let lan = Lan::new("proxy", "").expect("a lab");
    let site = Peer::new(&lan, 22).expect("the site's server");
    let _dnsmasq = boots::dnsmasq(&lan, &site).expect("dnsmasq starts");
    lan.import("debian", &image(Golden::Debian))
        .expect("imported");
    let mut machines = power_on_all(&lan);
    for (machine, (name, ..)) in machines.iter_mut().zip(FIRMWARES) {
        lan.log_in(machine, name).expect("logged in");
        let address = shell(machine, "ip -4 -o addr show scope global");
        assert!(address.contains("10.77.0.1"), "{address}");
    }
}

/// Secure Boot with Microsoft's keys: Debian's shim, its signed GRUB, the image's
/// signed kernel.
#[test]
fn secure_boot_goes_through_the_signed_chain() {
    let lan = Lan::new("dhcp", "").expect("a lab");
    lan.import("debian", &image(Golden::Debian))
        .expect("imported");
    lan.add_node("secure", 4, "debian").expect("a node");
    let mut machine = lan.power_on("secure", 4, Firmware::UefiSecure).expect("on");
    lan.log_in(&mut machine, "secure").expect("logged in");
    let state = shell(&mut machine, "dmesg | grep -i 'secure boot'");
    assert!(state.to_lowercase().contains("enabled"), "{state}");
}

/// An unknown machine waits for an administrator, shows up with what it is made of,
/// and boots when it is approved.
#[test]
fn an_unknown_machine_is_held_approved_and_boots() {
    let more = format!(
        "[[network]]\ninterface = \"{BRIDGE}\"\nunknown = \"hold\"\nnames = \"seat[01-20]\"\nprofile = \"lab\"\n"
    );
    let lan = Lan::new("dhcp", &more).expect("a lab");
    lan.import("debian", &image(Golden::Debian))
        .expect("imported");
    lan.daemon
        .run([
            "profile",
            "create",
            "lab",
            "--image",
            "debian",
            "--console",
            "ttyS0",
        ])
        .expect("a profile");
    let mut machine = lan.power_on("stranger", 7, Firmware::Bios).expect("on");
    wait::until("the machine to be held", BOOT_LIMIT, || {
        let nodes = lan.daemon.json(["node", "list"])?;
        let held = nodes["nodes"].as_array().into_iter().flatten();
        Ok(held
            .into_iter()
            .any(|node| node["name"] == "seat01" && node["state"] == "held")
            .then_some(()))
    })
    .expect("held");
    lan.daemon
        .run(["node", "approve", "seat01"])
        .expect("approved");
    lan.log_in(&mut machine, "seat01").expect("logged in");
    expect_up(&lan, "seat01");
}

/// The first stage is Rootstock's own, so neither the image's initrd nor its file
/// system's kind matters.
#[test]
fn images_of_other_tools_boot_the_same_way() {
    let lan = Lan::new("dhcp", "").expect("a lab");
    let kinds = [
        ("dracut", 8, Golden::Dracut),
        ("xfs", 9, Golden::Xfs),
        ("btrfs", 10, Golden::Btrfs),
    ];
    for (name, number, golden) in kinds {
        lan.import(name, &image(golden)).expect("imported");
        lan.add_node(name, number, name).expect("a node");
    }
    let mut machines: Vec<_> = kinds
        .iter()
        .map(|(name, number, _)| lan.power_on(name, *number, Firmware::Bios).expect("on"))
        .collect();
    for (machine, (name, ..)) in machines.iter_mut().zip(kinds) {
        lan.log_in(machine, name).expect("logged in");
    }
    for (machine, kind) in machines.iter_mut().zip(["ext4", "xfs", "btrfs"]) {
        assert_eq!(shell(machine, "findmnt -n -o FSTYPE /"), kind);
    }
}
