//! A machine keeps what it got: a real guest with a disk of its own.

use std::fs::File;
use std::path::PathBuf;

use rootstock_tests::boots;
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan};
use rootstock_tests::pxe::PoweredOn;
use rootstock_tests::wait;

/// Room for the image, twice.
const DISK_BYTES: u64 = 4 << 30;
/// What a boot from a complete disk may fetch of the image.
const SECOND_BOOT_BYTES_MAX: u64 = 1_000_000;

/// A lab with one node, `desk`, and its disk.
fn lab() -> (Lan, PathBuf) {
    let lan = Lan::new("dhcp", "").expect("a lab");
    let image = boots::image(Golden::Debian).expect("an image");
    lan.import("debian", &image).expect("imported");
    lan.add_node("desk", 5, "debian").expect("a node");
    let disk = lan.path("desk.disk");
    File::create(&disk)
        .and_then(|file| file.set_len(DISK_BYTES))
        .expect("a disk");
    (lan, disk)
}

fn boot(lan: &Lan, disk: &std::path::Path) -> PoweredOn {
    let mut machine = lan.power_on_beside_disk("desk", 5, disk).expect("on");
    boots::log_in(lan, &mut machine, "desk").expect("logged in");
    boots::reach(lan, "desk", "up").expect("up");
    machine
}

fn shell(machine: &mut PoweredOn, command: &str) -> String {
    boots::shell(machine, command).expect("the guest runs it")
}

/// Image data that the machine's last boot had fetched when it was up.
fn fetched_bytes(lan: &Lan) -> u64 {
    let log = lan.daemon.json(["node", "log", "desk"]).expect("a log");
    let steps = log["boots"][0]["steps"].as_array().expect("steps").clone();
    let up = steps.iter().find(|step| step["step"] == "up");
    up.expect("up")["bytes"].as_u64().expect("a number")
}

fn wait_complete(machine: &mut PoweredOn) {
    wait::until("the image to be complete", BOOT_LIMIT, || {
        let told = boots::shell(machine, "dmesg | grep -c 'complete on this' || true")?;
        Ok((told != "0").then_some(()))
    })
    .expect("complete");
}

#[test]
fn the_second_boot_fetches_nothing_and_a_complete_machine_needs_no_server() {
    let (mut lan, disk) = lab();
    let mut machine = boot(&lan, &disk);
    let first = fetched_bytes(&lan);
    assert!(first > SECOND_BOOT_BYTES_MAX, "{first}");
    // A disk that holds something is refused; an empty one is taken.
    shell(&mut machine, "mkfs.ext4 -q /dev/vda");
    let agent = "/run/rootstock/rootstock-agent";
    let create = format!("{agent} cache create /dev/vda");
    let refused = shell(&mut machine, &format!("{create} 2>&1 || true"));
    assert!(
        refused.contains("ext") && refused.contains("twice"),
        "{refused}"
    );
    let made = shell(&mut machine, &format!("{create} /dev/vda"));
    assert!(made.contains("is a cache"), "{made}");
    boots::power_off(machine).expect("off");

    let mut machine = boot(&lan, &disk);
    wait_complete(&mut machine);
    // Its device is not anybody else's.
    let busy = shell(&mut machine, &format!("{create} /dev/vda 2>&1 || true"));
    assert!(busy.contains("in use"), "{busy}");
    // The server goes, and everything can be read.
    lan.daemon.kill().expect("killed");
    boots::begin_to_read(&mut machine, "/usr /etc /var").expect("begun");
    machine
        .console
        .expect(boots::ALL_READ, BOOT_LIMIT)
        .expect("nothing waits for the server");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    // The plug is pulled, and the next boot needs next to nothing.
    machine.pull_plug().expect("off");
    lan.daemon.restart().expect("restarted");
    let mut machine = boot(&lan, &disk);
    let third = fetched_bytes(&lan);
    assert!(third < SECOND_BOOT_BYTES_MAX, "{third}");
    println!("image data to `up`: first boot {first} B, from a complete disk {third} B");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
}
