//! What a boot withstands: strangers with its token, plug-ins that fail, a network that goes away.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rootstock_api::boot::CHUNKS;
use rootstock_core::ChunkId;
use rootstock_tests::boots::{self, ALL_READ, Peer, bearer, noted, shell, token_of};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, BRIDGE, Lan, SERVER};
use rootstock_tests::pxe::{Firmware, PoweredOn};

/// Another image's only chunk, in bytes.
const SECRET_BYTES: usize = 256 << 10;

/// Whoever has a token that is not its own, or was used, gets nothing by it; and
/// whoever has a session gets nothing of another image or node.
#[test]
fn a_token_is_good_once_and_a_session_for_its_own_machine() -> Result<()> {
    let lan = Lan::new("dhcp", "")?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    let secret: Vec<u8> = (0..SECRET_BYTES).map(|at| (at % 251) as u8).collect();
    fs::write(lan.path("secret.img"), &secret)?;
    lan.import("secret", &lan.path("secret.img"))?;
    let (owner, thief) = (Peer::new(&lan, 20)?, Peer::new(&lan, 21)?);
    lan.add_node("owner", 20, "debian")?;
    lan.add_node("thief", 21, "debian")?;

    let token = owner.token()?;
    for part in ["kernel", "initrd"] {
        let url = format!("http://{SERVER}:8480/boot/s/{token}/{part}");
        assert_eq!(thief.curl(&["-I", &url])?.status, 403, "{part}");
        assert_eq!(owner.curl(&["-I", &url])?.status, 200, "{part}");
    }
    for mac in [&owner.mac, &thief.mac] {
        let answer = thief.redeem(&token, mac)?;
        assert_eq!(answer.status, 403, "{answer:?}");
        assert!(
            answer.body.contains("given to another address"),
            "{answer:?}"
        );
    }
    noted(&lan, "owner", &["refused 10.77.0.21", "another address"])?;
    // Nor is the owner's own token taken away by asking for its script.
    let script = thief.script(&owner.mac)?;
    assert!(script.contains("on its way or up"), "{script}");
    assert_eq!(token_of(&script), None, "{script}");
    noted(&lan, "owner", &["refused 10.77.0.21", "script"])?;

    let session = owner.session(&token)?;
    let again = owner.redeem(&token, &owner.mac)?;
    assert_eq!(again.status, 403, "{again:?}");
    assert!(again.body.contains("was used before"), "{again:?}");
    noted(&lan, "owner", &["refused 10.77.0.20", "used before"])?;
    assert_eq!(owner.redeem("0123", &owner.mac)?.status, 403);
    assert_eq!(owner.ask_order("0123")?.status, 401);
    assert_eq!(owner.order(&session)?.node, "owner");

    let own = thief.session(&thief.token()?)?;
    assert_eq!(thief.order(&own)?.node, "thief");
    let id = ChunkId::of(&secret);
    fs::write(lan.path("id"), id.as_bytes())?;
    let ids = format!("@{}", lan.path("id").display());
    let url = format!("http://{SERVER}:8480{CHUNKS}");
    let answer = thief.curl(&["-H", &bearer(&own), "--data-binary", &ids, &url])?;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.body.contains("none of debian:1"), "{answer:?}");
    noted(&lan, "thief", &["chunks of another version"])?;
    // The owner's session is what it was.
    assert_eq!(owner.order(&session)?.node, "owner");
    Ok(())
}

/// Plug-ins that do all that they must not, and one that is as it should be.
fn plugins(directory: &Path) -> Result<()> {
    let plugin = |name: &str, text: &str| -> Result<()> {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(())
    };
    plugin(
        "hangs",
        &format!(
            // That the machine is up is told to it too, at any time.
            "[ \"$1\" = node-booting ] || exit 0\necho $$ > {}/hung; exec sleep 3600",
            directory.display()
        ),
    )?;
    plugin("rubbish", "echo '<html>'")?;
    plugin("fails", "echo 'no database' >&2; exit 3")?;
    plugin("floods", "head -c 2097152 /dev/zero")?;
    let answer = r#"{"kernel_arguments": ["lab.colour=green"],
        "files": [{"path": "/etc/lab-room", "mode": 420, "text": "room 12\n"}],
        "host_name": "desk-1", "address": "10.77.0.77",
        "hosts": ["10.77.0.2 printer"]}"#;
    plugin(
        "works",
        &format!("[ \"$1\" = node-booting ] || exit 0\ncat << 'END'\n{answer}\nEND"),
    )
}

