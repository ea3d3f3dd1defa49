//! Real partition tables and file systems, held against the tools that make them.
//!
//! Each file system is made on a disk of noise, filled, and some of it deleted;
//! then what `inspect` calls free is zeroed, and the file system's own checker and
//! every file in it have to find nothing changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rootstock_image::{
    grid::RegionKind,
    inspect::{DiskReport, FreeSpace, TableKind, inspect},
};
use rootstock_tests::filesystems::{
    MIB, PATH, Random, digests, files, look, noise, only_fs, tool, tool_with_input, why_kept,
    zero_free,
};

/// Runs one command of debugfs on an image.
fn debugfs(image: &Path, command: &str) -> String {
    let mut debugfs = Command::new("debugfs");
    let output = debugfs
        .args(["-w", "-R", command])
        .arg(image)
        .env("PATH", PATH)
        .output()
        .expect("debugfs runs");
    assert!(output.status.success(), "debugfs {command}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn system(dir: &Path) {
    for sub in [
        "usr/lib/modules/6.1.0-18-amd64",
        "usr/lib/modules/6.1.0-20-amd64",
        "etc",
        "boot",
    ] {
        fs::create_dir_all(dir.join(sub)).expect("creates");
    }
    let release =
        "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
    fs::write(dir.join("usr/lib/os-release"), release).expect("writes");
    fs::write(dir.join("boot/vmlinuz-6.1.0-20-amd64"), noise(1, 9000)).expect("writes");
    fs::write(dir.join("boot/vmlinuz-6.6.13+bpo-amd64"), noise(2, 9000)).expect("writes");
    std::os::unix::fs::symlink("../usr/lib/os-release", dir.join("etc/os-release")).expect("links");
    std::os::unix::fs::symlink("usr/lib", dir.join("lib")).expect("links");
}

/// The number after a label in the superblock, as dumpe2fs prints it.
fn dumped(image: &Path, label: &str) -> u64 {
    let text = tool("dumpe2fs -h", &[image]);
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let value = line.unwrap_or_else(|| panic!("{label} in {text}"));
    value.trim().parse().expect("a number")
}

struct Ext {
    name: &'static str,
    options: &'static str,
    kind: &'static str,
    mib: usize,
}

const fn ext(name: &'static str, options: &'static str, kind: &'static str, mib: usize) -> Ext {
    Ext {
        name,
        options,
        kind,
        mib,
    }
}

/// Small groups make many of them, most of them never used.
static EXTS: [Ext; 24] = [
    ext("ext2-1k", "-t ext2 -b 1024", "ext2", 40),
    ext("ext2-4k", "-t ext2 -b 4096", "ext2", 40),
    ext(
        "ext2-all-supers",
        "-t ext2 -b 1024 -O ^sparse_super,^resize_inode",
        "ext2",
        48,
    ),
    ext("ext3", "-t ext3 -b 4096 -g 2048", "ext3", 64),
    ext("ext4", "-t ext4", "ext4", 64),
    ext("ext4-1k", "-t ext4 -b 1024", "ext4", 64),
    ext("ext4-2k", "-t ext4 -b 2048", "ext4", 64),
    ext("ext4-many-groups", "-t ext4 -b 4096 -g 1024", "ext4", 96),
    ext("ext4-32bit", "-t ext4 -b 1024 -O ^64bit", "ext4", 64),
    ext(
        "ext4-uninit",
        "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg",
        "ext4",
        64,
    ),
    ext(
        "ext4-uninit-32bit",
        "-t ext4 -b 4096 -g 1024 -O ^metadata_csum,uninit_bg,^64bit",
        "ext4",
        64,
    ),
    ext(
        "ext4-no-checksums",
        "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg",
        "ext4",
        64,
    ),
    ext(
        "ext4-meta-bg-1k",
        "-t ext4 -b 1024 -g 512 -O meta_bg,^resize_inode",
        "ext4",
        64,
    ),
    ext(
        "ext4-meta-bg-4k",
        "-t ext4 -b 4096 -g 256 -O meta_bg,^resize_inode",
        "ext4",
        96,
    ),
    ext("ext4-no-flex", "-t ext4 -b 1024 -O ^flex_bg", "ext4", 64),
    ext(
        "ext4-no-flex-no-csum",
        "-t ext4 -b 4096 -g 1024 -O ^flex_bg,^metadata_csum",
        "ext4",
        64,
    ),
    ext(
        "ext4-bigalloc",
        "-t ext4 -b 4096 -O bigalloc -C 16384 -g 8192",
        "ext4",
        96,
    ),
    ext(
        "ext4-bigalloc-1k",
        "-t ext4 -b 1024 -O bigalloc -C 2048",
        "ext4",
        96,
    ),
    ext(
        "ext4-sparse-super2",
        "-t ext4 -b 1024 -O sparse_super2,^resize_inode",
        "ext4",
        64,
    ),
    ext("ext4-inline", "-t ext4 -O inline_data -I 256", "ext4", 32),
    ext(
        "ext4-debian-13",
        "-t ext4 -O metadata_csum_seed,orphan_file",
        "ext4",
        32,
    ),
    ext(
        "ext4-large-dirs",
        "-t ext4 -O large_dir,ea_inode",
        "ext4",
        32,
    ),
    ext(
        "ext4-extras",
        "-t ext4 -O fast_commit,project,casefold,encrypt,verity",
        "ext4",
        32,
    ),
    ext("ext4-no-journal", "-t ext4 -O ^has_journal", "ext4", 32),
];

#[test]
fn ext_file_systems_keep_every_file() {
    keep_every_file(EXTS.iter().step_by(2));
}

#[test]
fn more_ext_file_systems_keep_every_file() {
    keep_every_file(EXTS.iter().skip(1).step_by(2));
}

fn keep_every_file(cases: impl Iterator<Item = &'static Ext>) {
    let scratch = tempfile::tempdir().expect("a directory");
    let source = scratch.path().join("source");
    fs::create_dir(&source).expect("creates");
    files(&source, 8);
    system(&source);
    let mut uninitialised = 0;
    for case in cases {
        let image = scratch.path().join(case.name);
        fs::write(&image, noise(3, case.mib * MIB)).expect("writes");
        let line = format!(
            "mke2fs -q -F -E nodiscard -L {} {}",
            case.name, case.options
        );
        tool(&line, &[Path::new("-d"), &source, &image]);
        let delete: String = (0..120)
            .step_by(3)
            .map(|number| format!("rm /d{}/file{number}.dat\n", number % 7))
            .collect();
        tool_with_input("debugfs -w -f -", &[&image], &delete);
        tool("e2fsck -fn", &[&image]);
        uninitialised += tool("dumpe2fs", &[&image]).matches("BLOCK_UNINIT").count();
        check_ext(case, &image, scratch.path());
        fs::remove_file(&image).expect("removes");
    }
    assert!(
        uninitialised > 50,
        "few groups were never used: {uninitialised}"
    );
}

/// Zeroes what is free and looks whether anything else changed.
fn check_ext(case: &Ext, image: &Path, scratch: &Path) {
    let name = case.name;
    let report = look(image);
    let fs = only_fs(&report);
    assert_eq!(fs.kind, case.kind, "{name}");
    let label: String = name.chars().take(16).collect();
    assert_eq!(fs.label.as_deref(), Some(label.as_str()));
    let block_bytes = dumped(image, "Block size:");
    let free_bytes = dumped(image, "Free blocks:") * block_bytes;
    assert_eq!(fs.free_bytes, Some(free_bytes), "{name}");
    assert_eq!(report.free.total_bytes(), free_bytes, "{name}");
    assert_eq!(
        fs.used_bytes,
        Some(dumped(image, "Block count:") * block_bytes - free_bytes)
    );
    check_facts(case, &report);

    let dump = |to: &str| {
        let to = scratch.join(to);
        fs::create_dir(&to).expect("creates");
        debugfs(image, &format!("rdump / {}", to.display()));
        let found = digests(&to);
        fs::remove_dir_all(&to).expect("removes");
        found
    };
    let before = dump("before");
    assert!(before.len() >= 80, "{name}: {}", before.len());
    let dumped_before = tool("dumpe2fs", &[image]);
    zero_free(image, &report);
    tool("e2fsck -fn", &[image]);
    assert_eq!(tool("dumpe2fs", &[image]), dumped_before, "{name}");
    assert_eq!(dump("after"), before, "{name}");
    assert_eq!(look(image), report, "{name}");
}

/// What the reader of files does not know, and nothing is said about.
const NO_FACTS: [&str; 5] = [
    "ext4-meta-bg-1k",
    "ext4-meta-bg-4k",
    "ext4-inline",
    "ext4-large-dirs",
    "ext4-extras",
];

fn check_facts(case: &Ext, report: &DiskReport) {
    let name = case.name;
    if NO_FACTS.contains(&name) {
        assert_eq!(
            (report.os.as_deref(), report.kernels.len()),
            (None, 0),
            "{name}"
        );
        return;
    }
    assert_eq!(
        report.os.as_deref(),
        Some("Debian GNU/Linux 12 (bookworm)"),
        "{name}"
    );
    let kernels = ["6.1.0-18-amd64", "6.1.0-20-amd64", "6.6.13+bpo-amd64"];
    assert_eq!(report.kernels, kernels, "{name}");
}

#[test]
fn ext_file_systems_in_doubt_are_kept_whole() {
    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("ext4");
    let cases = [
        ("feature needs_recovery", "journal has to be replayed"),
        ("ssv state 2", "errors were found"),
        ("ssv state 0", "not unmounted"),
        ("freeb 1", "metadata in free blocks"),
        ("freeb 20000", "counts"),
        ("set_bg 0 free_blocks_count 7", "wrong checksum"),
        ("set_bg 1 inode_table 99999999", "wrong checksum"),
    ];
    for (command, reason) in cases {
        fs::write(&image, vec![0; 32 * MIB]).expect("writes");
        tool("mke2fs -q -F -t ext4 -b 1024", &[&image]);
        only_fs(&look(&image));
        debugfs(&image, command);
        // debugfs mends checksums of what it writes; a raw change does not.
        if reason == "wrong checksum" {
            let mut bytes = fs::read(&image).expect("reads");
            bytes[2048 + 12] ^= 1;
            fs::write(&image, bytes).expect("writes");
        }
        let why = why_kept(&image);
        assert!(why.contains(reason), "{command}: {why}");
    }
}

#[test]
fn damaged_ext4_ends_in_a_report() {
    let scratch = tempfile::tempdir().expect("a directory");
    let source = scratch.path().join("source");
    fs::create_dir(&source).expect("creates");
    files(&source, 1);
    system(&source);
    let image = scratch.path().join("ext4");
    for options in [
        "-t ext4 -b 1024",
        "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,^64bit -g 2048",
    ] {
        fs::write(&image, vec![0; 8 * MIB]).expect("writes");
        tool(
            &format!("mke2fs -q -F {options} -J size=1 -N 256"),
            &[Path::new("-d"), &source, &image],
        );
        let clean = fs::read(&image).expect("reads");
        let mut random = Random(11);
        for _ in 0..400 {
            let mut bytes = clean.clone();
            for _ in 0..1 + random.below(8) {
                // Superblock, descriptors, or anywhere in the first megabyte.
                let at = match random.below(4) {
                    0 => 1024 + random.below(256),
                    1 => 2048 + random.below(256),
                    _ => 1024 + random.below(MIB),
                };
                bytes[at] = random.next() as u8;
            }
            if random.below(4) == 0 {
                bytes.truncate(1 + random.below(8 * MIB));
            }
            let report = inspect(&bytes, FreeSpace::Drop).expect("memory has no errors");
            assert!(report.kernels.len() <= 64);
            assert!(report.free.total_bytes() <= bytes.len() as u64);
        }
    }
}

#[test]
fn fat_file_systems_keep_every_file() {
    let scratch = tempfile::tempdir().expect("a directory");
    let source = scratch.path().join("source");
    fs::create_dir(&source).expect("creates");
    files(&source, 1);
    let cases = [
        ("fat12", "-F 12 -s 4", 4),
        ("fat16", "-F 16 -s 4", 40),
        ("fat32", "-F 32 -s 1", 64),
        ("fat32", "-F 32 -s 2 -S 2048", 300),
        ("fat16", "-F 16 -f 1 -s 2", 16),
    ];
    for (kind, options, mib) in cases {
        let image = scratch.path().join("fat");
        fs::write(&image, noise(5, mib * MIB)).expect("writes");
        tool(
            &format!("mkfs.fat -n TESTING -i 1234ABCD {options}"),
            &[&image],
        );
        let dirs: Vec<PathBuf> = (0..7).map(|n| source.join(format!("d{n}"))).collect();
        let mut copy: Vec<&Path> = vec![&image];
        copy.extend(dirs.iter().map(PathBuf::as_path));
        copy.push(Path::new("::/"));
        tool("mcopy -s -Q -i", &copy);
        for number in (0..120).step_by(3) {
            let file = format!("::/d{}/file{number}.dat", number % 7);
            tool("mdel -i", &[&image, Path::new(&file)]);
        }
        tool("fsck.fat -n", &[&image]);
        let report = look(&image);
        let fs = only_fs(&report);
        assert_eq!(
            (fs.kind.as_str(), fs.label.as_deref()),
            (kind, Some("TESTING"))
        );
        assert_eq!(fs.uuid.as_deref(), Some("1234-ABCD"));
        assert_eq!(fs.free_bytes, Some(report.free.total_bytes()));
        assert_eq!(fs.free_bytes, Some(fat_free_bytes(&image)), "{options}");

        let dump = |to: &str| {
            let to = scratch.path().join(to);
            fs::create_dir(&to).expect("creates");
            tool("mcopy -s -n -Q -i", &[&image, Path::new("::*"), &to]);
            let found = digests(&to);
            fs::remove_dir_all(&to).expect("removes");
            found
        };
        let before = dump("before");
        assert_eq!(before.len(), 80);
        zero_free(&image, &report);
        tool("fsck.fat -n", &[&image]);
        assert_eq!(dump("after"), before, "{options}");
    }
}

/// What fsck.fat says is free: its last line is "N files, USED/ALL clusters".
fn fat_free_bytes(image: &Path) -> u64 {
    let text = tool("fsck.fat -nv", &[image]);
    let cluster = text
        .lines()
        .find(|line| line.ends_with("bytes per cluster"));
    let first = |line: &str| {
        line.trim()
            .split(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
    };
    let cluster_bytes = cluster.and_then(first).expect("the size of a cluster");
    let counts = text.lines().last().and_then(|line| line.split(", ").nth(1));
    let counts = counts
        .and_then(|line| line.split(' ').next())
        .expect("counts");
    let (used, all) = counts.split_once('/').expect("two counts");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    (number(all) - number(used)) * cluster_bytes
}

#[test]
fn swap_space() {
    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("swap");
    fs::write(&image, noise(9, 8 * MIB)).expect("writes");
    tool(
        "mkswap -p 4096 -L slow -U 01234567-89ab-cdef-0123-456789abcdef",
        &[&image],
    );
    let before = tool("blkid -p", &[&image]);
    let report = look(&image);
    let fs = only_fs(&report);
    assert_eq!(
        (fs.kind.as_str(), fs.label.as_deref()),
        ("swap", Some("slow"))
    );
    assert_eq!(
        fs.uuid.as_deref(),
        Some("01234567-89ab-cdef-0123-456789abcdef")
    );
    assert_eq!(report.free.total_bytes(), (8 * MIB - 4096) as u64);
    zero_free(&image, &report);
    assert_eq!(tool("blkid -p", &[&image]), before);
}

/// The partitions that sfdisk finds: number, first byte, length.
fn listed(image: &Path, sector_bytes: u64) -> Vec<(u32, u64, u64)> {
    let text = tool("sfdisk --json", &[image]);
    let table: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    for entry in table["partitiontable"]["partitions"]
        .as_array()
        .expect("a list")
    {
        let node = entry["node"].as_str().expect("a name");
        let digits = node.trim_start_matches(image.to_str().expect("UTF-8"));
        let number = digits.parse().expect("a number");
        let sectors = |field: &str| entry[field].as_u64().expect("a number") * sector_bytes;
        // sfdisk lists the extended partition too, which holds no data itself.
        if !matches!(entry["type"].as_str(), Some("5" | "f")) {
            found.push((number, sectors("start"), sectors("size")));
        }
    }
    found.sort_by_key(|partition| partition.1);
    found
}

fn found(report: &DiskReport) -> Vec<(u32, u64, u64)> {
    let place =
        |p: &rootstock_image::inspect::PartitionReport| (p.number, p.start_bytes, p.len_bytes);
    report.partitions.iter().map(place).collect()
}

/// Makes a file system in a partition of a disk image.
fn make_in(image: &Path, partition: (u32, u64, u64), line: &str) {
    let (_, start, len) = partition;
    let part = image.with_extension("part");
    fs::write(&part, noise(start, len as usize)).expect("writes");
    tool(line, &[&part]);
    let mut disk = fs::read(image).expect("reads");
    disk[start as usize..(start + len) as usize].copy_from_slice(&fs::read(&part).expect("reads"));
    fs::write(image, disk).expect("writes");
}

#[test]
fn partition_tables() {
    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("disk");
    let scripts = [
        (TableKind::Gpt, "label: gpt\n,8M,U\n,20M,L,\n,10M,S\n,,R\n"),
        (
            TableKind::Mbr,
            "label: dos\n,8M,ef,*\n,4M,83\n,,E\nstart=40960,size=40960,type=83\nstart=86016,size=20480,type=82\n",
        ),
        (
            TableKind::Mbr,
            "label: dos\nstart=63,size=16065,type=c\n,40M,83\n,,82\n",
        ),
    ];
    for (kind, script) in scripts {
        fs::write(&image, noise(13, 64 * MIB + 512)).expect("writes");
        tool_with_input("sfdisk -q --wipe always", &[&image], script);
        let listed = listed(&image, 512);
        let lines = [
            "mkfs.fat -F 16 -s 1",
            "mke2fs -q -F -t ext4 -b 1024 -E nodiscard",
            "mkswap",
        ];
        for (partition, line) in listed.iter().zip(lines) {
            make_in(&image, *partition, line);
        }
        let report = look(&image);
        assert_eq!(
            (report.table, found(&report)),
            (kind, listed.clone()),
            "{script}"
        );
        assert!(report.notes.is_empty(), "{:?}", report.notes);
        for (partition, kind) in report.partitions.iter().zip(["fat16", "ext4", "swap"]) {
            let fs = partition.fs.as_ref().expect("a file system");
            assert_eq!((fs.kind.as_str(), &fs.kept_whole_because), (kind, &None));
            assert!(report.grid.regions().iter().any(|region| {
                region.start_bytes == partition.start_bytes
                    && region.len_bytes == partition.len_bytes
                    && region.kind == RegionKind::Partition
            }));
        }
        zero_free(&image, &report);
        assert_eq!(self::listed(&image, 512), listed);
        let verified = tool("sfdisk --verify", &[&image]);
        assert!(verified.contains("No errors detected"), "{verified}");
        assert_eq!(look(&image), report);
    }
}

#[test]
fn partition_tables_of_other_tools() {
    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("disk");
    fs::write(&image, noise(17, 64 * MIB)).expect("writes");
    let script = "g\nn\n1\n\n+8M\nn\n2\n\n\nw\n";
    tool_with_input("fdisk -b 4096 -w always", &[&image], script);
    let report = look(&image);
    assert_eq!((report.table, report.partitions.len()), (TableKind::Gpt, 2));
    assert_eq!(report.partitions[0].len_bytes, 8 * MIB as u64);
    assert_eq!(report.partitions[0].start_bytes, MIB as u64);
    assert!(report.notes.is_empty(), "{:?}", report.notes);

    fs::write(&image, vec![0; 64 * MIB]).expect("writes");
    let disk = image.to_str().expect("UTF-8");
    let parted = "mklabel msdos mkpart primary fat32 1MiB 9MiB mkpart extended 9MiB 60MiB mkpart logical ext4 10MiB 30MiB mkpart logical linux-swap 31MiB 50MiB";
    tool(&format!("parted -s {disk} {parted}"), &[]);
    let report = look(&image);
    assert_eq!(
        (report.table, found(&report)),
        (TableKind::Mbr, listed(&image, 512))
    );

    // An unpartitioned disk that mkfs.fat gives an entry for all of it.
    tool("mkfs.fat -F 16 --mbr=y", &[&image]);
    let report = look(&image);
    assert_eq!(
        (report.table, only_fs(&report).kind.as_str()),
        (TableKind::None, "fat16")
    );
    assert!(!report.free.is_empty());
}
