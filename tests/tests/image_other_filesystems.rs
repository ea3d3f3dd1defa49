//! XFS, Btrfs and NTFS as real tools and real drivers make them.
//!
//! Each is made on a disk of noise and mounted, filled, and some of it deleted;
//! then what `inspect` calls free is zeroed, and the file system's own checker and
//! every file in it have to find nothing changed. What is not at rest is kept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use rootstock_core::Digest;
use rootstock_image::inspect::{DiskReport, FreeSpace, inspect};
use rootstock_tests::{
    Daemon,
    filesystems::{
        MIB, assert_same_files, digests, files, look, noise, only_fs, tool, why_kept, zero_free,
    },
    mount::own_mounts,
    undo::{Action, Undo},
};
use tempfile::TempDir;

/// A kind of file system, and its tools.
struct Kind {
    name: &'static str,
    make: &'static str,
    mount: &'static str,
    check: &'static str,
    /// Where the superblock is.
    head: usize,
}

static XFS: Kind = Kind {
    name: "xfs",
    make: "mkfs.xfs -q -f -K -L TESTING --unsupported",
    mount: "mount -t xfs -o loop,nouuid",
    check: "xfs_repair -n",
    head: 0,
};

static BTRFS: Kind = Kind {
    name: "btrfs",
    make: "mkfs.btrfs -q -f -K -L TESTING",
    mount: "mount -t btrfs -o loop,nodiscard",
    check: "btrfs check --check-data-csum",
    head: 64 << 10,
};

static NTFS: Kind = Kind {
    name: "ntfs",
    make: "mkntfs -q -Q -F -L TESTING",
    mount: "mount -t ntfs-3g -o loop",
    check: "ntfsfix -n",
    head: 0,
};

/// One file system, in a directory of its own.
struct Fixture {
    kind: &'static Kind,
    image: PathBuf,
    mounted: PathBuf,
    mount_options: String,
    _directory: TempDir,
}

impl Fixture {
    fn new(kind: &'static Kind, options: &str, mib: usize) -> Self {
        own_mounts().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let mounted = directory.path().join("mounted");
        fs::create_dir(&mounted).unwrap();
        fs::write(&image, noise(21, mib * MIB)).unwrap();
        let line = [kind.make, options].join(" ");
        tool(line.trim_end(), &[&image]);
        Self {
            kind,
            image,
            mounted,
            mount_options: String::new(),
            _directory: directory,
        }
    }

    /// Mounts it, until what is returned is dropped.
    fn mount(&self) -> Undo {
        let line = [self.kind.mount, &self.mount_options].concat();
        tool(&line, &[&self.image, &self.mounted]);
        Undo::new(Action::Unmount(self.mounted.clone()))
    }

    /// Files of many sizes and many small ones, a part of each deleted again, so
    /// that free space is in many pieces.
    fn fill(&self, total_mib: usize) {
        let _unmounted = self.mount();
        files(&self.mounted, total_mib);
        let small = self.mounted.join("small");
        fs::create_dir(&small).unwrap();
        for number in 0..2000 {
            fs::write(small.join(number.to_string()), noise(number, 5000)).unwrap();
        }
        tool("sync -f", &[&self.mounted]);
        for number in (0..2000).step_by(2) {
            fs::remove_file(small.join(number.to_string())).unwrap();
        }
        for number in (0..120).step_by(3) {
            let file = format!("d{}/file{number}.dat", number % 7);
            fs::remove_file(self.mounted.join(file)).unwrap();
        }
    }

    fn digests(&self) -> BTreeMap<PathBuf, Digest> {
        let _unmounted = self.mount();
        digests(&self.mounted)
    }

    fn check(&self) {
        tool(self.kind.check, &[&self.image]);
    }

