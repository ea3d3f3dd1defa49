//! Sources and targets at the edge: devices, disks that were cut, packages that lie, no room.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rootstock_tests::mount::SmallDisk;
use rootstock_tests::{Daemon, disk, tool, wait};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 48 * MIB;
/// Too small for the disk.
const SMALL_DISK_BYTES: u64 = 24 * MIB;
const FREED_LIMIT: Duration = Duration::from_secs(60);

struct Fixture {
    daemon: Daemon,
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&directory.path().join("daemon")).unwrap();
        Self { daemon, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A disk with a partition table and an ext4 with one large file in it.
    fn disk(&self) -> PathBuf {
        let tree = self.path("tree");
        fs::create_dir_all(&tree).unwrap();
        disk::noise(&tree.join("noise"), DISK_BYTES / 2, 5).unwrap();
        let path = self.path("disk.img");
        disk::ext4_on_mbr(&path, DISK_BYTES, &tree).unwrap();
        path
    }

    fn import(&self, source: &Path, more: &[&str]) {
        let words = ["image", "import", "lab", source.to_str().unwrap()];
        self.daemon.run(words.iter().chain(more)).unwrap();
    }

    fn refused(&self, words: &[&str]) -> String {
        let said = self.daemon.refused(words).unwrap();
        assert!(said.starts_with("error: "), "{said}");
        assert!(said.contains("hint:"), "{said}");
        said
    }

    fn small_disk(&self) -> SmallDisk {
        SmallDisk::mount(
            &self.path("small.img"),
            &self.path("small"),
            SMALL_DISK_BYTES,
        )
        .unwrap()
    }
}

