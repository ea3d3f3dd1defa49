//! The demo's first part: versions, clones of them, and guests that run from clones.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rootstock_core::units::HumanBytes;
use rootstock_tests::golden::PASSWORD;
use rootstock_tests::{Daemon, Guest, GuestOptions};
use serde_json::Value;

use crate::demo::progress::note;
use crate::demo::work::Work;

/// An emulated guest takes some 20 s to its prompt on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const GUEST_MEMORY_MIB: u32 = 512;
/// What is written in one clone and read wherever the version made of it runs.
pub(crate) const WRITTEN: &str = "/root/written-in-a-clone";

/// Imports `image`, which must become this version of `debian`.
///
/// # Errors
/// When it does not.
pub(crate) fn import(daemon: &Daemon, image: &Path, version: u64) -> Result<Value> {
    let image = image.to_str().context("the image's path is text")?;
    let result = daemon.json(["image", "import", "debian", image])?;
    check_version(&result, version)?;
    Ok(result)
}

/// Makes what `volume` holds a version of `debian`, which must be this one.
///
/// # Errors
/// When it is not.
pub(crate) fn commit(daemon: &Daemon, volume: &str, version: u64) -> Result<Value> {
    let result = daemon.json(["volume", "commit", volume, "debian"])?;
    check_version(&result, version)?;
    Ok(result)
}

/// Makes a writable clone.
///
/// # Errors
/// When the daemon refuses.
pub(crate) fn clone(daemon: &Daemon, name: &str, from: &str) -> Result<()> {
    let start = Instant::now();
    daemon.json(["volume", "create", name, "--from", from])?;
    note(&format!(
        "{name}, from {from}, in {} ms",
        start.elapsed().as_millis()
    ));
    Ok(())
}

/// Boots a guest from each of two clones at once and logs in to both.
///
/// # Errors
/// When one does not come up.
pub(crate) fn boot_two<'a>(
    daemon: &Daemon,
    work: &Work,
    names: [&'a str; 2],
) -> Result<(Guest, Guest)> {
    let start = |name: &'a str| start_guest(daemon, work, name);
    let began = Instant::now();
    let (mut first, mut second) = (start(names[0])?, start(names[1])?);
    log_in(&mut first, names[0], began)?;
    log_in(&mut second, names[1], began)?;
    Ok((first, second))
}

/// Writes `text` to [`WRITTEN`].
///
/// # Errors
/// When the guest does not do it.
pub(crate) fn write(guest: &mut Guest, text: &str) -> Result<()> {
    let command = format!("echo '{text}' > {WRITTEN}; sync");
    guest.console.shell(&command, COMMAND_LIMIT)?;
    Ok(())
}

/// Has a guest power itself off.
///
/// # Errors
/// When it does not.
pub(crate) fn power_off(mut guest: Guest) -> Result<()> {
    guest.console.send("systemctl poweroff\n")?;
    let status = guest.wait_off(BOOT_LIMIT)?;
    ensure!(status.success(), "the guest ended with {status}");
    Ok(())
}

/// Boots a guest from the clone `name`, which must have `text` in [`WRITTEN`].
///
/// # Errors
/// When it has not.
pub(crate) fn read_back(daemon: &Daemon, work: &Work, name: &str, text: &str) -> Result<()> {
    let began = Instant::now();
    let mut guest = start_guest(daemon, work, name)?;
    log_in(&mut guest, name, began)?;
    let command = format!("cat {WRITTEN}");
    let read = guest.console.shell(&command, COMMAND_LIMIT)?;
    ensure!(
        read.trim() == text,
        "the file should say {text:?}, but says {read:?}"
    );
    note(&format!("{WRITTEN} says: {}", read.trim()));
    power_off(guest)
}

/// Prints what each version costs.
pub(crate) fn print_costs(versions: &[(u32, &Value)]) {
    println!("        version        disk        used   new in the store   new chunks");
    for (number, result) in versions {
        let bytes = |field: &str| HumanBytes(result[field].as_u64().unwrap_or(0));
        println!(
            "        {number:>7} {:>11} {:>11} {:>18} {:>12}",
            bytes("disk_bytes"),
            bytes("used_bytes"),
            bytes("added_bytes"),
            result["added_chunk_count"].as_u64().unwrap_or(0),
        );
    }
}

fn check_version(result: &Value, version: u64) -> Result<()> {
    if result["version"] != version {
        bail!("version {version} was expected, but the program says {result}");
    }
    Ok(())
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