    /// Zeroes what is free and looks whether anything else changed.
    fn zeroing_changes_nothing(&self) -> DiskReport {
        let name = self.kind.name;
        let before = self.digests();
        assert!(before.len() >= 1000, "{name}: {}", before.len());
        let report = look(&self.image);
        let fs = only_fs(&report);
        assert_eq!(
            (fs.kind.as_str(), fs.label.as_deref()),
            (name, Some("TESTING"))
        );
        let uuid = tool("blkid -p -s UUID -o value", &[&self.image]);
        assert_eq!(fs.uuid.as_deref(), Some(uuid.trim()));
        assert_eq!(fs.free_bytes, Some(report.free.total_bytes()));
        zero_free(&self.image, &report);
        self.check();
        assert_eq!(look(&self.image), report);
        assert_same_files(&self.digests(), &before, name);
        report
    }
}

#[test]
fn xfs_keeps_every_file() {
    let cases = [
        ("", 320),
        ("-b size=1024 -d agcount=5", 96),
        ("-m rmapbt=1,reflink=1 -i nrext64=1 -l su=256k", 128),
        ("-s size=4096 -m finobt=0,reflink=0 -l su=4096", 96),
    ];
    for (options, mib) in cases {
        let fixture = Fixture::new(&XFS, options, mib);
        let fresh = look(&fixture.image);
        assert_eq!(
            only_fs(&fresh).free_bytes,
            Some(xfs_free_bytes(&fixture.image))
        );
        fixture.fill(8);
        let report = fixture.zeroing_changes_nothing();
        let free_bytes = report.free.total_bytes();
        assert_eq!(free_bytes, xfs_free_bytes(&fixture.image), "{options}");
        assert!(report.free.range_count() > 200, "{options}");
    }
    // Then metadata have another UUID than the superblock.
    let fixture = Fixture::new(&XFS, "", 96);
    tool("xfs_admin -U generate", &[&fixture.image]);
    fixture.fill(4);
    fixture.zeroing_changes_nothing();
}

/// Version 4, which kernels do not mount any more: filled as it is made.
#[test]
fn old_xfs_is_read() {
    for options in ["-b size=512 -d agcount=3", "-l version=1 -b size=4096"] {
        let fixture = Fixture::new(&XFS, &format!("-m crc=0,finobt=0 {options}"), 64);
        let report = look(&fixture.image);
        let fs = only_fs(&report);
        assert_eq!(
            fs.free_bytes,
            Some(xfs_free_bytes(&fixture.image)),
            "{options}"
        );
        zero_free(&fixture.image, &report);
        fixture.check();
        assert_eq!(look(&fixture.image), report);
    }
}

/// What xfs_db says that the headers of all groups count.
fn xfs_free_bytes(image: &Path) -> u64 {
    let print = |commands: &[&str]| {
        let mut words = Vec::new();
        for command in commands {
            words.extend([Path::new("-c"), Path::new(command)]);
        }
        words.push(image);
        let text = tool("xfs_db -r", &words);
        let numbers = text.lines().filter_map(|line| line.split_once(" = "));
        numbers.map(|(_, number)| number.parse().unwrap()).collect()
    };
    let sizes: Vec<u64> = print(&["sb 0", "p blocksize", "p agcount"]);
    let group = |group: u64| print(&[&format!("agf {group}"), "p freeblks"])[0];
    (0..sizes[1]).map(group).sum::<u64>() * sizes[0]
}

#[test]
fn btrfs_keeps_every_file() {
    let cases = [
        ("", 256, ""),
        ("-m single -n 4096", 160, "compress=zstd"),
        ("--mixed", 96, ""),
        ("-O ^no-holes -R quota", 160, "nodatacow"),
        (
            "-O ^skinny-metadata,^extref -R ^free-space-tree",
            160,
            "space_cache=v1",
        ),
    ];
    for (options, mib, mount) in cases {
        let mut fixture = Fixture::new(&BTRFS, options, mib);
        only_fs(&look(&fixture.image));
        if !mount.is_empty() {
            fixture.mount_options = format!(",{mount}");
        }
        fixture.fill(8);
        fixture.snapshot();
        let report = fixture.zeroing_changes_nothing();
        // What is never Btrfs's, and the copy of its superblock.
        for kept in [0, MIB as u64 - 1, 64 << 20, (64 << 20) + 4095] {
            assert!(
                report
                    .free
                    .iter()
                    .all(|free| !(free.start..free.end()).contains(&kept))
            );
        }
        assert!(report.free.range_count() > 200, "{options}");
    }
    // Then metadata have another UUID than the superblock.
    let fixture = Fixture::new(&BTRFS, "", 160);
    tool("btrfstune -f -m", &[&fixture.image]);
    fixture.fill(4);
    fixture.zeroing_changes_nothing();
}

