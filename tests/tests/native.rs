//! A machine that has its image whole reads it as the disk does, and what it writes is gone with its power.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use rootstock_tests::desk::{Desk, shell};
use rootstock_tests::lan::BOOT_LIMIT;
use rootstock_tests::pxe::PoweredOn;
use rootstock_tests::{boots, exercise, wait};

const DISK_BYTES: u64 = 3 << 30;
/// What of it is for writes.
const WRITES_BYTES: u64 = 256 << 20;
/// What stands in a file that must not be found on the disk.
const SECRET: &str = "what the user wrote";

/// Reads all programs of the image from the disk, whatever is in memory.
const READ_ALL: &str = "echo 3 > /proc/sys/vm/drop_caches; \
    find /usr/bin /usr/sbin -xdev -type f -print0 | sort -z | xargs -0 cat | sha256sum";
/// Sectors that were read through the agent since the machine was switched on.
const AGENT_SECTORS: &str = "awk '{ print $3 }' /sys/block/nbd0/stat";

/// A digest that the guest prints, beside what its console is told meanwhile.
fn digest(machine: &mut PoweredOn, command: &str) -> String {
    let said = shell(machine, command);
    let mut words = said.split_whitespace();
    let digest = words.find(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()));
    digest
        .unwrap_or_else(|| panic!("no digest: {said}"))
        .to_owned()
}

fn number(machine: &mut PoweredOn, command: &str) -> u64 {
    shell(machine, command).parse().expect("a number")
}

/// Waits until the kernel reads the root itself, all of it.
fn native(machine: &mut PoweredOn) -> Result<String> {
    let told = wait::until("the root is native", BOOT_LIMIT, || {
        let words = "dmesg | grep '^.*100 % of the root are read from /dev/vda' || true";
        let lines = boots::shell(machine, words)?;
        Ok(lines.lines().last().map(str::to_owned))
    });
    told.map_err(|error| {
        let all = boots::shell(machine, "dmesg | grep rootstock || true");
        error.context(all.unwrap_or_default())
    })
}

/// Whether bytes stand anywhere on the disk from there on.
fn is_on_disk(disk: &Path, from: u64, bytes: &[u8]) -> Result<bool> {
    let mut file = File::open(disk)?;
    file.seek(SeekFrom::Start(from))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    assert!(rest.iter().any(|byte| *byte != 0), "nothing was written");
    Ok(rest.windows(bytes.len()).any(|window| window == bytes))
}

/// Changes a byte in some of the slots that hold something.
fn alter(disk: &Path, cache_end: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(disk)?;
    let mut left = 3;
    for at in (DISK_BYTES / 64..cache_end).step_by(16 << 20) {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, at)?;
        if left > 0 && bytes.iter().any(|byte| *byte != 0) {
            bytes[100] ^= 1;
            file.write_all_at(&bytes, at)?;
            left -= 1;
        }
    }
    assert_eq!(left, 0, "the disk is empty");
    Ok(())
}

#[test]
fn a_complete_machine_reads_past_the_agent_and_its_writes_die_with_it() {
    let desk = Desk::new(DISK_BYTES).expect("a lab");
    let disk = &desk.disk;
    let cache_end = exercise::format_part(disk, WRITES_BYTES).expect("prepared");
    let mut machine = desk.boot().expect("logged in");
    // The first boot's reads, from wherever they came.
    let first = digest(&mut machine, READ_ALL);
    let told = native(&mut machine).expect("native");
    println!("{told}");
    // The same bytes, and none of them by the agent.
    let before = number(&mut machine, AGENT_SECTORS);
    assert_eq!(digest(&mut machine, READ_ALL), first);
    assert_eq!(number(&mut machine, AGENT_SECTORS), before);

    // Memory's share, and then a secret that goes to the disk.
    let write = "dd if=/dev/urandom of=/root/noise bs=1M count=130 conv=fsync 2>&1 | tail -1";
    shell(&mut machine, write);
    let secret = format!("yes '{SECRET}' | head -c 20M > /root/secret && sync");
    shell(&mut machine, &secret);
    assert!(!is_on_disk(disk, cache_end, SECRET.as_bytes()).expect("read"));
    // A full overlay is a full file system, and the machine goes on.
    let fill = "dd if=/dev/urandom of=/root/rest bs=1M 2>&1; sync; df -m / | tail -1";
    let full = shell(&mut machine, fill);
    assert!(full.contains("No space left"), "{full}");
    let all = digest(&mut machine, "sha256sum /root/secret");
    let again = "echo 3 > /proc/sys/vm/drop_caches; sha256sum /root/secret";
    assert_eq!(digest(&mut machine, again), all);
    // What is deleted can be used again.
    shell(&mut machine, "rm /root/rest && sync");
    wait::until("there is room again", BOOT_LIMIT, || {
        let write = "dd if=/dev/urandom of=/root/more bs=1M count=4 conv=fsync 2>&1 || true";
        let said = boots::shell(&mut machine, write)?;
        Ok((!said.contains("No space left")).then_some(()))
    })
    .expect("room");
    assert_eq!(digest(&mut machine, READ_ALL), first);
    assert_eq!(boots::disk_errors(&mut machine).expect("told"), "");
    let warned = shell(&mut machine, "dmesg | grep -c '% full' || true");
    assert_ne!(warned, "0");

    machine.pull_plug().expect("off");
    // Somebody wrote to the disk: that does not outlive the boot either.
    alter(&desk.disk, cache_end).expect("altered");
    let mut machine = desk.boot().expect("logged in");
    assert_eq!(shell(&mut machine, "ls /root"), "");
    native(&mut machine).expect("native again");
    let found = shell(
        &mut machine,
        "dmesg | grep -c 'other bytes than were written' || true",
    );
    println!("{found} chunks were found to be altered");
    assert_ne!(found, "0");
    let before = number(&mut machine, AGENT_SECTORS);
    assert_eq!(digest(&mut machine, READ_ALL), first);
    assert_eq!(number(&mut machine, AGENT_SECTORS), before);
    let agent = before * 512;
    println!("{agent} B of the second boot were read through the agent");
}
