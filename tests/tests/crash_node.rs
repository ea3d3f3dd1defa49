//! A whole node whose machine loses its power again and again: while it boots, while it
//! fills its disk, and while it takes another version.

use std::env;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::disk::FIRST_PARTITION_BYTES;
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::BOOT_LIMIT;
use rootstock_tests::{boots, exercise, logged, tool, wait};

/// Room for both versions.
const DISK_BYTES: u64 = 3 << 30;
/// How often the plug is pulled, unless `ROOTSTOCK_POWER_CUTS` says otherwise.
const POWER_CUTS: u64 = 2;
/// An emulated machine is up after half of this, and has fetched before the end what
/// another version has more.
const MOMENT_MS_MAX: u64 = 150_000;
/// It is told to run another version while it boots.
const TOLD: Duration = Duration::from_secs(20);

/// The digest of what the kernel reads below the machine's own writes.
const ROOT_DIGEST: &str = "sha256sum < /dev/$(grep -l rootstock-base /sys/block/dm-*/dm/name | \
    cut -d/ -f4)";

#[test]
fn the_plug_is_pulled_at_any_moment() {
    let mut desk = Desk::new(DISK_BYTES).expect("a lab");
    exercise::format(&desk.disk).expect("prepared");
    // Once it is up: what was good there is what the node may always go back to.
    let machine = desk.boot().expect("logged in");
    boots::reach(&desk.lan, "desk", "up").expect("up");
    machine.pull_plug().expect("off");
    let image = boots::image(Golden::Dracut).expect("an image");
    desk.lan.import("debian", &image).expect("imported");

    let cuts = env::var("ROOTSTOCK_POWER_CUTS").map_or(POWER_CUTS, |text| {
        text.parse().expect("a number of power cuts")
    });
    let mut random = 28;
    for cut in 1..=cuts {
        let moment = Duration::from_millis(logged::next(&mut random) % MOMENT_MS_MAX);
        let version = format!("debian:{}", 1 + logged::next(&mut random) % 2);
        let machine = desk
            .lan
            .power_on_beside_disk("desk", 5, &desk.disk)
            .expect("on");
        let on_at = Instant::now();
        pass(on_at + moment.min(TOLD));
        desk.assign(&version).expect("tagged");
        pass(on_at + moment);
        let text = machine.console.text();
        machine.pull_plug().expect("off");
        assert!(!text.contains("Kernel panic"), "power cut {cut}: {text}");
        let chunks = exercise::verify(&desk.disk, 1, 0)
            .unwrap_or_else(|error| panic!("power cut {cut} after {moment:?}: {error:#}"));
        let at = if text.contains("login: ") {
            "at its prompt"
        } else {
            "while it boots"
        };
        println!(
            "power cut {cut} after {moment:.1?}, {at}, told to run {version}: {chunks} chunks are whole"
        );
    }

    desk.assign("debian:1").expect("tagged");
    let mut machine = desk.boot().expect("logged in");
    wait::until("all of it is on the disk", BOOT_LIMIT, || {
        let words = "dmesg | grep -c ' 100 % of the root are read from' || true";
        Ok((boots::shell(&mut machine, words)? != "0").then_some(()))
    })
    .expect("complete");
    desk.lan.daemon.kill().expect("killed");
    let digest = shell(&mut machine, ROOT_DIGEST);
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    machine.pull_plug().expect("off");
    desk.lan.daemon.restart().expect("restarted");
    let expected = partition_digest(&desk).expect("a digest");
    assert!(digest.contains(&expected), "{digest} is not {expected}");
    println!("{cuts} power cuts, and the disk is what the version is");
}

/// Lets time pass, until then.
fn pass(until: Instant) {
    wait::until("the moment", BOOT_LIMIT, || {
        Ok((Instant::now() >= until).then_some(()))
    })
    .expect("time passes");
}

/// The digest of the first version's root, as the daemon has it.
fn partition_digest(desk: &Desk) -> Result<String> {
    let path = desk.lan.path("exported.img");
    let text = path.to_str().context("the path is text")?;
    desk.lan.daemon.run(["image", "export", "debian:1", text])?;
    digest_from(&path, FIRST_PARTITION_BYTES)
}

/// The digest of a file from there on.
fn digest_from(path: &Path, start_bytes: u64) -> Result<String> {
    let mut sum = std::process::Command::new("sh");
    let line = format!("tail --bytes=+{} \"$0\" | sha256sum", start_bytes + 1);
    let told = tool::run_command(sum.args(["-ec", &line]).arg(path))?;
    let digest = told.split_whitespace().next();
    digest.map(str::to_owned).context("sha256sum said nothing")
}
