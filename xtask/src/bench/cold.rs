//! Cold NBD reads: from compressed frames, with empty caches on both sides.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{
    Bench,
    daemon::Daemon,
    process::{self, Server},
    report::{Better, ROOTSTOCK},
    source,
};

const RIVAL: &str = "qemu-nbd, zstd qcow2";

/// The chunk cache in the cold rows: small, so that nothing stays.
const CACHE_MIB: u64 = 64;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let source = source::gigabyte(bench)?;
    let data = bench.scratch("cold-data");
    let daemon = Daemon::start(bench, &data, CACHE_MIB)?;
    daemon.import("bench", &source)?;
    daemon.server.stop()?;
    let qcow2 = bench.scratch("cold.qcow2");
    process::run(
        Command::new("qemu-img")
            .args([
                "convert", "-c", "-m", "16", "-W", "-f", "raw", "-O", "qcow2",
            ])
            .args(["-o", "compression_type=zstd"])
            .arg(&source)
            .arg(&qcow2),
    )?;
    for (row, unit, workload) in WORKLOADS {
        println!("{row}");
        let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for _ in 0..bench.args.rounds {
            process::drop_page_cache()?;
            let daemon = Daemon::start(bench, &data, CACHE_MIB)?;
            let ours = workload(&daemon.uri("image/bench:1"))?;
            daemon.server.stop()?;
            figures.entry(ROOTSTOCK.into()).or_default().push(ours);
            process::drop_page_cache()?;
            let (server, uri) = rival(&qcow2)?;
            figures
                .entry(RIVAL.into())
                .or_default()
                .push(workload(&uri)?);
            server.stop()?;
        }
        bench.report.add(row, unit, Better::More, figures);
    }
    fs::remove_dir_all(&data)?;
    Ok(())
}

type Workload = fn(&str) -> Result<f64>;

const WORKLOADS: [(&str, &str, Workload); 3] = [
    ("cold sequential read", "MB/s", sequential),
    ("cold randread 4k QD1", "operations/s", |uri| random(uri, 1)),
    ("cold randread 4k QD32", "operations/s", |uri| {
        random(uri, 32)
    }),
];

fn rival(qcow2: &Path) -> Result<(Server, String)> {
    let port = process::free_port()?;
    let mut command = Command::new("qemu-nbd");
    command
        .args([
            "--persistent",
            "--shared=16",
            "--read-only",
            "--format=qcow2",
            "--bind=127.0.0.1",
        ])
        .arg(format!("--port={port}"))
        .arg(qcow2);
    let server = Server::start(&mut command, || process::listens(port))?;
    Ok((server, format!("nbd://127.0.0.1:{port}/")))
}

fn sequential(uri: &str) -> Result<f64> {
    let seconds = process::run(Command::new("nbdcopy").args([uri, "null:"]))?;
    Ok((1_u64 << 30) as f64 / 1e6 / seconds)
}

/// A fixed number of random reads, so that all candidates are equally cold.
fn random(uri: &str, depth: u32) -> Result<f64> {
    let printed = process::output(Command::new("fio").args([
        "--name=x",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--size=1G",
        "--rw=randread",
        "--bs=4k",
        "--number_ios=4000",
        "--randseed=1",
        &format!("--iodepth={depth}"),
        "--output-format=json",
    ]))?;
    let start = printed.find('{').context("fio prints JSON")?;
    let report: serde_json::Value = serde_json::from_str(&printed[start..])?;
    report["jobs"][0]["read"]["iops"].as_f64().context("iops")
}
