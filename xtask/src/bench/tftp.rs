//! TFTP: a boot kernel for one client and for eight at once, block by block and in windows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rootstock_tests::disk;

use super::Bench;
use super::lab::{self, Lab, Port, SERVER, SERVER_LINK};
use super::process::Meter;
use super::report::{Better, ROOTSTOCK};

/// As large as a kernel and its first file system are together.
const FILE_BYTES: u64 = 32 << 20;
/// Boot programs have such names; others are not served.
pub(super) const FILE_NAME: &str = "kernel.efi";
/// The most that fits into a packet of Ethernet, as most firmware asks for it.
const BLOCK: &str = "--option 'blksize 1428'";
/// RFC 7440. Servers that do not know it answer without, and it is block by block.
const WINDOW: &str = "--option 'windowsize 16'";

/// Clients at once, and what they ask for beyond large blocks.
const LOADS: [(&str, u32, &str); 4] = [
    ("1 client, block by block", 1, ""),
    ("1 client that asks for windows of 16", 1, WINDOW),
    ("8 clients, block by block", 8, ""),
    ("8 clients that ask for windows of 16", 8, WINDOW),
];

type Figures = BTreeMap<String, Vec<f64>>;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let lab = Lab::new()?;
    let files = file(bench, FILE_BYTES)?;
    let mut figures: Vec<(Figures, Figures)> = vec![Default::default(); LOADS.len()];
    for round in 1..=bench.args.rounds {
        println!("TFTP, round {round} of {}", bench.args.rounds);
        for (name, start) in CANDIDATES {
            let (server, stop) = start(bench, &lab, &files)?;
            let meter = Meter::of(server)?;
            for ((_, clients, options), (rates, loads)) in LOADS.iter().zip(&mut figures) {
                let (rate, cpu) = load(&lab, &meter, *clients, options)?;
                rates.entry(name.into()).or_default().push(rate);
                loads.entry(name.into()).or_default().push(cpu);
            }
            drop(meter);
            stop()?;
        }
    }
    for ((what, ..), (rates, loads)) in LOADS.iter().zip(figures) {
        let report = &mut bench.report;
        report.add(&format!("TFTP, {what}"), "MB/s", Better::More, rates);
        let row = format!("TFTP, {what}, the server's processor");
        report.add(&row, "ms per 100 MB", Better::Less, loads);
    }
    Ok(())
}

/// A directory with a file that does not compress.
pub(super) fn file(bench: &Bench, len_bytes: u64) -> Result<PathBuf> {
    let files = lab::fresh(bench, "files")?;
    disk::noise(&files.join(FILE_NAME), len_bytes, 7)?;
    Ok(files)
}

/// A server's process, and how it is ended.
pub(super) type Started = (u32, Box<dyn FnOnce() -> Result<()>>);

type Start = fn(&Bench, &Lab, &Path) -> Result<Started>;

const CANDIDATES: [(&str, Start); 3] = [
    (ROOTSTOCK, |bench, lab, files| {
        rootstock(bench, lab, files, Port::Udp(69))
    }),
    ("dnsmasq", dnsmasq),
    ("tftpd-hpa", tftpd_hpa),
];

/// Rootstock with these boot files.
pub(super) fn rootstock(bench: &Bench, lab: &Lab, files: &Path, port: Port) -> Result<Started> {
    let directory = lab::fresh(bench, "files-rootstock")?;
    let config = format!(
        "[boot]\ninterfaces = [\"{SERVER_LINK}=dhcp\"]\nfiles = [\"{}\"]\n",
        files.display()
    );
    let mut daemon = lab::rootstock(bench, &lab.server, &directory, config, port)?;
    Ok((daemon.process().id(), Box::new(move || daemon.stop())))
}

fn dnsmasq(bench: &Bench, lab: &Lab, files: &Path) -> Result<Started> {
    let mut command = lab::dnsmasq(&lab.server, SERVER_LINK);
    command.arg("--enable-tftp");
    command.arg(format!("--tftp-root={}", files.display()));
    let log = bench.scratch("tftp-dnsmasq.log");
    let process = lab::serve(&lab.server, "dnsmasq", &mut command, Port::Udp(69), &log)?;
    Ok((process.id(), Box::new(move || lab::end(process))))
}

fn tftpd_hpa(bench: &Bench, lab: &Lab, files: &Path) -> Result<Started> {
    let mut command = lab.server.command("in.tftpd");
    command
        .args(["--foreground", "--listen", "--user", "root"])
        .args(["--address", &format!("{SERVER}:69"), "--secure"])
        .arg(files);
    let log = bench.scratch("tftpd-hpa.log");
    let process = lab::serve(&lab.server, "in.tftpd", &mut command, Port::Udp(69), &log)?;
    Ok((process.id(), Box::new(move || lab::end(process))))
}

/// MB a second of all clients together, and the server's milliseconds for 100 MB.
fn load(lab: &Lab, meter: &Meter, clients: u32, options: &str) -> Result<(f64, f64)> {
    let get =
        format!("timeout 100 atftp {BLOCK} {options} --get -r {FILE_NAME} -l /dev/null {SERVER}");
    measured(
        lab,
        meter,
        &at_once(&get, clients),
        FILE_BYTES * u64::from(clients),
    )
}

/// A shell line that runs a command several times at once, and fails when one does.
pub(super) fn at_once(command: &str, times: u32) -> String {
    format!(
        "all=; for n in $(seq {times}); do {command} >/dev/null 2>&1 & all=\"$all $!\"; done; \
         for one in $all; do wait $one; done"
    )
}

/// Runs a line that moves so many bytes: MB a second, and the server's milliseconds
/// for 100 MB.
pub(super) fn measured(lab: &Lab, meter: &Meter, line: &str, bytes: u64) -> Result<(f64, f64)> {
    let before = meter.cpu_seconds()?;
    let start = std::time::Instant::now();
    lab.at_client(line)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = meter.cpu_seconds()? - before;
    let megabytes = bytes as f64 / 1e6;
    Ok((megabytes / seconds, cpu * 1000.0 / (megabytes / 100.0)))
}
