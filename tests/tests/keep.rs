//! What is kept of a machine outlives its boots, on a disk that is found by its label.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use rootstock_tests::golden::Golden;
use rootstock_tests::lan::Lan;
use rootstock_tests::pxe::PoweredOn;
use rootstock_tests::{boots, tool};

const DISK_BYTES: u64 = 256 << 20;

fn boot(lan: &Lan, disk: &Path) -> PoweredOn {
    let mut machine = lan.power_on_beside_disk("desk", 5, disk).expect("on");
    boots::log_in(lan, &mut machine, "desk").expect("logged in");
    machine
}

fn shell(machine: &mut PoweredOn, command: &str) -> String {
    boots::shell(machine, command).expect("the guest runs it")
}

#[test]
fn kept_paths_outlive_a_boot_and_nothing_else_does() {
    let lan = Lan::new("dhcp", "").expect("a lab");
    let image = boots::image(Golden::Debian).expect("an image");
    lan.import("debian", &image).expect("imported");
    lan.add_node("desk", 5, "debian").expect("a node");
    let keep = [
        "node",
        "set",
        "desk",
        "--keep",
        "/root,/srv/new/data",
        "--yes",
    ];
    lan.daemon.run(keep).expect("set");
    let disk = lan.path("desk.disk");
    File::create(&disk)
        .and_then(|file| file.set_len(DISK_BYTES))
        .expect("a disk");

    // Nothing has the label yet: the machine comes up, and says so.
    let mut machine = boot(&lan, &disk);
    boots::noted(&lan, "desk", &["lost at power-off", "labelled 'rootstock'"]).expect("noted");
    shell(&mut machine, "touch /root/lost && sync");
    machine.pull_plug().expect("off");

    tool::run_command(
        Command::new("mkfs.ext4")
            .args(["-q", "-L", "rootstock"])
            .arg(&disk),
    )
    .expect("made");
    let mut machine = boot(&lan, &disk);
    // As the image has it, and writable.
    let first = shell(&mut machine, "ls -A1 /root /srv/new/data");
    assert_eq!(first, "/root:\n.bashrc\n.profile\n.ssh\n\n/srv/new/data:");
    let write = "echo mine > /root/file && echo theirs > /srv/new/data/file && touch /srv/other";
    shell(
        &mut machine,
        &format!("{write} && chmod 1751 /srv/new/data && sync"),
    );
    machine.pull_plug().expect("off");

    let mut machine = boot(&lan, &disk);
    let read = "cat /root/file /srv/new/data/file && stat -c %a /srv/new/data && ls /srv";
    assert_eq!(shell(&mut machine, read), "mine\ntheirs\n1751\nnew");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
}
