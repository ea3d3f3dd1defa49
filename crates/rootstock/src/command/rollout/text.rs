//! Rollouts for people.

use std::collections::BTreeMap;

use rootstock_api::{
    Rollout, RolloutCounts, RolloutDetail, RolloutForecast, RolloutNode, RolloutReboot,
    RolloutStart, RolloutStarted, RolloutState,
};
use rootstock_core::{NodeName, fold};

use crate::output;

/// What a rollout does, or would do.
pub(super) fn started(started: &RolloutStarted, request: &RolloutStart) -> String {
    let names = |nodes: &mut dyn Iterator<Item = &NodeName>| {
        let nodes: Vec<NodeName> = nodes.cloned().collect();
        fold(&nodes)
    };
    let count = output::count(started.nodes.len() as u64, "node");
    let all = names(&mut started.nodes.iter().map(|node| &node.node));
    let of = match &request.profile {
        Some(profile) => format!("{count} of profile {profile}"),
        None => count,
    };
    let mut lines = vec![format!("{} to {of}: {all}", started.version)];
    let canaries = match request.canary_count {
        0 => String::new(),
        1 => "1 canary first, then ".to_owned(),
        count => format!("{count} canaries first, then "),
    };
    lines.push(format!(
        "  {}{} at a time; more than {} stop it",
        canaries,
        request.batch_count,
        output::count(request.failures_max.into(), "failure"),
    ));
    let reboot = match request.reboot {
        RolloutReboot::Idle => "start anew once nobody is logged in",
        RolloutReboot::Now => "start anew as soon as they have it",
        RolloutReboot::No => "run it after their next boot",
    };
    let wake = match request.wake {
        true => "; those that are off are woken",
        false => "",
    };
    lines.push(format!("  machines {reboot}{wake}"));
    if request.at.is_some() {
        let starts = output::time(&started.starts);
        lines.push(format!("  nothing happens before {starts}"));
    }
    let mut by_bytes: BTreeMap<Option<u64>, Vec<&RolloutForecast>> = BTreeMap::new();
    for node in &started.nodes {
        by_bytes.entry(node.bytes).or_default().push(node);
    }
    for (bytes, nodes) in by_bytes {
        let count = output::count(nodes.len() as u64, "node");
        let what = match bytes {
            Some(0) => "keeps nothing on a disk".to_owned(),
            Some(bytes) => format!("fetches {} first", output::bytes(bytes)),
            None => "came up with no version yet".to_owned(),
        };
        lines.push(format!("  {count}: each {what}"));
    }
    let mut used = started.nodes.iter().filter(|node| node.users > 0);
    let used = names(&mut used.by_ref().map(|node| &node.node));
    if !used.is_empty() {
        lines.push(format!("  in use now: {used}"));
    }
    let mut left: BTreeMap<&str, Vec<&NodeName>> = BTreeMap::new();
    for node in &started.left {
        left.entry(&node.reason).or_default().push(&node.node);
    }
    for (reason, nodes) in left {
        let nodes = names(&mut nodes.into_iter());
        lines.push(format!("  left alone: {nodes}: {reason}"));
    }
    lines.push(match started.rollout {
        Some(id) => {
            format!("rollout {id} begins: 'rootstock rollout status {id}' shows how far it is")
        }
        None => "nothing is started yet".to_owned(),
    });
    lines.join("\n")
}

/// How many nodes are how far, those that are none left out.
pub(super) fn counts(counts: &RolloutCounts) -> String {
    let RolloutCounts {
        waiting,
        assigned,
        restarting,
        waking,
        good,
        failed,
        later,
        left,
    } = *counts;
    let all = [
        (good, "good"),
        (failed, "failed"),
        (restarting, "restarting"),
        (waking, "waking"),
        (assigned, "assigned"),
        (waiting, "waiting"),
        (later, "later"),
        (left, "left"),
    ];
    let some = all.iter().filter(|(count, _)| *count > 0);
    let some: Vec<String> = some
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    some.join(", ")
}

/// A rollout in one line.
pub(super) fn line(rollout: &Rollout) -> String {
    let reason = rollout.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    let (state, counts) = (rollout.state.as_str(), counts(&rollout.counts));
    format!("{} {state}{reason}; {counts}", rollout.version)
}

/// A rollout and its nodes.
pub(super) fn detail(detail: &RolloutDetail) -> String {
    let rollout = &detail.rollout;
    let mut fields = vec![
        ("rollout", rollout.rollout.to_string()),
        ("version", rollout.version.to_string()),
        ("state", rollout.state.as_str().to_owned()),
    ];
    let optional = [
        ("reason", rollout.reason.clone()),
        ("profile", rollout.profile.as_ref().map(ToString::to_string)),
    ];
    fields.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    fields.push((
        "begun",
        format!("{} by {}", output::time(&rollout.created), rollout.actor),
    ));
    if rollout.state == RolloutState::Scheduled {
        fields.push(("starts", output::time(&rollout.starts)));
    }
    fields.push(("nodes", counts(&rollout.counts)));
    let mut lines = vec![output::fields(&fields), String::new()];
    let mut alike: Vec<((&str, &str), Vec<NodeName>)> = Vec::new();
    for RolloutNode {
        node,
        state,
        detail,
        ..
    } in &detail.nodes
    {
        let key = (state.as_str(), detail.as_str());
        match alike.iter_mut().find(|(other, _)| *other == key) {
            Some((_, nodes)) => nodes.push(node.clone()),
            None => alike.push((key, vec![node.clone()])),
        }
    }
    let width = alike
        .iter()
        .map(|((state, _), _)| state.len())
        .max()
        .unwrap_or(0);
    for ((state, detail), nodes) in alike {
        let detail = match detail {
            "" => String::new(),
            detail => format!(": {detail}"),
        };
        lines.push(format!("{state:width$}  {}{detail}", fold(&nodes)));
    }
    match rollout.state {
        RolloutState::Stopped | RolloutState::Paused => lines.push(format!(
            "'rootstock rollout resume {0}' has it go on, 'rootstock rollout abort {0}' ends it",
            rollout.rollout
        )),
        _ => {}
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
