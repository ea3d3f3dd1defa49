//! Logical volumes as LVM2 makes them, on a disk of noise and in an array.
//!
//! This host's kernel need not have device-mapper: LVM2 writes its metadata without it,
//! the file systems are made beside the disk, and put to where `lvs` says that their
//! volumes lie. Then what `inspect` calls free is zeroed, and the file systems' own
//! checkers, every file and LVM2 have to find nothing changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rootstock_core::{ByteRange, Digest};
use rootstock_image::inspect::FsReport;
use rootstock_tests::{
    Daemon,
    filesystems::{
        MIB, assert_same_files, digests, files, look, noise, only_fs, tool, tool_with_input,
        why_kept, zero_free,
    },
    mount::own_mounts,
    undo::{Action, Undo},
};
use tempfile::TempDir;

/// Nothing is asked, nor is the kernel, nor are copies left in the system's directories.
const LVM: &str = "--yes --quiet --driverloaded n";
const CONFIG: [&str; 2] = ["--config", "backup{backup=0 archive=0}"];

/// A device that shows a file, while this lives.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path) -> Self {
        let name = tool("losetup --find --show", &[image]);
        Self(name.trim().into())
    }

    /// One of LVM2's commands, which sees only this disk, and words after the options.
    fn lvm(&self, command: &str, words: &[&str]) -> String {
        let (name, options) = command.split_once(' ').unwrap_or((command, ""));
        let line = format!("{name} {LVM} --devices {} {options}", self.0.display());
        let words: Vec<&Path> = CONFIG.iter().chain(words).map(Path::new).collect();
        tool(line.trim_end(), &words)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup --detach", &[&self.0]);
    }
}

/// What is made in a volume, and what checks it.
struct Kind {
    volume: &'static str,
    fs: &'static str,
    make: &'static str,
    check: &'static str,
}

static KINDS: [Kind; 3] = [
    Kind {
        volume: "home",
        fs: "xfs",
        make: "mkfs.xfs -q -f -K --unsupported",
        check: "xfs_repair -n",
    },
    Kind {
        volume: "root",
        fs: "ext4",
        make: "mkfs.ext4 -q -F -E nodiscard",
        check: "e2fsck -fn",
    },
    Kind {
        volume: "swap",
        fs: "swap",
        make: "mkswap -q",
        check: "",
    },
];

/// A physical volume of noise with three logical ones and holes.
struct Fixture {
    image: PathBuf,
    /// Where each volume lies, by LVM2's own word.
    places: BTreeMap<String, Vec<ByteRange>>,
    files: BTreeMap<&'static str, BTreeMap<PathBuf, Digest>>,
    directory: TempDir,
}

impl Fixture {
    /// With these options of pvcreate and vgcreate.
    fn new(pv: &str, vg: &str) -> Self {
        own_mounts().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk");
        fs::write(&image, noise(5, 256 * MIB)).unwrap();
        let mut fixture = Self {
            image,
            places: BTreeMap::new(),
            files: BTreeMap::new(),
            directory,
        };
        fixture.divide(pv, vg);
        for kind in &KINDS {
            let inner = fixture.image.with_extension(kind.volume);
            let len: u64 = fixture.places[kind.volume].iter().map(|p| p.len).sum();
            fs::write(&inner, noise(9, len as usize)).unwrap();
            tool(kind.make, &[&inner]);
            if !kind.check.is_empty() {
                let found = fixture.fill(&inner);
                fixture.files.insert(kind.volume, found);
            }
            fixture.put(kind.volume, &inner);
        }
        fixture
    }

