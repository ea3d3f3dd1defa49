//! What is said of rollouts.

use rootstock_api::{NodeState, RolloutLeft};

use super::*;

fn node(number: u32, bytes: Option<u64>, users: u32) -> RolloutForecast {
    RolloutForecast {
        node: format!("n{number:03}").parse().expect("a name"),
        state: NodeState::Up,
        from: None,
        bytes,
        users,
    }
}

fn request() -> RolloutStart {
    RolloutStart {
        version: "lab:8".parse().expect("a version"),
        profile: Some("room-a".parse().expect("a name")),
        nodes: None,
        canary_count: 2,
        batch_count: 20,
        failures_max: 3,
        reboot: RolloutReboot::Idle,
        at: None,
        wake: true,
        dry_run: true,
    }
}

#[test]
fn what_it_means_is_said() {
    let users = |number| u32::from(number < 10);
    let nodes = (1..=118).map(|number| node(number, Some(312_000_000), users(number)));
    let mut nodes: Vec<_> = nodes.collect();
    nodes[117].bytes = Some(0);
    nodes[116].bytes = None;
    let planned = RolloutStarted {
        rollout: None,
        version: "lab:8".parse().expect("a version"),
        starts: String::new(),
        nodes,
        left: vec![RolloutLeft {
            node: "n200".parse().expect("a name"),
            reason: "it has an image of its own".to_owned(),
        }],
    };
    insta::assert_snapshot!(started(&planned, &request()), @r"
    lab:8 to 118 nodes of profile room-a: n[001-118]
      2 canaries first, then 20 at a time; more than 3 failures stop it
      machines start anew once nobody is logged in; those that are off are woken
      1 node: each came up with no version yet
      1 node: each keeps nothing on a disk
      116 nodes: each fetches 312 MB first
      in use now: n[001-009]
      left alone: n200: it has an image of its own
    nothing is started yet
    ");
}

#[test]
fn how_far_it_is_is_said() {
    let node = |number: u32, state: &str, detail: &str| RolloutNode {
        node: format!("n{number}").parse().expect("a name"),
        state: state.to_owned(),
        since: String::new(),
        detail: detail.to_owned(),
    };
    let rollout = Rollout {
        rollout: 3,
        version: "lab:8".parse().expect("a version"),
        profile: None,
        canary_count: 1,
        batch_count: 20,
        failures_max: 3,
        reboot: RolloutReboot::Idle,
        wake: false,
        actor: "root".to_owned(),
        created: "yesterday".to_owned(),
        starts: String::new(),
        ended: None,
        state: RolloutState::Stopped,
        reason: Some("a canary did not come up with it; n1: no init".to_owned()),
        counts: RolloutCounts {
            failed: 1,
            waiting: 2,
            ..RolloutCounts::default()
        },
    };
    let shown = RolloutDetail {
        rollout,
        nodes: vec![
            node(1, "failed", "no init"),
            node(2, "waiting", ""),
            node(3, "waiting", ""),
        ],
    };
    insta::assert_snapshot!(detail(&shown), @r"
    rollout  3
    version  lab:8
    state    stopped
    reason   a canary did not come up with it; n1: no init
    begun    yesterday by root
    nodes    1 failed, 2 waiting

    failed   n1: no init
    waiting  n[2-3]
    'rootstock rollout resume 3' has it go on, 'rootstock rollout abort 3' ends it
    ");
}
