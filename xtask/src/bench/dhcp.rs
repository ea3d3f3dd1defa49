//! DHCP: addresses given in a second, and how long each takes, by Kea's load generator.
//!
//! It sends as a relay does, so that no server asks by ARP or ping after an address
//! first: what is measured is the decision and the writing of the lease.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use rootstock_tests::{Daemon, Process};

use super::Bench;
use super::lab::{self, CLIENT_LINK, Lab, Port, SERVER_LINK};
use super::report::{Better, ROOTSTOCK};

/// Cards that ask; a good half of the pool has a lease at the end.
const CLIENTS: u32 = 20_000;
const POOL: (&str, &str) = ("10.77.128.0", "10.77.255.250");
const POOL_ADDRESSES: u32 = 32_768;
/// What all can do.
const COMMON_RATE: u32 = 50;
const COMMON_SECONDS: u32 = 3;
const TRIAL_SECONDS: u32 = 2;
/// Where the search for the highest rate begins, and where it ends.
const FIRST_RATE: u32 = 100;
const RATE_MAX: u32 = 51_200;
/// Steps between the last rate that held and the first that did not.
const BISECTIONS: u32 = 3;
/// A rate holds when less than this share is lost.
const LOST_MAX: f64 = 0.01;
/// How long answers under way are waited for at the end, in microseconds.
const LAST_ANSWERS_MICROS: u32 = 500_000;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let lab = Lab::new()?;
    let mut rates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut offers: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut acks: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 1..=bench.args.rounds {
        println!("DHCP, round {round} of {}", bench.args.rounds);
        for (name, start) in CANDIDATES {
            let server = start(bench, &lab)?;
            let common = load(&lab, COMMON_RATE, COMMON_SECONDS)?;
            let best = highest(&lab)?;
            println!("  {name}: {best:.0} a second");
            server.stop()?;
            rates.entry(name.into()).or_default().push(best);
            offers
                .entry(name.into())
                .or_default()
                .push(common.offer_millis);
            acks.entry(name.into()).or_default().push(common.ack_millis);
        }
    }
    let report = &mut bench.report;
    report.add(
        "DHCP, addresses given with less than 1 % lost",
        "per second",
        Better::More,
        rates,
    );
    let row = |part| format!("DHCP, {part} at {COMMON_RATE} a second");
    report.add(&row("DISCOVER to OFFER"), "ms", Better::Less, offers);
    report.add(&row("REQUEST to ACK"), "ms", Better::Less, acks);
    Ok(())
}

/// A server under load.
enum Running {
    Rootstock(Box<Daemon>),
    Rival(Process),
}

impl Running {
    fn stop(self) -> Result<()> {
        match self {
            Self::Rootstock(mut daemon) => daemon.stop(),
            Self::Rival(process) => lab::end(process),
        }
    }
}

type Start = fn(&Bench, &Lab) -> Result<Running>;

const CANDIDATES: [(&str, Start); 3] = [
    (ROOTSTOCK, rootstock),
    ("Kea, memfile", kea),
    ("dnsmasq", dnsmasq),
];

fn rootstock(bench: &Bench, lab: &Lab) -> Result<Running> {
    let directory = lab::fresh(bench, "dhcp-rootstock")?;
    let (first, last) = POOL;
    let config = format!(
        "[boot]\ninterfaces = [\"{SERVER_LINK}=dhcp\"]\n[[network]]\ninterface = \"{SERVER_LINK}\"\n\
         subnet = \"10.77.0.0/16\"\npool = \"{first}-{last}\"\n"
    );
    let daemon = lab::rootstock(bench, &lab.server, &directory, config, Port::Udp(67))?;
    Ok(Running::Rootstock(Box::new(daemon)))
}

/// The lease file is appended to for each lease, without a sync.
fn kea(bench: &Bench, lab: &Lab) -> Result<Running> {
    let directory = lab::fresh(bench, "dhcp-kea")?;
    let config = directory.join("kea.json");
    let (first, last) = POOL;
    let (at, log) = (directory.display(), directory.join("log"));
    fs::write(
        &config,
        format!(
            "{{\"Dhcp4\":{{\"interfaces-config\":{{\"interfaces\":[\"{SERVER_LINK}\"]}},\
             \"lease-database\":{{\"type\":\"memfile\",\"persist\":true,\"name\":\"{at}/leases.csv\"}},\
             \"valid-lifetime\":3600,\
             \"subnet4\":[{{\"subnet\":\"10.77.0.0/16\",\"pools\":[{{\"pool\":\"{first}-{last}\"}}]}}],\
             \"loggers\":[{{\"name\":\"kea-dhcp4\",\"severity\":\"WARN\",\
             \"output_options\":[{{\"output\":\"stdout\"}}]}}]}}}}"
        ),
    )?;
    let mut command = lab.server.command("kea-dhcp4");
    command
        .arg("-c")
        .arg(&config)
        .env("KEA_PIDFILE_DIR", &directory)
        .env("KEA_LOCKFILE_DIR", &directory);
    let process = lab::serve(&lab.server, "kea-dhcp4", &mut command, Port::Udp(67), &log)?;
    Ok(Running::Rival(process))
}

