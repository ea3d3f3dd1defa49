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

/// Begins a rollout of a version to the machine.
fn roll_out(lan: &Lan, version: &str) -> Result<()> {
    let words = ["rollout", "start", version, "--nodes", "desk", "--yes"];
    let begun = lan.daemon.json(words)?;
    assert!(begun["rollout"].is_u64(), "{begun}");
    assert_eq!(begun["nodes"][0]["node"], "desk", "{begun}");
    Ok(())
}

/// Waits until the last rollout is in this state; answers it.
fn comes_to(lan: &Lan, state: &str, detail: &str) -> Result<Value> {
    wait::until(&format!("{state} {detail}"), BOOT_LIMIT, || {
        let rollout = lan.daemon.json(["rollout", "status"])?;
        let said = rollout["nodes"][0]["detail"].as_str().unwrap_or_default();
        let is_there = rollout["state"] == state && said.starts_with(detail);
        Ok(is_there.then_some(rollout))
    })
}

#[test]
fn a_rollout_waits_for_who_is_logged_in_and_stops_at_a_version_without_init() {
    let lan = Lan::new("dhcp", "").expect("a lab");
    let image = boots::image(Golden::Debian).expect("an image");
    lan.import("debian", &image).expect("version 1");
    let no_init = "rm /usr/sbin/init\nrm /usr/lib/systemd/systemd\n";
    let broken = changed(&lan, &image, no_init).expect("no init");
    lan.import("debian", &broken).expect("version 2");
    let good = changed(&lan, &image, "write /dev/null another\n").expect("a file more");
    lan.import("debian", &good).expect("version 3");
    lan.add_node("desk", 5, "debian:3").expect("a node");
    let words = ["node", "set", "desk", "--check", "test -d /etc", "--yes"];
    lan.daemon.run(words).expect("a check");

    let off = lan.daemon.json(["node", "reboot", "desk"]).expect("told");
    assert_eq!(off["others"][0], "desk", "it does not run: {off}");
    let mut machine = lan.power_on("desk", 5, Firmware::Bios).expect("on");
    lan.log_in(&mut machine, "desk").expect("a shell");
    runs(&lan, "debian:3").expect("the first boot");
    boots::noted(&lan, "desk", &["and the check passes"]).expect("the check ran");

    roll_out(&lan, "debian:1").expect("begins");
    comes_to(&lan, "running", "in use").expect("somebody is logged in");
    machine.console.send("exit\n").expect("leaves");
    runs(&lan, "debian:1").expect("it started anew");
    let done = comes_to(&lan, "done", "").expect("it is over");
    assert_eq!(done["counts"]["good"], 1, "{done}");

    roll_out(&lan, "debian:2").expect("begins");
    let stopped = comes_to(&lan, "stopped", "").expect("it stops itself");
    let reason = stopped["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("desk: ") && reason.contains("init"),
        "{reason}"
    );
    let abandoned = node(&lan).expect("shown")["abandoned"].clone();
    assert_eq!(abandoned["version"], "debian:2");
    assert_eq!(abandoned["instead"], "debian:1");
    runs(&lan, "debian:1").expect("it went back by itself");
    let words = ["debian:1", "debian:2 is abandoned here"];
    boots::noted(&lan, "desk", &words).expect("the transcript says why");
    let aborted = lan.daemon.json(["rollout", "abort"]).expect("ended");
    assert_eq!(aborted["counts"]["left"], 1, "{aborted}");
    let node = node(&lan).expect("shown");
    assert_eq!(node["settings"]["image"], "debian:1", "{node}");

    // Who runs can be told to start anew without a rollout.
    let check = "echo no display; false";
    let words = [
        "node",
        "set",
        "desk",
        "--check",
        check,
        "--boot-limit",
        "1m",
    ];
    lan.daemon
        .run(words.into_iter().chain(["--yes"]))
        .expect("another check");
    let told = lan.daemon.json(["node", "reboot", "desk"]).expect("told");
    assert_eq!(told["nodes"][0], "desk", "{told}");
    let words = ["the check does not pass: no display"];
    boots::noted(&lan, "desk", &words).expect("it is told why");
    drop(machine);
}
