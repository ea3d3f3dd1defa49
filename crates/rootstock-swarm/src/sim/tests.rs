//! Swarms of many sizes, and with every fault there is.

use super::*;

fn fill(nodes: usize) -> Scenario {
    Scenario {
        racks: vec![nodes],
        chunks: 1024,
        ..Scenario::default()
    }
}

fn ratio(scenario: &Scenario, outcome: &Outcome) -> f64 {
    let last = outcome.last().expect("all have it");
    last.0 as f64 / scenario.bound().0 as f64
}

#[test]
fn explore() {
    for nodes in std::env::var("N")
        .unwrap()
        .split(',')
        .map(|n| n.parse().unwrap())
    {
        let scenario = fill(nodes);
        let outcome = scenario.run();
        println!(
            "{nodes}: last {:?} ratio {:.3} head {:.2} sends {} wasted {} hedged {} messages {} broken {:?}",
            outcome.last(),
            outcome.last().map_or(0.0, |_| ratio(&scenario, &outcome)),
            outcome.head_bytes[0] as f64 / (1024.0 * 262144.0),
            outcome.sends_most,
            outcome.wasted,
            outcome.hedged,
            outcome.messages,
            outcome.broken
        );
        let mut done: Vec<u64> = outcome
            .done
            .iter()
            .flatten()
            .map(|t| t.0 / 100_000)
            .collect();
        done.sort();
        println!("{done:?}");
    }
}
