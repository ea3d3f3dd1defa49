//! Peak memory: a huge sparse import, and many connections.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    Bench,
    daemon::Daemon,
    process,
    report::{Better, ROOTSTOCK},
    source,
};

const CONNECTIONS: u32 = 200;

/// The chunk cache while memory is measured, in MiB: it comes on top of the bound.
const CACHE_MIB: u64 = 64;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    sparse_import(bench)?;
    connections(bench)
}

/// A terabyte with a megabyte of data in every gigabyte.
fn sparse_import(bench: &mut Bench) -> Result<()> {
    let disk = bench.scratch("terabyte.raw");
    let file = File::create(&disk)?;
    file.set_len(1 << 40)?;
    let mut megabyte = vec![0; 1 << 20];
    for gigabyte in 0..1024_u64 {
        for (index, word) in megabyte.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&((gigabyte << 32) + index as u64).to_le_bytes());
        }
        file.write_all_at(&megabyte, gigabyte << 30)?;
    }
    let data = bench.scratch("memory-data");
    let daemon = Daemon::start(bench, &data, CACHE_MIB)?;
    println!("import of a sparse terabyte");
    let mut child = daemon
        .command()
        .args(["image", "import", "terabyte"])
        .arg(&disk)
        .arg("--json")
        .stdout(Stdio::null())
        .spawn()?;
    let mut client_peak = 0;
    while child.try_wait()?.is_none() {
        // The peak only grows; the last reading before the end is the figure.
        client_peak = process::peak_bytes_of(child.id()).unwrap_or(client_peak);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    ensure!(
        child.wait()?.success(),
        "the import of the sparse terabyte failed"
    );
    add(
        bench,
        "peak memory of the client, importing a sparse 1 TiB",
        client_peak,
    );
    let server_peak = daemon.server.peak_bytes()?;
    add(
        bench,
        "peak memory of the daemon, importing a sparse 1 TiB (64 MiB cache)",
        server_peak,
    );
    daemon.server.stop()?;
    std::fs::remove_dir_all(&data)?;
    std::fs::remove_file(&disk)?;
    Ok(())
}

/// Many connections, each reading the whole image at depth 4.
fn connections(bench: &mut Bench) -> Result<()> {
    let source = source::gigabyte(bench)?;
    let data = bench.scratch("connections-data");
    let daemon = Daemon::start(bench, &data, CACHE_MIB)?;
    daemon.import("bench", &source)?;
    println!("{CONNECTIONS} connections");
    let mut shell = Command::new("/usr/bin/python3")
        .arg("-c")
        .arg(CLIENT)
        .arg(daemon.uri("image/bench:1"))
        .arg(CONNECTIONS.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut answer = String::new();
    BufReader::new(shell.stdout.take().context("stdout")?).read_line(&mut answer)?;
    ensure!(
        answer.trim() == "done",
        "the {CONNECTIONS} connections did not finish: {answer}"
    );
    let peak = daemon.server.peak_bytes()?;
    if let Some(mut stdin) = shell.stdin.take() {
        stdin.write_all(b"\n")?;
    }
    ensure!(
        shell.wait()?.success(),
        "the client of {CONNECTIONS} connections failed"
    );
    add(
        bench,
        "peak memory of the daemon, 200 connections reading (64 MiB cache)",
        peak,
    );
    daemon.server.stop()?;
    std::fs::remove_dir_all(&data)?;
    Ok(())
}

/// Opens all connections with libnbd, keeps four 1 MiB reads in flight on each.
const CLIENT: &str = r#"
import nbd, sys
uri, count = sys.argv[1], int(sys.argv[2])
clients = []
for _ in range(count):
    client = nbd.NBD()
    client.connect_uri(uri)
    clients.append(client)
size = clients[0].get_size()
for turn in range(4):
    for number, client in enumerate(clients):
        for part in range(4):
            at = ((number * 7 + turn * 4 + part) << 20) % (size - (1 << 20))
            client.aio_pread(nbd.Buffer(1 << 20), at)
    for client in clients:
        left = 4
        while left:
            cookie = client.aio_peek_command_completed()
            if cookie:
                client.aio_command_completed(cookie)
                left -= 1
            else:
                client.poll(-1)
print("done", flush=True)
sys.stdin.readline()
"#;

fn add(bench: &mut Bench, row: &str, bytes: u64) {
    let figures = BTreeMap::from([(ROOTSTOCK.to_owned(), vec![bytes as f64 / 1_048_576.0])]);
    bench.report.add(row, "MiB", Better::Less, figures);
}
