//! `cargo xtask demo`: a real Debian through import, upgrade, clone, boot, commit and boot again.

mod progress;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rootstock_tests::golden::{self, Golden, PASSWORD, UPGRADE};
use rootstock_tests::undo::{Action, Undo};
use rootstock_tests::{Daemon, DaemonOptions, Guest, GuestOptions, tool};
use serde_json::Value;

use crate::command;
use crate::demo::progress::{Progress, note};
use crate::setup::{self, Purpose};

const STEPS: u32 = 13;
/// An emulated guest takes some 20 s to its prompt on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const GUEST_MEMORY_MIB: u32 = 512;
/// What is written in one clone and read in the next version.
const WRITTEN: &str = "/root/written-in-a-clone";

/// Runs all of it, with `binary` or the release build, and cleans up.
///
/// # Errors
/// When any step did not happen.
pub(crate) fn run(binary: Option<&Path>) -> Result<()> {
    let progress = Progress::new(STEPS);
    progress.step("setting up this machine", || {
        setup::run(&[Purpose::Test])?;
        ensure!(
            tool::run("id", ["-u"])?.trim() == "0",
            "the demo mounts disk images: run it as root, such as with `sudo --preserve-env=PATH,HOME cargo xtask demo`"
        );
        Ok(())
    })?;
    let binary = progress.step("building Rootstock", || match binary {
        Some(binary) => Ok(binary.to_owned()),
        None => build_rootstock(),
    })?;
    let golden = progress.step("building a Debian 12 disk image", golden_image)?;

    let work = Work::new()?;
    let upgraded = work.bulk.join("upgraded.img");
    let mut daemon = progress.step("starting the daemon", || start_daemon(&work, &binary))?;
    let first = progress.step("importing the image as version 1", || {
        import(&daemon, &golden, 1)
    })?;
    progress.step(
        &format!("upgrading a copy of it with {}", UPGRADE.join(", ")),
        || golden::upgrade(&golden, &upgraded, &work.bulk, &note),
    )?;
    let second = progress.step("importing the upgraded copy as version 2", || {
        import(&daemon, &upgraded, 2)
    })?;
    print_costs(&[(1, &first), (2, &second)]);

    progress.step("making two clones of version 2", || {
        clone(&daemon, "anna", "debian:2")?;
        clone(&daemon, "ben", "debian:2")
    })?;
    let (mut anna, ben) = progress.step("booting a guest from each over NBD", || {
        boot_two(&daemon, &work, ["anna", "ben"])
    })?;
    let text = format!("kept by Rootstock, {}", work.mark);
    progress.step("writing a file in one, and powering both off", || {
        anna.console
            .shell(&format!("echo '{text}' > {WRITTEN}; sync"), COMMAND_LIMIT)?;
        power_off(anna)?;
        power_off(ben)
    })?;
    let third = progress.step("committing that clone as version 3", || {
        commit(&daemon, "anna", 3)
    })?;
    print_costs(&[(1, &first), (2, &second), (3, &third)]);
    progress.step("booting a clone of version 3 and reading the file", || {
        clone(&daemon, "carl", "debian:3")?;
        read_back(&daemon, &work, &text)
    })?;
    progress.step("cleaning up", || {
        daemon.stop()?;
        work.remove()
    })?;
    let took = progress.finish()?;
    println!("All {STEPS} steps done in {:.0} s.", took.as_secs_f32());
    Ok(())
}

/// The Debian disk image, made now or by an earlier run.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn golden_image() -> Result<PathBuf> {
    golden::build(&command::target().join("demo-cache"), Golden::Debian, &note)
}

/// Where this run keeps what it makes.
struct Work {
    /// Disk images, the daemon's data and logs; beside the build, where there is room.
    bulk: PathBuf,
    /// Sockets, whose paths must be short.
    sockets: PathBuf,
    /// Differs from run to run.
    mark: String,
    undo: [Undo; 2],
}

impl Work {
    fn new() -> Result<Self> {
        let target = command::target();
        fs::create_dir_all(&target)?;
        let bulk = tempfile::Builder::new()
            .prefix("demo-")
            .tempdir_in(&target)?
            .keep();
        let sockets = tempfile::Builder::new()
            .prefix("rootstock-demo-")
            .tempdir()?
            .keep();
        let name = bulk.file_name().context("a directory has a name")?;
        let mark = name.to_string_lossy().into_owned();
        let undo = [bulk.clone(), sockets.clone()].map(|path| Undo::new(Action::RemoveTree(path)));
        Ok(Self {
            bulk,
            sockets,
            mark,
            undo,
        })
    }

