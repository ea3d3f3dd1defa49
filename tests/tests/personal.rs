//! What is written on a machine's own disk stays there, whole, and becomes a version
//! while the machine runs.

use std::process::Command;
use std::time::Duration;

use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::{boots, tool, wait};

const DISK_BYTES: u64 = 512 << 20;
/// The longest until a machine says that its disk fills.
const WARNING_LIMIT: Duration = Duration::from_secs(60);
/// Where the root's file system begins on the image's disk.
const ROOT: &str = "?offset=1048576";

#[test]
fn writes_outlive_power_cuts_and_become_a_version_of_a_machine_that_runs_on() {
    let desk = Desk::new(DISK_BYTES).expect("a lab");
    let lan = &desk.lan;
    let set = |words: &[&str]| {
        let words = [&["node", "set", "desk", "--yes"], words].concat();
        lan.daemon.run(words).expect("set");
    };
    set(&["--mode", "personal", "--personal", "disk"]);
    tool::run_command(
        Command::new("mkfs.ext4")
            .args(["-q", "-L", "rootstock"])
            .arg(&desk.disk),
    )
    .expect("made");

    let mut machine = desk.boot().expect("logged in");
    shell(&mut machine, "echo mine > /root/file && sync");
    let grow = "(while :; do head -c 9000 /dev/urandom >> /root/growing; sync; done) & echo $!";
    let writer = shell(&mut machine, grow);
    let words = ["node", "commit", "desk", "lab", "--tag", "test"];
    let committed = lan.daemon.json(words).expect("a version");
    assert_eq!(committed["version"], 1, "{committed}");
    let added = committed["added_bytes"].as_u64().expect("bytes");
    assert!(added < 64 << 20, "only what was written: {committed}");
    shell(
        &mut machine,
        &format!("kill {writer}; tail -c 1 /root/growing > /dev/null"),
    );
    // It is a disk that was shut down in order.
    let out = lan.path("lab.img");
    let file = out.display().to_string();
    lan.daemon
        .run(["image", "export", "lab:1", &file])
        .expect("exported");
    let root = format!("{file}{ROOT}");
    tool::run_command(Command::new("e2fsck").args(["-fn", &root])).expect("whole");
    let mut cat = Command::new("debugfs");
    let read = tool::output(cat.args(["-R", "cat /root/file", &root])).expect("read");
    assert_eq!(String::from_utf8_lossy(&read.stdout), "mine\n");

    // A full disk is a full file system, and the machine says before that it fills.
    let fill = "dd if=/dev/zero of=/root/fill bs=1M 2>&1 | grep -o 'No space left on device'";
    let said = shell(&mut machine, fill);
    // What it says of that may come between.
    let is_full = said.lines().any(|line| line == "No space left on device");
    assert!(is_full, "{said}");
    wait::until("a warning", WARNING_LIMIT, || {
        let warnings = "dmesg | grep -o 'writes is [0-9]* % full' || true";
        let told = shell(&mut machine, warnings);
        Ok(told.contains("% full").then_some(()))
    })
    .expect("it is told");
    shell(
        &mut machine,
        "rm /root/fill && sync && echo here > /root/other && sync",
    );
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    machine.pull_plug().expect("off");

    let mut machine = desk.boot().expect("logged in");
    let read = "cat /root/file /root/other";
    assert_eq!(shell(&mut machine, read), "mine\nhere");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    set(&["--image", "lab@test"]);
    boots::power_off(machine).expect("off");

    // The version has what was written until then, and writes of its own.
    let mut machine = desk.boot().expect("logged in");
    let list = "ls -1 /root";
    assert_eq!(shell(&mut machine, list), "file\ngrowing");
    let node = lan.daemon.json(["node", "show", "desk"]).expect("shown");
    assert_eq!(node["boot"]["running"], "lab:1", "{node}");
    set(&["--image", "debian:1"]);
    lan.daemon.run(["node", "reset", "desk"]).expect("told");
    machine.pull_plug().expect("off");

    let mut machine = desk.boot().expect("logged in");
    assert_eq!(shell(&mut machine, list), "");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
}
