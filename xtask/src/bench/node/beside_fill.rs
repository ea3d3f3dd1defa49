//! How long reads take that must come over the network, while the fill runs and while
//! it is paused.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rootstock_tests::wait;

use super::{Node, image};
use crate::bench::Bench;
use crate::bench::boot::TAP;
use crate::bench::deliver;
use crate::bench::report::{Better, ROOTSTOCK};

/// The link, in Mbit/s.
const LINK_MBIT: u32 = 100;
/// A fill that has come so far runs as fast as it does.
const RUNS_BYTES: u64 = 20_000_000;
/// A machine that nobody uses is sent less than this in a second.
const QUIET_BYTES: u64 = 100_000;
const LIMIT: Duration = Duration::from_secs(120);
/// Where fio puts how long each read took.
const LATENCIES: &str = "/run/latencies";
/// A chunk takes at least so long over the link; quicker reads were there already.
const NETWORK_MS_MIN: f64 = 10.0;
const PAUSED: &str = "fill paused";

/// The parts of all reads, in percent, that are no slower than what is shown.
const SHOWN: [(&str, f64); 3] = [("p50", 50.0), ("p99", 99.0), ("slowest", 100.0)];

pub(super) fn run(bench: &mut Bench, node: &mut Node) -> Result<()> {
    deliver::shape(&node.namespace, TAP, LINK_MBIT)?;
    let mut rows = SHOWN.map(|_| BTreeMap::<String, Vec<f64>>::new());
    for round in 0..bench.args.rounds as usize {
        println!(
            "node beside its fill, round {} of {}",
            round + 1,
            bench.args.rounds
        );
        for (number, (fill, name)) in [("paused", PAUSED), ("on", ROOTSTOCK)]
            .into_iter()
            .enumerate()
        {
            node.set_fill(fill)?;
            if fill == "on" {
                runs(node)?;
            } else {
                is_quiet(node)?;
            }
            let sent = node.sent_bytes()?;
            let all = pass(node, &image::list_path(2 * round + number))?;
            let sent = node.sent_bytes()? - sent;
            let mut waited: Vec<f64> = all
                .iter()
                .copied()
                .filter(|ms| *ms >= NETWORK_MS_MIN)
                .collect();
            waited.sort_by(f64::total_cmp);
            ensure!(!waited.is_empty(), "no read came over the network");
            let figures = SHOWN.map(|(_, percent)| part(&waited, percent));
            println!(
                "  fill {fill}: {} of {} reads over the network: p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms; {:.0} MB were sent",
                waited.len(),
                all.len(),
                figures[0],
                figures[1],
                figures[2],
                sent as f64 / 1e6
            );
            for (row, figure) in rows.iter_mut().zip(figures) {
                row.entry(name.to_owned()).or_default().push(figure);
            }
        }
    }
    for ((shown, _), figures) in SHOWN.into_iter().zip(rows) {
        let row =
            format!("node at {LINK_MBIT} Mbit/s, a read over the network beside the fill, {shown}");
        bench.report.add(&row, "ms", Better::Less, figures);
    }
    Ok(())
}

/// Milliseconds of each read of a list.
fn pass(node: &mut Node, list: &str) -> Result<Vec<f64>> {
    let words = format!(
        "--ioengine=libaio --iodepth=1 --read_iolog={list} --write_lat_log={LATENCIES} \
         --per_job_logs=0 --log_avg_msec=0"
    );
    // fio appends to a log that is there.
    node.shell(&format!("rm -f {LATENCIES}_*"))?;
    node.fio(&words)?;
    // Milliseconds since the start, nanoseconds, direction, ... ("Log File Formats").
    let told = node.shell(&format!("cut -d, -f2 {LATENCIES}_clat.log"))?;
    let numbers = told.split_whitespace().map(|word| {
        let nanoseconds: f64 = word
            .parse()
            .with_context(|| format!("fio's log has {word:?}"))?;
        Ok(nanoseconds / 1e6)
    });
    numbers.collect()
}

/// The longest of the quickest `percent` of what is sorted.
fn part(sorted: &[f64], percent: f64) -> f64 {
    let count = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted[count.clamp(1, sorted.len()) - 1]
}

/// Waits until the fill runs as fast as it does.
fn runs(node: &Node) -> Result<()> {
    let before = node.sent_bytes()?;
    wait::until("the fill runs", LIMIT, || {
        Ok((node.sent_bytes()? - before > RUNS_BYTES).then_some(()))
    })
}

/// Waits until nothing is on its way.
fn is_quiet(node: &Node) -> Result<()> {
    wait::until("nothing is fetched", LIMIT, || {
        let before = node.sent_bytes()?;
        std::thread::sleep(Duration::from_secs(1));
        Ok((node.sent_bytes()? - before < QUIET_BYTES).then_some(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_what_is_sorted() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        for (percent, expected) in [(50.0, 100.0), (99.0, 198.0), (100.0, 200.0)] {
            assert!((part(&sorted, percent) - expected).abs() < 1e-9);
        }
        assert!((part(&[7.0], 50.0) - 7.0).abs() < 1e-9);
    }
}
