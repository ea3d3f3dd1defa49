//! What a boot read is learnt, fetched ahead by the next boot, and found again in the next version.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rootstock_core::{BLOCK_BYTES, ByteRange};
use rootstock_image::ReadAt;
use rootstock_image::trace::{FileMap, Trace, TraceBuilder, carry};
use rootstock_tests::boots::{self, Peer};
use rootstock_tests::golden::Golden;
use rootstock_tests::lan::{BOOT_LIMIT, Lan, SERVER};
use rootstock_tests::process::Process;
use rootstock_tests::pxe::Firmware;
use rootstock_tests::{agent, disk, tool, wait};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The smallest block of an ext4, in bytes.
const PIECE: usize = 1024;

/// A disk image that is read in place.
struct Image(File);

impl Image {
    fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }

    /// Whether the trace's blocks have these bytes among them.
    fn has(&self, trace: &Trace, bytes: &[u8]) -> bool {
        let blocks = trace.runs().iter().flat_map(|run| run.first..run.end());
        let mut pieces = blocks.flat_map(|block| self.pieces(block * BLOCK_BYTES));
        pieces.any(|(_, piece)| piece == bytes)
    }

    /// Where these bytes are.
    fn find(&self, bytes: &[u8]) -> u64 {
        let places = (0..self.len_bytes()).step_by(BLOCK_BYTES as usize);
        let mut pieces = places.flat_map(|at| self.pieces(at));
        pieces.find(|(_, piece)| piece == bytes).unwrap().0
    }

    /// The pieces of the block at this place.
    fn pieces(&self, at: u64) -> Vec<(u64, Vec<u8>)> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        self.read_exact_at(at, &mut block).unwrap();
        let pieces = block.chunks(PIECE).map(<[u8]>::to_vec);
        (at..).step_by(PIECE).zip(pieces).collect()
    }
}

