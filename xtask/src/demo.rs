//! `cargo xtask demo`: a real Debian through import, upgrade, clone, boot and commit; then
//! four machines without disks that boot what was committed, and one that has a disk and
//! keeps there what it was sent.

mod disk;
mod machines;
mod programs;
mod progress;
mod report;
mod store;
mod table;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rootstock_tests::golden::{self, Golden, UPGRADE};
use rootstock_tests::{Daemon, tool};

use crate::command;
use crate::demo::disk::Desk;
use crate::demo::programs::Programs;
use crate::demo::progress::{Progress, note};
use crate::demo::work::Work;
use crate::setup::{self, Purpose};

const STEPS: u32 = 24;

/// Runs all of it, with `binary` or the release build, and cleans up.
///
/// # Errors
/// When any step did not happen.
pub(crate) fn run(binary: Option<&Path>) -> Result<()> {
    let progress = Progress::new(STEPS);
    progress.step("setting up this machine", set_up)?;
    let programs = progress.step("building Rootstock", || Programs::build(binary))?;
    let golden = progress.step("building a Debian 12 disk image", golden_image)?;

    let work = Work::new()?;
    let upgraded = work.bulk.join("upgraded.img");
    let mut daemon = progress.step("starting the daemon", || {
        let daemon = Daemon::start_with(work.daemon(&programs))?;
        note(&format!("it answers on {}", daemon.api()));
        note(&format!("and serves {}", daemon.nbd_uri("")));
        Ok(daemon)
    })?;
    let first = progress.step("importing the image as version 1", || {
        store::import(&daemon, &golden, 1)
    })?;
    progress.step(
        &format!("upgrading a copy of it with {}", UPGRADE.join(", ")),
        || golden::upgrade(&golden, &upgraded, &work.bulk, &note),
    )?;
    let second = progress.step("importing the upgraded copy as version 2", || {
        store::import(&daemon, &upgraded, 2)
    })?;
    store::print_costs(&[(1, &first), (2, &second)]);

    progress.step("making two clones of version 2", || {
        store::clone(&daemon, "anna", "debian:2")?;
        store::clone(&daemon, "ben", "debian:2")
    })?;
    let (mut anna, ben) = progress.step("booting a guest from each over NBD", || {
        store::boot_two(&daemon, &work, ["anna", "ben"])
    })?;
    let text = format!("kept by Rootstock, {}", work.mark);
    progress.step("writing a file in one, and powering both off", || {
        store::write(&mut anna, &text)?;
        store::power_off(anna)?;
        store::power_off(ben)
    })?;
    let third = progress.step("committing that clone as version 3", || {
        store::commit(&daemon, "anna", 3)
    })?;
    store::print_costs(&[(1, &first), (2, &second), (3, &third)]);
    progress.step("booting a clone of version 3 and reading the file", || {
        store::clone(&daemon, "carl", "debian:3")?;
        store::read_back(&daemon, &work, "carl", &text)
    })?;

    let mut lan = progress.step("starting the daemon again, on a network of its own", || {
        daemon.stop()?;
        machines::open_lan(&work, &programs)
    })?;
    let before_bytes = lan.sent()?.by_server();
    let mut machines = progress.step(
        "powering on four machines without disks, all at once",
        || machines::boot(&lan),
    )?;
    let sent_bytes = lan.sent()?.by_server() - before_bytes;
    progress.step("logging in to each and reading the file", || {
        machines::log_in(&mut machines, &text)
    })?;
    let used_bytes = third["used_bytes"].as_u64().unwrap_or(0);
    report::print(&machines, sent_bytes, used_bytes)?;

    let desk = progress.step(
        "pulling their plugs, and giving a fifth machine a disk",
        || {
            machines::pull_plugs(machines)?;
            Desk::prepare(&lan, &work, &programs)
        },
    )?;
    desk.show(&lan, &progress)?;

    progress.step("cleaning up", || {
        lan.daemon.stop()?;
        drop(lan);
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

fn set_up() -> Result<()> {
    setup::run(&[Purpose::Test])?;
    ensure!(
        tool::run("id", ["-u"])?.trim() == "0",
        "the demo mounts disk images and makes a network: run it as root, such as with `sudo --preserve-env=PATH,HOME cargo xtask demo`"
    );
    Ok(())
}
