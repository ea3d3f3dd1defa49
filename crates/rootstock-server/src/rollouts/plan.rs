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

/// A node, and how far it is by now.
struct Node<'a> {
    row: &'a RolloutNodeRow,
    facts: &'a Facts,
    state: NodeState,
    /// What it does, while its end is not known.
    what: Option<What>,
    /// More, for people.
    detail: String,
}

impl Node<'_> {
    /// Whether it takes a place of its batch.
    fn is_active(&self) -> bool {
        matches!(
            self.what,
            Some(What::Fetching | What::Booting | What::Restarting)
        )
    }

    /// Whether the rollout is not over before it is.
    fn is_awaited(&self) -> bool {
        self.is_active() || matches!(self.what, Some(What::InUse | What::Starting))
    }

    /// What it could do now, if there is a place.
    fn start(&self) -> Option<Step> {
        let node = self.row.node.clone();
        match (self.what?, self.facts.power) {
            (What::Starting, Power::Off) => Some(Step::Wake(node)),
            (What::Starting, _) => Some(Step::Reboot(node)),
            _ => None,
        }
    }

    /// What changed. An order to start anew must not outlive what it was for.
    fn notes(&self) -> impl Iterator<Item = Step> {
        let was_told = self.row.state == NodeState::Restarting;
        let is_over = !matches!(self.state, NodeState::Restarting | NodeState::Good);
        let is_other = self.state != self.row.state || self.detail != self.row.detail;
        let node = &self.row.node;
        let withdraw = (was_told && is_over).then(|| Step::Withdraw(node.clone()));
        let note = || Step::Note(node.clone(), self.state, self.detail.clone());
        withdraw.into_iter().chain(is_other.then(note))
    }
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
    let looked = nodes
        .iter()
        .map(|(row, facts)| look(rollout, row, facts, now));
    let mut looked: Vec<Node<'_>> = looked.collect();
    let count = |state| looked.iter().filter(|node| node.state == state).count();
    let (good, failures) = (count(NodeState::Good), count(NodeState::Failed));
    let forgiven = failures.min(rollout.failures_forgiven as usize);
    let unforgiven = failures - forgiven;
    let is_candidate = |node: &&Node<'_>| {
        !matches!(node.state, NodeState::Left) && node.facts.power != Power::OwnDisk
    };
    let candidates = looked.iter().filter(is_candidate).count();
    let canaries = candidates
        .saturating_sub(forgiven)
        .min(rollout.terms.canary_count as usize);
    let is_past_canaries = good >= canaries;
    if !is_past_canaries {
        // Canaries are waited for, and woken again.
        let is_asleep = |node: &&mut Node<'_>| {
            node.row.state == NodeState::Waking && node.state == NodeState::Later
        };
        for node in looked.iter_mut().filter(is_asleep) {
            (node.state, node.what, node.detail) = assigned(rollout, node.facts);
        }
    }
    let mut steps: Vec<Step> = looked.iter().flat_map(Node::notes).collect();
    if rollout.state != RolloutState::Open {
        return steps;
    }
    let failures_max = match is_past_canaries {
        true => rollout.terms.failures_max as usize,
        false => 0,
    };
    if unforgiven > failures_max {
        steps.push(Step::Stop(reason(&looked, unforgiven, is_past_canaries)));
        return steps;
    }
    let unfinished =
        |node: &&Node<'_>| is_unfinished(node.state) && (node.is_active() || !is_past_canaries);
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
    for start in looked.iter().filter_map(Node::start).take(places) {
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
        node.what = Some(What::Fetching);
    }
    let is_awaited = |node: &Node<'_>| match node.state {
        NodeState::Waiting | NodeState::Restarting | NodeState::Waking => true,
        NodeState::Assigned => node.is_awaited() || !is_past_canaries,
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
    let is_news = |node: &Node<'_>| node.row.state != NodeState::Failed;
    let last = failed.max_by_key(|node| (is_news(node), node.row.since));
    let last = last.map_or_else(String::new, |node| {
        format!("{}: {}", node.row.node, node.detail)
    });
    match is_past_canaries {
        true => format!("{unforgiven} nodes did not come up with it; {last}"),
        false => format!("a canary did not come up with it; {last}"),
    }
}

/// How far a node is by now.
fn look<'a>(
    rollout: &RolloutRow,
    row: &'a RolloutNodeRow,
    facts: &'a Facts,
    now: Timestamp,
) -> Node<'a> {
    let is_assigned = facts.image.as_ref() == Some(&rollout.version);
    let is_taken = match row.state {
        NodeState::Waiting => facts.image != row.before && !is_assigned,
        state => is_unfinished(state) && !is_assigned,
    };
    let (state, what, detail) = if is_taken {
        let detail = match &facts.image {
            Some(image) => format!("{image} was set meanwhile"),
            None => "its image was unset meanwhile".to_owned(),
        };
        (NodeState::Left, None, detail)
    } else if is_unfinished(row.state) {
        unfinished(rollout, row, facts, now)
    } else {
        (row.state, None, row.detail.clone())
    };
    Node {
        row,
        facts,
        state,
        what,
        detail,
    }
}

/// How far a node is, what it does, and that for people.
type HowFar = (NodeState, Option<What>, String);

/// How far a node is to which the version is assigned.
fn unfinished(rollout: &RolloutRow, row: &RolloutNodeRow, facts: &Facts, now: Timestamp) -> HowFar {
    let is_up = matches!(facts.power, Power::Up { .. });
    if is_up && facts.runs_it {
        return (NodeState::Good, None, String::new());
    }
    if let Some((_, why)) = facts.failed.as_ref().filter(|(at, _)| *at >= row.since) {
        return (NodeState::Failed, None, why.clone());
    }
    // Somebody was quicker, or the rollout was halted.
    let is_used = matches!(facts.power, Power::Up { users: 1.. });
    let is_refused = is_used && rollout.terms.reboot == RolloutReboot::Idle;
    let is_halted = is_up && rollout.state != RolloutState::Open;
    if row.state == NodeState::Assigned || is_refused || is_halted {
        return assigned(rollout, facts);
    }
    let is_late = now.duration_since(row.since) > facts.boot_limit + RESTART_SLACK;
    let (state, detail) = match (row.state, facts.power) {
        _ if !is_late => return (row.state, Some(What::Restarting), row.detail.clone()),
        (NodeState::Waking, Power::Off) => (
            NodeState::Later,
            "did not wake up: gets it with its next boot",
        ),
        (_, Power::Off) => (
            NodeState::Failed,
            "was told to start anew, and did not come back",
        ),
        _ => (NodeState::Failed, "was not up with it in time"),
    };
    (state, None, detail.to_owned())
}

/// What a node does that was neither told to start anew nor woken.
fn assigned(rollout: &RolloutRow, facts: &Facts) -> HowFar {
    let what = what(rollout, facts);
    let detail = match &facts.fetch {
        Fetch::Trouble(why) if what == What::Stuck => format!("cannot fetch it: {why}"),
        _ => what.text().to_owned(),
    };
    (NodeState::Assigned, Some(what), detail)
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

fn what(rollout: &RolloutRow, facts: &Facts) -> What {
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
