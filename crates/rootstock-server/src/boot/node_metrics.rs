//! What machines say of themselves, as Prometheus text.

use std::fmt::Write as _;

use rootstock_api::boot::{DiskCacheReport, NodeReport};
use rootstock_core::NodeName;

use super::{swarm::HeadFigures, tracker::Figures};

/// The most nodes that are shown one by one; the others are counted.
const NODES_MAX: usize = 10_000;

/// The most racks that are shown one by one; the others are counted.
const RACKS_MAX: usize = 256;

/// A metric that each node has, or lacks.
struct Family {
    name: &'static str,
    help: &'static str,
    /// `counter` or `gauge`.
    kind: &'static str,
    value: fn(&NodeReport) -> Option<f64>,
}

const FAMILIES: &[Family] = &[
    Family {
        name: "rootstock_node_read_bytes_total",
        help: "Bytes that a node's system read from its root.",
        kind: "counter",
        value: |report| Some(number(report.read_bytes)),
    },
    Family {
        name: "rootstock_node_fetched_bytes_total",
        help: "Bytes of frames that a node got from a server.",
        kind: "counter",
        value: |report| Some(number(report.fetched_bytes)),
    },
    Family {
        name: "rootstock_node_local_bytes_total",
        help: "Bytes of chunks that a node got from its own disk.",
        kind: "counter",
        value: |report| Some(number(report.local_bytes)),
    },
    Family {
        name: "rootstock_node_stall_seconds_total",
        help: "Time that a node's reads waited for the network.",
        kind: "counter",
        value: |report| Some(seconds(report.stall_ms)),
    },
    Family {
        name: "rootstock_node_stall_worst_seconds",
        help: "The longest of these waits.",
        kind: "gauge",
        value: |report| Some(seconds(report.stall_worst_ms)),
    },
    Family {
        name: "rootstock_node_disk_cache_on",
        help: "Whether a node uses the disk that it keeps chunks on.",
        kind: "gauge",
        value: |report| disk(report, |disk| u64::from(disk.off.is_none())),
    },
    Family {
        name: "rootstock_node_disk_cache_used_bytes",
        help: "Bytes of chunks that this disk holds, of all versions.",
        kind: "gauge",
        value: |report| disk(report, |disk| disk.used_bytes),
    },
    Family {
        name: "rootstock_node_disk_cache_capacity_bytes",
        help: "Bytes of chunks that it can hold.",
        kind: "gauge",
        value: |report| disk(report, |disk| disk.bytes_max),
    },
    Family {
        name: "rootstock_node_version_bytes",
        help: "Bytes of the version that a node runs.",
        kind: "gauge",
        value: |report| disk(report, |disk| disk.version_bytes),
    },
    Family {
        name: "rootstock_node_version_local_bytes",
        help: "How many of them are on its disk.",
        kind: "gauge",
        value: |report| disk(report, |disk| disk.version_local_bytes),
    },
    Family {
        name: "rootstock_node_native_bytes",
        help: "Bytes of its root that a node's kernel reads from its disk without the agent.",
        kind: "gauge",
        value: |report| disk(report, |disk| disk.native_bytes),
    },
    Family {
        name: "rootstock_node_fill_bytes_per_second",
        help: "Bytes of frames that a node fetched ahead, a second.",
        kind: "gauge",
        value: |report| disk(report, |disk| disk.fill_bytes_per_second),
    },
];

/// Appends what nodes that run said last; the first by name when there are more than
/// are shown.
pub(crate) fn render(mut reports: Vec<(NodeName, NodeReport)>, text: &mut String) {
    reports.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let left_out = reports.len().saturating_sub(NODES_MAX);
    reports.truncate(NODES_MAX);
    for family in FAMILIES {
        let Family {
            name, help, kind, ..
        } = family;
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (node, report) in &reports {
            if let Some(value) = (family.value)(report) {
                let _ = writeln!(text, "{name}{{node=\"{node}\"}} {value}");
            }
        }
    }
    let name = "rootstock_node_reports_left_out";
    let _ = write!(
        text,
        "# HELP {name} Nodes that run and are not shown one by one.\n# TYPE {name} gauge\n\
         {name} {left_out}\n"
    );
}

