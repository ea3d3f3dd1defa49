//! Bytes that rot on the daemon's disk: named by verify and by the scrub, never served, and healed by another import.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rootstock_core::ChunkId;
use rootstock_tests::{Daemon, DaemonOptions, disk, peer, tool, wait};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 24 * MIB;
const CHUNK_BYTES: u64 = 256 * 1024;
/// Makes a pass over the few packs of a test immediate.
const SCRUB_RATE: &str = "1G";
const SCRUB_LIMIT: Duration = Duration::from_secs(60);
/// Parts of a pack, as docs/formats/pack.md has them.
const FOOTER_BYTES: u64 = 64;
const ENTRY_BYTES: usize = 80;
const RECORD_HEAD_BYTES: u64 = 88;

/// Reads the export chunk by chunk beside its source, and prints what differs or fails.
const READER: &str = "
import errno
source = open(sys.argv[2], 'rb')
step = 262144
for place in range(0, h.get_size(), step):
    try:
        data = h.pread(min(step, h.get_size() - place), place)
    except nbd.Error as error:
        print(place, errno.errorcode.get(error.errnum))
        continue
    source.seek(place)
    if source.read(step) != bytes(data):
        print(place, 'wrong')
";

/// Where a frame lies on the daemon's disk.
struct Stored {
    pack: PathBuf,
    frame_start_bytes: u64,
    frame_bytes: u64,
}

/// A daemon with the version `lab:1` of a disk of real files.
struct Fixture {
    daemon: Daemon,
    source: PathBuf,
    /// The manifest's id.
    root: String,
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("srv")).unwrap();
        disk::noise(&tree.join("srv/data"), 12 * MIB, 5).unwrap();
        fs::write(tree.join("srv/text"), "all work and no play\n".repeat(9000)).unwrap();
        let source = directory.path().join("disk.img");
        disk::ext4_on_mbr(&source, DISK_BYTES, &tree).unwrap();
        let mut options = DaemonOptions::new(&directory.path().join("run")).unwrap();
        options.config = format!("[store]\nscrub_rate_bytes = \"{SCRUB_RATE}\"\n");
        let daemon = Daemon::start_with(options).unwrap();
        let mut fixture = Self {
            daemon,
            source,
            root: String::new(),
            directory,
        };
        let imported = fixture.import();
        assert_eq!(imported["version"], 1, "{imported}");
        fixture.root = imported["manifest"].as_str().unwrap().to_owned();
        fixture
    }

    /// With free space kept, what is stored is what is in the file.
    fn import(&self) -> Value {
        let source = self.source.to_str().unwrap();
        self.daemon
            .json(["image", "import", "lab", source, "--keep-free-space"])
            .unwrap()
    }

    /// A chunk of data in the middle of the disk, and where it is.
    fn data_chunk(&self) -> (u64, ChunkId) {
        let bytes = fs::read(&self.source).unwrap();
        let stored = stored(self.daemon.data());
        let middle = disk::FIRST_PARTITION_BYTES + 8 * MIB;
        let mut places = (middle..DISK_BYTES).step_by(usize::try_from(CHUNK_BYTES).unwrap());
        let found = places.find_map(|place| {
            let start = usize::try_from(place).unwrap();
            let chunk = &bytes[start..start + usize::try_from(CHUNK_BYTES).unwrap()];
            let id = ChunkId::of(chunk);
            // Noise: a chunk that did not compress.
            let large = stored.get(&id.to_string())?.frame_bytes > CHUNK_BYTES / 2;
            large.then_some((place, id))
        });
        found.unwrap()
    }

    /// The page over the partition's chunks: the longest of what is no data and not the root.
    fn page(&self) -> String {
        let bytes = fs::read(&self.source).unwrap();
        let mut stored = stored(self.daemon.data());
        stored.remove(&self.root).unwrap();
        let start = usize::try_from(disk::FIRST_PARTITION_BYTES).unwrap();
        let chunk_bytes = usize::try_from(CHUNK_BYTES).unwrap();
        for chunk in bytes[start..].chunks(chunk_bytes) {
            stored.remove(&ChunkId::of(chunk).to_string());
        }
        let longest = stored.into_iter().max_by_key(|(_, at)| at.frame_bytes);
        longest.unwrap().0
    }

    fn damage(&self, id: &str) {
        let stored = stored(self.daemon.data());
        let place = &stored[id];
        flip(&place.pack, place.frame_start_bytes + place.frame_bytes / 2);
    }

    /// `image verify` fails and names the place.
    fn assert_verify_names(&self, offset_bytes: u64) {
        let output = self.daemon.output(["image", "verify", "lab:1"]).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let place = format!("lab:1 at byte {offset_bytes} ");
        assert!(said.contains(&place) && said.contains("hint:"), "{said}");
        let output = self.daemon.output(["image", "verify", "lab:1", "--json"]);
        let lines = String::from_utf8(output.unwrap().stdout).unwrap();
        let found: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|event: &Value| event["event"] == "damage")
            .collect();
        assert_eq!(found.len(), 1, "{lines}");
        assert_place(&found[0], offset_bytes);
    }

    fn assert_whole(&self) {
        self.daemon.run(["image", "verify", "lab:1"]).unwrap();
        assert_eq!(self.read_all("image/lab:1"), "");
        let copy = self.directory.path().join("whole.img");
        let words = [
            "image",
            "export",
            "lab:1",
            copy.to_str().unwrap(),
            "--force",
        ];
        self.daemon.run(words).unwrap();
        assert_eq!(
            disk::sha256(&copy).unwrap(),
            disk::sha256(&self.source).unwrap()
        );
    }

    /// What does not read as the source does.
    fn read_all(&self, export: &str) -> String {
        let source = self.source.to_str().unwrap();
        let mut command = peer::libnbd_command(&self.daemon.nbd_uri(export), READER);
        tool::run_command(command.arg(source)).unwrap()
    }

    /// An export fails, says why, and leaves nothing behind.
    fn assert_export_refused(&self) {
        let directory = self.directory.path().join("exported");
        fs::create_dir_all(&directory).unwrap();
        for format in ["raw", "qcow2"] {
            let file = directory.join("lab.img");
            let words = ["image", "export", "lab:1", file.to_str().unwrap()];
            let said = self
                .daemon
                .refused(words.into_iter().chain(["--format", format]))
                .unwrap();
            assert!(said.contains("image again"), "{said}");
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{format}");
        }
    }

    /// Starts the daemon anew, so that the scrub begins, and gives what it found.
    fn scrubbed(&mut self) -> Value {
        // It outlives the restart.
        let before = self.daemon.json(["scrub", "status"]).unwrap()["last_pass"].take();
        self.daemon.kill().unwrap();
        self.daemon.restart().unwrap();
        wait::until("a whole pass of the scrub", SCRUB_LIMIT, || {
            let status = self.daemon.json(["scrub", "status"])?;
            let last = &status["last_pass"];
            Ok((last.is_string() && *last != before).then_some(status))
        })
        .unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("run/daemon.log")).unwrap()
    }
}

