//! `rootstock node list` and `show`.

use clap::Args;
use rootstock_api::{Node, NodeList, NodeState, boot::Inventory};
use rootstock_core::{HostList, MacAddress, NodeName};

use super::{health, install, report};
use crate::{
    command::settings,
    output::{self, Column},
    session::Session,
};

/// Which nodes.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only these: NAME, n[001-300] or a,b[1,3-5]
    nodes: Option<HostList>,
    /// Only those with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only those that wait for approval
    #[arg(long)]
    held: bool,
}

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The node
    name: NodeName,
}

/// Lists nodes.
pub(crate) fn run(args: &ListArgs, session: &Session) -> anyhow::Result<()> {
    let nodes = session.client()?.nodes()?.nodes;
    let is_empty = nodes.is_empty();
    let nodes: Vec<Node> = nodes
        .into_iter()
        .filter(|node| wanted(args, node))
        .collect();
    if session.json() {
        return output::json(&NodeList { nodes });
    }
    if is_empty {
        return output::line("no nodes yet: 'rootstock node add NAME --mac MAC' adds one");
    }
    if nodes.is_empty() {
        return output::line("no such nodes");
    }
    output::line(&table(&nodes))?;
    health::lines(&nodes)
        .iter()
        .try_for_each(|line| output::line(line))
}

/// Shows a node.
pub(crate) fn show(args: &ShowArgs, session: &Session) -> anyhow::Result<()> {
    let node = session.client()?.node(&args.name)?;
    if session.json() {
        return output::json(&node);
    }
    output::line(&fields(&node))
}

fn wanted(args: &ListArgs, node: &Node) -> bool {
    let named = args
        .nodes
        .as_ref()
        .is_none_or(|list| list.names().contains(&node.name));
    let tags = node.effective.tags.as_deref().unwrap_or_default();
    let tagged = args.tag.as_ref().is_none_or(|tag| tags.contains(tag));
    named && tagged && (!args.held || node.state == NodeState::Held)
}

fn table(nodes: &[Node]) -> String {
    let columns = [
        Column::Text("NODE"),
        Column::Text("STATE"),
        Column::Text("IMAGE"),
        Column::Text("MODE"),
        Column::Text("PROFILE"),
        Column::Text("MAC"),
        Column::Text("ADDRESS"),
        Column::Text("SEEN"),
    ];
    let row = |node: &Node| {
        let mac = node.macs.first().map(ToString::to_string);
        let more = node.macs.len().saturating_sub(1);
        vec![
            node.name.to_string(),
            node.state.as_str().to_owned(),
            output::or_dash(node.effective.image.as_ref()),
            output::or_dash(node.effective.mode),
            output::or_dash(node.profile.as_ref()),
            output::or_dash(mac)
                + &if more > 0 {
                    format!(" +{more}")
                } else {
                    String::new()
                },
            output::or_dash(node.address),
            output::or_dash(node.seen.as_deref().map(output::time)),
        ]
    };
    output::table(&columns, nodes.iter().map(row).collect())
}

fn fields(node: &Node) -> String {
    let macs: Vec<String> = node.macs.iter().map(MacAddress::to_string).collect();
    let mut fields = vec![
        ("node", node.name.to_string()),
        ("state", node.state.as_str().to_owned()),
        (
            "macs",
            output::or_dash((!macs.is_empty()).then(|| macs.join(" "))),
        ),
    ];
    let optional = [
        ("uuid", node.uuid.clone()),
        ("address", node.address.map(|address| address.to_string())),
        ("profile", node.profile.as_ref().map(ToString::to_string)),
    ];
    fields.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    fields.extend(settings::effective(&node.effective, &node.origins));
    fields.push(("added", output::time(&node.created)));
    if let Some(seen) = &node.seen {
        fields.push(("seen", output::time(seen)));
    }
    if let Some(running) = node.boot.as_ref().and_then(|boot| boot.running.as_ref()) {
        fields.push(("running", running.to_string()));
    }
    fields.extend(health::fields(node));
    fields.extend(report::installed(node));
    fields.extend(install::fields(node));
    fields.extend(report::fields(node));
    fields.extend(report::swarm(node));
    if let Some(inventory) = &node.inventory {
        fields.extend(machine(inventory));
    }
    output::fields(&fields)
}

fn machine(inventory: &Inventory) -> Vec<(&'static str, String)> {
    let disks: Vec<String> = inventory
        .disks
        .iter()
        .map(|disk| {
            format!(
                "{} {} {}",
                disk.name,
                output::bytes(disk.size_bytes),
                disk.model
            )
        })
        .collect();
    let nics: Vec<String> = inventory
        .nics
        .iter()
        .map(|nic| format!("{} {} {}", nic.name, nic.mac, nic.driver))
        .collect();
    vec![
        (
            "machine",
            format!("{} {}", inventory.vendor, inventory.product),
        ),
        ("serial", inventory.serial.clone()),
        ("firmware", inventory.firmware.clone()),
        (
            "cpu",
            format!("{} x {}", inventory.cpu_count, inventory.cpu),
        ),
        ("memory", output::bytes(inventory.memory_bytes)),
        (
            "disks",
            output::or_dash((!disks.is_empty()).then(|| disks.join(", "))),
        ),
        (
            "cards",
            output::or_dash((!nics.is_empty()).then(|| nics.join(", "))),
        ),
        (
            "graphics",
            output::or_dash(
                (!inventory.graphics.is_empty()).then(|| inventory.graphics.join(", ")),
            ),
        ),
    ]
}
