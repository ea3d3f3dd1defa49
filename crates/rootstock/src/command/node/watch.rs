//! `rootstock node watch`: how nodes do, live.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    ops::ControlFlow,
};

use clap::Args;
use jiff::Timestamp;
use rootstock_api::{NodeEvent, NodeStatus};
use rootstock_core::{HostList, NodeName};

use super::log::step;
use crate::{
    output::{self, Column},
    session::Session,
};

/// Which nodes.
#[derive(Debug, Args)]
#[command(after_help = "\
On a terminal it is a table that changes; otherwise a line for each change, first
one for each node. With --json each line is a JSON document.")]
pub(crate) struct WatchArgs {
    /// Only these: NAME, n[001-300] or a,b[1,3-5]
    nodes: Option<HostList>,
}

/// Shows nodes until it is interrupted or the daemon stops.
pub(crate) fn run(args: &WatchArgs, session: &Session) -> anyhow::Result<()> {
    let is_live = !session.json() && std::io::stdout().is_terminal();
    let mut nodes: BTreeMap<NodeName, NodeStatus> = BTreeMap::new();
    let mut result = Ok(());
    session.client()?.node_watch(|event| {
        if !wanted(args, &event) {
            return ControlFlow::Continue(());
        }
        result = if session.json() {
            output::json_line(&event)
        } else if is_live {
            take(&mut nodes, &event);
            redraw(&table(&nodes, Timestamp::now()))
        } else {
            output::line(&said(&event))
        };
        if result.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    result
}

fn wanted(args: &WatchArgs, event: &NodeEvent) -> bool {
    let name = match event {
        NodeEvent::Node(status) => &status.node,
        NodeEvent::Deleted { node } => node,
        NodeEvent::Alive | NodeEvent::Unknown => return false,
    };
    args.nodes
        .as_ref()
        .is_none_or(|list| list.names().contains(name))
}

fn take(nodes: &mut BTreeMap<NodeName, NodeStatus>, event: &NodeEvent) {
    match event {
        NodeEvent::Node(status) => {
            nodes.insert(status.node.clone(), status.clone());
        }
        NodeEvent::Deleted { node } => {
            nodes.remove(node);
        }
        NodeEvent::Alive | NodeEvent::Unknown => {}
    }
}

/// Draws over what was drawn before: home, text, and nothing below (ECMA-48).
fn redraw(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let lines = text.replace('\n', "\x1b[K\n");
    write!(out, "\x1b[H{lines}\x1b[K\n\x1b[J")?;
    Ok(out.flush()?)
}

fn table(nodes: &BTreeMap<NodeName, NodeStatus>, now: Timestamp) -> String {
    let columns = [
        Column::Text("NODE"),
        Column::Text("STATE"),
        Column::Text("STEP"),
        Column::Number("SECONDS"),
        Column::Number("BYTES"),
        Column::Text("RUNS"),
        Column::Text(""),
    ];
    let row = |status: &NodeStatus| {
        let boot = status.boot.as_ref();
        let seconds = boot.and_then(|boot| {
            let started: Timestamp = boot.started.parse().ok()?;
            let at = boot
                .at
                .as_deref()
                .and_then(|at| at.parse().ok())
                .unwrap_or(now);
            Some(at.duration_since(started).as_secs())
        });
        vec![
            status.node.to_string(),
            status.state.as_str().to_owned(),
            output::or_dash(boot.and_then(|boot| boot.step).map(step)),
            output::or_dash(seconds),
            boot.map_or_else(String::new, |boot| output::bytes(boot.bytes)),
            output::or_dash(boot.and_then(|boot| boot.running.as_ref())),
            boot.map_or_else(String::new, |boot| boot.detail.clone()),
        ]
    };
    output::table(&columns, nodes.values().map(row).collect())
}

fn said(event: &NodeEvent) -> String {
    let status = match event {
        NodeEvent::Node(status) => status,
        NodeEvent::Deleted { node } => return format!("{node} deleted"),
        NodeEvent::Alive | NodeEvent::Unknown => return String::new(),
    };
    let mut text = format!("{} {}", status.node, status.state.as_str());
    if let Some(boot) = &status.boot {
        if let Some(at) = boot.step {
            text.push_str(&format!(": {}", step(at)));
        }
        if !boot.detail.is_empty() {
            text.push_str(&format!(": {}", boot.detail));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_table_follows_events() {
        let mut nodes = BTreeMap::new();
        let json = r#"{"event":"node","node":"n1","state":"booting","boot":{"boot":"b",
            "started":"2026-03-01T10:00:00Z","step":"root-mounted","at":"2026-03-01T10:00:09Z",
            "bytes":41000000,"running":"lab:3"}}"#;
        let booting: NodeEvent = serde_json::from_str(json).expect("is an event");
        let held: NodeEvent =
            serde_json::from_str(r#"{"event":"node","node":"n2","state":"held"}"#)
                .expect("is an event");
        take(&mut nodes, &booting);
        take(&mut nodes, &held);
        assert_eq!(said(&booting), "n1 booting: root mounted");
        insta::assert_snapshot!(table(&nodes, Timestamp::UNIX_EPOCH), @r"
        NODE  STATE    STEP          SECONDS    BYTES  RUNS
        n1    booting  root mounted        9  41.0 MB  lab:3
        n2    held     -                   -           -
        ");
        let newer: NodeEvent = serde_json::from_str(r#"{"event":"burnt"}"#).expect("is tolerated");
        take(&mut nodes, &newer);
        take(
            &mut nodes,
            &NodeEvent::Deleted {
                node: "n2".parse().expect("a name"),
            },
        );
        assert_eq!(nodes.len(), 1);
    }
}
