//! Swarms too large for a unit test: thousands of machines, simulated.

use rootstock_swarm::{
    Span, Time,
    sim::{Fault, Scenario},
};

/// 5,000 machines in racks of 50, and a head with ten times the link of each.
fn thousands(seed: u64) -> Scenario {
    Scenario {
        seed,
        racks: vec![50; 100],
        chunks: 64,
        wire_bytes: 100_000,
        head_rate: 125_000_000,
        node_rate: 12_500_000,
        stagger: Span::seconds(10),
        ..Scenario::default()
    }
}

#[test]
fn five_thousand_machines_have_all_of_a_version() {
    // All are there by then, and the last ones are under way.
    let kills = (0..50).map(|one| (Time(10_000_000), Fault::Kill(one * 100)));
    let scenario = Scenario {
        faults: kills.collect(),
        ..thousands(1)
    };
    let outcome = scenario.run();
    let run = format!("{}, {scenario:?}", env!("CARGO_PKG_VERSION"));
    assert_eq!(outcome.broken, [], "{run}");
    assert!(outcome.last().is_some(), "{run}");
    let alive = outcome.alive.iter().filter(|alive| **alive).count();
    assert_eq!(alive, 4950, "{run}");
    // A rack gets the version once, or from others; never each machine for itself.
    let version = 64 * 100_000;
    let copies = outcome.head_chunk_bytes / version;
    assert!(copies <= 150, "{copies} copies left the head: {run}");
}
