//! First stages made from real images, held against the tools that read them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rootstock_image::{
    ReadAt,
    boot::{self, Assembled, Compression, Ingredients, OpenFs, OpenFsError, Opened},
    inspect::{self, PartitionReport},
};
use rootstock_tests::{
    daemon::Daemon,
    disk, kernel,
    mount::own_mounts,
    tool,
    undo::{Action, Undo},
};

/// The longest first stage for a kernel of virtual machines, without the agent.
const CLOUD_BYTES_MAX: usize = 4 << 20;

const DISK_BYTES: u64 = 400 << 20;

struct Disk(File, u64);

impl ReadAt for Disk {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset_bytes)
    }

    fn len_bytes(&self) -> u64 {
        self.1
    }
}

struct Opener(Arc<Disk>);

impl OpenFs for Opener {
    fn open(&self, partition: &PartitionReport) -> Result<Vec<Opened>, OpenFsError> {
        let (start, len) = (partition.start_bytes, partition.len_bytes);
        let disk = Arc::clone(&self.0);
        Ok(vec![Opened {
            fs: Box::new(boot::Ext4Fs::open(disk, start, len)?),
            kind: "ext4",
            options: String::new(),
        }])
    }
}

/// A root with Debian's kernel and what `depmod` writes when it is installed.
fn system(dir: &Path) -> String {
    let kernel = kernel::fetched_kernel().unwrap();
    let version = kernel::release(&kernel).unwrap();
    tool::run("cp", ["-a", &text(&kernel), &text(dir)]).unwrap();
    tool::run("depmod", ["-b", &text(dir), &version]).unwrap();
    for (path, contents) in [
        ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
        (
            "etc/default/grub",
            "GRUB_CMDLINE_LINUX=\"root=/dev/vda1 console=ttyS0\"\n",
        ),
        ("sbin/init", "\u{7f}ELF"),
    ] {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    version
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn assembled(disk: &Path, agent: &[u8]) -> Assembled {
    let file = File::open(disk).unwrap();
    let len = file.metadata().unwrap().len();
    let disk = Arc::new(Disk(file, len));
    let partitions = inspect::partitions(&*disk).unwrap();
    let system = boot::find_system(&partitions, &Opener(disk), None).unwrap();
    assert_eq!((system.partition, system.fs_kind), (1, "ext4"));
    assert_eq!(boot::kept_arguments(&system.fs).unwrap(), ["console=ttyS0"]);
    let kernel = boot::choose_kernel(&system.fs, None).unwrap();
    let site = b"{}";
    boot::assemble(&system.fs, &kernel, "ext4", Ingredients { agent, site }).unwrap()
}

/// Unpacks an archive with the tools that everybody has.
fn unpack(assembled: &Assembled, dir: &Path) -> PathBuf {
    assert_eq!(assembled.compression, Compression::Zstd);
    let packed = dir.join("initrd.zst");
    fs::write(&packed, &assembled.initrd).unwrap();
    tool::run(
        "zstd",
        ["-q", "-d", &text(&packed), "-o", &text(&dir.join("initrd"))],
    )
    .unwrap();
    let files = dir.join("files");
    fs::create_dir(&files).unwrap();
    let archive = fs::read(dir.join("initrd")).unwrap();
    let mut cpio = Command::new("cpio");
    cpio.args(["-idm", "--quiet"]).current_dir(&files);
    tool::run_with_input(&mut cpio, &archive).unwrap();
    files
}

#[test]
fn tools_read_the_archive_and_every_module_has_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let version = system(&root);
    let image = dir.path().join("disk.raw");
    disk::ext4_on_mbr(&image, DISK_BYTES, &root).unwrap();
    let made = assembled(&image, b"the agent");
    assert!(
        made.initrd.len() < CLOUD_BYTES_MAX,
        "{} bytes",
        made.initrd.len()
    );
    let files = unpack(&made, dir.path());
    assert_eq!(fs::read(files.join("init")).unwrap(), b"the agent");

    let modules = files.join("lib/modules").join(&version);
    let dependencies = fs::read_to_string(modules.join("modules.dep")).unwrap();
    assert_eq!(dependencies.lines().count(), made.module_count);
    for line in dependencies.lines() {
        for path in line.replace(':', "").split_whitespace() {
            let own = fs::read(modules.join(path)).unwrap();
            let of_image = fs::read(root.join("lib/modules").join(&version).join(path)).unwrap();
            assert!(own == of_image, "{path} differs");
        }
    }
    // depmod looks for every symbol itself; modprobe then names what it would load.
    let load = fs::read_to_string(files.join("rootstock/modules.load")).unwrap();
    let said = tool::output(
        Command::new("depmod")
            .args(["-e", "-F"])
            .arg(root.join(format!("boot/System.map-{version}")))
            .args(["-n", "-b"])
            .arg(&files)
            .arg(&version),
    )
    .unwrap();
    assert!(said.status.success());
    tool::run("depmod", ["-b", &text(&files), &version]).unwrap();
    for name in load.lines().chain(["virtio_net", "virtio_blk"]) {
        let shown = tool::run(
            "modprobe",
            [
                "-d",
                &text(&files),
                "-S",
                &version,
                "--show-depends",
                "--ignore-install",
                name,
            ],
        )
        .unwrap();
        for line in shown.lines().filter(|line| line.starts_with("insmod")) {
            let path = line.split_whitespace().nth(1).unwrap();
            assert!(Path::new(path).is_file(), "{name} needs {path}");
        }
    }
    for name in ["nbd", "loop", "zram"] {
        assert!(
            load.lines().any(|line| line == name),
            "{name} is not in {load}"
        );
    }
    // Equal ingredients give equal bytes.
    assert_eq!(assembled(&image, b"the agent").initrd, made.initrd);
}

fn shown(daemon: &Daemon, name: &str, image: &Path) -> serde_json::Value {
    daemon.run(["image", "import", name, &text(image)]).unwrap();
    let shown = daemon
        .json(["image", "show", &format!("{name}:1")])
        .unwrap();
    shown["facts"]["boot"].clone()
}

#[test]
fn image_show_says_which_kernel_boots_from_ext4_and_xfs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let version = system(&root);
    let ext4 = dir.path().join("ext4.raw");
    disk::ext4_on_mbr(&ext4, DISK_BYTES, &root).unwrap();
    let xfs = dir.path().join("xfs.raw");
    xfs_disk(&xfs, &dir.path().join("mounted"), &root);
    let empty = dir.path().join("empty.raw");
    disk::ext4_on_mbr(&empty, 64 << 20, &root.join("sbin")).unwrap();

    let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    for (name, image, fs, partition) in [("ext4", &ext4, "ext4", 1), ("xfs", &xfs, "xfs", 0)] {
        let boot = shown(&daemon, name, image);
        assert_eq!(boot["kernel"], version.as_str(), "{boot}");
        assert_eq!(
            (boot["fs"].as_str(), boot["partition"].as_u64()),
            (Some(fs), Some(partition))
        );
    }
    let boot = shown(&daemon, "empty", &empty);
    let why = boot["why_not"].as_str().unwrap();
    assert!(why.contains("no Linux root file system"), "{why}");
}

/// An XFS without a partition table, filled by mounting it once.
fn xfs_disk(image: &Path, mounted: &Path, tree: &Path) {
    File::create(image).unwrap().set_len(DISK_BYTES).unwrap();
    tool::run("mkfs.xfs", ["-q", &text(image)]).unwrap();
    fs::create_dir(mounted).unwrap();
    own_mounts().unwrap();
    tool::run("mount", ["-o", "loop", &text(image), &text(mounted)]).unwrap();
    let _unmounted = Undo::new(Action::Unmount(mounted.to_owned()));
    tool::run("cp", ["-a", &text(&tree.join(".")), &text(mounted)]).unwrap();
}