impl Fixture {
    /// A subvolume of which there is a snapshot, and another that is deleted.
    fn snapshot(&self) {
        let _unmounted = self.mount();
        let sub = self.mounted.join("sub");
        let gone = self.mounted.join("gone");
        for path in [&sub, &gone] {
            tool("btrfs -q subvolume create", &[path]);
            fs::write(path.join("file"), noise(3, 300_000)).unwrap();
        }
        let copy = self.mounted.join("copy");
        tool("btrfs -q subvolume snapshot", &[&sub, &copy]);
        fs::write(copy.join("file"), noise(4, 100_000)).unwrap();
        tool("btrfs -q subvolume delete", &[&gone]);
    }
}

#[test]
fn ntfs_keeps_every_file() {
    for (options, mib) in [("", 96), ("-c 512", 48), ("-c 65536", 160), ("-s 4096", 64)] {
        let fixture = Fixture::new(&NTFS, options, mib);
        only_fs(&look(&fixture.image));
        fixture.fill(4);
        let report = fixture.zeroing_changes_nothing();
        assert!(report.free.range_count() > 50, "{options}");
    }
}

#[test]
fn xfs_in_doubt_is_kept_whole() {
    let fixture = Fixture::new(&XFS, "", 96);
    let copy = fixture.image.with_extension("copy");
    {
        let _unmounted = fixture.mount();
        files(&fixture.mounted, 2);
        tool("sync -f", &[&fixture.mounted]);
        fs::copy(&fixture.image, &copy).unwrap();
    }
    assert!(why_kept(&copy).contains("was not unmounted"));
    only_fs(&look(&fixture.image));
    fixture.is_kept_with(&[(0x7e, 1)], "wrong checksum");
    fixture.is_kept_with(&[(512 + 55, 1)], "group 0 has a wrong header");
    let old = Fixture::new(&XFS, "-m crc=0,finobt=0", 64);
    old.is_kept_with(&[(0x7e, 1)], "not made to the end");
    old.is_kept_with(&[(23, 1)], "realtime device");
    old.is_kept_with(&[(200, 0x80)], "features2 0x80");
    old.is_kept_with(&[(512 + 55, 1)], "count");
    let elsewhere = [48, 49, 50, 51, 52, 53, 54, 55].map(|at| (at, 0));
    let mut bytes = fs::read(&old.image).unwrap();
    elsewhere.iter().for_each(|(at, byte)| bytes[*at] = *byte);
    fs::write(&copy, bytes).unwrap();
    assert!(why_kept(&copy).contains("log is on another device"));
}

#[test]
fn btrfs_in_doubt_is_kept_whole() {
    let fixture = Fixture::new(&BTRFS, "", 128);
    let copy = fixture.image.with_extension("copy");
    {
        let _unmounted = fixture.mount();
        files(&fixture.mounted, 2);
        tool("sync -f", &[&fixture.mounted]);
        let mut file = File::create(fixture.mounted.join("late")).unwrap();
        file.write_all(&noise(5, 100_000)).unwrap();
        file.sync_all().unwrap();
        fs::copy(&fixture.image, &copy).unwrap();
    }
    assert!(why_kept(&copy).contains("log to be replayed"));
    only_fs(&look(&fixture.image));
    fixture.is_kept_with(&[(fixture.kind.head + 300, 1)], "wrong checksum");
    let other = Fixture::new(&BTRFS, "--csum xxhash", 128);
    assert!(why_kept(&other.image).contains("only CRC-32C"));
    let second = fixture.image.with_extension("second");
    fs::write(&second, vec![0; 128 * MIB]).unwrap();
    tool("mkfs.btrfs -q -f -K -d raid1 -m raid1", &[&copy, &second]);
    assert!(why_kept(&copy).contains("2 devices"));
}

