//! The same bytes of the same disk, read as a part of the root that the kernel reads by
//! itself, as the bare disk, and through the agent.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Node, image};
use crate::bench::Bench;
use crate::bench::report::{Better, ROOTSTOCK};

const SECTOR_BYTES: u64 = 512;
/// So much is read, again and again.
const READ_BYTES_MAX: u64 = 256 << 20;
const BARE: &str = "bare disk";
const AGENT: &str = "through the agent";

struct Row {
    name: &'static str,
    fio: &'static str,
}

const ROWS: [Row; 4] = [
    Row {
        name: "read 1M QD1",
        fio: "--rw=read --bs=1M --iodepth=1",
    },
    Row {
        name: "read 1M QD32",
        fio: "--rw=read --bs=1M --iodepth=32",
    },
    Row {
        name: "randread 4k QD1",
        fio: "--rw=randread --bs=4k --iodepth=1",
    },
    Row {
        name: "randread 4k QD32",
        fio: "--rw=randread --bs=4k --iodepth=32",
    },
];

/// A stretch of the root that is on the disk in one piece.
#[derive(Debug, PartialEq, Eq)]
struct Stretch {
    start_sectors: u64,
    disk_sectors: u64,
    sectors: u64,
}

/// One way to the same bytes.
struct Candidate {
    name: &'static str,
    /// What tells fio where they are.
    fio: String,
}

pub(super) fn run(bench: &mut Bench, node: &mut Node) -> Result<()> {
    let devices = devices(node)?;
    let files = files(node)?;
    let mut rows = [(); 2].map(|()| ROWS.map(|_| BTreeMap::<String, Vec<f64>>::new()));
    for round in 1..=bench.args.rounds {
        println!("node, complete, round {round} of {}", bench.args.rounds);
        for (candidates, rows) in [&devices, &files].into_iter().zip(&mut rows) {
            for (row, figures) in ROWS.iter().zip(rows) {
                // What one leaves behind is not always the same one's trouble.
                for at in 0..candidates.len() {
                    let turn = (at + round as usize) % candidates.len();
                    let Candidate { name, fio } = &candidates[turn];
                    let seconds = bench.args.seconds;
                    let words = format!(
                        "--ioengine=libaio --time_based --runtime={seconds} {fio} {}",
                        row.fio
                    );
                    let report = node.fio(&words)?;
                    let rate = report["jobs"][0]["read"]["iops"].as_f64();
                    let rate = rate.context("fio tells no rate")?;
                    println!("  {}, {name}: {rate:.1} operations/s", row.name);
                    figures.entry((*name).to_owned()).or_default().push(rate);
                }
            }
        }
    }
    for (what, rows) in ["its device", "a file"].into_iter().zip(rows) {
        for (row, figures) in ROWS.iter().zip(rows) {
            let name = format!("node, complete, {what}, {}", row.name);
            let report = &mut bench.report;
            report.add(&name, "operations/s", Better::More, figures);
        }
    }
    Ok(())
}

/// The longest stretch that is on the disk in one piece, below any file system.
fn devices(node: &mut Node) -> Result<[Candidate; 3]> {
    let disk = node.shell("cat /sys/block/vda/dev")?;
    let table = node.shell("dmsetup table rootstock-base")?;
    let stretch = longest(&table, &disk)
        .with_context(|| format!("nothing of the root is on {disk}: {table}"))?;
    let bytes = READ_BYTES_MAX.min(stretch.sectors * SECTOR_BYTES);
    println!(
        "node, complete: {} stretches; {} MiB of one are read",
        table.lines().count(),
        bytes >> 20
    );
    let root = node.shell("dmsetup info -c --noheadings -o blkdevname rootstock-root")?;
    let at = |name, device: &str, start_sectors: u64| Candidate {
        name,
        fio: format!(
            "--filename=/dev/{device} --offset={} --size={bytes}",
            start_sectors * SECTOR_BYTES
        ),
    };
    Ok([
        at(ROOTSTOCK, &root, stretch.start_sectors),
        at(BARE, "vda", stretch.disk_sectors),
        at(AGENT, "nbd0p1", stretch.start_sectors),
    ])
}

/// The same file of the same file system: as the root, mounted from nothing but the
/// disk's stretches, and mounted from the agent's device.
fn files(node: &mut Node) -> Result<[Candidate; 3]> {
    let table = "dmsetup table rootstock-base | dmsetup create --readonly bare";
    node.shell(table)?;
    node.shell("mount -o ro,noload /dev/mapper/bare /mnt")?;
    node.shell("mount -o ro,noload /dev/nbd0p1 /media")?;
    let below = |name, directory: &str| Candidate {
        name,
        fio: format!(
            "--filename={directory}/{} --size={READ_BYTES_MAX}",
            image::READ
        ),
    };
    Ok([
        below(ROOTSTOCK, ""),
        below(BARE, "/mnt"),
        below(AGENT, "/media"),
    ])
}

/// The longest linear stretch to `disk` of a table as dmsetup prints it.
fn longest(table: &str, disk: &str) -> Option<Stretch> {
    let stretches = table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [start, sectors, "linear", device, at] = words[..] else {
            return None;
        };
        (device == disk).then_some(())?;
        Some(Stretch {
            start_sectors: start.parse().ok()?,
            disk_sectors: at.parse().ok()?,
            sectors: sectors.parse().ok()?,
        })
    });
    stretches.max_by_key(|stretch| stretch.sectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stretch_of_the_disk_is_taken() {
        let table = "0 512 linear 254:0 8192\r\n512 1024 zero \r\n1536 2048 linear 43:1 1536\n\
                     3584 1024 linear 254:0 90112\n4608 512 linear 254:0 16384\n";
        let expected = Stretch {
            start_sectors: 3584,
            disk_sectors: 90_112,
            sectors: 1024,
        };
        assert_eq!(longest(table, "254:0"), Some(expected));
        assert_eq!(longest(table, "8:0"), None);
    }
}
