//! A machine's cache under a real kernel whose machine loses its power.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rootstock_tests::guest::Kernel;
use rootstock_tests::kernel::SmallGuest;
use rootstock_tests::logged::{self, Loss};
use rootstock_tests::{Guest, GuestOptions, exercise};

const DISK_BYTES: u64 = 48 << 20;
const LIMIT: Duration = Duration::from_secs(240);
/// How often the plug is pulled, unless `ROOTSTOCK_POWER_CUTS` says otherwise.
const POWER_CUTS: u64 = 12;
/// Disks that are made of one log.
const CUTS: u64 = 120;

/// A guest that checks its disk and goes on writing it; `from=` on the
/// kernel's command line says where it goes on.
const SCRIPT: &str = "\
number() { sed \"s/.*$1=\\([0-9]*\\).*/\\1/\" /proc/cmdline; }
exercise-cache /dev/vda verify 0 && exercise-cache /dev/vda run $(number from)
";

fn kernel(directory: &Path) -> Kernel {
    let program = env!("CARGO_BIN_EXE_exercise-cache");
    let script = SCRIPT.replace("exercise-cache", program);
    let guest = SmallGuest {
        modules: &["virtio_pci", "virtio_blk"],
        programs: &[program],
        script: &script,
    };
    guest.build(directory).expect("a kernel")
}

fn disk(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("disk");
    File::create(&path)
        .and_then(|file| file.set_len(DISK_BYTES))
        .expect("a disk");
    exercise::format(&path).expect("prepared");
    path
}

fn start(directory: &Path, kernel: &Kernel, disk: &str, from: u64) -> Guest {
    let mut options = GuestOptions::new("machine");
    let mut kernel = kernel.clone();
    kernel.arguments = format!("{} from={from}", kernel.arguments);
    options.kernel = Some(kernel);
    options.disks.push(disk.to_owned());
    Guest::start(&options, directory).expect("a guest")
}

/// The last number that the guest said was kept.
fn last_kept(text: &str) -> Option<u64> {
    let words = text.lines().rev().filter_map(|line| {
        let number = line.trim().strip_prefix("kept ")?.strip_suffix('.')?;
        number.parse().ok()
    });
    words.into_iter().next()
}

#[test]
fn the_plug_is_pulled_again_and_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let kernel = kernel(directory);
    let path = disk(directory);
    let words = format!(
        "driver=raw,file.driver=file,file.filename={},cache.direct=on",
        path.display()
    );
    let cuts = env::var("ROOTSTOCK_POWER_CUTS").map_or(POWER_CUTS, |text| {
        text.parse().expect("a number of power cuts")
    });
    let (mut from, mut random) = (1, 7);
    for cut in 0..cuts {
        let mut guest = start(directory, &kernel, &words, from);
        guest
            .console
            .expect("verified", LIMIT)
            .unwrap_or_else(|error| {
                panic!(
                    "after power cut {cut}: {error:#}\n{}",
                    guest.process().log_end()
                )
            });
        for _ in 0..=logged::next(&mut random) % 8 {
            guest.console.expect("kept", LIMIT).expect("it writes");
        }
        // The plug is pulled when the line is whole: it may be the only one.
        guest.console.expect(".", LIMIT).expect("it says which");
        let text = guest.console.text();
        guest.kill().expect("its plug is pulled");
        let kept = last_kept(&text).expect("something was kept");
        let right = exercise::verify(&path, from, kept);
        right.unwrap_or_else(|error| panic!("power cut {cut}: {error:#}"));
        // What came after the last word may be there: no number is used twice.
        from = kept + 1000;
    }
    println!(
        "{cuts} power cuts; the last number that was kept is {}",
        from - 1000
    );
}

#[test]
fn every_disk_that_a_cut_may_leave_is_right() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let kernel = kernel(directory);
    let path = disk(directory);
    let before = fs::read(&path).expect("the disk");
    let log = directory.join("log");
    File::create(&log).expect("a log");
    let words = format!(
        "driver=blklogwrites,file.driver=file,file.filename={},log.driver=file,log.filename={}",
        path.display(),
        log.display()
    );
    let mut guest = start(directory, &kernel, &words, 1);
    for _ in 0..20 {
        guest.console.expect("kept", LIMIT).expect("it writes");
    }
    guest.kill().expect("its plug is pulled");
    let entries = logged::read(&log).expect("a log");
    let flushes = entries
        .iter()
        .filter(|entry| matches!(entry, logged::Entry::Flush))
        .count();
    assert!(
        flushes > 20,
        "{flushes} flushes of {} entries",
        entries.len()
    );
    let mut random = 11;
    let cut = directory.join("cut");
    for _ in 0..CUTS {
        let count = 1 + (logged::next(&mut random) as usize) % (entries.len() - 1);
        for loss in [Loss::All, Loss::None, Loss::Whole, Loss::Torn] {
            let seed = logged::next(&mut random);
            let left = logged::after_cut(&before, &entries, count, loss, seed);
            fs::write(&cut, left).expect("a disk");
            let right = exercise::verify(&cut, 1, 0);
            right.unwrap_or_else(|error| {
                panic!(
                    "{loss:?} lost after {count} of {} entries: {error:#}",
                    entries.len()
                )
            });
        }
    }
}
