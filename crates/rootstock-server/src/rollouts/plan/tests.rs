//! The planner: fleets whose machines do what they are told, or do not.

use proptest::prelude::*;
use rootstock_catalog::RolloutTerms;

use super::*;

const LIMIT: SignedDuration = SignedDuration::from_mins(10);

fn at(minutes: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
}

fn version(text: &str) -> VersionSpec {
    text.parse().expect("a version")
}

fn rollout(terms: RolloutTerms) -> RolloutRow {
    RolloutRow {
        id: 1,
        version: version("lab:8"),
        profile: None,
        terms,
        actor: "root".to_owned(),
        starts: at(0),
        created: at(0),
        ended: None,
        state: RolloutState::Open,
        reason: None,
        failures_forgiven: 0,
    }
}

fn terms() -> RolloutTerms {
    RolloutTerms {
        canary_count: 1,
        batch_count: 2,
        failures_max: 1,
        reboot: RolloutReboot::Idle,
        wake: false,
    }
}

/// A machine that does what it is told, in a few minutes.
#[derive(Debug, Clone)]
struct Machine {
    row: RolloutNodeRow,
    facts: Facts,
    /// Whether the version comes up on it.
    works: bool,
    /// When it is done with what it does.
    until: Option<Timestamp>,
}

impl Machine {
    fn new(number: usize, power: Power) -> Self {
        Self {
            row: RolloutNodeRow {
                node: format!("n{number}").parse().expect("a name"),
                before: None,
                state: NodeState::Waiting,
                since: at(0),
                detail: String::new(),
            },
            facts: Facts {
                image: None,
                power,
                runs_it: false,
                failed: None,
                fetch: Fetch::UnderWay,
                boot_limit: LIMIT,
            },
            works: true,
            until: None,
        }
    }

    /// What happens by itself.
    fn goes_on(&mut self, now: Timestamp) {
        let Some(until) = self.until else { return };
        if now < until {
            return;
        }
        self.until = None;
        match self.facts.power {
            Power::Booting => {
                self.facts.runs_it = self.works;
                if !self.works {
                    self.facts.failed = Some((now, "no init".to_owned()));
                }
                self.facts.power = Power::Up { users: 0 };
            }
            Power::Up { .. } => self.facts.fetch = Fetch::Done,
            Power::Off | Power::OwnDisk => {}
        }
    }
}

/// A fleet and its rollout, as the daemon keeps them.
struct Fleet {
    rollout: RolloutRow,
    machines: Vec<Machine>,
    now: Timestamp,
}

impl Fleet {
    fn new(terms: RolloutTerms, power: &[Power]) -> Self {
        let machines = power.iter().enumerate();
        Self {
            rollout: rollout(terms),
            machines: machines
                .map(|(at, power)| Machine::new(at, *power))
                .collect(),
            now: at(0),
        }
    }

    fn turn(&mut self) -> Vec<Step> {
        for machine in &mut self.machines {
            machine.goes_on(self.now);
        }
        let nodes = self.machines.iter();
        let nodes: Vec<_> = nodes
            .map(|one| (one.row.clone(), one.facts.clone()))
            .collect();
        let steps = plan(&self.rollout, &nodes, self.now);
        for step in &steps {
            self.apply(step);
        }
        self.now += SignedDuration::from_mins(1);
        steps
    }

    fn apply(&mut self, step: &Step) {
        let now = self.now;
        let soon = Some(now + SignedDuration::from_mins(3));
        match step {
            Step::Assign(node) => {
                let machine = self.machine(node);
                machine.facts.image = Some(version("lab:8"));
                machine.until = soon;
                Self::note(machine, NodeState::Assigned, "", now);
            }
            Step::Reboot(node) | Step::Wake(node) => {
                let state = match step {
                    Step::Wake(_) => NodeState::Waking,
                    _ => NodeState::Restarting,
                };
                let machine = self.machine(node);
                machine.facts.power = Power::Booting;
                machine.until = soon;
                Self::note(machine, state, "", now);
            }
            Step::Withdraw(_) => {}
            Step::Note(node, state, detail) => {
                Self::note(self.machine(node), *state, detail, now);
            }
            Step::Stop(why) => {
                self.rollout.state = RolloutState::Stopped;
                self.rollout.reason = Some(why.clone());
            }
            Step::Finish => self.rollout.state = RolloutState::Done,
        }
    }

    fn note(machine: &mut Machine, state: NodeState, detail: &str, now: Timestamp) {
        if machine.row.state != state {
            machine.row.since = now;
        }
        machine.row.state = state;
        detail.clone_into(&mut machine.row.detail);
    }