/// Every frame in the packs, by its chunk's id.
fn stored(data: &Path) -> HashMap<String, Stored> {
    let mut all = HashMap::new();
    for pack in packs(data) {
        let bytes = fs::read(&pack).unwrap();
        let footer = &bytes[bytes.len() - usize::try_from(FOOTER_BYTES).unwrap()..];
        let index = usize::try_from(u64::from_le_bytes(footer[32..40].try_into().unwrap()));
        let count = u32::from_le_bytes(footer[40..44].try_into().unwrap());
        let entries = &bytes[index.unwrap()..][..count as usize * ENTRY_BYTES];
        for entry in entries.chunks(ENTRY_BYTES) {
            let number = |at: usize| {
                let bytes = entry[at..at + 4].try_into().unwrap();
                u64::from(u32::from_le_bytes(bytes))
            };
            let place = Stored {
                pack: pack.clone(),
                frame_start_bytes: number(64) + RECORD_HEAD_BYTES,
                frame_bytes: number(72),
            };
            let id: String = entry[..32]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            all.insert(id, place);
        }
    }
    all
}

fn packs(data: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    let directories = entries(&data.join("store/packs")).filter(|path| path.is_dir());
    directories
        .flat_map(|dir| entries(&dir).collect::<Vec<_>>())
        .collect()
}

/// Turns one byte over.
fn flip(path: &Path, offset_bytes: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset_bytes).unwrap();
    file.write_all_at(&[!byte[0]], offset_bytes).unwrap();
}

fn assert_place(damage: &Value, offset_bytes: u64) {
    assert_eq!(damage["image"], "lab", "{damage}");
    assert_eq!(damage["version"], 1, "{damage}");
    assert_eq!(damage["offset_bytes"], offset_bytes, "{damage}");
}

