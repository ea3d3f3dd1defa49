//! `rootstock node watch`: how nodes do, live.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    ops::ControlFlow,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use clap::Args;
use jiff::Timestamp;
use rootstock_api::{NodeEvent, NodeStatus};
use rootstock_core::{HostList, NodeName};

use super::{log::step, report};
use crate::{output, screen::Screen, session::Session};

mod view;

/// Changes that wait for the terminal at most; beyond it the daemon waits too.
const EVENTS_WAITING_MAX: usize = 1024;

/// How often the seconds go on.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

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
    if !session.json() && std::io::stdout().is_terminal() {
        return live(args, session);
    }
    let mut result = Ok(());
    let mut disks = BTreeMap::new();
    session.client()?.node_watch(|event| {
        if !wanted(args, &event) {
            return ControlFlow::Continue(());
        }
        result = if session.json() {
            output::json_line(&event)
        } else if is_news(&mut disks, &event) {
            output::line(&said(&event))
        } else {
            Ok(())
        };
        flow(result.is_ok())
    })?;
    result
}

/// This thread listens and another one draws, since the seconds go on when
/// nothing happens.
fn live(args: &WatchArgs, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let (events, waiting) = mpsc::sync_channel(EVENTS_WAITING_MAX);
    thread::scope(|scope| {
        let drawing = thread::Builder::new()
            .name("screen".to_owned())
            .spawn_scoped(scope, move || draw(&waiting))?;
        let watched =
            client.node_watch(|event| flow(!wanted(args, &event) || events.send(event).is_ok()));
        drop(events);
        let drawn = drawing.join().map_err(|_| anyhow!("drawing failed"))?;
        watched?;
        drawn
    })
}

fn flow(goes_on: bool) -> ControlFlow<()> {
    if goes_on {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}

/// Draws until there is nobody to hear from.
fn draw(events: &Receiver<NodeEvent>) -> anyhow::Result<()> {
    let mut screen = Screen::default();
    let mut nodes = BTreeMap::new();
    loop {
        match events.recv_timeout(REDRAW_INTERVAL) {
            Ok(event) => take(&mut nodes, event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        for event in events.try_iter() {
            take(&mut nodes, event);
        }
        let lines = view::lines(&nodes, Screen::room(), Timestamp::now());
        screen.draw(&lines)?;
    }
}

fn wanted(args: &WatchArgs, event: &NodeEvent) -> bool {
    let name = match event {
        NodeEvent::Node(status) => &status.node,
        NodeEvent::Report { node, .. } | NodeEvent::Deleted { node } => node,
        NodeEvent::Alive | NodeEvent::Unknown => return false,
    };
    args.nodes
        .as_ref()
        .is_none_or(|list| list.names().contains(name))
}

/// Whether there is a line to say of an event: reports come all the time.
fn is_news(disks: &mut BTreeMap<NodeName, String>, event: &NodeEvent) -> bool {
    let NodeEvent::Report { node, report } = event else {
        return true;
    };
    match report::news(report) {
        Some(news) => disks.insert(node.clone(), news.clone()) != Some(news),
        None => {
            disks.remove(node);
            false
        }
    }
}

fn take(nodes: &mut BTreeMap<NodeName, NodeStatus>, event: NodeEvent) {
    match event {
        NodeEvent::Node(status) => {
            nodes.insert(status.node.clone(), status);
        }
        NodeEvent::Report { node, report } => {
            if let Some(status) = nodes.get_mut(&node) {
                status.report = Some(report);
            }
        }
        NodeEvent::Deleted { node } => {
            nodes.remove(&node);
        }
        NodeEvent::Alive | NodeEvent::Unknown => {}
    }
}

fn said(event: &NodeEvent) -> String {
    let status = match event {
        NodeEvent::Node(status) => status,
        NodeEvent::Report { node, report } => {
            return format!("{node}: {}", report::news(report).unwrap_or_default());
        }
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
    fn nodes_follow_events() {
        let mut nodes = BTreeMap::new();
        let json = r#"{"event":"node","node":"n1","state":"booting","boot":{"boot":"b",
            "started":"2026-03-01T10:00:00Z","step":"root-mounted","at":"2026-03-01T10:00:09Z",
            "bytes":41000000,"running":"lab:3","detail":"ext4"}}"#;
        let booting: NodeEvent = serde_json::from_str(json).expect("is an event");
        assert_eq!(said(&booting), "n1 booting: root mounted: ext4");
        take(&mut nodes, booting);
        let held: NodeEvent =
            serde_json::from_str(r#"{"event":"node","node":"n2","state":"held"}"#)
                .expect("is an event");
        assert_eq!(said(&held), "n2 held");
        take(&mut nodes, held);
        let newer: NodeEvent = serde_json::from_str(r#"{"event":"burnt"}"#).expect("is tolerated");
        take(&mut nodes, newer);
        assert_eq!(nodes.len(), 2);
        let deleted = NodeEvent::Deleted {
            node: "n2".parse().expect("a name"),
        };
        assert_eq!(said(&deleted), "n2 deleted");
        take(&mut nodes, deleted);
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn a_report_is_a_line_only_when_it_is_news() {
        let report = |disk: &str| -> NodeEvent {
            let json = format!(
                r#"{{"event":"report","node":"n1","report":{{"disk_cache":{{"device":"/dev/sda3",{disk}}}}}}}"#
            );
            serde_json::from_str(&json).expect("is an event")
        };
        let mut disks = BTreeMap::new();
        for (disk, line) in [
            (r#""version_bytes":100,"version_local_bytes":73"#, None),
            (
                r#""version_bytes":100,"version_local_bytes":100"#,
                Some("n1: all of its version is on its disk"),
            ),
            (r#""version_bytes":100,"version_local_bytes":100"#, None),
            (r#""off":"gone""#, Some("n1: its disk is out of use: gone")),
        ] {
            let event = report(disk);
            let is_news = is_news(&mut disks, &event);
            assert_eq!(is_news.then(|| said(&event)).as_deref(), line, "{disk}");
        }
        let mut nodes = BTreeMap::new();
        take(&mut nodes, report(r#""off":"gone""#));
        assert!(nodes.is_empty());
        let up = r#"{"event":"node","node":"n1","state":"up"}"#;
        take(&mut nodes, serde_json::from_str(up).expect("is an event"));
        take(&mut nodes, report(r#""off":"gone""#));
        assert!(nodes.values().all(|status| status.report.is_some()));
    }
}
