//! `rootstock node install`: an installer at the next boot.

use rootstock_api::{InstallerRunState, Node, NodeNames, NodesInstall};
use rootstock_core::{HostList, InstallerName, units::parse_size_bytes};

use crate::{output, session::Session};

/// Which nodes, and which installer.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The installer runs once, at the next boot from the network; then the node boots what its
mode says. A node in the mode iscsi is installed on its volume, which is made if it has
none yet; any other one on what the installer's own files say.

Examples:
  rootstock node set n07 --mode iscsi
  rootstock node install n07 --installer debian-12 --size 20G
  rootstock node install n[01-20] --cancel")]
pub(crate) struct InstallArgs {
    /// The nodes: NAME, n[001-300] or a,b[1,3-5]
    nodes: HostList,
    /// The installer; what is on the disk that it installs to is lost
    #[arg(long, required_unless_present = "cancel", conflicts_with = "cancel")]
    installer: Option<InstallerName>,
    /// How large the volume is made of a node that has none yet: 20G
    #[arg(long, value_parser = parse_size_bytes, conflicts_with = "cancel")]
    size: Option<u64>,
    /// Also nodes that run now
    #[arg(long, conflicts_with = "cancel")]
    force: bool,
    /// Have no installer run there
    #[arg(long)]
    cancel: bool,
}

pub(super) fn run(args: &InstallArgs, session: &Session) -> anyhow::Result<()> {
    let Some(installer) = &args.installer else {
        return cancel(args, session);
    };
    let done = session.client()?.node_install(&NodesInstall {
        nodes: args.nodes.clone(),
        installer: installer.clone(),
        volume_bytes: args.size,
        force: args.force,
    })?;
    if session.json() {
        return output::json(&done);
    }
    for target in &done.nodes {
        let place = match (&target.volume, target.made) {
            (Some(volume), true) => format!(", on the new volume {volume}"),
            (Some(volume), false) => format!(", on the volume {volume}"),
            (None, _) => String::new(),
        };
        let node = &target.node;
        output::line(&format!("{node} runs {installer} at its next boot{place}"))?;
    }
    Ok(())
}

fn cancel(args: &InstallArgs, session: &Session) -> anyhow::Result<()> {
    let nodes = args.nodes.clone();
    let done = session
        .client()?
        .node_install_cancel(&NodeNames { nodes })?;
    if done.nodes.is_empty() && !session.json() {
        return output::line("no installer was to run there");
    }
    super::told(session, &done, "no installer runs there")
}

/// What an installer is to do on a node, or did.
pub(super) fn fields(node: &Node) -> Option<(&'static str, String)> {
    let run = node.installer.as_ref()?;
    let at = |time: &Option<String>| output::or_dash(time.as_deref().map(output::time));
    let text = match run.state {
        InstallerRunState::Waiting => "starts at the next boot".to_owned(),
        InstallerRunState::Running => {
            format!("since {}, start {}", at(&run.started), run.starts)
        }
        InstallerRunState::Done => format!("done at {}", at(&run.ended)),
        InstallerRunState::Failed => {
            let reason = run.reason.as_deref().unwrap_or("failed");
            format!("{reason} ({})", at(&run.ended))
        }
        InstallerRunState::Unknown => "unknown".to_owned(),
    };
    Some(("installer", format!("{}: {text}", run.installer)))
}