/// The lease file is written anew and synced for each lease.
fn dnsmasq(bench: &Bench, lab: &Lab) -> Result<Running> {
    let directory = lab::fresh(bench, "dhcp-dnsmasq")?;
    let (first, last) = POOL;
    let mut command = lab::dnsmasq(&lab.server, SERVER_LINK);
    command.args([
        "--dhcp-authoritative",
        "--quiet-dhcp",
        // It would ask after each fresh address for three seconds, relay or not.
        "--no-ping",
    ]);
    command.arg(format!("--dhcp-range={first},{last},255.255.0.0,1h"));
    command.arg(format!("--dhcp-lease-max={POOL_ADDRESSES}"));
    command.arg(format!(
        "--dhcp-leasefile={}",
        directory.join("leases").display()
    ));
    let log = directory.join("log");
    let process = lab::serve(&lab.server, "dnsmasq", &mut command, Port::Udp(67), &log)?;
    Ok(Running::Rival(process))
}

/// What a load came to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Outcome {
    discovers: f64,
    acks: f64,
    offer_millis: f64,
    ack_millis: f64,
}

impl Outcome {
    fn holds(self) -> bool {
        self.acks > self.discovers * (1.0 - LOST_MAX)
    }
}

/// The highest rate that holds, in addresses a second. A rate has two tries: this
/// machine may have been busy with something else.
fn highest(lab: &Lab) -> Result<f64> {
    let holds = |rate| -> Result<Option<f64>> {
        for _ in 0..2 {
            let outcome = load(lab, rate, TRIAL_SECONDS)?;
            if outcome.holds() {
                return Ok(Some(outcome.acks / f64::from(TRIAL_SECONDS)));
            }
        }
        Ok(None)
    };
    let (mut best, mut held, mut broke) = (0.0, 0, FIRST_RATE);
    while broke <= RATE_MAX {
        let Some(given) = holds(broke)? else { break };
        // The generator does not send faster, either.
        let is_all = given < f64::from(broke) * 0.9;
        (best, held, broke) = (given, broke, broke * 2);
        if is_all {
            return Ok(best);
        }
    }
    for _ in 0..BISECTIONS {
        let middle = u32::midpoint(held, broke);
        match holds(middle)? {
            Some(given) => (best, held) = (given, middle),
            None => broke = middle,
        }
    }
    Ok(best)
}

fn load(lab: &Lab, rate: u32, seconds: u32) -> Result<Outcome> {
    let mut command = lab.client.command("perfdhcp");
    command
        .args(["-4", "-l", CLIENT_LINK, "-r", &rate.to_string()])
        .args(["-R", &CLIENTS.to_string(), "-p", &seconds.to_string()])
        .args(["-W", &LAST_ANSWERS_MICROS.to_string()]);
    // It ends with 3 when packets were lost, which is what is asked.
    let output = command.output().context("perfdhcp")?;
    let text = String::from_utf8_lossy(&output.stdout);
    outcome(&text).with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("perfdhcp said:\n{text}{error}")
    })
}

/// Reads the final report: a block for DISCOVER and OFFER, then one for REQUEST and ACK.
fn outcome(text: &str) -> Option<Outcome> {
    let numbers = |label: &str| -> Vec<f64> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(label));
        let number = |rest: &str| rest.split_whitespace().next()?.parse().ok();
        lines.filter_map(number).collect()
    };
    let delays = numbers("avg delay: ");
    Some(Outcome {
        discovers: *numbers("sent packets: ").first()?,
        acks: *numbers("received packets: ").get(1)?,
        offer_millis: delays.first().copied().unwrap_or(f64::INFINITY),
        ack_millis: delays.get(1).copied().unwrap_or(f64::INFINITY),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let text = "Rate: 91 4-way exchanges/second, expected rate: 100\n\n\
            ***Statistics for: DISCOVER-OFFER***\nsent packets: 299\nreceived packets: 298\n\
            drops: 1\n\nmin delay: 0.1 ms\navg delay: 0.304 ms\nmax delay: 1 ms\n\
            ***Statistics for: REQUEST-ACK***\nsent packets: 298\nreceived packets: 290\n\
            avg delay: 2.5 ms\n";
        let read = outcome(text).expect("is whole");
        let expected = Outcome {
            discovers: 299.0,
            acks: 290.0,
            offer_millis: 0.304,
            ack_millis: 2.5,
        };
        assert_eq!(read, expected);
        assert!(!read.holds());
        assert_eq!(outcome("sent packets: 1\n"), None);
    }
}
