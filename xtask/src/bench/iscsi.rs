//! iSCSI against tgt: the same initiators, a volume here and a file there.
//!
//! LIO is part of a kernel, and here it could run in an emulated machine only, whose
//! figures would say nothing beside those of programs.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    Bench,
    daemon::Daemon,
    process::{self, Server},
    report::{Better, ROOTSTOCK},
    source,
};

/// The initiators that are at work at once in the last row.
const MANY: usize = 64;

/// Random writes go through the disk in steps of that many bytes: no two follow each other.
const STEP_BYTES: u64 = 257 * 4096;

const INITIATOR: &str = "iqn.2026-11.bench:initiator";
const TARGET: &str = "iqn.2026-11.bench:disk";

/// One access pattern.
struct Row {
    name: &'static str,
    bytes: u64,
    depth: u32,
    writes: bool,
    initiators: usize,
}

const fn row(name: &'static str, bytes: u64, depth: u32, writes: bool) -> Row {
    let initiators = 1;
    Row {
        name,
        bytes,
        depth,
        writes,
        initiators,
    }
}

const ROWS: [Row; 7] = [
    row("iSCSI, read 1M QD4", 1 << 20, 4, false),
    row("iSCSI, write 1M QD4", 1 << 20, 4, true),
    row("iSCSI, randread 4k QD1", 4096, 1, false),
    row("iSCSI, randread 4k QD32", 4096, 32, false),
    row("iSCSI, randwrite 4k QD1", 4096, 1, true),
    row("iSCSI, randwrite 4k QD32", 4096, 32, true),
    Row {
        name: "iSCSI, randread 4k QD1, 64 initiators",
        bytes: 4096,
        depth: 1,
        writes: false,
        initiators: MANY,
    },
];

struct Candidate {
    name: &'static str,
    server: Server,
    url: String,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let source = source::gigabyte(bench)?;
    let data = bench.scratch("iscsi-data");
    let candidates = [rootstock(bench, &data, &source)?, tgt(bench, &source)?];
    // All blocks are there and in memory, on both sides.
    for candidate in &candidates {
        process::run(
            Command::new("qemu-img")
                .args(["convert", "-n", "-f", "raw", "-O", "raw"])
                .arg(&source)
                .arg(candidate.image()),
        )?;
        for row in &ROWS[..2] {
            candidate.operations(row, bench.args.seconds)?;
        }
    }
    for row in &ROWS {
        measure(bench, row, &candidates)?;
    }
    let peak = |candidate: &Candidate| {
        let mib = candidate.server.peak_bytes()? as f64 / f64::from(1 << 20);
        Ok((candidate.name.to_owned(), vec![mib]))
    };
    let peaks: Result<BTreeMap<_, _>> = candidates.iter().map(peak).collect();
    let row = "iSCSI, peak memory of the server";
    bench.report.add(row, "MiB", Better::Less, peaks?);
    for candidate in candidates {
        candidate.server.stop()?;
    }
    fs::remove_dir_all(&data)?;
    Ok(())
}

fn rootstock(bench: &Bench, data: &Path, source: &Path) -> Result<Candidate> {
    let port = process::free_port()?;
    let iscsi = format!("127.0.0.1:{port}");
    let daemon = Daemon::start_with(bench, data, 1400, &["--iscsi", &iscsi])?;
    daemon.import("bench", source)?;
    let steps: [&[&str]; 2] = [
        &["volume", "create", "disk", "--from", "bench"],
        &[
            "volume",
            "share",
            "disk",
            "--initiator",
            INITIATOR,
            "--json",
        ],
    ];
    let mut printed = String::new();
    for step in steps {
        printed = process::output(daemon.command().args(step))?;
    }
    let share: serde_json::Value = serde_json::from_str(&printed)?;
    let target = share["target"].as_str().context("the target's name")?;
    Ok(Candidate {
        name: ROOTSTOCK,
        url: format!("iscsi://{iscsi}/{target}/0"),
        server: daemon.server,
    })
}

fn tgt(bench: &Bench, source: &Path) -> Result<Candidate> {
    let own = bench.scratch("tgt.disk");
    fs::copy(source, &own)?;
    let port = process::free_port()?;
    let portal = format!("portal=127.0.0.1:{port}");
    // Its control port is a socket's number, of fifteen bits; the port of the portal is as
    // good as any.
    let control = (port & 0x7fff).to_string();
    let server = Server::start(
        Command::new("tgtd")
            .args(["-f", "-C", &control, "--iscsi", &portal])
            .stderr(Stdio::null()),
        || process::listens(port),
    )?;
    let own = own.to_string_lossy();
    let steps: [&[&str]; 3] = [
        &["new", "--mode", "target", "--tid", "1", "-T", TARGET],
        &[
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
            "-b",
            &own,
        ],
        &["bind", "--mode", "target", "--tid", "1", "-I", "ALL"],
    ];
    for step in steps {
        process::run(
            Command::new("tgtadm")
                .args(["-C", &control, "--lld", "iscsi", "--op"])
                .args(step),
        )?;
    }
    Ok(Candidate {
        name: "tgt",
        server,
        url: format!("iscsi://127.0.0.1:{port}/{TARGET}/1"),
    })
}

