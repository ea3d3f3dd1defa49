//! Writable clones from making to deleting: what they cost, what they keep, what they hold, and what is freed after them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rootstock_tests::peer::{self, Script};
use rootstock_tests::{Daemon, disk, tool, wait};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const BASE_BYTES: u64 = 16 * MIB;
const HUGE_BYTES: u64 = 100 << 30;
const LEFT_LIMIT: Duration = Duration::from_secs(60);

/// Says when it is connected, and leaves when it is told to.
const HOLDER: &str = "
print('connected')
sys.stdin.readline()
";

/// Reads the whole export and says whether it is the source, again and again until told to stop.
const READER: &str = "
import select
source = open(sys.argv[2], 'rb').read()
rounds = 0
while True:
    for place in range(0, len(source), 1048576):
        assert bytes(h.pread(1048576, place)) == source[place:place + 1048576], place
    rounds += 1
    print('read')
    if select.select([sys.stdin], [], [], 0)[0]:
        break
";

/// A daemon with the version `base:1` of a disk of noise.
struct Fixture {
    daemon: Daemon,
    base: PathBuf,
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base.img");
        disk::noise(&base, BASE_BYTES, 1).unwrap();
        let daemon = Daemon::start(&directory.path().join("run")).unwrap();
        let fixture = Self {
            daemon,
            base,
            directory,
        };
        fixture.import("base", &fixture.base);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn import(&self, image: &str, source: &Path) {
        let words = ["image", "import", image, source.to_str().unwrap()];
        self.daemon.run(words).unwrap();
    }

    fn run(&self, words: &[&str]) -> String {
        self.daemon.run(words).unwrap()
    }

    fn refused(&self, words: &[&str]) -> String {
        self.daemon.refused(words).unwrap()
    }

    fn clone_base(&self, name: &str) {
        self.run(&["volume", "create", name, "--from", "base"]);
    }

    /// Runs a libnbd script on a volume.
    fn script(&self, volume: &str, script: &str) -> String {
        let uri = self.daemon.nbd_uri(&format!("volume/{volume}"));
        peer::libnbd(&uri, script).unwrap()
    }

    fn qemu_io(&self, volume: &str, steps: &[&str]) {
        let uri = self.daemon.nbd_uri(&format!("volume/{volume}"));
        let mut words = vec!["-f", "raw"];
        words.extend(steps.iter().flat_map(|step| ["-c", step]));
        words.push(&uri);
        tool::run("qemu-io", words).unwrap();
    }

    fn assert_reads_as(&self, export: &str, file: &Path) {
        let uri = self.daemon.nbd_uri(export);
        let file = file.to_str().unwrap();
        let compare = ["compare", "-s", "-f", "raw", "-F", "raw", &uri, file];
        tool::run("qemu-img", compare).unwrap();
    }

    /// Waits until the daemon has seen the last client leave.
    fn wait_for_no_client(&self, volume: &str) {
        wait::until("the last client's leaving", LEFT_LIMIT, || {
            let shown = self.daemon.json(["volume", "show", volume])?;
            Ok(shown["clients"]
                .as_array()
                .unwrap()
                .is_empty()
                .then_some(()))
        })
        .unwrap();
    }

    /// A client that has an export open.
    fn hold(&self, export: &str) -> Script {
        let log = self.path("holder.log");
        let mut script = Script::start(&self.daemon.nbd_uri(export), HOLDER, &log).unwrap();
        assert_eq!(script.line().unwrap().as_deref(), Some("connected"));
        script
    }

    fn data_bytes(&self, directory: &str) -> u64 {
        allocated_bytes(&self.daemon.data().join(directory))
    }
}

/// Tells a script to go on, and waits for its good end.
fn release(mut script: Script) {
    let mut stdin = script.process.child().stdin.take().unwrap();
    stdin.write_all(b"\n").unwrap();
    drop(stdin);
    while script.line().unwrap().is_some() {}
    let status = script.process.wait(LEFT_LIMIT).unwrap();
    assert!(status.success(), "{}", script.process.log_end());
}

/// What all files below a directory take of the disk.
fn allocated_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                allocated_bytes(&path)
            } else {
                disk::allocated_bytes(&path).unwrap()
            }
        })
        .sum()
}