impl ReadAt for Image {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, offset_bytes)
    }

    fn len_bytes(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

/// Files that are noise, of these names and sizes, in directories.
fn tree(directory: &Path, files: &[(&str, u64)]) -> PathBuf {
    let tree = directory.join("tree");
    for (name, len_bytes) in files {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let seed = name.bytes().fold(7, |seed: u64, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        disk::noise(&path, *len_bytes, seed).unwrap();
    }
    tree
}

/// An ext4 of 4 KiB blocks, or a disk with one in a partition.
fn make(directory: &Path, name: &str, files: &[(&str, u64)], options: &str) -> PathBuf {
    let own = directory.join(format!("of-{name}"));
    let tree = tree(&own, files);
    let path = directory.join(name);
    if options.is_empty() {
        disk::ext4_on_mbr(&path, 64 * MIB, &tree).unwrap();
    } else {
        let mut command = Command::new("mke2fs");
        command
            .args(["-q", "-F", "-t", "ext4"])
            .args(options.split(' '));
        command.arg("-d").arg(&tree).arg(&path).arg("65536k");
        tool::run_command(&mut command).unwrap();
    }
    path
}

#[test]
fn a_files_blocks_are_found_where_another_file_system_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let many: Vec<String> = (0..700)
        .map(|number| format!("etc/many/file-number-{number}"))
        .collect();
    let mut old = vec![
        ("lib/a", 5 * MIB),
        ("lib/deep/down/here/b", 40_000),
        ("gone", MIB),
        ("c", 3 * MIB),
    ];
    let mut new = vec![
        ("a-first", 9 * MIB),
        ("c", 3 * MIB),
        ("lib/deep/down/here/b", 40_000),
        ("lib/a", 5 * MIB),
    ];
    old.extend(many.iter().map(|name| (name.as_str(), 5000)));
    new.extend(many.iter().rev().map(|name| (name.as_str(), 5000)));
    // Blocks of the kernel's page, smaller ones, and no journal or 64-bit numbers.
    for (number, options) in [
        "",
        "-b 1024",
        "-b 4096 -O ^has_journal,^64bit,^metadata_csum",
    ]
    .into_iter()
    .enumerate()
    {
        let from = Image::open(&make(
            directory.path(),
            &format!("old{number}"),
            &old,
            options,
        ));
        let to = Image::open(&make(
            directory.path(),
            &format!("new{number}"),
            &new,
            options,
        ));
        let maps = [&from, &to].map(|image| FileMap::read(image).unwrap());
        let source = directory.path().join(format!("of-old{number}/tree"));
        for (name, offset) in [
            ("lib/a", 200 * 4096),
            ("lib/a", 5 * MIB - 1024),
            ("c", 0),
            ("etc/many/file-number-99", 0),
            ("lib/deep/down/here/b", 3 * 4096),
        ] {
            let file = fs::read(source.join(name)).unwrap();
            let bytes = &file[offset as usize..][..PIECE];
            let mut trace = TraceBuilder::new(from.len_bytes());
            trace.read(ByteRange::new(from.find(bytes), PIECE as u64));
            let trace = trace.finish();
            let carried = carry(&trace, &maps[0], &maps[1], to.len_bytes());
            assert!(
                from.has(&trace, bytes) && to.has(&carried, bytes),
                "{options} {name}"
            );
            assert_ne!(trace, carried, "{options} {name}");
        }
        // A file that is gone is not looked for, and a table is where it was.
        let gone = from.find(&fs::read(source.join("gone")).unwrap()[..PIECE]);
        let mut trace = TraceBuilder::new(from.len_bytes());
        // Not with the end of the file before it, which may share its first block.
        let inside = gone.next_multiple_of(BLOCK_BYTES);
        trace.read(ByteRange::new(inside, 16 * PIECE as u64));
        let start = if options.is_empty() { MIB } else { 0 };
        trace.read(ByteRange::new(start + 1024, 1024));
        let carried = carry(&trace.finish(), &maps[0], &maps[1], to.len_bytes());
        assert_eq!(carried.block_count(), 1, "{options} {gone} {carried:?}");
    }
}

/// What a boot said of itself when it was over.
#[derive(Debug)]
struct Told {
    login: Duration,
    line: String,
    waited_ms: u64,
}

/// Boots a machine to its prompt, and waits for what its agent says of the boot.
fn boot(lan: &Lan, name: &str, number: u8) -> Told {
    let began = Instant::now();
    let mut machine = lan.power_on(name, number, Firmware::Bios).unwrap();
    lan.log_in(&mut machine, name).unwrap();
    let login = began.elapsed();
    boots::reach(lan, name, "up").unwrap();
    let line = wait::until("the boot's summary", BOOT_LIMIT, || {
        let line = boots::shell(&mut machine, "dmesg | grep 'the boot read' || true")?;
        Ok(Some(line).filter(|line| !line.is_empty()))
    })
    .unwrap();
    let pack = boots::shell(&mut machine, "dmesg | grep 'boot pack' || true").unwrap();
    let errors = boots::disk_errors(&mut machine).unwrap();
    assert_eq!(errors, "");
    machine.pull_plug().unwrap();
    let waited = line
        .split("waited ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    println!(
        "{name}: login after {:.1} s; {line} {pack}",
        login.as_secs_f64()
    );
    Told {
        login,
        waited_ms: waited.and_then(|text| text.parse().ok()).unwrap(),
        line,
    }
}

/// The boot set of a version, once there is one.
fn boot_set(lan: &Lan, version: &str, boots: u64) -> Value {
    wait::until("the boot set", BOOT_LIMIT, || {
        let version = lan.daemon.json(["image", "show", version])?;
        let set = version["boot_set"].clone();
        Ok(Some(set).filter(|set| set["boots"] == boots))
    })
    .unwrap()
}

/// Of machines that read a boot set at the same moment.
const STORM: u8 = 32;

/// What leaves the server for all of them, in boot sets: at most 2.5.
const SETS_MAX_PERCENT: f64 = 250.0;

/// Many machines read the boot set at once, and the server sends it about once.
fn storm(lan: &Lan, version: &str) {
    let directory = tempfile::tempdir().unwrap();
    let site = directory.path().join("site.json");
    fs::write(&site, lan.daemon.run(["boot", "site"]).unwrap()).unwrap();
    let program = agent::program().unwrap();
    let mut machines = Vec::new();
    for number in 100..100 + STORM {
        let name = format!("r{number}");
        lan.add_node(&name, number, version).unwrap();
        let words = ["node", "set", &name, "--mode", "hold", "--swarm", "tls"];
        lan.daemon.run(words.into_iter().chain(["--yes"])).unwrap();
        let peer = Peer::new(lan, number).unwrap();
        machines.push((peer, directory.path().join(name)));
    }
    let rehearse = |(peer, log): &(Peer, PathBuf)| {
        let mut command = peer.namespace.command(program.to_str().unwrap());
        command.args(["rehearse", "--mac", &peer.mac, "--site"]);
        command.arg(&site);
        command.args(["--server", &format!("https://{SERVER}:8481")]);
        Process::start("a rehearsal", &mut command, log).unwrap()
    };
    let rehearsals: Vec<Process> = machines.iter().map(rehearse).collect();
    let said = |log: &Path| {
        wait::until("the end of a rehearsal", BOOT_LIMIT, || {
            let text = fs::read_to_string(log)?;
            let line = text.lines().find(|line| line.starts_with("read: "));
            Ok(line.map(str::to_owned))
        })
    };
    let (mut came, mut from_servers) = (0.0, 0.0);
    for (_, log) in &machines {
        let line = said(log).unwrap();
        println!("{line}");
        let words: Vec<&str> = line.split(' ').collect();
        let comma = words.iter().position(|word| *word == "came,").unwrap();
        came += bytes_of(words[comma - 2], words[comma - 1]);
        from_servers += bytes_of(words[comma + 1], words[comma + 2]);
    }
    drop(rehearsals);
    let set = came / f64::from(STORM);
    let percent = from_servers * 100.0 / set;
    println!("{STORM} machines read {set:.0} bytes each; {percent:.0} % of that left the server");
    assert!(percent <= SETS_MAX_PERCENT, "{percent} %");
}

/// Of what is said for people.
fn bytes_of(number: &str, unit: &str) -> f64 {
    let unit = match unit.trim_end_matches(',') {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => panic!("{other} is no unit of bytes"),
    };
    number.parse::<f64>().unwrap() * unit
}

/// The first boot teaches, the second is served, and the next version, the same
/// with some packages more, begins with what is known.
#[test]
fn a_second_boot_is_foreseen() {
    let lan = Lan::new("dhcp", "").unwrap();
    lan.import("debian", &boots::image(Golden::Debian).unwrap())
        .unwrap();
    lan.add_node("first", 1, "debian:1").unwrap();
    let first = boot(&lan, "first", 1);
    let set = boot_set(&lan, "debian:1", 1);
    println!("boot set: {set}");
    assert!(set["raw_bytes"].as_u64().unwrap() > 20 * MIB, "{set}");

    lan.add_node("second", 2, "debian:1").unwrap();
    let second = boot(&lan, "second", 2);
    let foreseen = |told: &Told| {
        let text = told.line.split(" % of it foreseen").next().unwrap();
        text.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(!first.line.contains("foreseen"), "{}", first.line);
    assert!(foreseen(&second) > 95.0, "{}", second.line);
    // How long is the machine's business as well as ours.
    println!(
        "reads waited {} and {} ms; {:?} and {:?} to the prompt",
        first.waited_ms, second.waited_ms, first.login, second.login
    );

    storm(&lan, "debian:1");

    lan.import("debian", &boots::image(Golden::Dracut).unwrap())
        .unwrap();
    let set = boot_set(&lan, "debian:2", 0);
    println!("carried over: {set}");
    assert_eq!(set["source"], "debian:1");
    lan.add_node("third", 3, "debian:2").unwrap();
    let third = boot(&lan, "third", 3);
    assert!(foreseen(&third) > 50.0, "{}", third.line);
}
