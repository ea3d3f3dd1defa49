//! One disk in every format is one version, and comes out of it in every format.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rootstock_tests::{Daemon, disk, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 96 * MIB;

/// Where the disk's partitions are: EFI (FAT), root (ext4) and swap.
const PARTITIONS: [(u64, u64); 3] = [(MIB, 20 * MIB), (21 * MIB, 64 * MIB), (85 * MIB, 8 * MIB)];

/// A directory with a partitioned disk and what its files were made of.
struct Fixture {
    dir: tempfile::TempDir,
    raw: PathBuf,
    tree: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        files(&tree);
        let raw = dir.path().join("disk.img");
        // Free space is noise, so that leaving it out shows.
        disk::noise(&raw, DISK_BYTES, 1).unwrap();
        gpt(&raw);
        let [efi, root, swap] = PARTITIONS;
        let file = File::options().read(true).write(true).open(&raw).unwrap();
        let part = |name: &str, (start, len): (u64, u64)| {
            let path = dir.path().join(name);
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, start).unwrap();
            fs::write(&path, bytes).unwrap();
            path
        };
        let fat = part("fat", efi);
        tool("mkfs.fat", &["-F", "16", "-n", "EFI"], &[&fat]);
        let entries: Vec<PathBuf> = fs::read_dir(&tree)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        let mut mcopy = Command::new("mcopy");
        mcopy
            .env("MTOOLS_SKIP_CHECK", "1")
            .arg("-s")
            .arg("-i")
            .arg(&fat);
        tool::run_command(mcopy.args(&entries).arg("::/")).unwrap();
        let ext = part("ext", root);
        let tree_word = tree.to_str().unwrap();
        tool(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", "-d", tree_word],
            &[&ext],
        );
        let pages = part("swap", swap);
        tool("mkswap", &[], &[&pages]);
        for (path, (start, _)) in [(fat, efi), (ext, root), (pages, swap)] {
            file.write_all_at(&fs::read(&path).unwrap(), start).unwrap();
            fs::remove_file(path).unwrap();
        }
        Self { dir, raw, tree }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The disk in a format of `qemu-img convert`.
    fn convert(&self, name: &str, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut words = vec!["convert", "-f", "raw"];
        words.extend(options);
        tool("qemu-img", &words, &[&self.raw, &path]);
        path
    }

    fn tar(&self, name: &str, options: &[&str], members: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut tar = Command::new("tar");
        tar.current_dir(self.dir.path()).args(options).arg("-f");
        tool::run_command(tar.arg(&path).args(members)).unwrap();
        path
    }

    fn pack(&self, packer: &str, level: &str, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut command = Command::new(packer);
        command.arg(level).arg("-c").arg(&self.raw);
        let status = command.stdout(File::create(&path).unwrap()).status();
        assert!(status.unwrap().success(), "{packer}");
        path
    }
}

fn tool(program: &str, words: &[&str], paths: &[&Path]) -> String {
    let mut command = Command::new(program);
    command.env(
        "PATH",
        "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
    );
    tool::run_command(command.args(words).args(paths)).unwrap()
}

