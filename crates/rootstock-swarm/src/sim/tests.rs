//! Swarms of many sizes, and with every fault there is.

use super::*;
use crate::bugs::{self, Bug};

mod storms;

fn fill(nodes: usize) -> Scenario {
    Scenario {
        racks: vec![nodes],
        ..Scenario::default()
    }
}

fn seconds(seconds: u64) -> Time {
    Time(seconds * 1_000_000)
}

/// Runs it, and has all checks hold.
fn check(scenario: &Scenario) -> Outcome {
    let outcome = scenario.run();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(outcome.broken, [], "{version}, {scenario:?}");
    outcome
}

/// How many times the bound the last machine took, in hundredths.
fn ratio(scenario: &Scenario, outcome: &Outcome) -> u64 {
    let last = outcome.last().expect("all have it");
    last.0 * 100 / scenario.bound().0
}

/// Bytes that left heads, in hundredths of the version.
fn from_heads(scenario: &Scenario, outcome: &Outcome) -> u64 {
    let bytes = scenario.chunks as u64 * u64::from(scenario.wire_bytes);
    outcome.head_bytes.iter().sum::<u64>() * 100 / bytes
}

#[test]
fn as_many_as_there_are_take_about_as_long_as_one() {
    for nodes in [1, 2, 5, 16, 32] {
        let scenario = Scenario {
            chunks: 512,
            ..fill(nodes)
        };
        let outcome = check(&scenario);
        let (ratio, sent) = (ratio(&scenario, &outcome), from_heads(&scenario, &outcome));
        // Headers alone are 5; the rest of it is the start and the end of a short run.
        assert!(ratio <= 150, "{nodes} machines: {ratio} % of the bound");
        assert!(
            sent <= 115,
            "{nodes} machines: {sent} % of the version left the head"
        );
        assert!(outcome.sends_most <= 4, "{nodes}: {}", outcome.sends_most);
    }
}

#[test]
fn who_abstains_gets_all_and_gives_nothing() {
    // Who comes first is told of nobody, and nobody is told of it: it fetches for itself
    // until it asks again who is there. So do all where all abstain.
    for (nodes, abstain, least, most) in [
        (12, 4, 100, 130),
        (2, 1, 100, 200),
        (1, 1, 100, 115),
        (3, 3, 300, 330),
    ] {
        let scenario = Scenario {
            abstain,
            chunks: 128,
            ..fill(nodes)
        };
        let outcome = check(&scenario);
        assert_eq!(outcome.finished(), nodes);
        let sent = from_heads(&scenario, &outcome);
        assert!(
            (least..=most).contains(&sent),
            "{abstain} of {nodes}: {sent} % of the version left the head"
        );
        let ratio = ratio(&scenario, &outcome);
        assert!(
            ratio <= most + 200,
            "{abstain} of {nodes}: {ratio} % of the bound"
        );
    }
}

#[test]
fn a_run_follows_from_its_seed() {
    let run = |seed| {
        let scenario = Scenario {
            seed,
            faults: vec![(seconds(2), Fault::Kill(3)), (seconds(3), Fault::Lie(1))],
            ..fill(8)
        };
        let outcome = scenario.run();
        (outcome.trace, outcome.done, outcome.messages)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).0, run(8).0);
}

#[test]
fn a_storm_of_boots_costs_heads_about_one_boot() {
    for nodes in [4, 32, 120] {
        let scenario = Scenario {
            racks: vec![nodes],
            chunks: 400,
            wire_bytes: 75 << 10,
            head_rate: 125_000_000,
            node_rate: 125_000_000,
            stagger: Span::seconds(2),
            work: Work::Boot {
                chunks: 160,
                ahead: 16,
            },
            ..Scenario::default()
        };
        let sets = |outcome: &Outcome| outcome.head_bytes[0] * 100 / (160 * (75 << 10));
        let sent = sets(&check(&scenario));
        assert!(
            sent <= 150,
            "{nodes} machines: {sent} % of a boot left the head"
        );
        // Who lost patience with a busy owner is sent to who has it by now.
        let alone = sets(&bugs::with(Bug::SendsAll, || scenario.run()));
        assert!(sent <= alone, "{nodes}: {sent} %, {alone} % without a word");
        assert!(nodes < 120 || alone > 150, "{alone} %");
    }
}

#[test]
fn heads_may_die_when_the_swarm_has_all() {
    let scenario = Scenario {
        head_rate: 125_000_000,
        faults: vec![(Time(4_500_000), Fault::KillHead(0))],
        ..fill(16)
    };
    let outcome = check(&scenario);
    // It had sent all once by then, and nobody had all.
    assert!(
        outcome
            .done
            .iter()
            .all(|done| done.is_some_and(|at| at > seconds(3)))
    );
    assert_eq!(outcome.finished(), 16);
}

