//! HTTP: a boot file for one client, and for 32 at once.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Bench;
use super::lab::{self, Lab, Port, SERVER};
use super::process::Meter;
use super::report::{Better, ROOTSTOCK};
use super::tftp::{self, FILE_NAME, at_once, measured};

const FILE_BYTES: u64 = 64 << 20;
/// The port of both: only one of them runs.
const PORT: u16 = 8480;
/// One client fetches it several times, since once takes less than starting a client.
const TIMES: u32 = 16;

type Figures = BTreeMap<String, Vec<f64>>;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let lab = Lab::new()?;
    let files = tftp::file(bench, FILE_BYTES)?;
    let mut figures: [(Figures, Figures); 2] = Default::default();
    for round in 1..=bench.args.rounds {
        println!("HTTP, round {round} of {}", bench.args.rounds);
        let (server, stop) = tftp::rootstock(bench, &lab, &files, Port::Tcp(PORT))?;
        let url = format!("http://{SERVER}:{PORT}/boot/file/{FILE_NAME}");
        loads(&lab, server, &url, ROOTSTOCK, &mut figures)?;
        stop()?;
        let directory = lab::fresh(bench, "http-nginx")?;
        let nginx = lab::nginx(&lab.server, &directory, &files, PORT)?;
        let url = format!("http://{SERVER}:{PORT}/{FILE_NAME}");
        loads(&lab, nginx.id(), &url, "nginx", &mut figures)?;
        lab::end(nginx)?;
    }
    for (what, (rates, loads)) in ["1 client", "32 clients"].into_iter().zip(figures) {
        let report = &mut bench.report;
        report.add(&format!("HTTP, {what}"), "MB/s", Better::More, rates);
        let row = format!("HTTP, {what}, the server's processor");
        report.add(&row, "ms per 100 MB", Better::Less, loads);
    }
    Ok(())
}

fn loads(
    lab: &Lab,
    server: u32,
    url: &str,
    name: &str,
    figures: &mut [(Figures, Figures); 2],
) -> Result<()> {
    let meter = Meter::of(server)?;
    let curl = "curl --fail --silent --show-error --max-time 100";
    let again = format!("-o /dev/null {url} ").repeat(TIMES as usize);
    let one = (format!("{curl} {again}"), TIMES);
    let many = (at_once(&format!("{curl} -o /dev/null {url}"), 32), 32);
    for ((line, times), (rates, loads)) in [one, many].into_iter().zip(figures) {
        let (rate, cpu) = measured(lab, &meter, &line, FILE_BYTES * u64::from(times))?;
        rates.entry(name.into()).or_default().push(rate);
        loads.entry(name.into()).or_default().push(cpu);
    }
    Ok(())
}