    fn machine(&mut self, node: &NodeName) -> &mut Machine {
        let mut machines = self.machines.iter_mut();
        machines.find(|one| one.row.node == *node).expect("a node")
    }

    fn run(&mut self, minutes: u32) {
        for _ in 0..minutes {
            self.turn();
        }
    }

    fn states(&self) -> Vec<NodeState> {
        self.machines.iter().map(|one| one.row.state).collect()
    }
}

const IDLE: Power = Power::Up { users: 0 };
const USED: Power = Power::Up { users: 1 };

#[test]
fn a_canary_goes_first_and_then_batches() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 4]);
    assert_eq!(fleet.turn(), [Step::Assign("n0".parse().expect("a name"))]);
    assert_eq!(fleet.states()[1..], [NodeState::Waiting; 3]);
    fleet.run(7);
    let assigned = |fleet: &Fleet| {
        let states = fleet.states().into_iter();
        states.filter(|state| *state == NodeState::Assigned).count()
    };
    assert_eq!(fleet.states()[0], NodeState::Good);
    assert_eq!(assigned(&fleet), 2);
    fleet.run(30);
    assert_eq!(fleet.states(), [NodeState::Good; 4]);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
}

#[test]
fn a_canary_that_fails_stops_it_and_to_go_on_takes_another() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 3]);
    fleet.machines[0].works = false;
    fleet.run(20);
    assert_eq!(fleet.rollout.state, RolloutState::Stopped);
    let reason = fleet.rollout.reason.take();
    assert_eq!(
        reason.as_deref(),
        Some("a canary did not come up with it; n0: no init")
    );
    assert_eq!(fleet.states()[1..], [NodeState::Waiting; 2]);
    fleet.rollout.state = RolloutState::Open;
    fleet.rollout.failures_forgiven = 1;
    fleet.turn();
    assert_eq!(
        fleet.states()[1..],
        [NodeState::Assigned, NodeState::Waiting]
    );
    fleet.run(30);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
}

#[test]
fn the_only_node_is_a_canary_too() {
    let mut fleet = Fleet::new(terms(), &[IDLE]);
    fleet.machines[0].works = false;
    fleet.run(20);
    assert_eq!(fleet.rollout.state, RolloutState::Stopped);
    fleet.rollout.state = RolloutState::Open;
    fleet.rollout.failures_forgiven = 1;
    fleet.turn();
    assert_eq!(fleet.rollout.state, RolloutState::Done);
}

#[test]
fn more_failures_than_allowed_stop_it() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 8]);
    for number in [1, 2, 3] {
        fleet.machines[number].works = false;
    }
    fleet.run(60);
    assert_eq!(fleet.rollout.state, RolloutState::Stopped);
    let reason = fleet.rollout.reason.as_deref().unwrap_or_default();
    assert!(
        reason.starts_with("2 nodes did not come up with it; n"),
        "{reason}"
    );
    assert_eq!(fleet.states()[5..], [NodeState::Waiting; 3]);
}

#[test]
fn who_is_logged_in_is_left_alone_until_gone() {
    let mut fleet = Fleet::new(terms(), &[IDLE, USED, IDLE]);
    fleet.run(60);
    assert_eq!(fleet.rollout.state, RolloutState::Open);
    assert_eq!(fleet.machines[1].row.state, NodeState::Assigned);
    assert!(fleet.machines[1].row.detail.starts_with("in use"));
    assert_eq!(fleet.machines[2].row.state, NodeState::Good);
    fleet.machines[1].facts.power = IDLE;
    fleet.run(10);
    assert_eq!(fleet.rollout.state, RolloutState::Done);

    let now = RolloutTerms {
        reboot: RolloutReboot::Now,
        ..terms()
    };
    let mut fleet = Fleet::new(now, &[IDLE, USED, IDLE]);
    fleet.run(30);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
    assert_eq!(fleet.states(), [NodeState::Good; 3]);
}

#[test]
fn who_logs_in_at_the_last_moment_is_left_alone() {
    let mut fleet = Fleet::new(terms(), &[IDLE]);
    while fleet.machines[0].row.state != NodeState::Restarting {
        fleet.turn();
    }
    fleet.machines[0].facts.power = USED;
    fleet.machines[0].until = None;
    assert_eq!(
        fleet.turn()[0],
        Step::Withdraw("n0".parse().expect("a name"))
    );
    fleet.run(60);
    assert_eq!(fleet.states(), [NodeState::Assigned]);
    fleet.machines[0].facts.power = IDLE;
    fleet.run(6);
    assert_eq!(fleet.states(), [NodeState::Good]);
}