#[test]
fn a_head_that_is_back_knows_nothing_and_needs_not() {
    let scenario = Scenario {
        faults: vec![
            (seconds(2), Fault::KillHead(0)),
            (seconds(20), Fault::StartHead(0)),
        ],
        ..fill(8)
    };
    assert_eq!(check(&scenario).finished(), 8);
}

#[test]
fn half_of_the_machines_may_die() {
    let kills = (0..8).map(|machine| (seconds(3), Fault::Kill(machine * 2)));
    let scenario = Scenario {
        head_rate: 125_000_000,
        faults: kills.collect(),
        ..fill(16)
    };
    let outcome = check(&scenario);
    assert_eq!(outcome.alive.iter().filter(|alive| **alive).count(), 8);
    assert!(outcome.last().is_some(), "{:?}", outcome.done);
}

#[test]
fn who_does_wrong_harms_nobody_for_long() {
    for (fault, name) in [
        (Fault::Lie(2), "lies"),
        (Fault::Mute(2), "is mute"),
        (Fault::Drip(2), "drips"),
        (Fault::Kill(2), "is killed"),
    ] {
        let scenario = Scenario {
            faults: vec![(seconds(1), fault)],
            limit: seconds(120),
            ..fill(8)
        };
        let outcome = check(&scenario);
        let mut done = outcome.done.clone();
        done.remove(2);
        let last = done.into_iter().flatten().max().expect("somebody is done");
        let ratio = last.0 * 100 / scenario.bound().0;
        assert!(ratio <= 700, "one that {name}: {ratio} % of the bound");
        let found = outcome.liars > 0;
        assert_eq!(found, matches!(fault, Fault::Lie(_)), "{name}");
    }
}

#[test]
fn a_rack_that_is_cut_off_goes_on_by_itself_and_joins_again() {
    let scenario = Scenario {
        racks: vec![6, 6],
        faults: vec![
            (seconds(3), Fault::Part(1)),
            (seconds(30), Fault::Join(1)),
            (seconds(31), Fault::Cut(0, 1)),
            (seconds(31), Fault::Cut(7, 8)),
        ],
        ..Scenario::default()
    };
    assert_eq!(check(&scenario).finished(), 12);
}

#[test]
fn many_racks_take_each_chunk_from_a_head_or_from_each_other() {
    let scenario = Scenario {
        racks: vec![10; 5],
        head_rate: 125_000_000,
        ..Scenario::default()
    };
    let outcome = check(&scenario);
    assert!(outcome.sends_most <= 4, "{}", outcome.sends_most);
    assert!(from_heads(&scenario, &outcome) <= 520);
}

#[test]
fn many_seeds_break_no_rule() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let nodes = 3 + rng.below(14);
        let fault = |rng: &mut Rng| {
            let (one, other) = (rng.below(nodes), rng.below(nodes));
            let fault = match rng.below(5) {
                0 => Fault::Lie(one),
                1 => Fault::Mute(one),
                2 => Fault::Drip(one),
                3 => Fault::Kill(one),
                _ => Fault::Cut(one, other),
            };
            (Time(rng.next() % 6_000_000), fault)
        };
        let scenario = Scenario {
            seed,
            racks: vec![nodes],
            chunks: 64 + rng.below(128),
            faults: (0..rng.below(4)).map(|_| fault(&mut rng)).collect(),
            ..Scenario::default()
        };
        check(&scenario);
    }
}

#[test]
fn the_checks_find_mistakes() {
    // Of what three send some is passed on at about every second seed.
    let liar = Scenario {
        faults: (1..4).map(|one| (seconds(0), Fault::Lie(one))).collect(),
        ..fill(8)
    };
    let mute = Scenario {
        faults: vec![(seconds(1), Fault::Mute(2))],
        limit: seconds(120),
        ..fill(8)
    };
    for (bug, scenario) in [
        (Bug::SendsUnchecked, &liar),
        (Bug::WaitsForEver, &mute),
        (Bug::OwnsAll, &fill(16)),
    ] {
        check(scenario);
        let mut seeds = 0..6;
        let is_found = seeds.any(|seed| {
            let scenario = Scenario {
                seed,
                ..scenario.clone()
            };
            let outcome = bugs::with(bug, || scenario.run());
            !outcome.broken.is_empty() || outcome.sends_most > 4
        });
        assert!(is_found, "{bug:?} was not found");
    }
}
