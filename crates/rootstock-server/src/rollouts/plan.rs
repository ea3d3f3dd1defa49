//! What a rollout does next: a function of its rows, of what is known of its nodes,
//! and of the time. The same rows give the same steps, so a daemon that dies between
//! two of them goes on where it was.

use jiff::{SignedDuration, Timestamp};
use rootstock_catalog::{
    RolloutNodeRow, RolloutNodeState as NodeState, RolloutReboot, RolloutRow, RolloutState,
};
use rootstock_core::{NodeName, VersionSpec};

/// What a machine may take beside its boot: to shut down, and its firmware.
const RESTART_SLACK: SignedDuration = SignedDuration::from_mins(5);

/// How a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// It does not run, as far as is known.
    Off,
    /// It is on its way.
    Booting,
    /// Its system is up, and so many are logged in.
    Up {
        /// People.
        users: u32,
    },
}

/// What is still to come to a node before it can start anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fetch {
    /// Nothing: it has all, or keeps nothing on a disk.
    Done,
    /// Something.
    UnderWay,
    /// Something that does not come, and why.
    Trouble(String),
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// The image that is set on it itself.
    pub(super) image: Option<VersionSpec>,
    /// How its machine is.
    pub(super) power: Power,
    /// Whether it runs the rollout's version.
    pub(super) runs_it: bool,
    /// Its last failed boot of the version, and why.
    pub(super) failed: Option<(Timestamp, String)>,
    /// What of the version its disk lacks, if it has one.
    pub(super) fetch: Fetch,
    /// How long its boots may take.
    pub(super) boot_limit: SignedDuration,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Assign the version to it.
    Assign(NodeName),
    /// Tell it to start anew.
    Reboot(NodeName),
    /// Wake it.
    Wake(NodeName),
    /// Take back that it is to start anew.
    Withdraw(NodeName),
    /// Note how far it is.
    Note(NodeName, NodeState, String),
    /// Halt the rollout, and why.
    Stop(String),
    /// It is over.
    Finish,
}

/// A node, and how far it is.
struct Node<'a> {
    row: &'a RolloutNodeRow,
    facts: &'a Facts,
    state: NodeState,
    /// Whether it takes a place of its batch.
    is_active: bool,
    /// Whether the rollout is not over before it is.
    is_awaited: bool,
    /// What it could do now, if there is a place.
    start: Option<Step>,
}

/// What is to be done now. Of a rollout that is halted, how far its nodes are is
/// noted all the same.
pub(super) fn plan(
    rollout: &RolloutRow,
    nodes: &[(RolloutNodeRow, Facts)],
    now: Timestamp,
) -> Vec<Step> {
    if rollout.state.is_over() || now < rollout.starts {
        return Vec::new();
    }
    let goes_on = rollout.state == RolloutState::Open;
    let mut steps = Vec::new();
    let mut looked: Vec<Node<'_>> = nodes
        .iter()
        .map(|(row, facts)| look(rollout, row, facts, now, &mut steps))
        .collect();
    if !goes_on {
        steps.retain(is_note);
        return steps;
    }
    let count = |state| looked.iter().filter(|node| node.state == state).count();
    let (good, failures) = (count(NodeState::Good), count(NodeState::Failed));
    let unforgiven = failures.saturating_sub(rollout.failures_forgiven as usize);
    let candidates = looked.len() - failures - count(NodeState::Left);
    let canaries = candidates.min(rollout.terms.canary_count as usize);
    let is_past_canaries = good >= canaries;
    let failures_max = match is_past_canaries {
        true => rollout.terms.failures_max as usize,
        false => 0,
    };
    if unforgiven > failures_max {
        steps.retain(is_note);
        steps.push(Step::Stop(reason(&looked, unforgiven, is_past_canaries)));
        return steps;
    }
    let unfinished = |node: &&Node<'_>| {
        matches!(node.state, NodeState::Assigned | NodeState::Restarting)
            && (node.is_active || !is_past_canaries)
    };
    let under_way = looked.iter().filter(unfinished).count();
    let room = match is_past_canaries {
        true => rollout.terms.batch_count as usize,
        false => canaries - good,
    };
    // Canaries have their places, whatever they do; others start anew as places are free,
    // also when all who used them leave at once.
    let mut places = match is_past_canaries {
        true => (rollout.terms.batch_count as usize).saturating_sub(under_way),
        false => usize::MAX,
    };
    for start in looked.iter_mut().filter_map(|node| node.start.take()) {
        if places == 0 {
            break;
        }
        places -= 1;
        steps.push(start);
    }
    let mut room = room.saturating_sub(under_way).min(places);
    let mut waiting: Vec<&mut Node<'_>> = looked
        .iter_mut()
        .filter(|node| node.state == NodeState::Waiting)
        .collect();
    waiting.sort_by_key(|node| rank(node.facts, rollout.terms.wake));
    for node in waiting {
        // Who is off, and is not woken, keeps nobody waiting.
        let is_free = is_past_canaries && node.facts.power == Power::Off && !rollout.terms.wake;
        if room == 0 && !is_free {
            continue;
        }
        room -= usize::from(!is_free);
        steps.push(Step::Assign(node.row.node.clone()));
        node.state = NodeState::Assigned;
        node.is_awaited = true;
    }
    let is_awaited = |node: &Node<'_>| match node.state {
        NodeState::Waiting | NodeState::Restarting => true,
        NodeState::Assigned => node.is_awaited || !is_past_canaries,
        _ => false,
    };
    if !looked.iter().any(is_awaited) {
        for node in &looked {
            if node.state == NodeState::Assigned {
                let detail = "gets it with its next boot".to_owned();
                steps.push(Step::Note(node.row.node.clone(), NodeState::Later, detail));
            }
        }
        steps.push(Step::Finish);
    }
    steps
}