#[test]
fn ntfs_in_doubt_is_kept_whole() {
    let fixture = Fixture::new(&NTFS, "", 48);
    tool("ntfsfix", &[&fixture.image]);
    assert!(why_kept(&fixture.image).contains("marked as dirty"));
    tool("ntfsfix -d", &[&fixture.image]);
    only_fs(&look(&fixture.image));
    let asleep = |head: &[u8]| {
        let _unmounted = fixture.mount();
        let file = [head, &[0; 8192]].concat();
        fs::write(fixture.mounted.join("HiberFil.sys"), file).unwrap();
    };
    asleep(b"hibr");
    assert!(why_kept(&fixture.image).contains("hibernated"));
    asleep(b"wake");
    only_fs(&look(&fixture.image));
    asleep(b"");
    only_fs(&look(&fixture.image));
    {
        // Then it is in a record of the directory and not in its root.
        let _unmounted = fixture.mount();
        for number in 0..500 {
            fs::write(fixture.mounted.join(format!("a long name {number}")), "").unwrap();
        }
    }
    only_fs(&look(&fixture.image));
    asleep(b"HIBR");
    assert!(why_kept(&fixture.image).contains("hibernated"));
}

impl Fixture {
    /// With these bytes changed to others it is kept whole, for this reason.
    fn is_kept_with(&self, changes: &[(usize, u8)], reason: &str) {
        let mut bytes = fs::read(&self.image).unwrap();
        for (at, bits) in changes {
            bytes[*at] ^= bits;
        }
        let report = inspect(&bytes, FreeSpace::Drop).unwrap();
        assert!(report.free.is_empty(), "{reason}");
        let fs = report.partitions[0].fs.as_ref().unwrap();
        let why = fs.kept_whole_because.as_deref().unwrap();
        assert!(why.contains(reason), "{reason}: {why}");
    }
}

/// The whole way: what a version has of each is every file, and no free space.
#[test]
fn a_version_has_every_file_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("daemon")).unwrap();
    for kind in [&XFS, &BTRFS, &NTFS] {
        let fixture = Fixture::new(kind, "", 128);
        fixture.fill(4);
        let before = fixture.digests();
        let source = fixture.image.to_str().unwrap();
        let import = |image: &str, more: &[&str]| {
            let words = ["image", "import", image, source];
            daemon.json(words.iter().chain(more)).unwrap()
        };
        let number = |said: &serde_json::Value, name: &str| said[name].as_u64().unwrap();
        let done = import(kind.name, &[]);
        let report = look(&fixture.image);
        let dropped = number(&done, "dropped_free_bytes");
        assert_eq!(dropped, report.free.total_bytes());
        // The disk is of noise: what is sent is what is in use, and a little more
        // where chunks are cut by free space.
        let disk_bytes = (128 * MIB) as u64;
        let sent = number(&done, "sent_bytes");
        assert!(
            sent < disk_bytes - dropped + disk_bytes / 20,
            "{} {sent} {dropped}",
            kind.name
        );
        let said = daemon
            .json(["image", "show", &format!("{}:1", kind.name)])
            .unwrap();
        let fs = &said["facts"]["partitions"][0]["fs"];
        assert_eq!(
            (fs["kind"].as_str(), fs["label"].as_str()),
            (Some(kind.name), Some("TESTING"))
        );
        assert_eq!(fs["free_bytes"].as_u64(), Some(dropped));

        // Whoever reads a disk that changes is not told that nothing uses it.
        for option in ["--allow-changes", "--keep-free-space"] {
            let image = format!("{}{option}", kind.name);
            assert_eq!(number(&import(&image, &[option]), "dropped_free_bytes"), 0);
        }
        let mut expected = fs::read(&fixture.image).unwrap();
        for range in report.free.iter() {
            expected[range.start as usize..range.end() as usize].fill(0);
        }
        fs::remove_file(&fixture.image).unwrap();
        daemon
            .run(["image", "export", &format!("{}:1", kind.name), source])
            .unwrap();
        assert!(
            fs::read(&fixture.image).unwrap() == expected,
            "{}",
            kind.name
        );
        fixture.check();
        assert_same_files(&fixture.digests(), &before, kind.name);
    }
}
