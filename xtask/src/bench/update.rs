//! The bytes that a machine with one version is sent for the next.
//!
//! Bytes are the same in each round, so there is one. All candidates are given what the
//! machine has already as their seed, and only payload is counted: no headers of HTTP,
//! and no requests but rsync's, whose sums of the old image are most of what it sends.

mod rivals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rootstock_tests::disk::{self, FIRST_PARTITION_BYTES};
use rootstock_tests::golden::{self, Golden};
use rootstock_tests::undo::{Action, Undo};
use rootstock_tests::{Daemon, DaemonOptions, tool, wait};

use super::Bench;
use super::lab;
use super::report::{Better, ROOTSTOCK};
use crate::command;

/// A recipe takes some seconds, and longer beside other work.
const RECIPE_LIMIT: Duration = Duration::from_secs(600);

/// Two versions of an image as files.
struct Pair {
    old: PathBuf,
    new: PathBuf,
}

/// What a machine is sent for the newer version.
#[derive(Clone, Copy)]
struct Wire {
    recipe_bytes: u64,
    plain_bytes: u64,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let directory = lab::fresh(bench, "update")?;
    let say = |line: &str| println!("  {line}");
    println!("update: making the images");
    let old = golden::build(&command::target().join("demo-cache"), Golden::Debian, &say)?;
    let upgraded = directory.join("upgraded.img");
    golden::upgrade(&old, &upgraded, &directory, &say)?;
    let anew = directory.join("anew.img");
    make_anew(&upgraded, &anew, &directory)?;

    println!("update: the daemon makes recipes");
    let mut daemon = daemon(bench, &directory)?;
    let in_place = Pair { old, new: upgraded };
    let in_place_wire = import(&daemon, "debian", &in_place)?;
    let made_anew = Pair {
        old: in_place.old.clone(),
        new: anew,
    };
    let made_anew_wire = import(&daemon, "anew", &made_anew)?;
    let zeroed = export(&daemon, "debian", &directory)?;
    daemon.stop()?;

    for (row, pair, wire) in [
        ("update in place", &in_place, in_place_wire),
        (
            "update in place, free space zeroed for all",
            &zeroed,
            in_place_wire,
        ),
        ("update made anew", &made_anew, made_anew_wire),
    ] {
        let figures = compare(row, pair, wire, &directory)?;
        bench.report.add(row, "MB", Better::Less, figures);
    }
    Ok(())
}

fn compare(
    row: &str,
    pair: &Pair,
    wire: Wire,
    directory: &Path,
) -> Result<BTreeMap<String, Vec<f64>>> {
    println!("{row}");
    let mut figures = BTreeMap::new();
    let mut add = |name: &str, bytes: u64| {
        let megabytes = bytes as f64 / 1e6;
        println!("  {name}: {megabytes:.2} MB");
        figures.insert(name.to_owned(), vec![megabytes]);
    };
    add(ROOTSTOCK, wire.recipe_bytes);
    add("rootstock, no recipe", wire.plain_bytes);
    for rival in rivals::ALL {
        let own = directory.join("rival");
        fs::create_dir(&own)?;
        let bytes = (rival.run)(pair, &own).context(rival.name)?;
        add(rival.name, bytes);
        fs::remove_dir_all(&own)?;
    }
    Ok(figures)
}

fn daemon(bench: &Bench, directory: &Path) -> Result<Daemon> {
    let directory = directory.join("rootstock");
    Daemon::start_with(DaemonOptions {
        binary: bench.rootstock.clone(),
        data: directory.join("data"),
        directory,
        config: "[store]\nrecipe_load_percent = 100\n".to_owned(),
        boot: None,
        namespace: None,
    })
}

/// Imports both, waits for the recipe and asks what it saves.
fn import(daemon: &Daemon, name: &str, pair: &Pair) -> Result<Wire> {
    for image in [&pair.old, &pair.new] {
        let image = image.to_str().context("the image's path is text")?;
        daemon.run(["image", "import", name, image])?;
    }
    let versions = [1, 2].map(|number| format!("{name}:{number}"));
    wait::until("the recipe", RECIPE_LIMIT, || {
        let diff = daemon.json(["image", "diff", &versions[0], &versions[1]])?;
        let recipe = diff["recipe"]["wire_bytes"].as_u64();
        let wire = recipe.zip(diff["wire_bytes"].as_u64());
        Ok(wire.map(|(recipe_bytes, plain_bytes)| Wire {
            recipe_bytes,
            plain_bytes,
        }))
    })
}

/// Both versions as the daemon has them: what is free on them is zero.
fn export(daemon: &Daemon, name: &str, directory: &Path) -> Result<Pair> {
    let one = |number: u32| {
        let path = directory.join(format!("zeroed-{number}.img"));
        let text = path.to_str().context("the path is text")?;
        daemon.run(["image", "export", &format!("{name}:{number}"), text])?;
        anyhow::Ok(path)
    };
    Ok(Pair {
        old: one(1)?,
        new: one(2)?,
    })
}

/// Writes the files of `image` into a new file system on the disk `anew`, which is what
/// happens where images are built from packages each time.
fn make_anew(image: &Path, anew: &Path, directory: &Path) -> Result<()> {
    let tree = directory.join("tree");
    fs::create_dir(&tree)?;
    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("ro,loop,offset={FIRST_PARTITION_BYTES}")]);
    tool::run_command(mount.arg(image).arg(&tree))?;
    let mounted = Undo::new(Action::Unmount(tree.clone()));
    disk::ext4_on_mbr(anew, fs::metadata(image)?.len(), &tree)?;
    mounted.now()?;
    Ok(())
}
