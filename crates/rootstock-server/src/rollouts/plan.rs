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
    /// It boots what is installed on its own disk, and cannot be told anything.
    OwnDisk,
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
    let good = nodes
        .iter()
        .filter(|(row, _)| row.state == NodeState::Good)
        .count();
    let is_begun = good >= rollout.terms.canary_count as usize;
    let mut looked: Vec<Node<'_>> = nodes
        .iter()
        .map(|(row, facts)| look(rollout, row, facts, now, is_begun, &mut steps))
        .collect();
    if !goes_on {
        steps.retain(is_note);
        return steps;
    }
    let count = |state| looked.iter().filter(|node| node.state == state).count();
    let (good, failures) = (count(NodeState::Good), count(NodeState::Failed));
    let forgiven = failures.min(rollout.failures_forgiven as usize);
    let unforgiven = failures - forgiven;
    let is_canary = |node: &&Node<'_>| {
        !matches!(node.state, NodeState::Left) && node.facts.power != Power::OwnDisk
    };
    let candidates = looked
        .iter()
        .filter(is_canary)
        .count()
        .saturating_sub(forgiven);
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
    let unfinished =
        |node: &&Node<'_>| is_unfinished(node.state) && (node.is_active || !is_past_canaries);
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
        let is_free = is_past_canaries
            && match node.facts.power {
                Power::Off => !rollout.terms.wake,
                Power::OwnDisk => true,
                _ => false,
            };
        // What cannot come up now is no canary.
        if !is_past_canaries && node.facts.power == Power::OwnDisk {
            continue;
        }
        if room == 0 && !is_free {
            continue;
        }
        room -= usize::from(!is_free);
        steps.push(Step::Assign(node.row.node.clone()));
        node.state = NodeState::Assigned;
        node.is_awaited = true;
    }
    let is_awaited = |node: &Node<'_>| match node.state {
        NodeState::Waiting | NodeState::Restarting | NodeState::Waking => true,
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

/// Whether the version is assigned to a node of which the end is not known yet.
fn is_unfinished(state: NodeState) -> bool {
    matches!(
        state,
        NodeState::Assigned | NodeState::Restarting | NodeState::Waking
    )
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
        Power::OwnDisk => 5,
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

/// How far a node is by now. What changed is noted, what it could do is kept with it.
fn look<'a>(
    rollout: &RolloutRow,
    row: &'a RolloutNodeRow,
    facts: &'a Facts,
    now: Timestamp,
    is_begun: bool,
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
    let is_assigned = facts.image.as_ref() == Some(&rollout.version);
    let is_taken = match row.state {
        NodeState::Waiting => facts.image != row.before && !is_assigned,
        state => is_unfinished(state) && !is_assigned,
    };
    let (state, detail) = if is_taken {
        let detail = match &facts.image {
            Some(image) => format!("{image} was set meanwhile"),
            None => "its image was unset meanwhile".to_owned(),
        };
        (NodeState::Left, detail)
    } else if is_unfinished(row.state) {
        let (state, what, detail) = unfinished(rollout, row, facts, now, is_begun);
        node.is_active = matches!(
            what,
            Some(What::Fetching | What::Booting | What::Restarting)
        );
        let waits = matches!(what, Some(What::InUse | What::Starting));
        node.is_awaited = node.is_active || waits;
        if what == Some(What::Starting) {
            node.start = Some(match facts.power {
                Power::Off => Step::Wake(row.node.clone()),
                _ => Step::Reboot(row.node.clone()),
            });
        }
        (state, detail)
    } else {
        (row.state, row.detail.clone())
    };
    node.state = state;
    // An order to start anew must not outlive what it was for.
    let was_told = row.state == NodeState::Restarting;
    if was_told && !matches!(state, NodeState::Restarting | NodeState::Good) {
        steps.push(Step::Withdraw(row.node.clone()));
    }
    if state != row.state || detail != row.detail {
        steps.push(Step::Note(row.node.clone(), state, detail));
    }
    node
}

