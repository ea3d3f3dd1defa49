//! A machine keeps what it got: a real guest with a disk of its own.

use anyhow::Result;
use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan};
use rootstock_tests::pxe::PoweredOn;
use rootstock_tests::{boots, exercise, wait};

/// Room for the image, twice.
const DISK_BYTES: u64 = 4 << 30;
/// What a boot from a complete disk may fetch of the image.
const SECOND_BOOT_BYTES_MAX: u64 = 1_000_000;

/// Tells the second version from the first.
const HAS_DRACUT: &str = "test -d /usr/lib/dracut && echo yes || echo no";

fn boot(desk: &Desk) -> PoweredOn {
    let machine = desk.boot().expect("logged in");
    boots::reach(&desk.lan, "desk", "up").expect("up");
    machine
}

/// Image data that the machine's last boot had fetched when it was up.
fn fetched_bytes(lan: &Lan) -> u64 {
    let log = lan.daemon.json(["node", "log", "desk"]).expect("a log");
    let steps = log["boots"][0]["steps"].as_array().expect("steps").clone();
    let up = steps.iter().find(|step| step["step"] == "up");
    up.expect("up")["bytes"].as_u64().expect("a number")
}

/// Waits for a line of the kernel's log with these words, which the agent writes there.
fn told(machine: &mut PoweredOn, words: &str) -> Result<String> {
    let found = wait::until(words, BOOT_LIMIT, || {
        let lines = boots::shell(machine, &format!("dmesg | grep '{words}' || true"))?;
        Ok(lines.lines().last().map(str::to_owned))
    });
    found.map_err(|error| error.context(all_told(machine)))
}

/// All that the agent wrote into the kernel's log.
fn all_told(machine: &mut PoweredOn) -> String {
    boots::shell(machine, "dmesg | grep rootstock || true").unwrap_or_default()
}

#[test]
fn the_second_boot_fetches_nothing_and_a_complete_machine_needs_no_server() {
    let mut desk = Desk::new(DISK_BYTES).expect("a lab");
    let mut machine = boot(&desk);
    let first = fetched_bytes(&desk.lan);
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

    let mut machine = boot(&desk);
    told(&mut machine, "complete on this").expect("complete");
    // Its device is not anybody else's.
    let busy = shell(&mut machine, &format!("{create} /dev/vda 2>&1 || true"));
    assert!(busy.contains("in use"), "{busy}");
    // The server goes, and everything can be read.
    desk.lan.daemon.kill().expect("killed");
    boots::begin_to_read(&mut machine, "/usr /etc /var").expect("begun");
    machine
        .console
        .expect(boots::ALL_READ, BOOT_LIMIT)
        .expect("nothing waits for the server");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    // The plug is pulled, and the next boot needs next to nothing.
    machine.pull_plug().expect("off");
    desk.lan.daemon.restart().expect("restarted");
    let mut machine = boot(&desk);
    let third = fetched_bytes(&desk.lan);
    assert!(third < SECOND_BOOT_BYTES_MAX, "{third}");
    println!("image data to `up`: first boot {first} B, from a complete disk {third} B");
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
}

#[test]
fn a_new_version_comes_by_difference_and_going_back_moves_nothing() {
    let desk = Desk::new(DISK_BYTES).expect("a lab");
    exercise::format(&desk.disk).expect("prepared");
    let mut machine = boot(&desk);
    told(&mut machine, "complete on this").expect("complete");
    let image = boots::image(Golden::Dracut).expect("an image");
    desk.lan.import("debian", &image).expect("imported");
    let predicted = wait::until("the recipe", BOOT_LIMIT, || {
        let words = ["image", "diff", "debian:1", "debian:2"];
        let diff = desk.lan.daemon.json(words)?;
        Ok(diff["recipe"]["wire_bytes"].as_u64())
    });
    let predicted = predicted.expect("a recipe");

    desk.assign("debian:2").expect("tagged");
    let line = told(&mut machine, "debian:2 is on").expect("it comes while the first runs");
    let fetched = fetched_bytes_of(&line);
    let difference = predicted.abs_diff(fetched) as f64 / predicted as f64;
    assert!(
        difference < 0.02,
        "{predicted} B were predicted, {fetched} B came"
    );
    machine.pull_plug().expect("off");
    let mut machine = boot(&desk);
    let second = fetched_bytes(&desk.lan);
    assert!(
        second < SECOND_BOOT_BYTES_MAX,
        "{second}: {}",
        all_told(&mut machine)
    );
    assert_eq!(shell(&mut machine, HAS_DRACUT), "yes");

    desk.assign("debian:1").expect("tagged");
    let line = told(&mut machine, "debian:1 is on").expect("it is there still");
    let back = fetched_bytes_of(&line);
    assert!(back < SECOND_BOOT_BYTES_MAX / 100, "{line}");
    machine.pull_plug().expect("off");
    let mut machine = boot(&desk);
    let third = fetched_bytes(&desk.lan);
    assert!(third < SECOND_BOOT_BYTES_MAX, "{third}");
    assert_eq!(
        shell(&mut machine, "ls -d /usr/lib/dracut || true")
            .lines()
            .count(),
        1
    );
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    println!(
        "version 2: {predicted} B predicted, {fetched} B fetched while version 1 ran, {second} B \
         in its first boot; going back: {back} B and {third} B"
    );
}

/// The number in `...: 123 B were fetched`.
fn fetched_bytes_of(line: &str) -> u64 {
    let words = line.split_whitespace().rev().skip(3);
    let mut numbers = words.filter_map(|word| word.parse().ok());
    numbers.next().expect("a number of bytes")
}