#[test]
fn who_is_off_keeps_nobody_waiting() {
    let mut fleet = Fleet::new(terms(), &[Power::Off, IDLE, Power::Off, IDLE]);
    fleet.run(30);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
    let expected = [
        NodeState::Later,
        NodeState::Good,
        NodeState::Later,
        NodeState::Good,
    ];
    assert_eq!(fleet.states(), expected);

    let wake = RolloutTerms {
        wake: true,
        ..terms()
    };
    let mut fleet = Fleet::new(wake, &[Power::Off, IDLE, Power::Off, IDLE]);
    fleet.run(40);
    assert_eq!(fleet.states(), [NodeState::Good; 4]);
}

#[test]
fn who_does_not_wake_up_has_not_failed() {
    let wake = RolloutTerms {
        wake: true,
        canary_count: 0,
        ..terms()
    };
    let mut fleet = Fleet::new(wake, &[Power::Off]);
    while fleet.machines[0].row.state != NodeState::Waking {
        fleet.turn();
    }
    fleet.machines[0].facts.power = Power::Off;
    fleet.machines[0].until = None;
    fleet.run(30);
    assert_eq!(fleet.states(), [NodeState::Later]);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
}

#[test]
fn canaries_that_do_not_wake_up_are_waited_for() {
    let wake = RolloutTerms {
        wake: true,
        ..terms()
    };
    let mut fleet = Fleet::new(wake, &[Power::Off; 3]);
    for _ in 0..90 {
        for machine in &mut fleet.machines {
            machine.facts.power = Power::Off;
            machine.until = None;
        }
        fleet.turn();
    }
    assert_eq!(fleet.rollout.state, RolloutState::Open);
    assert_eq!(fleet.states()[1..], [NodeState::Waiting; 2]);
    fleet.run(60);
    assert_eq!(fleet.states(), [NodeState::Good; 3]);
}

#[test]
fn more_canaries_than_there_are_nodes_are_all_of_them() {
    let many = RolloutTerms {
        canary_count: 9,
        ..terms()
    };
    let mut fleet = Fleet::new(many, &[IDLE, IDLE, Power::OwnDisk]);
    fleet.machines[0].works = false;
    fleet.run(20);
    assert_eq!(fleet.rollout.state, RolloutState::Stopped);
    fleet.rollout.state = RolloutState::Open;
    fleet.rollout.failures_forgiven = 1;
    fleet.run(20);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
    let expected = [NodeState::Failed, NodeState::Good, NodeState::Later];
    assert_eq!(fleet.states(), expected);
}

#[test]
fn who_was_told_to_start_anew_and_is_gone_has_failed() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 3]);
    while fleet.machines[0].row.state != NodeState::Restarting {
        fleet.turn();
    }
    fleet.machines[0].facts.power = Power::Off;
    fleet.machines[0].until = None;
    fleet.run(20);
    assert_eq!(fleet.states()[0], NodeState::Failed);
    assert_eq!(fleet.rollout.state, RolloutState::Stopped);
    let reason = fleet.rollout.reason.as_deref().unwrap_or_default();
    assert!(
        reason.ends_with("n0: was told to start anew, and did not come back"),
        "{reason}"
    );
}

#[test]
fn who_boots_its_own_disk_is_no_canary_and_keeps_nobody_waiting() {
    let mut fleet = Fleet::new(terms(), &[Power::OwnDisk, IDLE, Power::OwnDisk]);
    fleet.turn();
    let expected = [NodeState::Waiting, NodeState::Assigned, NodeState::Waiting];
    assert_eq!(fleet.states(), expected);
    fleet.run(30);
    let expected = [NodeState::Later, NodeState::Good, NodeState::Later];
    assert_eq!(fleet.states(), expected);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
}

#[test]
fn who_cannot_fetch_it_keeps_nobody_waiting() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 3]);
    fleet.run(8);
    for machine in &mut fleet.machines[1..] {
        machine.facts.fetch = Fetch::Trouble("the disk is full".to_owned());
        machine.until = None;
    }
    fleet.run(5);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
    let expected = [NodeState::Good, NodeState::Later, NodeState::Later];
    assert_eq!(fleet.states(), expected);
}

#[test]
fn a_halted_rollout_takes_its_orders_back() {
    let mut fleet = Fleet::new(terms(), &[IDLE]);
    while fleet.machines[0].row.state != NodeState::Restarting {
        fleet.turn();
    }
    // It has not begun to.
    fleet.machines[0].facts.power = IDLE;
    fleet.machines[0].until = None;
    fleet.rollout.state = RolloutState::Paused;
    assert_eq!(
        fleet.turn()[0],
        Step::Withdraw("n0".parse().expect("a name"))
    );
    assert_eq!(fleet.states(), [NodeState::Assigned]);
    fleet.rollout.state = RolloutState::Open;
    fleet.run(10);
    assert_eq!(fleet.states(), [NodeState::Good]);
}

