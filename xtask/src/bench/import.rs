//! Import of a filled image: time and stored bytes.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{
    Bench,
    daemon::Daemon,
    process,
    report::{Better, ROOTSTOCK},
    source,
};
use crate::command;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let disk = source::filled_disk(bench)?;
    let mut seconds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut stored: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut again = Vec::new();
    let mut bound = Vec::new();
    for round in 1..=bench.args.rounds {
        println!("import, round {round} of {}", bench.args.rounds);
        bound.push(compressor_bound(&disk)?);
        for candidate in CANDIDATES {
            let target = bench.scratch(candidate.name);
            fs::create_dir(&target)?;
            // What one candidate wrote is not left for the next one's time.
            process::output(&mut Command::new("sync"))?;
            let took = (candidate.run)(&disk, &target)?;
            seconds
                .entry(candidate.name.to_owned())
                .or_default()
                .push(took);
            let bytes = process::disk_bytes(&target)? as f64 / 1e6;
            stored
                .entry(candidate.name.to_owned())
                .or_default()
                .push(bytes);
            fs::remove_dir_all(&target)?;
        }
        let data = bench.scratch("data");
        process::output(&mut Command::new("sync"))?;
        let daemon = Daemon::start(bench, &data, 64)?;
        seconds
            .entry(ROOTSTOCK.into())
            .or_default()
            .push(daemon.import("bench", &disk)?);
        stored
            .entry(ROOTSTOCK.into())
            .or_default()
            .push(process::disk_bytes(&data)? as f64 / 1e6);
        again.push(daemon.import("bench", &disk)?);
        daemon.server.stop()?;
        fs::remove_dir_all(&data)?;
    }
    seconds.insert("bound: zstd-3, all cores".into(), bound);
    bench.report.add("import", "seconds", Better::Less, seconds);
    bench
        .report
        .add("import, stored", "MB", Better::Less, stored);
    let again = BTreeMap::from([(ROOTSTOCK.to_owned(), again)]);
    bench.report.add(
        "import of the same image again",
        "seconds",
        Better::Less,
        again,
    );
    Ok(())
}

struct Candidate {
    name: &'static str,
    run: fn(disk: &Path, target: &Path) -> Result<f64>,
}

const CANDIDATES: [Candidate; 4] = [
    Candidate {
        name: "qemu-img convert",
        run: qemu_img,
    },
    Candidate {
        name: "casync make",
        run: casync,
    },
    Candidate {
        name: "borg create, fixed 4 MiB",
        run: |disk, target| borg(disk, target, 4 << 20),
    },
    Candidate {
        name: "borg create, fixed 256 KiB",
        run: |disk, target| borg(disk, target, 256 << 10),
    },
];

fn qemu_img(disk: &Path, target: &Path) -> Result<f64> {
    process::run(
        Command::new("qemu-img")
            .args([
                "convert", "-c", "-m", "16", "-W", "-f", "raw", "-O", "qcow2",
            ])
            .args(["-o", "compression_type=zstd"])
            .arg(disk)
            .arg(target.join("disk.qcow2")),
    )
}

fn casync(disk: &Path, target: &Path) -> Result<f64> {
    process::run(
        Command::new("casync")
            .arg("make")
            .arg(format!("--store={}", target.join("store").display()))
            .arg("--compression=zstd")
            .arg(target.join("disk.caibx"))
            .arg(disk),
    )
}

/// At its default size of chunks, and at ours, for a fair look at what is stored.
fn borg(disk: &Path, target: &Path, chunk_bytes: u64) -> Result<f64> {
    let repository = target.join("repository");
    let borg = || {
        let mut command = Command::new("borg");
        // Its cache belongs to what it stores, and to nobody's home directory.
        command
            .env("BORG_BASE_DIR", target)
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    };
    process::run(borg().args(["init", "-e", "none"]).arg(&repository))?;
    process::run(
        borg()
            .args(["create", "-C", "zstd,3", "--sparse", "--chunker-params"])
            .arg(format!("fixed,{chunk_bytes}"))
            .arg(format!("{}::bench", repository.display()))
            .arg(disk),
    )
}

/// Seconds that zstd level 3 alone takes on this image with all cores, the data
/// being in memory.
fn compressor_bound(disk: &Path) -> Result<f64> {
    let printed = process::output(
        command::cargo()
            .args([
                "run",
                "--release",
                "--quiet",
                "--package",
                "rootstock-image",
            ])
            .args(["--example", "compressor_bound", "--"])
            .arg(disk),
    )?;
    printed
        .trim()
        .parse()
        .context("compressor_bound prints seconds")
}
