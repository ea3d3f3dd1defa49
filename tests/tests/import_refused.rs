//! Sources that must not become versions: hostile, cut, damaged or changing ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rootstock_tests::{Daemon, disk, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;

struct Fixture {
    dir: tempfile::TempDir,
    daemon: Daemon,
    raw: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.img");
        disk::noise(&raw, 24 * MIB, 3).unwrap();
        let daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
        Self { dir, daemon, raw }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn convert(&self, name: &str, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw"]).args(options);
        tool::run_command(command.arg(&self.raw).arg(&path)).unwrap();
        path
    }

    /// What is said when the source is refused; nothing may be left of it.
    fn refused(&self, source: &Path, more: &[&str]) -> String {
        let mut words = vec!["image", "import", "evil", source.to_str().unwrap()];
        words.extend(more);
        let said = self.daemon.refused(words);
        let said = said.unwrap_or_else(|error| panic!("{}: {error:#}", source.display()));
        assert!(said.starts_with("error: "), "{}: {said}", source.display());
        self.check_nothing();
        said
    }

    fn check_nothing(&self) {
        let images = self.daemon.json(["image", "list"]).unwrap();
        let versions = |image: &Value| image["version_count"].as_u64() != Some(0);
        assert!(
            !images["images"].as_array().unwrap().iter().any(versions),
            "{images}"
        );
    }
}

fn qemu_img(words: &[&str], path: &Path, more: &[&str]) {
    let mut command = Command::new("qemu-img");
    tool::run_command(command.args(words).arg(path).args(more)).unwrap();
}

#[test]
fn an_image_that_names_other_files_is_refused() {
    let fixture = Fixture::new();
    let secret = fixture.path("secret");
    disk::noise(&secret, MIB, 9).unwrap();
    let name = secret.to_str().unwrap();

    let backed = fixture.path("backed.qcow2");
    qemu_img(
        &["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name],
        &backed,
        &["1M"],
    );
    let data = fixture.path("data.qcow2");
    let copy = fixture.write("data-file", &fs::read(&secret).unwrap());
    let option = format!("data_file={},data_file_raw=on", copy.display());
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-o", &option],
        &data,
        &["1M"],
    );
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\nRW 2048 FLAT \"{name}\" 0\n\
         ddb.adapterType = \"ide\"\nddb.geometry.sectors = \"63\"\n\
         ddb.geometry.heads = \"16\"\nddb.geometry.cylinders = \"2\"\n"
    );
    let flat = fixture.write("flat.vmdk", descriptor.as_bytes());
    let mut hidden = vec![0; 4096];
    hidden[..4].copy_from_slice(b"KDMV");
    hidden[4] = 1;
    hidden[28] = 1;
    hidden[36] = 4;
    hidden[512..512 + descriptor.len()].copy_from_slice(descriptor.as_bytes());
    let hidden = fixture.write("hidden.vmdk", &hidden);
    let parent = fixture.convert("parent.vmdk", &["-O", "vmdk"]);
    let file = File::options().write(true).open(&parent).unwrap();
    let mut head = fs::read(&parent).unwrap();
    head.truncate(4096);
    let at = find(&head, b"# Extent description");
    let hint = format!("parentFileNameHint=\"{name}\"\n");
    file.write_all_at(hint.as_bytes(), at as u64).unwrap();

    for (source, what) in [
        (&backed, name),
        (&data, copy.to_str().unwrap()),
        (&flat, name),
        (&hidden, name),
        (&parent, name),
    ] {
        let said = fixture.refused(source, &[]);
        assert!(said.contains(what), "{said}");
        assert!(said.contains("qemu-img convert -O qcow2"), "{said}");
    }
    let split = fixture.convert(
        "split.vmdk",
        &["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
    );
    assert!(fixture.refused(&split, &[]).contains("split-s001.vmdk"));
    fixture.refused(&fixture.path("split-s001.vmdk"), &[]);
    // In an archive it is no better.
    let mut tar = Command::new("tar");
    let ova = fixture.path("evil.ova");
    tar.current_dir(fixture.dir.path())
        .arg("-cf")
        .arg(&ova)
        .arg("backed.qcow2");
    tool::run_command(&mut tar).unwrap();
    assert!(fixture.refused(&ova, &[]).contains(name));
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    let found = bytes
        .windows(wanted.len())
        .position(|window| window == wanted);
    found.unwrap_or_else(|| panic!("there is no {}", String::from_utf8_lossy(wanted)))
}