fn measure(bench: &mut Bench, row: &Row, candidates: &[Candidate]) -> Result<()> {
    println!("{}", row.name);
    let mut rate: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut per_cpu: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let is_large = row.bytes == 1 << 20;
    let unit = if is_large { 1.048_576 } else { 1.0 };
    for _ in 0..bench.args.rounds {
        for candidate in candidates {
            let before = candidate.server.cpu_seconds()?;
            let (operations, seconds) = candidate.operations(row, bench.args.seconds)?;
            let cpu = (candidate.server.cpu_seconds()? - before).max(0.01);
            let name = || candidate.name.to_owned();
            let of_rate = operations * unit / seconds;
            rate.entry(name()).or_default().push(of_rate);
            let of_cpu = operations * unit / cpu;
            per_cpu.entry(name()).or_default().push(of_cpu);
        }
    }
    let (unit, cpu_unit) = if is_large {
        ("MB/s", "MB per server CPU-second")
    } else {
        ("operations/s", "operations per server CPU-second")
    };
    bench.report.add(row.name, unit, Better::More, rate);
    let name = format!("{}, per CPU", row.name);
    bench.report.add(&name, cpu_unit, Better::More, per_cpu);
    Ok(())
}

impl Candidate {
    /// The disk as QEMU's programs name it, by an initiator that may use it.
    fn image(&self) -> String {
        let rest = self.url.trim_start_matches("iscsi://");
        let mut parts = rest.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        let (portal, target, lun) = (next(), next(), next());
        format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"iscsi\",\"transport\":\"tcp\",\
             \"portal\":\"{portal}\",\"target\":\"{target}\",\"lun\":{lun},\
             \"initiator-name\":\"{INITIATOR}\"}}}}"
        )
    }

    /// Operations done and seconds taken.
    fn operations(&self, row: &Row, seconds: u32) -> Result<(f64, f64)> {
        if row.writes {
            return self.writes(row, seconds);
        }
        let readers: Vec<Child> = (0..row.initiators)
            .map(|_| self.reader(row, seconds))
            .collect::<Result<_>>()?;
        let mut rate = 0.0;
        for reader in readers {
            let output = reader.wait_with_output()?;
            ensure!(output.status.success(), "iscsi-perf: {}", output.status);
            rate += average(&String::from_utf8_lossy(&output.stdout))?;
        }
        let seconds = f64::from(seconds);
        Ok((rate * seconds, seconds))
    }

    fn reader(&self, row: &Row, seconds: u32) -> Result<Child> {
        let mut command = Command::new("iscsi-perf");
        command
            .args(["-n", "-i", INITIATOR, "-t", &seconds.to_string()])
            .args(["-m", &row.depth.to_string()])
            .args(["-b", &(row.bytes / 512).to_string()]);
        if row.bytes == 4096 {
            command.arg("-r");
        }
        let command = command.arg(&self.url).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        child.context("iscsi-perf")
    }

    /// As many writes as take about so long: `qemu-img bench` wants their number.
    fn writes(&self, row: &Row, seconds: u32) -> Result<(f64, f64)> {
        let few = if row.bytes == 4096 { 2000 } else { 200 };
        let first = self.write_so_many(row, few)?;
        let count = few as f64 / first * f64::from(seconds);
        let count = (count as u64).max(few);
        Ok((count as f64, self.write_so_many(row, count)?))
    }

    /// The seconds that so many writes take.
    fn write_so_many(&self, row: &Row, count: u64) -> Result<f64> {
        let step = if row.bytes == 4096 {
            STEP_BYTES
        } else {
            row.bytes
        };
        let printed = process::output(
            Command::new("qemu-img")
                .args(["bench", "-t", "none", "-w"])
                .args(["-c", &count.to_string(), "-d", &row.depth.to_string()])
                .args(["-s", &row.bytes.to_string(), "-S", &step.to_string()])
                .arg(self.image()),
        )?;
        let seconds = printed.split_once("Run completed in ");
        let seconds = seconds.and_then(|(_, rest)| rest.split_once(' '));
        let (seconds, _) = seconds.context("qemu-img bench prints its seconds")?;
        Ok(seconds.parse::<f64>()?.max(0.001))
    }
}

/// Operations a second, of what `iscsi-perf` prints last.
fn average(printed: &str) -> Result<f64> {
    let lines = printed.split(['\r', '\n']);
    let mut lines = lines.filter_map(|line| line.trim_start().strip_prefix("iops average "));
    let last = lines.next_back().context("iscsi-perf prints its average")?;
    let number = last.split(' ').next().unwrap_or_default();
    Ok(number.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_the_last_one() {
        let printed = "\r00:00:01 - lba 3, iops current 14685 (57 MB/s), iops average 14685 (57 MB/s)\riops average 16791 (65 MB/s)   \n\nfinished.\n";
        assert_eq!(average(printed).unwrap(), 16_791.0);
        assert!(average("finished.").is_err());
    }
}