    /// Volumes that grow in turn, and one between them that is gone again.
    fn divide(&mut self, pv: &str, vg: &str) {
        let disk = Loop::new(&self.image);
        let device = disk.0.to_str().unwrap().to_owned();
        disk.lvm(&format!("pvcreate {pv}"), &[&device]);
        disk.lvm(
            &format!("vgcreate --physicalextentsize 1m {vg}"),
            &["lab", &device],
        );
        let create = |name: &str, mib: &str| {
            let line = "lvcreate --activate n --zero n --wipesignatures n";
            disk.lvm(line, &["--name", name, "--extents", mib, "lab"]);
        };
        create("root", "30");
        create("gone", "7");
        create("home", "60");
        create("swap", "9");
        disk.lvm("lvextend", &["--extents", "+15", "lab/root"]);
        disk.lvm("lvextend", &["--extents", "+40", "lab/home"]);
        disk.lvm("lvremove", &["lab/gone"]);
        disk.lvm("lvextend", &["--extents", "+3", "lab/root"]);
        self.places = places(&disk);
        assert!(self.places["root"].len() >= 3, "{:?}", self.places);
    }

    /// Files, a third of which are deleted again.
    fn fill(&self, image: &Path) -> BTreeMap<PathBuf, Digest> {
        let mounted = self.mount(image);
        files(&mounted.0, 4);
        tool("sync -f", &[&mounted.0]);
        for number in (0..120).step_by(3) {
            let file = format!("d{}/file{number}.dat", number % 7);
            fs::remove_file(mounted.0.join(file)).unwrap();
        }
        digests(&mounted.0)
    }

    fn mount(&self, image: &Path) -> (PathBuf, Undo) {
        let path = self.directory.path().join("mounted");
        fs::create_dir_all(&path).unwrap();
        tool("mount -o loop", &[image, &path]);
        (path.clone(), Undo::new(Action::Unmount(path)))
    }

    fn put(&self, volume: &str, inner: &Path) {
        let bytes = fs::read(inner).unwrap();
        let disk = OpenOptions::new().write(true).open(&self.image).unwrap();
        let mut rest = bytes.as_slice();
        for place in &self.places[volume] {
            let (now, later) = rest.split_at(place.len as usize);
            disk.write_all_at(now, place.start).unwrap();
            rest = later;
        }
        assert!(rest.is_empty());
    }

    /// Copies a volume to a file beside the disk.
    fn take(&self, volume: &str) -> PathBuf {
        let inner = self.image.with_extension(volume);
        let disk = fs::read(&self.image).unwrap();
        let pieces = &self.places[volume];
        let pieces = pieces
            .iter()
            .map(|p| &disk[p.start as usize..p.end() as usize]);
        fs::write(&inner, pieces.collect::<Vec<_>>().concat()).unwrap();
        inner
    }

    /// What is free by what is free in each volume alone, and in the group.
    fn free_bytes(&self) -> u64 {
        let inner = KINDS.iter().map(|kind| {
            let image = self.take(kind.volume);
            look(&image).free.total_bytes()
        });
        let disk = Loop::new(&self.image);
        let free = disk.lvm("vgs --noheadings --units b --nosuffix -o vg_free", &["lab"]);
        inner.sum::<u64>() + free.trim().parse::<u64>().unwrap()
    }

    /// Every file is there, and the checkers of all are content.
    fn is_whole(&self) {
        for kind in &KINDS {
            let inner = self.take(kind.volume);
            let Some(before) = self.files.get(kind.volume) else {
                continue;
            };
            tool(kind.check, &[&inner]);
            let mounted = self.mount(&inner);
            assert_same_files(&digests(&mounted.0), before, kind.volume);
        }
        let disk = Loop::new(&self.image);
        disk.lvm("vgck", &["lab"]);
        assert_eq!(places(&disk), self.places);
    }
}

/// Where LVM2 says that its volumes lie, in their order.
fn places(disk: &Loop) -> BTreeMap<String, Vec<ByteRange>> {
    let line = "--noheadings --units b --nosuffix --separator ,";
    let pv = disk.lvm(&format!("pvs {line} -o pe_start,vg_extent_size"), &[]);
    let numbers: Vec<u64> = pv.trim().split(',').map(|n| n.parse().unwrap()).collect();
    let line = format!("lvs {line} --sort lv_name,seg_start_pe -o lv_name,seg_pe_ranges");
    let mut places = BTreeMap::<String, Vec<ByteRange>>::new();
    for segment in disk.lvm(&line, &["lab"]).lines() {
        let (name, range) = segment.trim().split_once(',').unwrap();
        let (_, range) = range.split_once(':').unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        let start = numbers[0] + first * numbers[1];
        let place = ByteRange::new(start, (last + 1 - first) * numbers[1]);
        places.entry(name.to_owned()).or_default().push(place);
    }
    places
}