/// What is done also while the rollout is halted.
fn is_note(step: &Step) -> bool {
    matches!(step, Step::Note(..) | Step::Withdraw(_))
}

/// Who goes first: machines that can show soon whether it works.
fn rank(facts: &Facts, wake: bool) -> u8 {
    match facts.power {
        Power::Up { users: 0 } => 0,
        Power::Off if wake => 1,
        Power::Booting => 2,
        Power::Up { .. } => 3,
        Power::Off => 4,
    }
}

fn reason(nodes: &[Node<'_>], unforgiven: usize, is_past_canaries: bool) -> String {
    let failed = nodes.iter().filter(|node| node.state == NodeState::Failed);
    let last = failed.max_by_key(|node| node.facts.failed.as_ref().map(|failed| failed.0));
    let last = last.map_or_else(String::new, |node| {
        let why = match &node.facts.failed {
            Some((_, why)) => why,
            None => &node.row.detail,
        };
        format!("{}: {why}", node.row.node)
    });
    match is_past_canaries {
        true => format!("{unforgiven} nodes did not come up with it; {last}"),
        false => format!("a canary did not come up with it; {last}"),
    }
}

/// How far a node is by now. What changed is noted, what it needs is pushed.
fn look<'a>(
    rollout: &RolloutRow,
    row: &'a RolloutNodeRow,
    facts: &'a Facts,
    now: Timestamp,
    steps: &mut Vec<Step>,
) -> Node<'a> {
    let mut node = Node {
        row,
        facts,
        state: row.state,
        is_active: false,
        is_awaited: false,
        start: None,
    };
    let mut note = |state: NodeState, detail: &str| {
        if state != row.state || detail != row.detail {
            steps.push(Step::Note(row.node.clone(), state, detail.to_owned()));
        }
        state
    };
    let is_assigned = facts.image.as_ref() == Some(&rollout.version);
    let set = || match &facts.image {
        Some(image) => format!("{image} was set meanwhile"),
        None => "its image was unset meanwhile".to_owned(),
    };
    match row.state {
        NodeState::Waiting if facts.image != row.before && !is_assigned => {
            node.state = note(NodeState::Left, &set());
        }
        NodeState::Assigned | NodeState::Restarting if !is_assigned => {
            node.state = note(NodeState::Left, &set());
        }
        NodeState::Assigned | NodeState::Restarting => {
            let is_up = matches!(facts.power, Power::Up { .. });
            let failed = facts.failed.as_ref();
            if is_up && facts.runs_it {
                node.state = note(NodeState::Good, "");
            } else if let Some((_, why)) = failed.filter(|(at, _)| *at >= row.since) {
                node.state = note(NodeState::Failed, why);
            } else if row.state == NodeState::Restarting {
                node.is_active = true;
                // Somebody was quicker.
                let is_used = matches!(facts.power, Power::Up { users: 1.. });
                if is_used && rollout.terms.reboot == RolloutReboot::Idle {
                    (node.is_active, node.is_awaited) = (false, true);
                    node.state = note(NodeState::Assigned, What::InUse.text());
                    steps.push(Step::Withdraw(row.node.clone()));
                } else if now.duration_since(row.since) > facts.boot_limit + RESTART_SLACK {
                    node.state = late(facts, &mut note);
                }
            } else {
                let (what, step) = assigned(rollout, row, facts);
                node.is_active = matches!(what, What::Fetching | What::Booting);
                node.is_awaited = node.is_active || matches!(what, What::InUse | What::Starting);
                match &facts.fetch {
                    Fetch::Trouble(why) if what == What::Fetching => {
                        note(NodeState::Assigned, &format!("fetching: {why}"))
                    }
                    _ => note(NodeState::Assigned, what.text()),
                };
                node.start = step;
            }
        }
        _ => {}
    }
    node
}

/// What became of a machine that was to start anew, or to wake up, and did not.
fn late(facts: &Facts, note: &mut impl FnMut(NodeState, &str) -> NodeState) -> NodeState {
    match facts.power {
        Power::Off => note(
            NodeState::Later,
            "did not wake up: gets it with its next boot",
        ),
        _ => note(NodeState::Failed, "was not up with it in time"),
    }
}

/// What a node does to which the version is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Fetching,
    Booting,
    /// It is told to start anew, or woken.
    Starting,
    InUse,
    Ready,
    Off,
}

impl What {
    const fn text(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Booting => "booting",
            Self::Starting => "has it: its turn to start anew comes",
            Self::InUse => "in use: starts anew when nobody is logged in",
            Self::Ready => "has it: runs it after its next boot",
            Self::Off => "off: gets it with its next boot",
        }
    }
}

fn assigned(rollout: &RolloutRow, row: &RolloutNodeRow, facts: &Facts) -> (What, Option<Step>) {
    let reboot = || Some(Step::Reboot(row.node.clone()));
    match (facts.power, rollout.terms.reboot) {
        (Power::Off, _) if rollout.terms.wake => {
            (What::Starting, Some(Step::Wake(row.node.clone())))
        }
        (Power::Off, _) => (What::Off, None),
        (Power::Booting, _) => (What::Booting, None),
        (Power::Up { .. }, _) if facts.fetch != Fetch::Done => (What::Fetching, None),
        (Power::Up { .. }, RolloutReboot::No) => (What::Ready, None),
        (Power::Up { users: 0 }, RolloutReboot::Idle) | (Power::Up { .. }, RolloutReboot::Now) => {
            (What::Starting, reboot())
        }
        (Power::Up { .. }, RolloutReboot::Idle) => (What::InUse, None),
    }
}

#[cfg(test)]
mod tests;