#[test]
fn a_clone_of_a_huge_disk_costs_next_to_nothing() {
    let mut fixture = Fixture::new();
    let source = fixture.path("huge.img");
    fs::copy(&fixture.base, &source).unwrap();
    let file = fs::File::options().write(true).open(&source).unwrap();
    file.set_len(HUGE_BYTES).unwrap();
    fixture.import("huge", &source);
    let before_bytes = fixture.data_bytes("");
    fixture.run(&["volume", "create", "seat", "--from", "huge"]);
    let cost_bytes = fixture.data_bytes("") - before_bytes;
    assert!(cost_bytes < MIB, "the clone costs {cost_bytes} bytes");
    // Both ends of it are there, to read and to write.
    let size = HUGE_BYTES;
    fixture.script(
        "seat",
        &format!(
            "
assert h.get_size() == {size}
assert h.pread(4096, 0) == open('{}', 'rb').read(4096)
assert h.pread(4096, {size} - 4096) == bytes(4096)
h.pwrite(b'e' * 4096, {size} - 4096)
h.flush()
assert h.pread(8192, {size} - 8192) == bytes(4096) + b'e' * 4096
",
            fixture.base.display()
        ),
    );
    fixture.wait_for_no_client("seat");
    let cost_bytes = fixture.data_bytes("") - before_bytes;
    assert!(cost_bytes < MIB, "a block costs {cost_bytes} bytes");
    fixture.daemon.stop().unwrap();
}