/// The volumes of the group, each with its file system.
fn assert_volumes(fs: &FsReport) {
    assert_eq!(fs.kind, "lvm2 physical volume");
    let named = fs.volumes.iter().map(|volume| {
        let inner = volume.fs.as_ref().unwrap();
        assert_eq!(inner.kept_whole_because, None);
        (volume.name.as_str(), inner.kind.as_str())
    });
    let expected = KINDS.iter().map(|kind| (kind.volume, kind.fs));
    assert_eq!(named.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn logical_volumes_keep_every_file() {
    for (pv, vg) in [
        ("", ""),
        (
            "--metadatacopies 2 --bootloaderareasize 2m --labelsector 2",
            "--metadatacopies 2",
        ),
        ("--dataalignment 8m --metadatasize 4m", "--addtag desk"),
    ] {
        let fixture = Fixture::new(pv, vg);
        let report = look(&fixture.image);
        let fs = only_fs(&report);
        assert_volumes(fs);
        assert_eq!(fs.label.as_deref(), Some("lab"));
        let uuid = tool("blkid -p -s UUID -o value", &[&fixture.image]);
        assert_eq!(fs.uuid.as_deref(), Some(uuid.trim()));
        assert_eq!(report.free.total_bytes(), fixture.free_bytes(), "{pv}");
        zero_free(&fixture.image, &report);
        fixture.is_whole();
        assert_eq!(look(&fixture.image), report);
    }
}

#[test]
fn groups_in_doubt_are_kept_whole() {
    let directory = tempfile::tempdir().unwrap();
    let group = || {
        let image = directory.path().join("disk");
        fs::write(&image, vec![0; 64 * MIB]).unwrap();
        let disk = Loop::new(&image);
        disk.lvm("pvcreate", &[disk.0.to_str().unwrap()]);
        disk.lvm("vgcreate", &["lab", disk.0.to_str().unwrap()]);
        let line = "lvcreate --activate n --zero n --wipesignatures n";
        disk.lvm(line, &["--name", "root", "--extents", "4", "lab"]);
        (image, disk)
    };
    let (image, disk) = group();
    assert_eq!(only_fs(&look(&image)).volumes.len(), 1);
    disk.lvm(
        "lvcreate --activate n --zero n --wipesignatures n",
        &["--type", "error", "--name", "pool", "--extents", "2", "lab"],
    );
    let why = why_kept(&image);
    assert!(why.contains("pool is of the type error"), "{why}");
    drop(disk);

    let (image, disk) = group();
    disk.lvm("vgexport", &["lab"]);
    assert!(why_kept(&image).contains("lab is marked as EXPORTED"));
    disk.lvm("vgimport", &["lab"]);
    only_fs(&look(&image));

    let second = directory.path().join("second");
    fs::write(&second, vec![0; 64 * MIB]).unwrap();
    let other = Loop::new(&second);
    let both = [&disk, &other].map(|disk| format!("--devices {}", disk.0.display()));
    let line = format!("vgextend {LVM} {}", both.join(" "));
    let [option, config] = CONFIG.map(Path::new);
    tool(&line, &[option, config, Path::new("lab"), &other.0]);
    for image in [&image, &second] {
        assert!(why_kept(image).contains("2 physical volumes"));
    }
    // One that belongs to no group.
    fs::write(&second, vec![0; 64 * MIB]).unwrap();
    other.lvm("pvcreate", &[other.0.to_str().unwrap()]);
    assert!(why_kept(&second).contains("no description of a volume group"));
}

/// A member of an array of level 1 with metadata 1.2, as mdadm says it should be.
fn array_of(content: &Path) -> PathBuf {
    const DATA: usize = MIB;
    let content_bytes = fs::read(content).unwrap();
    let mut disk = noise(11, DATA);
    disk.extend(&content_bytes);
    let mut head = [0; 512];
    let sectors = (content_bytes.len() / 512) as u64;
    head[..8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
    head[16..32].fill(3);
    head[32..36].copy_from_slice(b"any:");
    for (at, value) in [
        (72, 1),
        (80, sectors),
        (92, 2),
        (128, (DATA / 512) as u64),
        (136, sectors),
        (144, 8),
        (200, 18),
        (208, u64::MAX),
    ] {
        head[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    head[220] = 128;
    head[256..].fill(0xff);
    head[256..260].copy_from_slice(&[0, 0, 1, 0]);
    let words = head.as_chunks::<4>().0.iter();
    let sum: u64 = words.map(|word| u64::from(u32::from_le_bytes(*word))).sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    head[216..220].copy_from_slice(&sum.to_le_bytes());
    disk[..8192].fill(0);
    disk[4096..4608].copy_from_slice(&head);
    let image = content.with_extension("array");
    fs::write(&image, disk).unwrap();
    let said = tool("mdadm --examine", &[&image]);
    for line in ["- correct", "State : clean", "Raid Level : raid1"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    image
}

#[test]
fn logical_volumes_in_an_array() {
    let mut fixture = Fixture::new("", "");
    let alone = look(&fixture.image).free.total_bytes();
    let array = array_of(&fixture.image);
    let report = look(&array);
    let fs = only_fs(&report);
    assert_eq!(fs.kind, "md raid level 1");
    assert_volumes(fs.volumes[0].fs.as_ref().unwrap());
    assert_eq!(report.free.total_bytes(), alone);
    zero_free(&array, &report);
    let bytes = fs::read(&array).unwrap();
    fixture.image = fixture.image.with_extension("inner");
    fs::write(&fixture.image, &bytes[MIB..]).unwrap();
    fixture.is_whole();
}

/// The whole way, from a partition: a version has every file, and says what is where.
#[test]
fn a_version_has_logical_volumes() {
    let mut fixture = Fixture::new("", "");
    let disk = fixture.directory.path().join("whole");
    let pv = fs::read(&fixture.image).unwrap();
    fs::write(&disk, [noise(3, MIB), pv, vec![0; MIB]].concat()).unwrap();
    tool_with_input(
        "sfdisk --quiet --wipe never --wipe-partitions never",
        &[&disk],
        "label: gpt\nstart=2048, size=524288, type=E6D6D379-F507-44C2-A23C-238F2A3DF928\n",
    );
    let report = look(&disk);
    assert_volumes(only_fs(&report));
    let daemon = Daemon::start(&fixture.directory.path().join("daemon")).unwrap();
    let source = disk.to_str().unwrap();
    let done = daemon.json(["image", "import", "lab", source]).unwrap();
    let dropped = report.free.total_bytes();
    assert_eq!(done["dropped_free_bytes"].as_u64(), Some(dropped));
    let said = daemon.json(["image", "show", "lab:1"]).unwrap();
    let volumes = &said["facts"]["partitions"][0]["fs"]["volumes"];
    assert_eq!(volumes[1]["name"].as_str(), Some("root"));
    assert_eq!(volumes[1]["fs"]["kind"].as_str(), Some("ext4"));
    let text = daemon.run(["image", "show", "lab:1"]).unwrap();
    assert!(text.contains("\n  root "), "{text}");
    // Extents may be given to others while they are read.
    let words = ["image", "import", "changing", source, "--allow-changes"];
    let changing = daemon.json(words).unwrap();
    assert_eq!(changing["dropped_free_bytes"].as_u64(), Some(0));
    let words = ["image", "export", "lab:1", source, "--force"];
    daemon.run(words).unwrap();
    fixture.image = fixture.image.with_extension("exported");
    let bytes = fs::read(&disk).unwrap();
    fs::write(&fixture.image, &bytes[MIB..MIB + 256 * MIB]).unwrap();
    fixture.is_whole();
}