#[test]
fn a_machine_that_hangs_has_failed() {
    let mut fleet = Fleet::new(terms(), &[IDLE]);
    while fleet.machines[0].row.state != NodeState::Restarting {
        fleet.turn();
    }
    fleet.machines[0].until = None;
    fleet.run(14);
    assert_eq!(fleet.states(), [NodeState::Restarting]);
    fleet.run(3);
    assert_eq!(fleet.states(), [NodeState::Failed]);
}

#[test]
fn an_image_that_was_set_meanwhile_stays() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 3]);
    fleet.turn();
    fleet.machines[0].facts.image = Some(version("other:1"));
    fleet.machines[2].facts.image = Some(version("lab@test"));
    fleet.run(30);
    assert_eq!(fleet.rollout.state, RolloutState::Done);
    let expected = [NodeState::Left, NodeState::Good, NodeState::Left];
    assert_eq!(fleet.states(), expected);
    assert_eq!(fleet.machines[0].row.detail, "other:1 was set meanwhile");
}

#[test]
fn nothing_happens_before_its_time_and_while_it_is_paused() {
    let mut fleet = Fleet::new(terms(), &[IDLE; 2]);
    fleet.rollout.starts = at(5);
    fleet.run(5);
    assert_eq!(fleet.states(), [NodeState::Waiting; 2]);
    fleet.turn();
    fleet.rollout.state = RolloutState::Paused;
    fleet.run(30);
    assert_eq!(fleet.states(), [NodeState::Assigned, NodeState::Waiting]);
    // Its user started it anew.
    fleet.machines[0].facts.runs_it = true;
    fleet.turn();
    assert_eq!(fleet.states(), [NodeState::Good, NodeState::Waiting]);
}

fn power() -> impl Strategy<Value = Power> {
    prop_oneof![
        Just(Power::Off),
        Just(Power::Booting),
        Just(IDLE),
        Just(USED),
    ]
}

proptest! {
    /// Whatever the machines do, no more are touched than was said, and it ends.
    #[test]
    fn no_more_are_touched_than_was_said(
        machines in prop::collection::vec((power(), prop::bool::weighted(0.8)), 1..12),
        canary_count in 0_u32..4,
        batch_count in 1_u32..4,
        failures_max in 0_u32..3,
        wake: bool,
        reboot in prop_oneof![
            Just(RolloutReboot::Idle), Just(RolloutReboot::Now), Just(RolloutReboot::No)
        ],
    ) {
        let terms = RolloutTerms { canary_count, batch_count, failures_max, reboot, wake };
        let power: Vec<Power> = machines.iter().map(|(power, _)| *power).collect();
        let mut fleet = Fleet::new(terms, &power);
        for (machine, (power, works)) in fleet.machines.iter_mut().zip(&machines) {
            machine.works = *works;
            if *power == Power::Booting {
                machine.until = Some(at(2));
            }
        }
        for minute in 0..200 {
            let before = fleet.states();
            fleet.turn();
            let states = fleet.states();
            let count = |wanted: NodeState| states.iter().filter(|one| **one == wanted).count();
            let touched = states.iter().filter(|one| **one != NodeState::Waiting).count();
            let good = before.iter().filter(|one| **one == NodeState::Good).count();
            let canaries = (canary_count as usize).min(states.len() - count(NodeState::Failed));
            if good < canaries && count(NodeState::Good) < canaries {
                prop_assert!(touched <= canary_count as usize, "{states:?}");
            } else if count(NodeState::Good) >= canary_count as usize {
                prop_assert!(
                    count(NodeState::Restarting) <= (batch_count.max(canary_count)) as usize
                );
            }
            if !wake && reboot == RolloutReboot::No {
                prop_assert_eq!(count(NodeState::Restarting), 0);
            }
            if minute == 100 {
                // Everybody goes home, and who was off comes.
                for machine in &mut fleet.machines {
                    match machine.facts.power {
                        Power::Up { .. } if reboot != RolloutReboot::No => {
                            machine.facts.power = IDLE;
                        }
                        _ if machine.row.state != NodeState::Restarting => {
                            machine.facts.power = Power::Booting;
                            machine.until = Some(fleet.now);
                            if machine.facts.image.is_none() {
                                machine.works = true;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        prop_assert!(
            fleet.rollout.state != RolloutState::Open || reboot == RolloutReboot::No,
            "{:?}", fleet.machines
        );
    }
}
