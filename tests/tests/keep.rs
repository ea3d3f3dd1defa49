//! What is kept of a machine outlives its boots, on a disk that is found by its label.

use std::process::Command;

use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::{boots, tool};

const DISK_BYTES: u64 = 256 << 20;

#[test]
fn kept_paths_outlive_a_boot_and_nothing_else_does() {
    let desk = Desk::new(DISK_BYTES).expect("a lab");
    let lan = &desk.lan;
    let keep = [
        "node",
        "set",
        "desk",
        "--keep",
        "/root,/srv/new/data",
        "--yes",
    ];
    lan.daemon.run(keep).expect("set");
    // Nothing has the label yet: the machine comes up, and says so.
    let mut machine = desk.boot().expect("logged in");
    boots::noted(lan, "desk", &["lost at power-off", "labelled 'rootstock'"]).expect("noted");
    shell(&mut machine, "touch /root/lost && sync");
    machine.pull_plug().expect("off");

    tool::run_command(
        Command::new("mkfs.ext4")
            .args(["-q", "-L", "rootstock"])
            .arg(&desk.disk),
    )
    .expect("made");
    let mut machine = desk.boot().expect("logged in");
    // As the image has it, and writable.
    let first = shell(&mut machine, "ls -A1 /root /srv/new/data");
    assert_eq!(first, "/root:\n.bashrc\n.profile\n.ssh\n\n/srv/new/data:");
    let write = "echo mine > /root/file && echo theirs > /srv/new/data/file && touch /srv/other";
    shell(
        &mut machine,
        &format!("{write} && chmod 1751 /srv/new/data && sync"),
    );
    machine.pull_plug().expect("off");

    let mut machine = desk.boot().expect("logged in");
    let read = "cat /root/file /srv/new/data/file && stat -c %a /srv/new/data && ls /srv";
    assert_eq!(shell(&mut machine, read), "mine\ntheirs\n1751\nnew");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
}
