//! `rootstock node`: machines and what they run.

use clap::Subcommand;
use rootstock_api::{NodeDelete, NodeNames, NodeReboot, NodeReplace, NodesDone, NodesTold};
use rootstock_core::{HostList, MacAddress, NodeName, fold};

use crate::{output, session::Session};

mod add;
mod commit;
mod health;
mod install;
mod list;
mod log;
mod report;
mod set;
mod text;
mod watch;

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Add nodes by their network cards
    Add(add::AddArgs),
    /// List the nodes
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show a node, what holds for it, and where that comes from
    Show(list::ShowArgs),
    /// Change nodes; what changes is shown first
    Set(set::SetArgs),
    /// Take settings away, so that they are inherited
    Unset(set::UnsetArgs),
    /// Go back to the image that was set before; what changes is shown first
    Rollback(set::RollbackArgs),
    /// Have another machine take a node's place, with its name, settings, keys and volume
    Replace(ReplaceArgs),
    /// Let machines that were found on the network boot
    Approve(NamesArgs),
    /// Try versions again that nodes did not come up with
    Retry(NamesArgs),
    /// Lay the image out anew at their next boot, on nodes whose mode is install: what
    /// was written to their disk since is lost
    Reinstall(NamesArgs),
    /// Have nodes run an installer at their next boot, before what their mode says
    Install(install::InstallArgs),
    /// Make what a personal machine wrote a new version
    Commit(commit::CommitArgs),
    /// Have personal machines drop what they wrote, at their next boot
    Reset(NamesArgs),
    /// Start machines anew that run
    Reboot(RebootArgs),
    /// Wake machines up by Wake-on-LAN
    Wake(NamesArgs),
    /// Delete nodes
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// Add and change nodes so that they are as a file says
    Import(text::ImportArgs),
    /// Write all nodes as text
    Export(text::ExportArgs),
    /// Show how nodes do, live
    Watch(watch::WatchArgs),
    /// Show a node's last boot, step by step
    Log(log::LogArgs),
}

/// Which nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct NamesArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
}

/// Which machine takes whose place.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The new machine is the node from its next boot on. If it was found on the network
before, and waits for approval under another name, that name goes.

Example:
  rootstock node replace n07 --mac 52:54:00:12:34:56")]
pub(crate) struct ReplaceArgs {
    /// The node whose machine is broken
    node: NodeName,
    /// A network card of the new machine; repeatable
    #[arg(long = "mac", value_name = "MAC", required = true)]
    macs: Vec<MacAddress>,
    /// The new machine's SMBIOS UUID
    #[arg(long)]
    uuid: Option<String>,
    /// Also when the old machine runs: it loses its disk
    #[arg(long)]
    force: bool,
}

/// Which nodes start anew.
#[derive(Debug, clap::Args)]
pub(crate) struct RebootArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
    /// Let the kernel do it where the system takes longer than two minutes: what is not
    /// written yet is lost
    #[arg(long)]
    force: bool,
}

/// Which nodes go.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
    /// Also nodes that run: they lose their disk
    #[arg(long)]
    force: bool,
}

/// Does what the command says.
pub(crate) fn run(command: &NodeCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        NodeCommand::Add(args) => add::run(args, session),
        NodeCommand::List(args) => list::run(args, session),
        NodeCommand::Show(args) => list::show(args, session),
        NodeCommand::Set(args) => set::run(args, session),
        NodeCommand::Unset(args) => set::unset(args, session),
        NodeCommand::Rollback(args) => set::rollback(args, session),
        NodeCommand::Replace(args) => {
            let replace = NodeReplace {
                macs: args.macs.clone(),
                uuid: args.uuid.clone(),
                force: args.force,
            };
            let report = session.client()?.node_replace(&args.node, &replace)?;
            if session.json() {
                return output::json(&report);
            }
            output::line(&format!(
                "{} is this machine from its next boot on",
                args.node
            ))
        }
        NodeCommand::Approve(args) => {
            let nodes = args.nodes.clone();
            let done = session.client()?.node_approve(&NodeNames { nodes })?;
            if done.nodes.is_empty() && !session.json() {
                return output::line("none of them was held");
            }
            told(session, &done, "may boot")
        }
        NodeCommand::Retry(args) => {
            let nodes = args.nodes.clone();
            let done = session.client()?.node_retry(&NodeNames { nodes })?;
            if done.nodes.is_empty() && !session.json() {
                return output::line("no version failed there");
            }
            told(session, &done, "the next boot tries again")
        }
        NodeCommand::Reinstall(args) => {
            let nodes = args.nodes.clone();
            let done = session.client()?.node_reinstall(&NodeNames { nodes })?;
            if done.nodes.is_empty() && !session.json() {
                return output::line("nothing is installed there");
            }
            told(session, &done, "the next boot installs anew")
        }
        NodeCommand::Install(args) => install::run(args, session),
        NodeCommand::Commit(args) => commit::run(args, session),
        NodeCommand::Reset(args) => {
            let nodes = args.nodes.clone();
            let done = session.client()?.node_reset(&NodeNames { nodes })?;
            told(session, &done, "the next boot begins with the image")
        }
        NodeCommand::Reboot(args) => {
            let done = session.client()?.node_reboot(&NodeReboot {
                nodes: args.nodes.clone(),
                force: args.force,
            })?;
            ordered(session, &done, "told to start anew", "not running")
        }
        NodeCommand::Wake(args) => {
            let nodes = args.nodes.clone();
            let done = session.client()?.node_wake(&NodeNames { nodes })?;
            ordered(session, &done, "woken", "running already")
        }
        NodeCommand::Delete(args) => {
            let done = session.client()?.node_delete(&NodeDelete {
                nodes: args.nodes.clone(),
                force: args.force,
            })?;
            told(session, &done, "deleted")
        }
        NodeCommand::Import(args) => text::import(args, session),
        NodeCommand::Export(args) => text::export(args, session),
        NodeCommand::Watch(args) => watch::run(args, session),
        NodeCommand::Log(args) => log::run(args, session),
    }
}

fn ordered(session: &Session, done: &NodesTold, how: &str, others: &str) -> anyhow::Result<()> {
    if session.json() {
        return output::json(done);
    }
    for (how, nodes) in [(how, &done.nodes), (others, &done.others)] {
        if !nodes.is_empty() {
            output::line(&format!("{how}: {}", fold(nodes)))?;
        }
    }
    Ok(())
}

fn told(session: &Session, done: &NodesDone, how: &str) -> anyhow::Result<()> {
    if session.json() {
        return output::json(done);
    }
    output::line(&format!("{how}: {}", fold(&done.nodes)))?;
    if !done.running.is_empty() {
        output::line(&format!(
            "of these ran, and have lost their disk: {}",
            fold(&done.running)
        ))?;
    }
    Ok(())
}