/// Files of several sizes in a few directories, with names that FAT bears.
fn files(tree: &Path) {
    fs::create_dir_all(tree.join("boot")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/release"), "test\n").unwrap();
    for (number, len) in [10, 4096, 70_000, 1_500_000, 3_000_000]
        .into_iter()
        .enumerate()
    {
        let path = tree.join(format!("boot/file{number}"));
        disk::noise(&path, len, 100 + number as u64).unwrap();
    }
}

fn gpt(raw: &Path) {
    let mut words = vec!["--clear".to_owned(), "--set-alignment=1".to_owned()];
    for (number, ((start, len), kind)) in (1..).zip(PARTITIONS.iter().zip(["ef00", "8300", "8200"]))
    {
        let last = (start + len) / 512 - 1;
        words.push(format!("--new={number}:{}:{last}", start / 512));
        words.push(format!("--typecode={number}:{kind}"));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    tool("sgdisk", &words, &[raw]);
}

fn import(daemon: &Daemon, source: &Path) -> Value {
    let words = [
        "image".as_ref(),
        "import".as_ref(),
        "lab".as_ref(),
        source.as_os_str(),
    ];
    daemon
        .json(words)
        .unwrap_or_else(|error| panic!("{}: {error:#}", source.display()))
}

fn import_stdin(daemon: &Daemon, source: &Path) -> Value {
    let mut command = daemon.command();
    command.args(["image", "import", "lab", "-", "--json"]);
    command.stdin(Stdio::from(File::open(source).unwrap()));
    let output = tool::output(&mut command).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_format_holds_the_same_version() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.path("daemon")).unwrap();
    let first = import(&daemon, &fixture.raw);
    assert_eq!(first["outcome"], "created", "{first}");
    assert!(
        first["dropped_free_bytes"].as_u64().unwrap() > 40 * MIB,
        "{first}"
    );
    assert!(first["added_bytes"].as_u64().unwrap() < 40 * MIB, "{first}");

    let stream = fixture.convert(
        "stream.vmdk",
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
    );
    let qcow2 = fixture.convert("box.img", &["-O", "qcow2"]);
    fs::write(fixture.path("lab.ovf"), "<Envelope/>").unwrap();
    fs::write(fixture.path("metadata.json"), "{}").unwrap();
    let sources = [
        qcow2,
        fixture.convert("v2.qcow2", &["-O", "qcow2", "-o", "compat=0.10"]),
        fixture.convert(
            "packed.qcow2",
            &["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
        ),
        fixture.convert("sparse.vmdk", &["-O", "vmdk"]),
        stream,
        fixture.convert("disk.vdi", &["-O", "vdi"]),
        fixture.convert("static.vdi", &["-O", "vdi", "-o", "static=on"]),
        fixture.convert("disk.vhd", &["-O", "vpc", "-o", "force_size=on"]),
        fixture.convert(
            "fixed.vhd",
            &["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
        ),
        fixture.convert("disk.vhdx", &["-O", "vhdx"]),
        fixture.tar(
            "lab.ova",
            &["-c", "--format=ustar"],
            &["lab.ovf", "stream.vmdk"],
        ),
        fixture.tar("lab.box", &["-cz"], &["metadata.json", "box.img"]),
        fixture.tar(
            "sparse.box",
            &["-cS", "--format=gnu"],
            &["metadata.json", "disk.img"],
        ),
        fixture.pack("gzip", "-1", "disk.img.gz"),
        // Noise takes long at any higher level.
        fixture.pack("xz", "-0", "disk.img.xz"),
        fixture.pack("zstd", "-1", "disk.img.zst"),
    ];
    for source in &sources {
        let again = import(&daemon, source);
        let name = source.display();
        assert_eq!(again["outcome"], "unchanged", "{name}: {again}");
        assert_eq!(again["manifest"], first["manifest"], "{name}");
        assert_eq!(again["sent_bytes"], 0, "{name}");
    }
    for source in [&fixture.raw, &sources[2], &sources[10], &sources[13]] {
        assert_eq!(
            import_stdin(&daemon, source)["outcome"],
            "unchanged",
            "{}",
            source.display()
        );
    }
    let store = daemon.json(["status"]).unwrap();
    let packed = store["store"]["stored_bytes"].as_u64().unwrap();
    assert!(packed < 45 * MIB, "{store}");
    assert_eq!(
        daemon.json(["import", "list"]).unwrap()["imports"],
        Value::Array(Vec::new())
    );
}

#[test]
fn exports_hold_every_file() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.path("daemon")).unwrap();
    import(&daemon, &fixture.raw);
    let export = |file: &Path, format: &str| {
        let file = file.to_str().unwrap();
        daemon
            .run(["image", "export", "lab:1", file, "--format", format])
            .unwrap();
    };
    let raw = fixture.path("out.img");
    export(&raw, "raw");
    assert_eq!(fs::metadata(&raw).unwrap().len(), DISK_BYTES);
    assert!(disk::allocated_bytes(&raw).unwrap() < 50 * MIB);
    for (format, driver) in [
        ("qcow2", "qcow2"),
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vhdx", "vhdx"),
    ] {
        let out = fixture.path(&format!("out.{format}"));
        export(&out, format);
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", driver],
            &[&raw, &out],
        );
    }
    check_exported(&fixture, &raw);

    let refused = daemon
        .refused(["image", "export", "lab:1", raw.to_str().unwrap()])
        .unwrap();
    assert!(
        refused.contains("exists") && refused.contains("--force"),
        "{refused}"
    );
    let words = ["image", "export", "lab:1", raw.to_str().unwrap(), "--force"];
    daemon.run(words).unwrap();
    let beside: Vec<_> = fs::read_dir(fixture.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    let left = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(".rootstock");
    assert!(!beside.iter().any(left), "{beside:?}");
}

/// The file systems' own checkers, and every file.
fn check_exported(fixture: &Fixture, raw: &Path) {
    let bytes = fs::read(raw).unwrap();
    let original = fs::read(&fixture.raw).unwrap();
    let [efi, root, swap] = PARTITIONS;
    // The table in both copies, and what lies between, is kept verbatim.
    assert_eq!(bytes[..MIB as usize], original[..MIB as usize]);
    let end = (swap.0 + swap.1) as usize;
    assert_eq!(bytes[end..], original[end..]);
    let part = |name: &str, (start, len): (u64, u64)| {
        let path = fixture.path(name);
        fs::write(&path, &bytes[start as usize..(start + len) as usize]).unwrap();
        path
    };
    let (fat, ext) = (part("out.fat", efi), part("out.ext", root));
    tool("fsck.fat", &["-n"], &[&fat]);
    tool("e2fsck", &["-fn"], &[&ext]);
    let (from_fat, from_ext) = (fixture.path("from-fat"), fixture.path("from-ext"));
    fs::create_dir(&from_fat).unwrap();
    fs::create_dir(&from_ext).unwrap();
    let mut mcopy = Command::new("mcopy");
    mcopy
        .env("MTOOLS_SKIP_CHECK", "1")
        .arg("-s")
        .arg("-i")
        .arg(&fat);
    tool::run_command(mcopy.arg("::/*").arg(&from_fat)).unwrap();
    let dump = format!("rdump / {}", from_ext.display());
    tool("debugfs", &["-R", &dump], &[&ext]);
    let expected = sums(&fixture.tree);
    assert_eq!(expected.len(), 6);
    assert_eq!(sums(&from_fat), expected);
    assert_eq!(sums(&from_ext), expected);
}

fn sums(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, disk::sha256(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn an_updated_disk_costs_only_its_changes() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.path("daemon")).unwrap();
    import(&daemon, &fixture.raw);
    let file = File::options().write(true).open(&fixture.raw).unwrap();
    // Within the data of the largest file of the ext4 partition or beside it,
    // wherever that is: one chunk, or none when it was free.
    let (start, _) = PARTITIONS[1];
    file.write_all_at(b"changed", start + 1024 + 120).unwrap();
    let second = import(&daemon, &fixture.raw);
    assert_eq!(second["version"], 2, "{second}");
    assert!(
        second["added_chunk_count"].as_u64().unwrap() <= 4,
        "{second}"
    );
    let diff = daemon.json(["image", "diff", "lab:1", "lab:2"]).unwrap();
    assert_eq!(diff["fetch_chunk_count"], 1, "{diff}");
    let kept = daemon.json([
        "image",
        "import",
        "whole",
        fixture.raw.to_str().unwrap(),
        "--keep-free-space",
    ]);
    let kept = kept.unwrap();
    assert_eq!(kept["dropped_free_bytes"], 0);
    assert!(
        kept["used_bytes"].as_u64() > second["used_bytes"].as_u64(),
        "{kept}"
    );
}
