//! `cargo xtask bench`: Rootstock against its rivals, in one run, as ratios.
//!
//! Rounds are interleaved, so that a slow minute of the machine hits every
//! candidate alike, and medians are compared. Nothing is compared with a figure
//! from another run.

mod boot;
mod cold;
mod daemon;
mod deliver;
mod dhcp;
mod http;
mod import;
mod install;
mod iscsi;
mod lab;
mod memory;
mod nbd;
mod node;
mod process;
mod report;
mod source;
mod swarm;
mod tftp;
mod update;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum as _;

use crate::{
    command,
    setup::{self, Purpose},
};
use report::Report;

/// What `cargo xtask bench` can be told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Which part to run; all of them but `install` when left out.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Interleaved rounds per candidate; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=25))]
    rounds: u32,
    /// Bytes of real files in the image that is imported, in MiB.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(64..=16384))]
    used_mib: u64,
    /// Seconds of each fio run.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Where images and stores are put (needs about five times the used bytes).
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Measure this program instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
    #[command(flatten)]
    swarm: swarm::Options,
    #[command(flatten)]
    install: install::InstallOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Import against qemu-img, casync and borg.
    Import,
    /// Warm NBD reads and writes against qemu-nbd and nbdkit.
    Nbd,
    /// Cold NBD reads from zstd frames against qemu-nbd on a zstd qcow2.
    Cold,
    /// A volume over iSCSI, against tgt.
    Iscsi,
    /// Peak memory of imports and of many connections.
    Memory,
    /// DHCP addresses given a second, against Kea and dnsmasq.
    Dhcp,
    /// Boot files by TFTP, against dnsmasq and tftpd-hpa.
    Tftp,
    /// Boot files by HTTP, against nginx.
    Http,
    /// A machine to its login prompt, against a root on NBD, on NFS, and a copied disk.
    Boot,
    /// Bytes for an upgraded version, against casync, rsync and zsync.
    Update,
    /// What delivery adds to a boot from a local disk, over links of 100 Mbit/s and 1 Gbit/s.
    Deliver,
    /// A machine's reads beside its fill, and at its disk's speed when it is complete.
    Node,
    /// One image to many nodes at once, against NBD, HTTP, BitTorrent and multicast.
    Swarm,
    /// Debian's network installer onto a volume over iSCSI, to the prompt of what it installed.
    Install,
}

/// What every part needs.
struct Bench {
    args: Args,
    scratch: PathBuf,
    rootstock: PathBuf,
    report: Report,
}

impl Bench {
    fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }
}

/// Runs the parts asked for, prints a table and writes the JSON file.
///
/// # Errors
/// When a rival is not installed, a process fails, or a figure is missing.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::run(&[Purpose::Test, Purpose::Bench])?;
    let rootstock = match &args.binary {
        Some(binary) => binary.canonicalize().context("the program to measure")?,
        None => {
            process::run(command::cargo().args(["build", "--release", "--package", "rootstock"]))
                .context("building the release binary")?;
            command::target().join("release/rootstock")
        }
    };
    let holder = match &args.scratch {
        Some(dir) => tempfile::Builder::new()
            .prefix("rootstock-bench-")
            .tempdir_in(dir)?,
        None => tempfile::Builder::new()
            .prefix("rootstock-bench-")
            .tempdir()?,
    };
    let scratch = holder.path().to_owned();
    let output = args.output.clone();
    let parts = if args.parts.is_empty() {
        let all = Part::value_variants().iter().copied();
        all.filter(|part| *part != Part::Install).collect()
    } else {
        args.parts.clone()
    };
    let mut bench = Bench {
        args: args.clone(),
        scratch,
        rootstock,
        report: Report::new()?,
    };
    for part in parts {
        match part {
            Part::Import => import::run(&mut bench)?,
            Part::Nbd => nbd::run(&mut bench)?,
            Part::Iscsi => iscsi::run(&mut bench)?,
            Part::Cold => cold::run(&mut bench)?,
            Part::Memory => memory::run(&mut bench)?,
            Part::Dhcp => dhcp::run(&mut bench)?,
            Part::Tftp => tftp::run(&mut bench)?,
            Part::Http => http::run(&mut bench)?,
            Part::Boot => boot::run(&mut bench)?,
            Part::Update => update::run(&mut bench)?,
            Part::Deliver => deliver::run(&mut bench)?,
            Part::Node => node::run(&mut bench)?,
            Part::Swarm => swarm::run(&mut bench)?,
            Part::Install => install::run(&mut bench)?,
        }
        // What is measured is kept, should a later part fail.
        bench.report.write(&output)?;
    }
    bench.report.print();
    println!("figures: {}", output.display());
    Ok(())
}
