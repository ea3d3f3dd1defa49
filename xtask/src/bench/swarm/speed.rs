//! What a member moves when its link is not the limit, beside iperf3.
//!
//! One agent has the whole image. Another gets it, from that one and from the head.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rootstock_tests::tool;
use serde_json::Value;

use super::clients::{Clients, Done};
use super::net::Net;
use super::rootstock::Head;
use super::{PLAIN, Site};
use crate::bench::lab::{self, Port, SERVER};
use crate::bench::process::cpu_seconds_of;
use crate::bench::report::{Better, ROOTSTOCK, Report};

const IPERF_PORT: u16 = 5201;

/// Gbit, of one transfer from one machine to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    pub(super) per_second: f64,
    pub(super) per_second_of_receiver: f64,
    pub(super) per_second_of_senders: f64,
}

/// One of the figures.
type Of = fn(&Speed) -> f64;

/// Figures of all rounds, by the candidate.
pub(super) type Speeds = BTreeMap<&'static str, Vec<Speed>>;

/// Adds the rows.
pub(super) fn report(report: &mut Report, speeds: &Speeds) {
    let rows: [(&str, &'static str, Of); 3] = [
        ("", "Gbit/s", |speed| speed.per_second),
        (", the receiver's processor", "Gbit per second", |speed| {
            speed.per_second_of_receiver
        }),
        (", the senders' processor", "Gbit per second", |speed| {
            speed.per_second_of_senders
        }),
    ];
    for (what, unit, of) in rows {
        let each = speeds.iter().map(|(name, rounds)| {
            let figures = rounds.iter().map(of).collect();
            ((*name).to_owned(), figures)
        });
        let row = format!("swarm, from machine to machine, links as they are{what}");
        report.add(&row, unit, Better::More, each.collect());
    }
}

pub(super) fn measure(site: &Site<'_>) -> Result<Speeds> {
    let mut speeds = Speeds::new();
    for round in 1..=site.rounds {
        println!("swarm, round {round} of {}, links as they are", site.rounds);
        for (name, mode) in [(ROOTSTOCK, "tls"), (PLAIN, "plain")] {
            enter(&mut speeds, name, agents(site, mode)?);
        }
        enter(&mut speeds, "TCP, iperf3", iperf(site)?);
    }
    Ok(speeds)
}

fn enter(speeds: &mut Speeds, name: &'static str, speed: Speed) {
    println!(
        "  {name}: {:.2} Gbit/s; {:.2} Gbit per second of the receiver's processor, {:.2} of the senders'",
        speed.per_second, speed.per_second_of_receiver, speed.per_second_of_senders
    );
    speeds.entry(name).or_default().push(speed);
}

fn agents(site: &Site<'_>, mode: &str) -> Result<Speed> {
    let net = Net::new(2, None)?;
    let mut head = Head::start(site, &net, mode)?;
    let limit = site.limit(&net);
    let (one, other) = net.nodes.split_at(1);
    let logs = site.logs()?;
    let mut sender = Clients::at_gate(one, &logs, Done::Says, |_, node| head.agent(0, node))?;
    sender.run(limit)?;
    let mut receiver = Clients::at_gate(other, &logs, Done::Says, |_, node| head.agent(1, node))?;
    let senders = |head: &mut Head, sender: &Clients| -> Result<f64> {
        Ok(cpu_seconds_of(head.daemon.process().id())? + sender.cpu_seconds(0)?)
    };
    let before = senders(&mut head, &sender)?;
    let outcome = receiver.run(limit)?;
    let sent = senders(&mut head, &sender)? - before;
    let received = receiver.cpu_seconds(0)?;
    receiver.end()?;
    sender.end()?;
    head.daemon.stop()?;
    let gbit = site.image_bytes as f64 * 8.0 / 1e9;
    Ok(Speed {
        per_second: gbit / outcome.seconds,
        per_second_of_receiver: gbit / received,
        per_second_of_senders: gbit / sent,
    })
}

fn iperf(site: &Site<'_>) -> Result<Speed> {
    let net = Net::new(1, None)?;
    let mut server = net.head.command("iperf3");
    server.args(["--server", "--bind", SERVER]);
    let log = site.directory.join("iperf3.log");
    let server = lab::serve(
        &net.head,
        "iperf3",
        &mut server,
        Port::Tcp(IPERF_PORT),
        &log,
    )?;
    let mut client = net.nodes[0].command("iperf3");
    let bytes = site.image_bytes.to_string();
    client.args(["--json", "--reverse", "--client", SERVER, "--bytes", &bytes]);
    let told: Value = serde_json::from_str(&tool::run_command(&mut client)?)?;
    lab::end(server)?;
    let end = &told["end"];
    let number = |of: &Value| of.as_f64().context("iperf3 tells its figures");
    let rate = number(&end["sum_received"]["bits_per_second"])? / 1e9;
    let share =
        |name: &str| Ok::<_, anyhow::Error>(number(&end["cpu_utilization_percent"][name])? / 100.0);
    Ok(Speed {
        per_second: rate,
        per_second_of_receiver: rate / share("host_total")?,
        per_second_of_senders: rate / share("remote_total")?,
    })
}