#[test]
fn clones_and_snapshots_go_their_own_ways() {
    let mut fixture = Fixture::new();
    fixture.clone_base("a");
    fixture.clone_base("b");
    fixture.qemu_io(
        "a",
        &["write -P 17 1M 300k", "write -P 18 5000000 4567", "flush"],
    );
    fixture.run(&["volume", "snapshot", "a", "kept"]);
    fixture.qemu_io("a", &["write -P 19 1M 64k", "write -P 20 9M 1M", "flush"]);
    fixture.qemu_io(
        "a",
        &[
            "read -P 19 1M 64k",
            "read -P 17 1114112 241664",
            "read -P 20 9M 1M",
        ],
    );
    fixture.qemu_io("kept", &["read -P 17 1M 300k", "read -P 18 5000000 4567"]);
    fixture.qemu_io("kept", &["write -P 21 2M 4k", "flush"]);
    fixture.assert_reads_as("volume/b", &fixture.base);
    fixture.assert_reads_as("image/base:1", &fixture.base);
    for name in ["a", "kept"] {
        fixture.wait_for_no_client(name);
    }
    fixture.run(&["volume", "reset", "a"]);
    fixture.assert_reads_as("volume/a", &fixture.base);
    fixture.qemu_io(
        "kept",
        &[
            "read -P 17 1M 300k",
            "read -P 18 5000000 4567",
            "read -P 21 2M 4k",
        ],
    );
    fixture.wait_for_no_client("a");
    fixture.run(&["volume", "delete", "a"]);
    fixture.qemu_io("kept", &["read -P 17 1M 300k", "read -P 21 2M 4k"]);
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_volume_grows() {
    let mut fixture = Fixture::new();
    fixture.clone_base("seat");
    fixture.qemu_io("seat", &["write -P 7 15M 1M", "flush"]);
    let holder = fixture.hold("volume/seat");
    fixture.run(&["volume", "resize", "seat", "40M"]);
    fixture.script(
        "seat",
        "
assert h.get_size() == 40 << 20
assert h.pread(1 << 20, 15 << 20) == b'\\7' * (1 << 20)
assert h.pread(24 << 20, 16 << 20) == bytes(24 << 20)
h.pwrite(b'z' * 4096, (40 << 20) - 4096)
h.flush()
",
    );
    release(holder);
    fixture.wait_for_no_client("seat");
    let said = fixture.refused(&["volume", "resize", "seat", "20M"]);
    assert!(said.contains("larger") || said.contains("small"), "{said}");
    fixture.daemon.kill().unwrap();
    fixture.daemon.restart().unwrap();
    fixture.script(
        "seat",
        "assert h.pread(4096, (40 << 20) - 4096) == b'z' * 4096",
    );
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_commit_costs_what_changed() {
    let mut fixture = Fixture::new();
    fixture.clone_base("work");
    let changes = [
        "write -P 1 300k 4k",
        "write -P 2 7M 8k",
        "discard 12M 512k",
        "flush",
    ];
    fixture.qemu_io("work", &changes);
    let store_bytes = fixture.data_bytes("store");
    let commit = [
        "volume", "commit", "work", "base", "--tag", "new", "-m", "changed",
    ];
    let committed = fixture.daemon.json(commit).unwrap();
    assert_eq!(committed["version"], 2, "{committed}");
    // Two chunks, a page and the root; the discarded ones are zero.
    let added = committed["added_chunk_count"].as_u64().unwrap();
    assert!(added <= 4, "{committed}");
    let cost_bytes = fixture.data_bytes("store") - store_bytes;
    assert!(cost_bytes < MIB, "the version costs {cost_bytes} bytes");

    let copy = fixture.path("copy.img");
    fixture.run(&["image", "export", "base:2", copy.to_str().unwrap()]);
    fixture.assert_reads_as("volume/work", &copy);
    fixture.assert_reads_as("image/base:2", &copy);
    fixture.assert_reads_as("image/base:1", &fixture.base);
    fixture.run(&["image", "verify", "base:2"]);
    let again = fixture.daemon.json(&commit[..4]).unwrap();
    assert_eq!(again["version"], 2, "{again}");

    // The volume goes on; what it is now was never what the version is.
    fixture.qemu_io("work", &["write -P 3 300k 4k", "flush"]);
    fixture.assert_reads_as("image/base:2", &copy);
    let other = ["volume", "commit", "work", "other"];
    let other = fixture.daemon.json(other).unwrap();
    assert_eq!(other["version"], 1, "{other}");
    fixture.assert_reads_as("image/base@new", &copy);
    fixture.daemon.stop().unwrap();
}

#[test]
fn what_is_in_use_is_not_deleted() {
    let mut fixture = Fixture::new();
    fixture.clone_base("seat");
    let holder = fixture.hold("volume/seat");
    let shown = fixture.daemon.json(["volume", "show", "seat"]).unwrap();
    let client = shown["clients"][0].as_str().unwrap().to_owned();
    for verb in ["delete", "reset"] {
        let said = fixture.refused(&["volume", verb, "seat"]);
        assert!(said.contains(&client) && said.contains("hint:"), "{said}");
    }
    release(holder);
    fixture.wait_for_no_client("seat");

    for words in [
        &["image", "delete", "base:1"][..],
        &["image", "delete", "base", "--all"],
    ] {
        let said = fixture.refused(words);
        assert!(said.contains("seat"), "{said}");
    }
    fixture.run(&["volume", "delete", "seat"]);
    fixture.run(&["image", "tag", "base:1", "production"]);
    let said = fixture.refused(&["image", "delete", "base:1"]);
    assert!(said.contains("production"), "{said}");
    fixture.run(&["image", "untag", "base", "production"]);
    let reader = fixture.hold("image/base:1");
    let said = fixture.refused(&["image", "delete", "base:1"]);
    assert!(said.contains("127.0.0.1:"), "{said}");
    release(reader);
    wait::until("the version's release", LEFT_LIMIT, || {
        let output = fixture.daemon.output(["image", "delete", "base:1"])?;
        Ok(output.status.success().then_some(()))
    })
    .unwrap();
    let said = fixture.refused(&["image", "show", "base:1"]);
    assert!(said.contains("base"), "{said}");
    fixture.daemon.stop().unwrap();
}

#[test]
fn trimmed_and_zeroed_blocks_free_their_space() {
    let mut fixture = Fixture::new();
    fixture.clone_base("seat");
    let steps = [
        "h.trim(12 << 20, 0)",
        "h.zero(12 << 20, 0)",
        "h.trim(6 << 20, 0); h.zero(6 << 20, 6 << 20)",
    ];
    for step in steps {
        fixture.script("seat", "h.pwrite(b'w' * (12 << 20), 0); h.flush()");
        let full_bytes = fixture.data_bytes("volumes");
        assert!(
            full_bytes >= 12 * MIB,
            "only {full_bytes} bytes are on the disk"
        );
        // Asked for while the client is there: no closing of the volume helps.
        let log = fixture.path("trim.log");
        let freed =
            format!("{step}; h.flush()\nassert h.pread(12 << 20, 0) == bytes(12 << 20)\n{HOLDER}");
        let uri = fixture.daemon.nbd_uri("volume/seat");
        let mut script = Script::start(&uri, &freed, &log).unwrap();
        assert_eq!(script.line().unwrap().as_deref(), Some("connected"));
        let left_bytes = fixture.data_bytes("volumes");
        assert!(
            left_bytes < MIB,
            "{step} leaves {left_bytes} of {full_bytes} bytes"
        );
        release(script);
    }
    fixture.wait_for_no_client("seat");
    fixture.run(&["volume", "delete", "seat"]);
    assert_eq!(fixture.data_bytes("volumes"), 0);
    fixture.daemon.stop().unwrap();
}

#[test]
fn an_ephemeral_volume_forgets() {
    let mut fixture = Fixture::new();
    fixture.run(&["volume", "create", "kiosk", "--from", "base", "--ephemeral"]);
    let holder = fixture.hold("volume/kiosk");
    fixture.qemu_io("kiosk", &["write -P 9 0 1M", "flush"]);
    // While one client is there, the next one sees what was written.
    fixture.qemu_io("kiosk", &["read -P 9 0 1M"]);
    release(holder);
    fixture.wait_for_no_client("kiosk");
    fixture.assert_reads_as("volume/kiosk", &fixture.base);
    fixture.wait_for_no_client("kiosk");

    fixture.qemu_io("kiosk", &["write -P 9 0 1M", "flush"]);
    fixture.daemon.kill().unwrap();
    fixture.daemon.restart().unwrap();
    fixture.assert_reads_as("volume/kiosk", &fixture.base);
    fixture.wait_for_no_client("kiosk");
    assert!(fixture.data_bytes("volumes") < MIB);
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_volume_outlives_the_daemon() {
    let mut fixture = Fixture::new();
    fixture.clone_base("seat");
    let holder_uri = fixture.daemon.nbd_uri("volume/seat");
    // Killed with the client still there, right after its flush.
    let script = format!("h.pwrite(b'a' * 123456, 1000000); h.flush()\n{HOLDER}");
    let log = fixture.path("writer.log");
    let mut writer = Script::start(&holder_uri, &script, &log).unwrap();
    assert_eq!(writer.line().unwrap().as_deref(), Some("connected"));
    fixture.daemon.kill().unwrap();
    fixture.daemon.restart().unwrap();
    drop(writer);
    fixture.script("seat", "assert h.pread(123456, 1000000) == b'a' * 123456");
    // An orderly end keeps even what nobody flushed.
    let script = format!("h.pwrite(b'b' * 4096, 0)\n{HOLDER}");
    let mut writer = Script::start(&holder_uri, &script, &log).unwrap();
    assert_eq!(writer.line().unwrap().as_deref(), Some("connected"));
    fixture.daemon.stop().unwrap();
    drop(writer);
    fixture.daemon.restart().unwrap();
    fixture.script("seat", "assert h.pread(4096, 0) == b'b' * 4096");
    fixture.daemon.stop().unwrap();
}

#[test]
fn collection_frees_what_is_deleted_and_nothing_else() {
    let mut fixture = Fixture::new();
    // `other` shares its first half with `base`; `gone` shares nothing.
    let other = fixture.path("other.img");
    disk::noise(&other, BASE_BYTES, 2).unwrap();
    let half = fs::read(&fixture.base).unwrap();
    let file = fs::File::options().write(true).open(&other).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &half[..half.len() / 2], 0).unwrap();
    let gone = fixture.path("gone.img");
    disk::noise(&gone, BASE_BYTES, 3).unwrap();
    fixture.import("gone", &gone);
    fixture.import("other", &other);
    fixture.run(&["volume", "create", "seat", "--from", "other"]);
    fixture.qemu_io("seat", &["write -P 5 3M 64k", "flush"]);
    let full_bytes = fixture.data_bytes("store");

    // A client reads on while versions go and their space is freed.
    let uri = fixture.daemon.nbd_uri("image/other:1");
    let script = format!("sys.argv.append('{}')\n{READER}", other.display());
    let mut reader = Script::start(&uri, &script, &fixture.path("reader.log")).unwrap();
    assert_eq!(reader.line().unwrap().as_deref(), Some("read"));
    fixture.run(&["image", "delete", "gone:1"]);
    fixture.run(&["image", "delete", "base:1"]);
    let freed: Value = fixture.daemon.json(["gc"]).unwrap();
    // All of `gone` and the half of `base` that only it had.
    assert!(freed["freed_bytes"].as_u64().unwrap() > 23 * MIB, "{freed}");
    let left_bytes = fixture.data_bytes("store");
    assert!(
        left_bytes + 23 * MIB < full_bytes,
        "{left_bytes} of {full_bytes} bytes are left"
    );
    assert_eq!(reader.line().unwrap().as_deref(), Some("read"));
    release(reader);

    fixture.run(&["image", "verify", "other:1"]);
    fixture.assert_reads_as("image/other:1", &other);
    fixture.qemu_io("seat", &["read -P 5 3M 64k"]);
    let again: Value = fixture.daemon.json(["gc"]).unwrap();
    assert_eq!(again["freed_chunk_count"], 0, "{again}");

    // What was freed can come again, and the last one to go leaves nothing.
    fixture.import("base", &fixture.base);
    fixture.assert_reads_as("image/base:2", &fixture.base);
    fixture.wait_for_no_client("seat");
    fixture.run(&["volume", "delete", "seat"]);
    fixture.run(&["image", "delete", "other", "--all"]);
    fixture.run(&["gc"]);
    fixture.run(&["image", "verify", "base"]);
    fixture.daemon.kill().unwrap();
    fixture.daemon.restart().unwrap();
    fixture.run(&["image", "verify", "base"]);
    fixture.assert_reads_as("image/base:2", &fixture.base);
    fixture.daemon.stop().unwrap();
}