/// A block device over a file, taken apart when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &Path) -> Self {
        let words = [
            "--find",
            "--show",
            "--partscan",
            "--read-only",
            file.to_str().unwrap(),
        ];
        Self(tool::run("losetup", words).unwrap().trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = tool::run("losetup", ["--detach", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_block_device_is_imported_as_the_disk_it_is() {
    let fixture = Fixture::new();
    let source = fixture.disk();
    let device = LoopDevice::new(&source);
    fixture.import(Path::new(&device.0), &["--keep-free-space"]);
    let shown = fixture.daemon.json(["image", "show", "lab:1"]).unwrap();
    assert_eq!(shown["disk_bytes"], DISK_BYTES);
    assert_eq!(shown["facts"]["table"], "mbr", "{shown}");
    let copy = fixture.path("copy.img");
    let words = ["image", "export", "lab:1", copy.to_str().unwrap()];
    fixture.daemon.run(words).unwrap();
    assert_eq!(disk::sha256(&copy).unwrap(), disk::sha256(&source).unwrap());
    // The same disk as a file is the same version.
    let words = [
        "image",
        "import",
        "lab",
        source.to_str().unwrap(),
        "--keep-free-space",
    ];
    assert_eq!(fixture.daemon.json(words).unwrap()["outcome"], "unchanged");
}

#[test]
fn a_disk_that_was_cut_is_refused_unless_it_is_wanted() {
    let fixture = Fixture::new();
    let source = fixture.disk();
    let left = DISK_BYTES - 5 * MIB;
    let file = File::options().write(true).open(&source).unwrap();
    file.set_len(left).unwrap();
    let source = source.to_str().unwrap();
    let said = fixture.refused(&["image", "import", "lab", source]);
    for part in [DISK_BYTES, left] {
        assert!(said.contains(&part.to_string()), "{said}");
    }
    assert!(said.contains("--allow-truncated"), "{said}");
    fixture.daemon.refused(["image", "show", "lab:1"]).unwrap();
    fixture.import(Path::new(source), &["--allow-truncated"]);
    fixture.daemon.run(["image", "verify", "lab:1"]).unwrap();
}

#[test]
fn a_package_whose_disk_is_not_what_its_manifest_says_is_refused() {
    let fixture = Fixture::new();
    let source = fixture.disk();
    let tree = fixture.path("ova");
    fs::create_dir(&tree).unwrap();
    let mut convert = Command::new("qemu-img");
    convert.args([
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
    ]);
    let vmdk = tree.join("disk1.vmdk");
    tool::run_command(convert.arg(&source).arg(&vmdk)).unwrap();
    fs::write(tree.join("vm.ovf"), "<Envelope/>").unwrap();
    let pack = |sum: &str| {
        fs::write(tree.join("vm.mf"), format!("SHA256(disk1.vmdk)= {sum}\n")).unwrap();
        let ova = fixture.path("vm.ova");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&tree).arg("-cf").arg(&ova);
        tool::run_command(tar.args(["vm.ovf", "vm.mf", "disk1.vmdk"])).unwrap();
        ova
    };
    let ova = pack(&"0".repeat(64));
    let said = fixture.refused(&["image", "import", "lab", ova.to_str().unwrap()]);
    assert!(
        said.contains("disk1.vmdk") && said.contains("SHA-256"),
        "{said}"
    );
    fixture.daemon.refused(["image", "show", "lab:1"]).unwrap();
    let ova = pack(&disk::sha256(&vmdk).unwrap());
    fixture.import(&ova, &[]);
}

#[test]
fn an_export_without_room_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.import(&fixture.disk(), &[]);
    let small = fixture.small_disk();
    let before = names(small.path());
    for format in ["raw", "qcow2"] {
        let target = small.path().join(format!("out.{format}"));
        let target = target.to_str().unwrap();
        let said = fixture.refused(&["image", "export", "lab:1", target, "--format", format]);
        assert!(said.to_lowercase().contains("no space"), "{said}");
        assert!(said.contains("make room"), "{said}");
        assert_eq!(names(small.path()), before, "{format}");
    }
    // What was there is kept, even when it was to be replaced.
    let target = small.path().join("kept.img");
    fs::write(&target, "before").unwrap();
    fixture.refused(&[
        "image",
        "export",
        "lab:1",
        target.to_str().unwrap(),
        "--force",
    ]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "before");
}

#[test]
fn a_stream_without_room_leaves_nothing() {
    let fixture = Fixture::new();
    let source = fixture.disk();
    let packed = fixture.path("disk.img.gz");
    let bytes = Command::new("gzip")
        .arg("-1c")
        .arg(&source)
        .output()
        .unwrap();
    fs::write(&packed, bytes.stdout).unwrap();
    let small = fixture.small_disk();
    let before = names(small.path());
    let used_before = used_bytes(small.path());
    let spool = small.path().to_str().unwrap();
    let words = [
        "image",
        "import",
        "lab",
        packed.to_str().unwrap(),
        "--spool",
        spool,
    ];
    let said = fixture.refused(&words);
    assert!(
        said.contains("no room") && said.contains("--spool"),
        "{said}"
    );
    assert_eq!(names(small.path()), before);
    expect_used(small.path(), used_before);
    fixture.daemon.refused(["image", "show", "lab:1"]).unwrap();
    // From standard input as well, and elsewhere there is room.
    let mut command = fixture.daemon.command();
    command.args(["image", "import", "lab", "-", "--spool", spool]);
    command.stdin(File::open(&packed).unwrap());
    let output = tool::output(&mut command).unwrap();
    assert_eq!(output.status.code(), Some(1));
    expect_used(small.path(), used_before);
    let elsewhere = fixture.directory.path().to_str().unwrap();
    fixture.import(&packed, &["--spool", elsewhere]);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// Waits until no more is used than before: a file that nobody has open any more is
/// freed when the kernel comes to it.
fn expect_used(directory: &Path, before_bytes: u64) {
    wait::until("the spool to be freed", FREED_LIMIT, || {
        Ok((used_bytes(directory) == before_bytes).then_some(()))
    })
    .unwrap();
}

fn used_bytes(directory: &Path) -> u64 {
    let stat = rustix::fs::statvfs(directory).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}
