//! The modes beside the usual one, `ram` and `personal`, and a server that dies while machines boot.

use std::fs;
use std::process::Command;

use anyhow::Result;
use rootstock_tests::boots::{self, ALL_READ, Peer, reach, shell};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan, SERVER};
use rootstock_tests::pxe::Firmware;
use rootstock_tests::tool;

/// The server dies while the machine fetches its image into memory, and again, for
/// good, when the machine is up.
#[test]
fn a_machine_in_ram_needs_its_server_only_to_boot() -> Result<()> {
    let mut lan = Lan::new("dhcp", "")?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    lan.add_node("pc", 1, "debian")?;
    lan.daemon.run(["node", "set", "pc", "--mode", "ram"])?;
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    reach(&lan, "pc", "session")?;
    lan.daemon.kill()?;
    lan.daemon.restart()?;
    lan.log_in(&mut machine, "pc")?;
    reach(&lan, "pc", "up")?;

    lan.daemon.kill()?;
    boots::begin_to_read(&mut machine, "/usr")?;
    machine.console.expect(ALL_READ, BOOT_LIMIT)?;
    assert_eq!(boots::disk_errors(&mut machine)?, "");
    assert_eq!(
        shell(&mut machine, "touch /root/here && echo written")?,
        "written"
    );
    boots::power_off(machine)
}

/// A personal machine keeps what it wrote, and nobody else comes to it. The server
/// dies while the boot loader fetches.
#[test]
fn a_personal_machine_keeps_what_it_wrote() -> Result<()> {
    let mut lan = Lan::new("dhcp", "")?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    for (name, number) in [("pc", 1), ("other", 21)] {
        lan.add_node(name, number, "debian")?;
        lan.daemon
            .run(["node", "set", name, "--mode", "personal"])?;
    }
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    reach(&lan, "pc", "kernel-served")?;
    lan.daemon.kill()?;
    lan.daemon.restart()?;
    lan.log_in(&mut machine, "pc")?;
    let write = "echo a-letter > /root/letter && sync && cat /etc/machine-id";
    let id = shell(&mut machine, write)?;
    strangers_get_no_volume(&lan)?;
    machine.pull_plug()?;

    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    lan.log_in(&mut machine, "pc")?;
    assert_eq!(shell(&mut machine, "cat /root/letter")?, "a-letter");
    assert_eq!(shell(&mut machine, "cat /etc/machine-id")?, id);
    assert_eq!(shell(&mut machine, "hostname")?, "pc");
    boots::power_off(machine)
}

/// Another node has a volume of its own, by the name of its own boot, and no other.
fn strangers_get_no_volume(lan: &Lan) -> Result<()> {
    let other = Peer::new(lan, 21)?;
    let place = |peer: &Peer| -> Result<String> {
        let order = peer.order(&peer.session(&peer.token()?)?)?;
        let place = order.volume.expect("a personal node has a volume");
        assert!(place.tls);
        Ok(place.export)
    };
    let (earlier, export) = (place(&other)?, place(&other)?);
    assert_ne!(earlier, export);
    let trusted = lan.path("trusted");
    fs::create_dir(&trusted)?;
    let authority = lan.daemon.data().join("keys/ca.pem");
    fs::copy(authority, trusted.join("ca-cert.pem"))?;
    let open = |scheme: &str, export: &str| -> Result<bool> {
        let mut uri = format!("{scheme}://{SERVER}:8482/{export}");
        if scheme == "nbds" {
            uri.push_str(&format!("?tls-certificates={}", trusted.display()));
        }
        let mut nbdinfo: Command = other.namespace.command("nbdinfo");
        let output = tool::output(nbdinfo.args(["--size", &uri]))?;
        Ok(output.status.success())
    };
    assert!(open("nbds", &export)?, "its own, of this boot");
    for (scheme, name) in [
        ("nbd", export.as_str()),
        ("nbds", earlier.as_str()),
        ("nbds", "pc"),
        ("nbds", "volume/pc"),
        ("nbds", "session/00000000000000000000000000000000"),
        ("nbds", ""),
    ] {
        assert!(!open(scheme, name)?, "{scheme} {name}");
    }
    Ok(())
}
