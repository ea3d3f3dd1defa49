//! What the live view of nodes shows, line by line.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rootstock_api::{BootSummary, NodeState, NodeStatus};
use rootstock_core::NodeName;

use super::{report, step};
use crate::{
    output::{self, Column},
    screen::Size,
};

/// The lines around the table: a sum above, and one that says what is left out.
const LINES_AROUND: usize = 3;

/// The part of the room that remarks may have: one of this many.
const REMARKS_PART: usize = 3;

/// A sum, a table of the nodes, and below it what needs an administrator, in full.
/// When there is no room for all nodes, those come first that are on their way or
/// stand still.
pub(super) fn lines(
    nodes: &BTreeMap<NodeName, NodeStatus>,
    room: Size,
    now: Timestamp,
) -> Vec<String> {
    let mut remarks: Vec<String> = nodes
        .values()
        .filter_map(|status| remark(status, room.columns))
        .flatten()
        .collect();
    remarks.truncate(room.rows / REMARKS_PART);
    let rows_max = room
        .rows
        .saturating_sub(remarks.len() + LINES_AROUND)
        .max(1);

    let mut shown: Vec<&NodeStatus> = nodes.values().collect();
    let left_out = shown.len().saturating_sub(rows_max);
    if left_out > 0 {
        shown.sort_by_key(|status| urgency(status.state));
        shown.truncate(rows_max);
    }
    let mut lines = vec![sum(nodes)];
    lines.extend(table(&shown, now).lines().map(str::to_owned));
    if left_out > 0 {
        lines.push(format!(
            "and {}",
            output::count(left_out as u64, "more node")
        ));
    }
    lines.extend(remarks);
    lines
}

/// `4 nodes: 1 booting, 3 up`.
fn sum(nodes: &BTreeMap<NodeName, NodeStatus>) -> String {
    let mut counts: BTreeMap<u8, (NodeState, u64)> = BTreeMap::new();
    for status in nodes.values() {
        let count = counts.entry(urgency(status.state));
        count.or_insert((status.state, 0)).1 += 1;
    }
    let counts: Vec<String> = counts
        .values()
        .map(|(state, count)| format!("{count} {}", state.as_str()))
        .collect();
    let all = output::count(nodes.len() as u64, "node");
    if counts.is_empty() {
        return all;
    }
    format!("{all}: {}", counts.join(", "))
}

/// What is looked for first comes first.
const fn urgency(state: NodeState) -> u8 {
    match state {
        NodeState::Failed => 0,
        NodeState::Held => 1,
        NodeState::Booting | NodeState::Installing => 2,
        NodeState::Gone => 3,
        NodeState::Up => 4,
        NodeState::OwnDisk => 5,
        NodeState::Ready => 6,
        NodeState::Unknown => 7,
    }
}

fn table(nodes: &[&NodeStatus], now: Timestamp) -> String {
    let columns = [
        Column::Text("NODE"),
        Column::Text("STATE"),
        Column::Text("STEP"),
        Column::Number("SECONDS"),
        Column::Number("BYTES"),
        Column::Text("RUNS"),
        Column::Text("DISK"),
        Column::Text(""),
    ];
    let row = |status: &&NodeStatus| {
        let boot = status.boot.as_ref();
        vec![
            status.node.to_string(),
            status.state.as_str().to_owned(),
            output::or_dash(boot.and_then(|boot| boot.step).map(step)),
            output::or_dash(boot.and_then(|boot| seconds(boot, status.state, now))),
            match boot.map_or(0, |boot| boot.bytes) {
                0 => String::new(),
                bytes => output::bytes(bytes),
            },
            output::or_dash(boot.and_then(|boot| boot.running.as_ref())),
            output::or_dash(status.report.as_ref().and_then(report::disk)),
            boot.map_or_else(String::new, |boot| boot.detail.clone()),
        ]
    };
    output::table(&columns, nodes.iter().map(row).collect())
}

/// From the start of a boot to its last step, or to now while it is on its way.
fn seconds(boot: &BootSummary, state: NodeState, now: Timestamp) -> Option<i64> {
    let started: Timestamp = boot.started.parse().ok()?;
    let last = boot.at.as_deref().and_then(|at| at.parse().ok());
    let until = match (state, last) {
        // The daemon's clock may be ahead of ours.
        (NodeState::Booting, Some(last)) => now.max(last),
        (_, Some(last)) => last,
        (_, None) => now,
    };
    Some(until.duration_since(started).as_secs().max(0))
}

