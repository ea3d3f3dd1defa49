//! A machine and new versions: it starts anew when it is told to, and goes back by
//! itself from a version that does not come up.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan};
use rootstock_tests::pxe::Firmware;
use rootstock_tests::{boots, tool, wait};
use serde_json::Value;

/// Where the root's file system begins on the image's disk.
const ROOT: &str = "?offset=1048576";

/// A copy of the image in which `debugfs` did this, line by line, to the root's file
/// system.
fn changed(lan: &Lan, image: &Path, requests: &str) -> Result<PathBuf> {
    let copy = lan.path("changed.img");
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]);
    tool::run_command(cp.arg(image).arg(&copy))?;
    let place = format!("{}{ROOT}", copy.display());
    let script = lan.path("requests");
    std::fs::write(&script, requests)?;
    let mut debugfs = Command::new("debugfs");
    tool::run_command(debugfs.arg("-w").arg("-f").arg(&script).arg(&place))?;
    Ok(copy)
}

fn node(lan: &Lan) -> Result<Value> {
    lan.daemon.json(["node", "show", "desk"])
}

/// Waits until the machine is up with this version.
fn runs(lan: &Lan, version: &str) -> Result<()> {
    wait::until(&format!("{version} up"), BOOT_LIMIT, || {
        let node = node(lan)?;
        let is_up = node["state"] == "up" && node["boot"]["running"] == version;
        Ok(is_up.then_some(()))
    })
}

/// Assigns a version, and has the machine start anew.
fn moves_to(lan: &Lan, version: &str) -> Result<()> {
    let words = ["node", "set", "desk", "--image", version, "--yes"];
    lan.daemon.run(words)?;
    let told = lan.daemon.json(["node", "reboot", "desk"])?;
    assert_eq!(told["nodes"][0], "desk", "{told}");
    Ok(())
}

#[test]
fn a_version_without_init_is_abandoned_and_a_good_one_comes_up() {
    let lan = Lan::new("dhcp", "").expect("a lab");
    let image = boots::image(Golden::Debian).expect("an image");
    lan.import("debian", &image).expect("version 1");
    let no_init = "rm /usr/sbin/init\nrm /usr/lib/systemd/systemd\n";
    let broken = changed(&lan, &image, no_init).expect("no init");
    lan.import("debian", &broken).expect("version 2");
    let good = changed(&lan, &image, "write /dev/null another\n").expect("a file more");
    lan.import("debian", &good).expect("version 3");
    lan.add_node("desk", 5, "debian:3").expect("a node");

    let off = lan.daemon.json(["node", "reboot", "desk"]).expect("told");
    assert_eq!(off["others"][0], "desk", "it does not run: {off}");
    let machine = lan.power_on("desk", 5, Firmware::Bios).expect("on");
    runs(&lan, "debian:3").expect("the first boot");
    moves_to(&lan, "debian:1").expect("told");
    runs(&lan, "debian:1").expect("it started anew");

    moves_to(&lan, "debian:2").expect("told");
    let abandoned = wait::until("the end of version 2", BOOT_LIMIT, || {
        let abandoned = node(&lan)?["abandoned"].clone();
        Ok(abandoned.is_object().then_some(abandoned))
    });
    let abandoned = abandoned.expect("it says so");
    assert_eq!(abandoned["version"], "debian:2");
    assert_eq!(abandoned["instead"], "debian:1");
    let reason = abandoned["reason"].as_str().expect("a reason");
    assert!(reason.contains("init"), "{reason}");
    runs(&lan, "debian:1").expect("it went back by itself");
    let words = ["debian:1", "debian:2 is abandoned here"];
    boots::noted(&lan, "desk", &words).expect("the transcript says why");
    drop(machine);
}