#[test]
fn a_name_is_only_a_name() {
    let fixture = Fixture::new();
    for name in [
        "nbd:127.0.0.1:1",
        "json:{\"driver\":\"null-co\"}",
        "a,b=c",
        "-x.qcow2",
    ] {
        let path = fixture.path(name);
        let plain = fixture.convert("plain.qcow2", &["-O", "qcow2"]);
        fs::rename(plain, &path).unwrap();
        let mut command = fixture.daemon.command();
        // By its bare name, as somebody in that directory would write it.
        command.current_dir(fixture.dir.path());
        command
            .args(["image", "import", "named", "--json", "--"])
            .arg(name);
        let output = tool::output(&mut command).unwrap();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let versions = fixture.daemon.json(["image", "show", "named"]).unwrap();
    assert_eq!(
        versions["versions"].as_array().unwrap().len(),
        1,
        "{versions}"
    );
}

#[test]
fn cut_images_are_refused() {
    let fixture = Fixture::new();
    let whole = [
        fixture.convert("a.qcow2", &["-O", "qcow2"]),
        fixture.convert("packed.qcow2", &["-c", "-O", "qcow2"]),
        fixture.convert("a.vmdk", &["-O", "vmdk"]),
        fixture.convert(
            "stream.vmdk",
            &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        ),
        fixture.convert("a.vdi", &["-O", "vdi"]),
        fixture.convert("a.vhd", &["-O", "vpc"]),
        fixture.convert("fixed.vhd", &["-O", "vpc", "-o", "subformat=fixed"]),
        fixture.convert("a.vhdx", &["-O", "vhdx"]),
        pack(&fixture, "gzip", "-1", "a.gz"),
        // Noise takes long at any higher level.
        pack(&fixture, "xz", "-0", "a.xz"),
        pack(&fixture, "zstd", "-1", "a.zst"),
        archive(&fixture),
    ];
    for path in &whole {
        let len = fs::metadata(path).unwrap().len();
        // Within the data, and within the header.
        for keep in [len / 2, 700] {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(keep).unwrap();
            let format = match path.file_name().and_then(|name| name.to_str()) {
                // Without its footer nothing shows that it was a VHD.
                Some("fixed.vhd") => &["--format", "vhd"][..],
                _ => &[],
            };
            let said = fixture.refused(path, format);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(said.contains(name) && said.contains("hint:"), "{said}");
        }
    }
}

fn pack(fixture: &Fixture, packer: &str, level: &str, name: &str) -> PathBuf {
    let path = fixture.path(name);
    let mut command = Command::new(packer);
    command.arg(level).arg("-c").arg(&fixture.raw);
    let status = command.stdout(File::create(&path).unwrap()).status();
    assert!(status.unwrap().success(), "{packer}");
    path
}

fn archive(fixture: &Fixture) -> PathBuf {
    let path = fixture.path("a.ova");
    let mut tar = Command::new("tar");
    tar.current_dir(fixture.dir.path()).arg("-cf").arg(&path);
    tool::run_command(tar.arg("disk.img")).unwrap();
    path
}

#[test]
fn damaged_and_lying_images_are_refused() {
    let fixture = Fixture::new();
    let damage = |name: &str, options: &[&str], at: u64, bytes: &[u8]| {
        let path = fixture.convert(name, options);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(bytes, at).unwrap();
        path
    };
    let sources = [
        // A table of clusters that lie far past the end.
        damage("l1.qcow2", &["-O", "qcow2"], 3 << 16, &[0x7f; 64]),
        // Cluster sizes that cannot be.
        damage("bits.qcow2", &["-O", "qcow2"], 20, &[0, 0, 0, 60]),
        // A disk of 2^63 bytes in a few megabytes.
        damage(
            "huge.qcow2",
            &["-O", "qcow2"],
            24,
            &[0x7f, 255, 255, 255, 255, 255, 254, 0],
        ),
        damage(
            "huge.vmdk",
            &["-O", "vmdk"],
            12,
            &[255, 255, 255, 255, 255, 255, 255, 0],
        ),
        damage(
            "huge.vdi",
            &["-O", "vdi"],
            0x170,
            &[0, 0, 0, 0, 0, 0, 0, 0x7f],
        ),
        damage("sum.vhd", &["-O", "vpc"], 520, &[0xff; 200]),
        damage(
            "header.vhdx",
            &["-O", "vhdx"],
            64 << 10,
            &vec![0xee; 128 << 10],
        ),
        damage("map.vdi", &["-O", "vdi"], 0x200, &[0xf0; 64]),
    ];
    for source in &sources {
        fixture.refused(source, &[]);
    }
    let mut packed = fs::read(pack(&fixture, "gzip", "-1", "bad.gz")).unwrap();
    let middle = packed.len() / 2;
    packed[middle..middle + 64].fill(0x55);
    fixture.refused(&fixture.write("bad.gz", &packed), &[]);
    let not = fixture.write("text.qcow2", b"hello, I am not a disk\n");
    let said = fixture.refused(&not, &["--format", "qcow2"]);
    assert!(said.contains("qcow2"), "{said}");
    fixture.refused(&fixture.write("empty.img", b""), &[]);
    fixture.refused(fixture.dir.path(), &[]);
    fixture.refused(&fixture.path("absent"), &[]);
}

#[test]
fn bombs_are_bounded() {
    let fixture = Fixture::new();
    let zeros = fixture.path("zeros.gz");
    let mut gzip = Command::new("sh");
    gzip.arg("-c").arg(format!(
        "head -c 512M /dev/zero | gzip -1 > '{}'",
        zeros.display()
    ));
    tool::run_command(&mut gzip).unwrap();
    let said = fixture.refused(&zeros, &["--max-size", "256M"]);
    assert!(
        said.contains("larger than") && said.contains("--max-size"),
        "{said}"
    );
    let sparse = fixture.path("sparse.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2"], &sparse, &["8T"]);
    assert!(
        fixture
            .refused(&sparse, &["--max-size", "1T"])
            .contains("larger than")
    );
    let raw = fixture.path("big.img");
    File::create(&raw).unwrap().set_len(100 << 30).unwrap();
    let said = fixture.refused(&raw, &["--max-size", "64G"]);
    assert!(said.contains("larger than"), "{said}");
}