/// How far a node is to which the version is assigned: its state, what it does, and
/// that for people.
fn unfinished(
    rollout: &RolloutRow,
    row: &RolloutNodeRow,
    facts: &Facts,
    now: Timestamp,
    is_begun: bool,
) -> (NodeState, Option<What>, String) {
    let is_up = matches!(facts.power, Power::Up { .. });
    if is_up && facts.runs_it {
        return (NodeState::Good, None, String::new());
    }
    if let Some((_, why)) = facts.failed.as_ref().filter(|(at, _)| *at >= row.since) {
        return (NodeState::Failed, None, why.clone());
    }
    let assigned = || {
        let what = assigned(rollout, facts);
        let detail = match &facts.fetch {
            Fetch::Trouble(why) if is_up => format!("cannot fetch it: {why}"),
            _ => what.text().to_owned(),
        };
        (NodeState::Assigned, Some(what), detail)
    };
    if row.state == NodeState::Assigned {
        return assigned();
    }
    // Somebody was quicker, or the rollout was halted.
    let is_used = matches!(facts.power, Power::Up { users: 1.. });
    let is_refused = is_used && rollout.terms.reboot == RolloutReboot::Idle;
    let is_halted = is_up && rollout.state != RolloutState::Open;
    if is_refused || is_halted {
        return assigned();
    }
    let is_late = now.duration_since(row.since) > facts.boot_limit + RESTART_SLACK;
    match (row.state, facts.power) {
        _ if !is_late => (row.state, Some(What::Restarting), row.detail.clone()),
        // Canaries are waited for, and woken again.
        (NodeState::Waking, Power::Off) if !is_begun => assigned(),
        (NodeState::Waking, Power::Off) => {
            let detail = "did not wake up: gets it with its next boot";
            (NodeState::Later, None, detail.to_owned())
        }
        (_, Power::Off) => {
            let detail = "was told to start anew, and did not come back";
            (NodeState::Failed, None, detail.to_owned())
        }
        _ => {
            let detail = "was not up with it in time";
            (NodeState::Failed, None, detail.to_owned())
        }
    }
}

/// What a node does to which the version is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Fetching,
    Booting,
    /// It can be told to start anew, or woken.
    Starting,
    Restarting,
    InUse,
    Ready,
    Stuck,
    Off,
    OwnDisk,
}

impl What {
    const fn text(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Booting => "booting",
            Self::Starting => "its turn to start comes",
            Self::Restarting => "starting",
            Self::InUse => "in use: starts anew when nobody is logged in",
            Self::Ready => "has it: runs it after its next boot",
            Self::Stuck => "cannot fetch it",
            Self::Off => "off: gets it with its next boot",
            Self::OwnDisk => "boots its own disk: gets it with its next boot from the network",
        }
    }
}

fn assigned(rollout: &RolloutRow, facts: &Facts) -> What {
    match (facts.power, &facts.fetch, rollout.terms.reboot) {
        (Power::OwnDisk, ..) => What::OwnDisk,
        (Power::Off, ..) if rollout.terms.wake => What::Starting,
        (Power::Off, ..) => What::Off,
        (Power::Booting, ..) => What::Booting,
        (Power::Up { .. }, Fetch::UnderWay, _) => What::Fetching,
        // It gets the rest over the network when it boots.
        (Power::Up { .. }, Fetch::Trouble(_), _) => What::Stuck,
        (Power::Up { .. }, Fetch::Done, RolloutReboot::No) => What::Ready,
        (Power::Up { users: 0 }, Fetch::Done, RolloutReboot::Idle)
        | (Power::Up { .. }, Fetch::Done, RolloutReboot::Now) => What::Starting,
        (Power::Up { .. }, Fetch::Done, RolloutReboot::Idle) => What::InUse,
    }
}

#[cfg(test)]
mod tests;
