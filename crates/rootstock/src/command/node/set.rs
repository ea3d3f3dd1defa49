//! `rootstock node set` and `unset`: changes, shown before they are made.

use std::net::Ipv4Addr;

use clap::Args;
use rootstock_api::{Change, NodeRollback, NodeSet};
use rootstock_core::{HostList, MacAddress, ProfileName};

use crate::{
    command::{
        profile::setting,
        settings::{self, ConfirmArgs, DryRun, SettingArgs},
    },
    session::Session,
};

/// What to change.
#[derive(Debug, Args)]
#[command(after_help = "\
What changes is shown, and asked for on a terminal. Nodes that run change when they
boot anew, but hear at once of fill and of exams. 'rootstock node unset NODES SETTING…'
takes a setting away.

Examples:
  rootstock node set n[001-300] --image lab@production --mode frozen
  rootstock node set pc-17 --profile lab --address 10.0.0.17
  rootstock node set n[001-300] --fill-mbit-max 200 --fill-hours 22:00-06:00
  rootstock node set room-a-[01-20] --exam yes")]
pub(crate) struct SetArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
    /// The profile they inherit from
    #[arg(long)]
    profile: Option<ProfileName>,
    /// The address that is the node's own
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// The node's SMBIOS UUID
    #[arg(long)]
    uuid: Option<String>,
    /// A network card that the node gets; repeatable
    #[arg(long, value_name = "MAC")]
    add_mac: Vec<MacAddress>,
    /// A network card that the node loses; repeatable
    #[arg(long, value_name = "MAC")]
    remove_mac: Vec<MacAddress>,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What to take away.
#[derive(Debug, Args)]
pub(crate) struct UnsetArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
    /// Settings, or profile, address, uuid
    #[arg(required = true, value_name = "SETTING")]
    settings: Vec<String>,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What goes back.
#[derive(Debug, Args)]
#[command(after_help = "\
Going back twice is to be where you were. Blocks that are still on a machine's disk are
not fetched again: it costs a reboot ('rootstock node reboot').")]
pub(crate) struct RollbackArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// Goes back to the image that was set before.
pub(crate) fn rollback(args: &RollbackArgs, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    settings::change(session, args.confirm, |dry_run| {
        let rollback = NodeRollback {
            nodes: args.nodes.clone(),
            dry_run: dry_run == DryRun::Yes,
        };
        Ok(client.node_rollback(&rollback)?)
    })
}

/// Changes nodes.
pub(crate) fn run(args: &SetArgs, session: &Session) -> anyhow::Result<()> {
    let set = NodeSet {
        set: args.settings.settings(),
        profile: args.profile.clone().map_or(Change::Keep, Change::Set),
        uuid: args.uuid.clone().map_or(Change::Keep, Change::Set),
        address: args.address.map_or(Change::Keep, Change::Set),
        add_macs: args.add_mac.clone(),
        remove_macs: args.remove_mac.clone(),
        ..NodeSet::of(args.nodes.clone())
    };
    change(session, args.confirm, &set)
}

/// Takes settings away.
pub(crate) fn unset(args: &UnsetArgs, session: &Session) -> anyhow::Result<()> {
    let mut set = NodeSet::of(args.nodes.clone());
    for word in &args.settings {
        match word.as_str() {
            "profile" => set.profile = Change::Unset,
            "uuid" => set.uuid = Change::Unset,
            "address" => set.address = Change::Unset,
            _ => set.unset.push(setting(word)?),
        }
    }
    change(session, args.confirm, &set)
}

fn change(session: &Session, confirm: ConfirmArgs, set: &NodeSet) -> anyhow::Result<()> {
    let client = session.client()?;
    settings::change(session, confirm, |dry_run| {
        let set = NodeSet {
            dry_run: dry_run == DryRun::Yes,
            ..set.clone()
        };
        Ok(client.node_set(&set)?)
    })
}