    fn remove(self) -> Result<()> {
        for undo in self.undo {
            undo.now()?;
        }
        ensure!(
            !self.bulk.exists(),
            "{} is still there",
            self.bulk.display()
        );
        Ok(())
    }
}

fn build_rootstock() -> Result<PathBuf> {
    let mut build = command::cargo();
    command::show(build.args(["build", "--release", "--locked", "--package", "rootstock"]))?;
    Ok(command::target().join("release/rootstock"))
}

fn start_daemon(work: &Work, binary: &Path) -> Result<Daemon> {
    let daemon = Daemon::start_with(DaemonOptions {
        binary: binary.to_owned(),
        directory: work.sockets.clone(),
        data: work.bulk.join("data"),
        config: String::new(),
        boot: None,
        namespace: None,
    })?;
    note(&format!(
        "it answers on {} and serves {}",
        daemon.api(),
        daemon.nbd_uri("")
    ));
    Ok(daemon)
}

fn import(daemon: &Daemon, image: &Path, version: u64) -> Result<Value> {
    let image = image.to_str().context("the image's path is text")?;
    let result = daemon.json(["image", "import", "debian", image])?;
    check_version(&result, version)?;
    Ok(result)
}

fn commit(daemon: &Daemon, volume: &str, version: u64) -> Result<Value> {
    let result = daemon.json(["volume", "commit", volume, "debian"])?;
    check_version(&result, version)?;
    Ok(result)
}

fn check_version(result: &Value, version: u64) -> Result<()> {
    if result["version"] != version {
        bail!("version {version} was expected, but the program says {result}");
    }
    Ok(())
}

fn clone(daemon: &Daemon, name: &str, from: &str) -> Result<()> {
    let start = Instant::now();
    daemon.json(["volume", "create", name, "--from", from])?;
    note(&format!(
        "{name}, from {from}, in {} ms",
        start.elapsed().as_millis()
    ));
    Ok(())
}

fn boot_two<'a>(daemon: &Daemon, work: &Work, names: [&'a str; 2]) -> Result<(Guest, Guest)> {
    let start = |name: &'a str| start_guest(daemon, work, name);
    let began = Instant::now();
    let (mut first, mut second) = (start(names[0])?, start(names[1])?);
    log_in(&mut first, names[0], began)?;
    log_in(&mut second, names[1], began)?;
    Ok((first, second))
}

fn start_guest(daemon: &Daemon, work: &Work, name: &str) -> Result<Guest> {
    let mut options = GuestOptions::new(name);
    options.memory_mib = GUEST_MEMORY_MIB;
    let export = format!("volume/{name}");
    let options = options.nbd_disk("127.0.0.1", daemon.nbd_port(), &export);
    note(&format!("{name} starts from {}", daemon.nbd_uri(&export)));
    Guest::start(&options, &work.bulk)
}

fn log_in(guest: &mut Guest, name: &str, began: Instant) -> Result<()> {
    guest.log_in(PASSWORD, BOOT_LIMIT)?;
    let kernel = guest.console.shell("uname -r", COMMAND_LIMIT)?;
    note(&format!(
        "{name} showed its login prompt and let root in after {:.1} s, on Linux {}",
        began.elapsed().as_secs_f32(),
        kernel.trim()
    ));
    Ok(())
}

fn power_off(mut guest: Guest) -> Result<()> {
    guest.console.send("systemctl poweroff\n")?;
    let status = guest.wait_off(BOOT_LIMIT)?;
    ensure!(status.success(), "the guest ended with {status}");
    Ok(())
}

fn read_back(daemon: &Daemon, work: &Work, text: &str) -> Result<()> {
    let began = Instant::now();
    let mut guest = start_guest(daemon, work, "carl")?;
    log_in(&mut guest, "carl", began)?;
    let read = guest
        .console
        .shell(&format!("cat {WRITTEN}"), COMMAND_LIMIT)?;
    ensure!(
        read.trim() == text,
        "the file should say {text:?}, but says {read:?}"
    );
    note(&format!("{WRITTEN} says: {}", read.trim()));
    power_off(guest)
}

fn print_costs(versions: &[(u32, &Value)]) {
    println!("        version        disk        used   new in the store   new chunks");
    for (number, result) in versions {
        println!(
            "        {number:>7} {:>11} {:>11} {:>18} {:>12}",
            mebibytes(&result["disk_bytes"]),
            mebibytes(&result["used_bytes"]),
            mebibytes(&result["added_bytes"]),
            result["added_chunk_count"].as_u64().unwrap_or(0),
        );
    }
}

fn mebibytes(bytes: &Value) -> String {
    let tenths = bytes.as_u64().unwrap_or(0) * 10 / (1024 * 1024);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
