//! A full disk in the middle of an import, a guest's write and a commit: said clearly, nothing lost, and on it goes when there is space.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use rootstock_tests::mount::SmallDisk;
use rootstock_tests::{Daemon, DaemonOptions, disk, peer};
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;
const SMALL_DISK_BYTES: u64 = 192 * MIB;
const BASE_BYTES: u64 = 32 * MIB;
/// Fits on the empty disk, and does not when that is nearly full.
const LARGE_BYTES: u64 = 64 * MIB;

/// A daemon whose data is on a small disk.
struct Fixture {
    // In the order of dropping: the daemon ends before its disk goes.
    daemon: Daemon,
    disk: SmallDisk,
    directory: TempDir,
}

impl Fixture {
    /// With the image `base` in it.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let disk = SmallDisk::mount(&at("small.img"), &at("mount"), SMALL_DISK_BYTES).unwrap();
        let mut options = DaemonOptions::new(&at("run")).unwrap();
        options.data = disk.path().join("data");
        let daemon = Daemon::start_with(options).unwrap();
        let fixture = Self {
            daemon,
            disk,
            directory,
        };
        let base = fixture.noise("base.img", BASE_BYTES, 1);
        fixture.import("base", &base);
        fixture
    }

    fn noise(&self, name: &str, len_bytes: u64, seed: u64) -> PathBuf {
        let path = self.directory.path().join(name);
        disk::noise(&path, len_bytes, seed).unwrap();
        path
    }

    fn import(&self, name: &str, source: &Path) {
        self.daemon
            .run(["image", "import", name, source.to_str().unwrap()])
            .unwrap();
    }

    /// The command fails, says that space is what lacks, and the daemon lives on.
    fn refused_for_space(&self, words: &[&str]) {
        let said = self.daemon.refused(words).unwrap();
        let lower = said.to_lowercase();
        assert!(lower.contains("space") || lower.contains("full"), "{said}");
        assert!(!lower.contains("panic"), "{said}");
        self.daemon.json(["image", "list"]).unwrap();
    }

    /// Everything in the store is what it was.
    fn verify(&self, image: &str) {
        self.daemon.run(["image", "verify", image]).unwrap();
    }

    fn check_export(&self, export: &str, expected: &Path) {
        let copy = self.directory.path().join("copy.img");
        let uri = self.daemon.nbd_uri(export);
        rootstock_tests::tool::run("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]).unwrap();
        assert_eq!(
            disk::sha256(&copy).unwrap(),
            disk::sha256(expected).unwrap()
        );
    }
}

#[test]
fn an_import_stops_and_goes_on() {
    let mut fixture = Fixture::new();
    let large = fixture.noise("large.img", LARGE_BYTES, 2);
    fixture.disk.fill(LARGE_BYTES / 2).unwrap();
    fixture.refused_for_space(&["image", "import", "large", large.to_str().unwrap()]);
    let said = fixture
        .daemon
        .refused(["image", "show", "large:1"])
        .unwrap();
    assert!(said.contains("large"), "{said}");
    fixture.verify("base:1");

    fixture.disk.empty().unwrap();
    fixture.import("large", &large);
    for image in ["base:1", "large:1"] {
        fixture.verify(image);
    }
    fixture.check_export("image/large:1", &large);
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_guests_write_is_refused_and_what_it_flushed_is_kept() {
    let mut fixture = Fixture::new();
    fixture
        .daemon
        .run(["volume", "create", "guest", "--from", "base"])
        .unwrap();
    let uri = fixture.daemon.nbd_uri("volume/guest");
    let flushed = "
for place in range(4):
    h.pwrite(bytes([0x11 + place]) * 1048576, place * 1048576)
h.flush()
";
    peer::libnbd(&uri, flushed).unwrap();
    fixture.disk.fill(2 * MIB).unwrap();
    // ENOSPC is what a guest understands; the connection stays, and reads are served.
    let refused = "
import errno
try:
    for place in range(4, 32):
        h.pwrite(bytes([0x22]) * 1048576, place * 1048576)
        h.flush()
    print('not refused')
except nbd.Error as error:
    print(errno.errorcode.get(error.errnum))
for place in range(4):
    assert h.pread(1048576, place * 1048576) == bytes([0x11 + place]) * 1048576
";
    assert_eq!(peer::libnbd(&uri, refused).unwrap().trim(), "ENOSPC");

    fixture.disk.empty().unwrap();
    let again = "
for place in range(4, 32):
    h.pwrite(bytes([0x33]) * 1048576, place * 1048576)
h.flush()
";
    peer::libnbd(&uri, again).unwrap();
    // A kill shows whether it is really on the disk.
    fixture.daemon.kill().unwrap();
    fixture.daemon.restart().unwrap();
    let kept = "
for place in range(32):
    byte = 0x11 + place if place < 4 else 0x33
    assert h.pread(1048576, place * 1048576) == bytes([byte]) * 1048576, place
";
    peer::libnbd(&uri, kept).unwrap();
    fixture.verify("base:1");
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_commit_is_refused_and_the_volume_keeps_its_writes() {
    let mut fixture = Fixture::new();
    fixture
        .daemon
        .run(["volume", "create", "work", "--from", "base"])
        .unwrap();
    let uri = fixture.daemon.nbd_uri("volume/work");
    let contents = fixture.noise("contents.img", BASE_BYTES, 3);
    let contents_text = contents.to_str().unwrap();
    rootstock_tests::tool::run("nbdcopy", ["--flush", contents_text, uri.as_str()]).unwrap();
    fixture.disk.fill(4 * MIB).unwrap();
    fixture.refused_for_space(&["volume", "commit", "work", "base"]);
    fixture.daemon.refused(["image", "show", "base:2"]).unwrap();
    fixture.check_export("volume/work", &contents);

    fixture.disk.empty().unwrap();
    fixture
        .daemon
        .run(["volume", "commit", "work", "base"])
        .unwrap();
    fixture.verify("base:2");
    fixture.check_export("image/base:2", &contents);
    fixture.daemon.stop().unwrap();
}

#[test]
fn the_catalog_is_refused_its_row_and_goes_on() {
    let mut fixture = Fixture::new();
    fixture.disk.fill(0).unwrap();
    let tag = |name: &str| fixture.daemon.run(["image", "tag", "base:1", name]);
    // The write-ahead log may have room in its last block.
    let refused = (0..200).find_map(|place| tag(&format!("t{place}")).err());
    let said = refused.expect("no tag was refused").to_string();
    assert!(said.to_lowercase().contains("free space"), "{said}");

    fixture.disk.empty().unwrap();
    // Often enough to meet every connection of the catalog.
    for place in 0..20 {
        tag(&format!("u{place}")).unwrap();
    }
    fixture.daemon.stop().unwrap();
}