/// One machine: bad plug-ins when it boots, a thief when it is up, no network for a
/// while, and a shutdown.
#[test]
fn a_boot_withstands_bad_plugins_thieves_and_a_cut_cable() -> Result<()> {
    let directory = tempfile::tempdir()?;
    plugins(directory.path())?;
    let more = format!("plugins = \"{}\"", directory.path().display());
    let lan = Lan::new("dhcp", &more)?;
    lan.import("debian", &boots::image(Golden::Debian)?)?;
    lan.add_node("pc", 1, "debian")?;
    let thief = Peer::new(&lan, 21)?;
    let mut machine = lan.power_on("pc", 1, Firmware::Bios)?;
    lan.log_in(&mut machine, "desk-1")?;

    plugins_were_heard(&lan, directory.path(), &mut machine)?;
    thief_gets_nothing(&lan, &thief, &mut machine)?;
    cable_is_cut(&lan, &mut machine)?;

    boots::power_off(machine)
}

fn plugins_were_heard(lan: &Lan, directory: &Path, machine: &mut PoweredOn) -> Result<()> {
    let line = shell(machine, "cat /proc/cmdline")?;
    assert!(line.contains(" lab.colour=green"), "{line}");
    assert_eq!(shell(machine, "cat /etc/lab-room")?, "room 12");
    assert_eq!(shell(machine, "stat -c %a /etc/lab-room")?, "644");
    assert_eq!(shell(machine, "hostname")?, "desk-1");
    let hosts = shell(machine, "cat /etc/hosts")?;
    assert!(hosts.contains("10.77.0.2 printer"), "{hosts}");
    let address = shell(machine, "ip -4 -o addr show scope global")?;
    assert!(address.contains("10.77.0.77/24"), "{address}");
    for (name, reason) in [
        ("hangs", "longer than 5 s and was killed"),
        ("rubbish", "not understood"),
        ("fails", "no database"),
        ("floods", "more than 1048576 bytes"),
    ] {
        noted(lan, "pc", &[&format!("plug-in {name} left out"), reason])?;
    }
    let hung = fs::read_to_string(directory.join("hung"))?;
    let process = Path::new("/proc").join(hung.trim());
    ensure!(!process.exists(), "a plug-in that hung still runs");
    Ok(())
}

fn thief_gets_nothing(lan: &Lan, thief: &Peer, machine: &mut PoweredOn) -> Result<()> {
    let line = shell(machine, "cat /proc/cmdline")?;
    let token = token_of(&line).context("a token on the command line")?;
    for mac in [Lan::mac(1), thief.mac.clone()] {
        assert_eq!(thief.redeem(&token, &mac)?.status, 403);
    }
    for part in ["kernel", "initrd"] {
        let url = format!("http://{SERVER}:8480/boot/s/{token}/{part}");
        assert_eq!(thief.curl(&["-I", &url])?.status, 403, "{part}");
    }
    let script = thief.script(&Lan::mac(1))?;
    assert!(script.contains("on its way or up"), "{script}");
    noted(lan, "pc", &["refused 10.77.0.21", "boot token"])?;
    noted(lan, "pc", &["refused 10.77.0.21", "boot files"])?;
    noted(lan, "pc", &["refused 10.77.0.21", "script"])
}

/// The cable is out while the machine reads: it says so, waits, and loses nothing.
fn cable_is_cut(lan: &Lan, machine: &mut PoweredOn) -> Result<()> {
    lan.namespace.ip("link set tap1 nomaster")?;
    boots::begin_to_read(machine, "/usr/lib/x86_64-linux-gnu")?;
    machine
        .console
        .expect("the root's server does not answer", BOOT_LIMIT)?;
    lan.namespace
        .ip(&format!("link set tap1 master {BRIDGE}"))?;
    machine
        .console
        .expect("the root's server answers again", BOOT_LIMIT)?;
    machine.console.expect(ALL_READ, BOOT_LIMIT)?;
    assert_eq!(boots::disk_errors(machine)?, "");
    Ok(())
}