/// Why a node stands still, or how it is let go on.
fn remark(status: &NodeStatus, columns: usize) -> Option<Vec<String>> {
    let name = &status.node;
    let text = match (status.state, &status.boot) {
        (NodeState::Held, _) => {
            format!("{name} waits for approval: rootstock node approve {name}")
        }
        (NodeState::Failed, Some(boot)) => format!("{name} failed: {}", boot.detail),
        _ => return None,
    };
    Some(wrapped(&text, columns))
}

fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let longer = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && longer > columns {
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(if line.is_empty() { "" } else { " " });
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(documents: &[&str]) -> BTreeMap<NodeName, NodeStatus> {
        let read = |document: &&str| {
            let status: NodeStatus = serde_json::from_str(document).expect("is a status");
            (status.node.clone(), status)
        };
        documents.iter().map(read).collect()
    }

    fn shown(documents: &[&str], rows: usize, columns: usize) -> String {
        let now = "2026-03-01T10:00:12Z".parse().expect("a time");
        lines(&nodes(documents), Size { rows, columns }, now).join("\n")
    }

    const BOOTING: &str = r#"{"node":"n1","state":"booting","boot":{"boot":"b",
        "started":"2026-03-01T10:00:00Z","step":"root-mounted","at":"2026-03-01T10:00:09Z",
        "bytes":41000000,"running":"lab:3","detail":"ext4"}}"#;
    const UP: &str = r#"{"node":"n2","state":"up","boot":{"boot":"c",
        "started":"2026-03-01T09:00:00Z","step":"up","at":"2026-03-01T09:00:14Z",
        "bytes":43000000,"running":"lab:3"},"report":{"disk_cache":{"device":"/dev/sda3",
        "version_bytes":1000,"version_local_bytes":737}}}"#;
    const HELD: &str = r#"{"node":"n3","state":"held"}"#;
    const FAILED: &str = r#"{"node":"n4","state":"failed","boot":{"boot":"d",
        "started":"2026-03-01T10:00:00Z","step":"failed","at":"2026-03-01T10:00:09Z",
        "detail":"nothing for 60 s after script-served: the kernel was not fetched"}}"#;

    #[test]
    fn the_seconds_of_a_boot_go_on_and_those_of_others_do_not() {
        insta::assert_snapshot!(shown(&[BOOTING, UP], 24, 80), @r"
        2 nodes: 1 booting, 1 up
        NODE  STATE    STEP          SECONDS    BYTES  RUNS   DISK
        n1    booting  root mounted       12  41.0 MB  lab:3  -     ext4
        n2    up       up                 14  43.0 MB  lab:3  73 %
        ");
    }

    #[test]
    fn what_needs_an_administrator_is_said_in_full() {
        insta::assert_snapshot!(shown(&[UP, HELD, FAILED], 24, 40), @r"
        3 nodes: 1 failed, 1 held, 1 up
        NODE  STATE   STEP    SECONDS    BYTES  RUNS   DISK
        n2    up      up           14  43.0 MB  lab:3  73 %
        n3    held    -             -           -      -
        n4    failed  failed        9           -      -     nothing for 60 s after script-served: the kernel was not fetched
        n3 waits for approval: rootstock node
        approve n3
        n4 failed: nothing for 60 s after
        script-served: the kernel was not
        fetched
        ");
    }

    #[test]
    fn a_small_terminal_shows_what_matters_first() {
        insta::assert_snapshot!(shown(&[UP, BOOTING, HELD, FAILED], 6, 80), @r"
        4 nodes: 1 failed, 1 held, 1 booting, 1 up
        NODE  STATE   STEP    SECONDS  BYTES  RUNS  DISK
        n4    failed  failed        9         -     -     nothing for 60 s after script-served: the kernel was not fetched
        and 3 more nodes
        n3 waits for approval: rootstock node approve n3
        n4 failed: nothing for 60 s after script-served: the kernel was not fetched
        ");
        insta::assert_snapshot!(shown(&[], 6, 80), @r"
        0 nodes
        NODE  STATE  STEP  SECONDS  BYTES  RUNS  DISK
        ");
    }
}
