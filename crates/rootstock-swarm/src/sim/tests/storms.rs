//! Versions that change meanwhile, boots before the rest, and what is planned with them.

use super::*;

/// A version comes while the one before is fetched, of which half is new.
fn changed(seed: u64, nodes: usize, at: Time, faults: Vec<(Time, Fault)>) -> Scenario {
    Scenario {
        seed,
        chunks: 256,
        change: Some(Change { at, fresh: 128 }),
        faults,
        ..fill(nodes)
    }
}

#[test]
fn a_version_that_changes_meanwhile_costs_what_is_new() {
    for (seed, at) in [(1, seconds(0)), (2, seconds(3)), (3, seconds(20))] {
        let scenario = changed(seed, 12, at, Vec::new());
        let outcome = check(&scenario);
        assert_eq!(outcome.finished(), 12, "{scenario:?}");
        assert!(outcome.last() > Some(at), "{:?}", outcome.done);
        // The version and a half, and as much again for who begins as in other runs.
        let sent = from_heads(&scenario, &outcome);
        assert!(sent <= 180, "{sent} % left the head: {scenario:?}");
        // Who has not heard of the change fetches for others, and keeps nothing of it.
        let most = outcome.sends_most;
        assert!(most <= 8, "{most}: {scenario:?}");
    }
}

#[test]
fn versions_change_with_every_fault_there_is() {
    for seed in 0..8 {
        let mut rng = Rng::new(seed);
        let nodes = 4 + rng.below(10);
        let fault = |rng: &mut Rng| {
            let (one, other) = (rng.below(nodes), rng.below(nodes));
            let fault = match rng.below(6) {
                0 => Fault::Lie(one),
                1 => Fault::Mute(one),
                2 => Fault::Drip(one),
                3 => Fault::Kill(one),
                4 => Fault::KillHead(0),
                _ => Fault::Cut(one, other),
            };
            (Time(rng.next() % 8_000_000), fault)
        };
        let mut faults: Vec<_> = (0..3).map(|_| fault(&mut rng)).collect();
        // What only a head has comes when it is back.
        faults.push((seconds(15), Fault::StartHead(0)));
        let at = Time(rng.next() % 6_000_000);
        check(&changed(seed, nodes, at, faults));
    }
}

#[test]
fn a_storm_reads_its_boot_before_the_rest() {
    let scenario = Scenario {
        chunks: 300,
        work: Work::Storm {
            chunks: 40,
            handful: 8,
            then: Then::Fill,
        },
        stagger: Span::seconds(2),
        ..fill(20)
    };
    let outcome = check(&scenario);
    for (ready, done) in outcome.ready.iter().zip(&outcome.done) {
        assert!(ready.is_some() && ready < done, "{ready:?} {done:?}");
    }
    let (ready, done) = (outcome.ready.iter().max(), outcome.done.iter().min());
    assert!(ready < done, "boots wait for fills: {ready:?} {done:?}");
}

#[test]
fn who_has_booted_fetches_the_rest_alone() {
    let scenario = Scenario {
        holds: 200,
        ..fill(10)
    };
    let outcome = check(&scenario);
    let bytes = 56 * u64::from(scenario.wire_bytes);
    let most = bytes * 3 / 2;
    assert!((bytes..most).contains(&outcome.head_chunk_bytes));
}

fn plan(nodes: usize, racks: usize) -> Plan {
    let chunks = 1000;
    Plan {
        nodes,
        racks,
        bytes: chunks * 100_000,
        chunks: chunks.try_into().expect("some"),
        boot_bytes: 10_000_000,
        head_rate: 1_250_000_000,
        node_rate: 125_000_000,
        spread: Span::seconds(1),
        begin: Begin::Off,
        copies: 2,
        seed: 1,
    }
}

#[test]
fn an_estimate_of_fewer_chunks_is_near_that_of_all() {
    for (nodes, racks) in [(16, 1), (24, 2)] {
        let plan = plan(nodes, racks);
        let whole = plan.forecast_with(&plan, 1000, &mut |_| {}).complete;
        assert_eq!((whole.simulated, whole.finished), (1000, nodes));
        for chunks in [150, 333] {
            let few = plan.forecast_with(&plan, chunks, &mut |_| {}).complete;
            assert_eq!((few.simulated, few.finished), (chunks, nodes));
            for (kind, few, whole) in [
                ("median", few.median.0, whole.median.0),
                ("last", few.last.0, whole.last.0),
                ("sent", few.head_bytes, whole.head_bytes),
            ] {
                // Of so few that each machine owns a handful, more are sent twice.
                if kind == "sent" && chunks < 10 * nodes as u64 {
                    continue;
                }
                let percent = few * 100 / whole;
                assert!(
                    (75..135).contains(&percent),
                    "{chunks}, {kind}: {percent} % {plan:?}"
                );
            }
        }
    }
}

#[test]
fn an_estimate_of_some_machines_is_near_that_of_all() {
    for (nodes, racks, max, simulated, of_racks) in
        [(48, 8, 12, 12, 2), (60, 1, 20, 20, 1), (45, 3, 10, 10, 1)]
    {
        let plan = plan(nodes, racks);
        let part = plan.part(max);
        assert_eq!((part.nodes, part.racks), (simulated, of_racks));
        let all = plan.forecast_with(&plan, 300, &mut |_| {});
        let some = plan.forecast_with(&part, 300, &mut |_| {});
        let logins = all.login.into_iter().zip(some.login);
        for (all, some) in logins.chain([(all.complete, some.complete)]) {
            assert_eq!((all.machines, some.machines), (nodes, simulated));
            assert_eq!((all.finished, some.finished), (nodes, nodes));
            assert_eq!(all.bound, some.bound);
            for (kind, some, all) in [
                ("median", some.median.0, all.median.0),
                ("last", some.last.0, all.last.0),
                ("sent", some.head_bytes, all.head_bytes),
            ] {
                let percent = some * 100 / all;
                // Racks that are not simulated would spare the head by what they give.
                let most = if kind == "sent" { 250 } else { 140 };
                assert!(
                    (70..most).contains(&percent),
                    "{kind}: {percent} % {plan:?}"
                );
            }
        }
    }
}

#[test]
fn all_machines_are_simulated_where_that_can_be() {
    for (nodes, racks, max, part_nodes, part_racks) in [
        (300, 6, 300, 300, 6),
        (1, 1, 300, 1, 1),
        (5000, 100, 300, 300, 6),
        (5000, 1, 300, 300, 1),
        (5000, 3, 300, 300, 1),
        (700, 2, 300, 300, 1),
        (5000, 5000, 300, 300, 300),
    ] {
        let part = plan(nodes, racks).part(max);
        assert_eq!(
            (part.nodes, part.racks),
            (part_nodes, part_racks),
            "{nodes}"
        );
        let share = part.head_rate * racks as u64 / part.racks as u64;
        assert!(share.abs_diff(1_250_000_000) < 5000, "{nodes}: {share}");
    }
}

#[test]
fn one_machine_takes_what_its_link_takes() {
    let mut told = Vec::new();
    let forecast = plan(1, 1).forecast(&mut |done| told.push(done));
    let complete = forecast.complete;
    assert_eq!(complete.head_bytes, complete.bytes);
    assert!(complete.last >= complete.bound && complete.first == complete.last);
    let login = forecast.login.expect("it was off");
    assert!(login.last >= login.bound && login.last < complete.last);
    assert!(told.is_sorted() && told.iter().all(|done| *done <= WHOLE));
}