/// Appends how the swarm does: the racks with most members one by one.
pub(crate) fn render_swarm(swarm: &Figures, text: &mut String) {
    let mut racks: Vec<_> = swarm.by_rack.iter().collect();
    racks.sort_by_key(|(_, members)| std::cmp::Reverse(**members));
    let left_out = racks.len().saturating_sub(RACKS_MAX);
    racks.truncate(RACKS_MAX);
    for (name, help, kind, value) in [
        (
            "rootstock_swarm_members",
            "Machines that are in the swarm.",
            "gauge",
            swarm.members,
        ),
        (
            "rootstock_swarm_members_left_out",
            "Those of them that others are not told of.",
            "gauge",
            swarm.left_out,
        ),
        (
            "rootstock_swarm_sent_bytes_total",
            "Bytes that machines sent each other, as the senders say.",
            "counter",
            swarm.sent_bytes,
        ),
        (
            "rootstock_swarm_received_bytes_total",
            "The same, as the receivers say.",
            "counter",
            swarm.received_bytes,
        ),
        (
            "rootstock_swarm_racks_left_out",
            "Racks that are not shown one by one.",
            "gauge",
            left_out as u64,
        ),
    ] {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    }
    let name = "rootstock_swarm_rack_members";
    let _ = write!(
        text,
        "# HELP {name} Machines in a rack that are in the swarm.\n# TYPE {name} gauge\n"
    );
    for (rack, members) in racks {
        let _ = writeln!(text, "{name}{{rack=\"{rack}\"}} {members}");
    }
}

/// Appends how the daemon does as a member of the swarm.
pub(crate) fn render_head(head: &HeadFigures, text: &mut String) {
    for (name, help, kind, value) in [
        (
            "rootstock_swarm_head_connections",
            "Machines that are connected to the daemon as a member of the swarm.",
            "gauge",
            head.connections,
        ),
        (
            "rootstock_swarm_head_sent_bytes_total",
            "Bytes of chunks that the daemon sent machines as a member of the swarm.",
            "counter",
            head.sent_bytes,
        ),
        (
            "rootstock_swarm_head_refused_total",
            "Chunks that machines asked it for and may not have.",
            "counter",
            head.refused,
        ),
    ] {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    }
}

fn disk(report: &NodeReport, value: fn(&DiskCacheReport) -> u64) -> Option<f64> {
    report.disk_cache.as_ref().map(|disk| number(value(disk)))
}

fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(ms: u64) -> f64 {
    number(ms) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_what_it_said() {
        let name = |text: &str| -> NodeName { text.parse().expect("a name") };
        let disk = DiskCacheReport {
            device: "/dev/sda3".to_owned(),
            bytes_max: 100,
            used_bytes: 73,
            ..DiskCacheReport::default()
        };
        let with_disk = NodeReport {
            stall_ms: 1500,
            local_bytes: 1 << 40,
            disk_cache: Some(disk),
            ..NodeReport::default()
        };
        let mut text = String::new();
        let reports = vec![(name("n2"), NodeReport::default()), (name("n1"), with_disk)];
        render(reports, &mut text);
        for line in [
            "# TYPE rootstock_node_stall_seconds_total counter\n\
             rootstock_node_stall_seconds_total{node=\"n1\"} 1.5\n\
             rootstock_node_stall_seconds_total{node=\"n2\"} 0\n",
            "rootstock_node_local_bytes_total{node=\"n1\"} 1099511627776\n",
            "gauge\nrootstock_node_disk_cache_used_bytes{node=\"n1\"} 73\n# HELP",
            "rootstock_node_disk_cache_on{node=\"n1\"} 1\n",
            "rootstock_node_reports_left_out 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn racks_have_a_bound_too() {
        let rack = |number: u64| (format!("10.0.{number}.0/24"), number + 1);
        let swarm = Figures {
            members: 12,
            left_out: 1,
            by_rack: (0..RACKS_MAX as u64 + 3).map(rack).collect(),
            sent_bytes: 1 << 40,
            received_bytes: 5,
        };
        let mut text = String::new();
        render_swarm(&swarm, &mut text);
        for line in [
            "gauge\nrootstock_swarm_members 12\n",
            "gauge\nrootstock_swarm_members_left_out 1\n",
            "counter\nrootstock_swarm_sent_bytes_total 1099511627776\n",
            "counter\nrootstock_swarm_received_bytes_total 5\n",
            "rootstock_swarm_racks_left_out 3\n",
            "gauge\nrootstock_swarm_rack_members{rack=\"10.0.258.0/24\"} 259\n",
            "rootstock_swarm_rack_members{rack=\"10.0.3.0/24\"} 4\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("10.0.2.0/24"));
    }

    #[test]
    fn there_is_a_bound() {
        let node = |number: usize| {
            let name = format!("n{number:05}").parse().expect("a name");
            (name, NodeReport::default())
        };
        let mut text = String::new();
        render((0..NODES_MAX + 2).map(node).collect(), &mut text);
        assert!(text.contains("rootstock_node_reports_left_out 2\n"));
        assert!(!text.contains("node=\"n10000\""));
    }
}