#[test]
fn a_rotten_chunk_is_named_never_served_and_healed() {
    let mut fixture = Fixture::new();
    let (place, id) = fixture.data_chunk();
    fixture.damage(&id.to_string());
    fixture.assert_verify_names(place);

    // Over NBD the place is an error for every client, and the rest is what it was.
    let error = format!("{place} EIO\n");
    assert_eq!(fixture.read_all("image/lab:1"), error);
    let uri = fixture.daemon.nbd_uri("image/lab:1");
    let read = format!("read {place} 4k");
    let said = tool::output(
        std::process::Command::new("qemu-io").args(["-r", "-f", "raw", "-c", &read, &uri]),
    );
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    assert!(said.contains("Input/output error"), "{said}");
    let log = fixture.log();
    assert!(
        log.contains(&place.to_string()) && log.contains("lab"),
        "the log does not name the place:\n{log}"
    );

    // A clone has the same hole, and what it wrote itself.
    fixture
        .daemon
        .run(["volume", "create", "seat", "--from", "lab:1"])
        .unwrap();
    assert_eq!(fixture.read_all("volume/seat"), error);
    let write = format!(
        "h.pwrite(b'x' * 4096, {place}); assert h.pread(4096, {place}) == b'x' * 4096; h.flush()"
    );
    peer::libnbd(&fixture.daemon.nbd_uri("volume/seat"), &write).unwrap();
    fixture.daemon.run(["volume", "reset", "seat"]).unwrap();
    fixture.assert_export_refused();

    let status = fixture.scrubbed();
    assert_eq!(status["damage"].as_array().unwrap().len(), 1, "{status}");
    assert_place(&status["damage"][0], place);

    let again = fixture.import();
    assert_eq!(again["version"], 1, "{again}");
    fixture.assert_whole();
    assert_eq!(fixture.read_all("volume/seat"), "");
    // The rotten frame goes with the next collection.
    fixture.daemon.run(["gc"]).unwrap();
    let status = fixture.scrubbed();
    assert_eq!(status["damage"], Value::Array(Vec::new()), "{status}");
    fixture.assert_whole();
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_rotten_page_is_named_never_served_and_healed() {
    let mut fixture = Fixture::new();
    fixture.damage(&fixture.page());
    fixture.assert_verify_names(disk::FIRST_PARTITION_BYTES);
    let found = fixture.read_all("image/lab:1");
    assert!(found.lines().all(|line| line.ends_with(" EIO")), "{found}");
    // Everything in the partition, and nothing before it.
    let first = found.lines().next().unwrap();
    assert_eq!(first, format!("{} EIO", disk::FIRST_PARTITION_BYTES));
    let chunk_count = (DISK_BYTES - disk::FIRST_PARTITION_BYTES) / CHUNK_BYTES;
    assert_eq!(found.lines().count() as u64, chunk_count);
    fixture.assert_export_refused();
    let status = fixture.scrubbed();
    assert_place(&status["damage"][0], disk::FIRST_PARTITION_BYTES);
    fixture.import();
    fixture.assert_whole();
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_rotten_root_is_named_never_served_and_healed() {
    let mut fixture = Fixture::new();
    fixture.damage(&fixture.root);
    fixture.assert_verify_names(0);
    let uri = fixture.daemon.nbd_uri("image/lab:1");
    assert!(peer::libnbd(&uri, "print(h.pread(512, 0))").is_err());
    fixture.assert_export_refused();
    let status = fixture.scrubbed();
    assert_place(&status["damage"][0], 0);
    fixture.import();
    fixture.assert_whole();
    fixture.daemon.stop().unwrap();
}

#[test]
fn a_packs_index_may_rot_and_a_cut_pack_is_healed() {
    let mut fixture = Fixture::new();
    let packs = packs(fixture.daemon.data());
    for pack in &packs {
        let len_bytes = fs::metadata(pack).unwrap().len();
        // Into the last entry of the index, then into the footer.
        for end_bytes in [FOOTER_BYTES + 40, FOOTER_BYTES - 20] {
            flip(pack, len_bytes - end_bytes);
        }
    }
    let status = fixture.scrubbed();
    assert_eq!(status["damage"], Value::Array(Vec::new()), "{status}");
    fixture.assert_whole();

    // Half of each is gone.
    fixture.daemon.kill().unwrap();
    for pack in &packs {
        let file = File::options().write(true).open(pack).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    fixture.daemon.restart().unwrap();
    let output = fixture.daemon.output(["image", "verify", "lab:1"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    fixture.assert_export_refused();
    fixture.import();
    fixture.assert_whole();
    fixture.daemon.stop().unwrap();
}
