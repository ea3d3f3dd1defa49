//! Imports that are killed go on where they were, and huge ones stay small.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use rootstock_tests::{Daemon, Process, disk, tool, wait};

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 384 * MIB;
const LIMIT: Duration = Duration::from_secs(120);
/// What a daemon may have taken without storing it yet: an open pack and two on
/// their way to the disk.
const UNSTORED_BYTES_MAX: u64 = 3 * 16 * MIB;
/// What has to have been stored before an import is cut off, or there would be
/// nothing to go on from.
const STORED_BYTES_MIN: u64 = 32 * MIB;
/// What an import may take whatever the disk's size.
const IMPORT_MEMORY_BYTES_MAX: u64 = 300 * MIB;

fn source(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    disk::noise(&path, DISK_BYTES, 11).unwrap();
    path
}

/// Starts an import and waits until it has sent a part of it.
fn begin(daemon: &Daemon, source: &Path) -> Child {
    let mut command = daemon.command();
    command.args(["image", "import", "lab"]).arg(source);
    let child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait::until("a part of the import", LIMIT, || {
        let open = daemon.json(["import", "list"])?;
        let sent = open["imports"][0]["added_bytes"].as_u64();
        Ok(sent.filter(|bytes| *bytes > STORED_BYTES_MIN + UNSTORED_BYTES_MAX))
    })
    .unwrap();
    child
}

fn finish(daemon: &Daemon, source: &Path) {
    let images = daemon.json(["image", "list"]).unwrap();
    assert!(
        !images["images"]
            .as_array()
            .unwrap()
            .iter()
            .any(|image| image["version_count"] != 0),
        "{images}"
    );
    let words = ["image", "import", "lab", source.to_str().unwrap()];
    let done = daemon.json(words).unwrap();
    assert_eq!(done["version"], 1, "{done}");
    let sent = done["sent_bytes"].as_u64().unwrap();
    assert!(
        sent < DISK_BYTES - STORED_BYTES_MIN,
        "it began anew: {done}"
    );
    daemon.run(["image", "verify", "lab:1"]).unwrap();
    let open = daemon.json(["import", "list"]).unwrap();
    assert!(open["imports"].as_array().unwrap().is_empty(), "{open}");
}

#[test]
fn a_killed_import_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    let source = source(dir.path());
    let mut child = begin(&daemon, &source);
    child.kill().unwrap();
    child.wait().unwrap();
    finish(&daemon, &source);
}

#[test]
fn an_interrupted_import_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    let source = source(dir.path());
    let child = begin(&daemon, &source);
    tool::run("kill", ["-INT".to_owned(), child.id().to_string()]).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("run the same command again"), "{said}");
    finish(&daemon, &source);
}

#[test]
fn an_import_finishes_when_its_daemon_is_restarted() {
    for kill in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
        let source = source(dir.path());
        let child = begin(&daemon, &source);
        if kill {
            daemon.kill().unwrap();
        } else {
            daemon.stop().unwrap();
        }
        daemon.restart().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("tried again"), "{said}");
        daemon.run(["image", "verify", "lab:1"]).unwrap();
        let copy = dir.path().join("copy.img");
        let words = ["image", "export", "lab:1", copy.to_str().unwrap()];
        daemon.run(words).unwrap();
        assert_eq!(disk::sha256(&copy).unwrap(), disk::sha256(&source).unwrap());
    }
}

#[test]
fn an_import_outlives_its_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    let source = source(dir.path());
    let child = begin(&daemon, &source);
    daemon.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("hint:"), "{said}");
    daemon.restart().unwrap();
    finish(&daemon, &source);
}

#[test]
fn a_terabyte_of_holes_costs_little() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    let path = dir.path().join("huge.img");
    let noise = dir.path().join("noise");
    disk::noise(&noise, 4 * MIB, 21).unwrap();
    let noise = std::fs::read(noise).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    for place in 0..32_u64 {
        // No two chunks alike, and no place on a chunk's start.
        let at = place * (1 << 35) + place * 4096 + 512;
        file.write_all_at(
            &noise[..(MIB + place * 10_000) as usize],
            at.min((1 << 40) - 4 * MIB),
        )
        .unwrap();
    }
    let mut command = daemon.command();
    command
        .args(["image", "import", "huge", "--json"])
        .arg(&path);
    let log = dir.path().join("import.log");
    let mut import = Process::start("the import", &mut command, &log).unwrap();
    let mut peak_bytes = 0;
    let status = wait::until("the end of the import", LIMIT, || {
        peak_bytes = import.memory_peak_bytes().unwrap_or(0).max(peak_bytes);
        Ok(import.ended()?)
    });
    assert!(status.unwrap().success(), "{}", import.log_end());
    assert!(peak_bytes < IMPORT_MEMORY_BYTES_MAX, "{peak_bytes}");
    let shown = daemon.json(["image", "show", "huge:1"]).unwrap();
    assert_eq!(shown["disk_bytes"], 1_u64 << 40);
    let out = dir.path().join("out.img");
    daemon
        .run(["image", "export", "huge:1", out.to_str().unwrap()])
        .unwrap();
    assert_eq!(std::fs::metadata(&out).unwrap().len(), 1 << 40);
    assert!(disk::allocated_bytes(&out).unwrap() < 80 * MIB);
    let back = File::open(&out).unwrap();
    let mut bytes = vec![0; MIB as usize];
    back.read_exact_at(&mut bytes, (1 << 35) + 4096 + 512)
        .unwrap();
    assert_eq!(bytes, noise[..MIB as usize]);
}