#[test]
fn a_source_that_changes_is_noticed() {
    let fixture = Fixture::new();
    let source = fixture.path("changing.img");
    disk::noise(&source, 256 * MIB, 5).unwrap();
    let mut command = fixture.daemon.command();
    command.args(["image", "import", "evil"]).arg(&source);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_chunks(&fixture.daemon);
    let mut file = File::options().append(true).open(&source).unwrap();
    file.write_all(b"more").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("changed while it was read") && said.contains("hint:"),
        "{said}"
    );
    fixture.check_nothing();
}

#[test]
fn a_source_that_shrinks_is_noticed() {
    let fixture = Fixture::new();
    let source = fixture.path("shrinking.img");
    disk::noise(&source, 256 * MIB, 6).unwrap();
    let mut command = fixture.daemon.command();
    command.args(["image", "import", "evil"]).arg(&source);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_chunks(&fixture.daemon);
    File::options()
        .write(true)
        .open(&source)
        .unwrap()
        .set_len(MIB)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("shrinking.img") && said.contains("268435456"),
        "{said}"
    );
    fixture.check_nothing();
}

/// Waits until an import has sent something.
fn wait_for_chunks(daemon: &Daemon) {
    let limit = std::time::Duration::from_secs(60);
    let sent = rootstock_tests::wait::until("a chunk of an import", limit, || {
        let open = daemon.json(["import", "list"])?;
        let sent = open["imports"][0]["added_bytes"].as_u64();
        Ok(sent.filter(|bytes| *bytes > 0))
    });
    sent.unwrap();
}
