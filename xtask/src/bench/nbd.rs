//! Warm NBD reads and writes against `qemu-nbd` and `nbdkit`.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{
    Bench,
    daemon::Daemon,
    process::{self, Server},
    report::{Better, ROOTSTOCK},
    source,
};

/// One access pattern.
struct Row {
    name: &'static str,
    rw: &'static str,
    block_bytes: &'static str,
    depth: u32,
    connections: u32,
}

const fn row(
    name: &'static str,
    rw: &'static str,
    block_bytes: &'static str,
    depth: u32,
    connections: u32,
) -> Row {
    Row {
        name,
        rw,
        block_bytes,
        depth,
        connections,
    }
}

const ROWS: [Row; 10] = [
    row("read 1M QD4", "read", "1m", 4, 1),
    row("read 1M QD4, 4 connections", "read", "1m", 4, 4),
    row("randread 4k QD1", "randread", "4k", 1, 1),
    row("randread 4k QD1, 4 connections", "randread", "4k", 1, 4),
    row("randread 4k QD32", "randread", "4k", 32, 1),
    row("randread 4k QD32, 4 connections", "randread", "4k", 32, 4),
    row("randwrite 4k QD1", "randwrite", "4k", 1, 1),
    row("randwrite 4k QD1, 4 connections", "randwrite", "4k", 1, 4),
    row("randwrite 4k QD32", "randwrite", "4k", 32, 1),
    row("randwrite 4k QD32, 4 connections", "randwrite", "4k", 32, 4),
];

impl Row {
    fn writes(&self) -> bool {
        self.rw == "randwrite"
    }
}

/// A server that is measured, with what it exports for reads and for writes.
struct Candidate {
    name: &'static str,
    server: Server,
    read_uri: String,
    write_uri: String,
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let source = source::gigabyte(bench)?;
    let data = bench.scratch("nbd-data");
    // The cache holds the whole gigabyte: these rows are about warm reads.
    let daemon = Daemon::start(bench, &data, 1400)?;
    daemon.import("bench", &source)?;
    process::run(
        daemon
            .command()
            .args(["volume", "create", "scratch", "--from", "bench"]),
    )?;
    let (read_uri, write_uri) = (daemon.uri("image/bench:1"), daemon.uri("volume/scratch"));
    let mut candidates = vec![Candidate {
        name: ROOTSTOCK,
        server: daemon.server,
        read_uri,
        write_uri,
    }];
    candidates.push(rival(bench, "qemu-nbd raw", &source, qemu_nbd_raw)?);
    candidates.push(rival(bench, "qemu-nbd qcow2", &source, qemu_nbd_qcow2)?);
    candidates.push(rival(bench, "nbdkit file", &source, nbdkit)?);
    // Every candidate has all of its blocks allocated and in memory: these rows
    // are about the servers, not about a disk that is filled for the first time.
    let warm = row("filling", "randwrite", "4k", 32, 4);
    for candidate in &candidates {
        process::run(
            Command::new("nbdcopy")
                .arg(&source)
                .arg(&candidate.write_uri),
        )?;
        fio(&warm, &candidate.write_uri, 3 * bench.args.seconds)?;
        for uri in [&candidate.read_uri, &candidate.write_uri] {
            process::run(Command::new("nbdcopy").args([uri, "null:"]))?;
        }
    }
    for row in &ROWS {
        measure(bench, row, &candidates)?;
    }
    for candidate in candidates {
        candidate.server.stop()?;
    }
    fs::remove_dir_all(&data)?;
    Ok(())
}

fn measure(bench: &mut Bench, row: &Row, candidates: &[Candidate]) -> Result<()> {
    println!("{}", row.name);
    let mut rate: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut per_cpu: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let large = row.block_bytes == "1m";
    for _ in 0..bench.args.rounds {
        for candidate in candidates {
            let uri = if row.writes() {
                &candidate.write_uri
            } else {
                &candidate.read_uri
            };
            let before = candidate.server.cpu_seconds()?;
            let (operations, seconds) = fio(row, uri, bench.args.seconds)?;
            let cpu = (candidate.server.cpu_seconds()? - before).max(0.01);
            let unit = if large { 1.048_576 } else { 1.0 };
            rate.entry(candidate.name.into())
                .or_default()
                .push(operations * unit / seconds);
            per_cpu
                .entry(candidate.name.into())
                .or_default()
                .push(operations * unit / cpu);
        }
    }
    let (unit, cpu_unit) = if large {
        ("MB/s", "MB per server CPU-second")
    } else {
        ("operations/s", "operations per server CPU-second")
    };
    bench.report.add(row.name, unit, Better::More, rate);
    bench.report.add(
        &format!("{}, per CPU", row.name),
        cpu_unit,
        Better::More,
        per_cpu,
    );
    Ok(())
}

/// Operations done and seconds taken.
fn fio(row: &Row, uri: &str, seconds: u32) -> Result<(f64, f64)> {
    let printed = process::output(Command::new("fio").args([
        "--name=x",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--size=1G",
        "--time_based",
        &format!("--runtime={seconds}"),
        &format!("--rw={}", row.rw),
        &format!("--bs={}", row.block_bytes),
        &format!("--iodepth={}", row.depth),
        &format!("--numjobs={}", row.connections),
        "--group_reporting",
        "--output-format=json",
    ]))?;
    // Warnings may stand before the JSON document.
    let start = printed.find('{').context("fio prints JSON")?;
    let report: serde_json::Value = serde_json::from_str(&printed[start..])?;
    let side = if row.writes() { "write" } else { "read" };
    let job = &report["jobs"][0][side];
    let operations = job["total_ios"].as_f64().context("total_ios")?;
    let milliseconds = job["runtime"].as_f64().context("runtime")?;
    Ok((operations, milliseconds / 1000.0))
}

fn rival(
    bench: &Bench,
    name: &'static str,
    source: &Path,
    command: fn(&Path, u16) -> Result<Command>,
) -> Result<Candidate> {
    // Each rival has a file of its own: writes must not reach the others.
    let own = bench.scratch(&format!("{}.disk", name.replace(' ', "-")));
    fs::copy(source, &own)?;
    let port = process::free_port()?;
    let server = Server::start(&mut command(&own, port)?, || process::listens(port))?;
    let uri = format!("nbd://127.0.0.1:{port}/");
    Ok(Candidate {
        name,
        server,
        read_uri: uri.clone(),
        write_uri: uri,
    })
}

fn qemu_nbd(file: &Path, port: u16, format: &str) -> Command {
    let mut command = Command::new("qemu-nbd");
    command
        .args([
            "--persistent",
            "--shared=16",
            "--aio=io_uring",
            "--cache=writeback",
            "--bind=127.0.0.1",
        ])
        .arg(format!("--port={port}"))
        .arg(format!("--format={format}"))
        .arg(file);
    command
}

fn qemu_nbd_raw(file: &Path, port: u16) -> Result<Command> {
    Ok(qemu_nbd(file, port, "raw"))
}

fn qemu_nbd_qcow2(file: &Path, port: u16) -> Result<Command> {
    let qcow2 = file.with_extension("qcow2");
    process::run(
        Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .arg(file)
            .arg(&qcow2),
    )?;
    Ok(qemu_nbd(&qcow2, port, "qcow2"))
}

fn nbdkit(file: &Path, port: u16) -> Result<Command> {
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--ipaddr=127.0.0.1"])
        .arg(format!("--port={port}"))
        .arg("file")
        .arg(file);
    Ok(command)
}
