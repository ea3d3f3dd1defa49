//! `rootstock node add`: nodes by their network cards.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use rootstock_api::{NodeCreate, NodeSpec};
use rootstock_core::{HostList, MacAddress, ProfileName, fold};

use crate::{command::settings::SettingArgs, error::WrongUse, output, session::Session};

/// What to add.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rootstock node add pc-17 --mac 52:54:00:12:34:56 --image lab@production
  rootstock node add n[001-300] --macs macs.txt --profile lab

macs.txt has a MAC address on each line, in the order of the names.")]
pub(crate) struct AddArgs {
    /// The new nodes: NAME, or n[001-300] with --macs
    nodes: HostList,
    /// A network card of the node; repeatable
    #[arg(long = "mac", value_name = "MAC", conflicts_with = "macs")]
    mac: Vec<MacAddress>,
    /// A file with a MAC address on each line, one for each node ('-' is stdin)
    #[arg(long, value_name = "FILE")]
    macs: Option<PathBuf>,
    /// The node's SMBIOS UUID
    #[arg(long)]
    uuid: Option<String>,
    /// The address that is the node's own
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// The profile they inherit from
    #[arg(long)]
    profile: Option<ProfileName>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Adds nodes.
pub(crate) fn run(args: &AddArgs, session: &Session) -> anyhow::Result<()> {
    let names = args.nodes.names();
    let one_each = !args.mac.is_empty() || args.uuid.is_some() || args.address.is_some();
    if names.len() > 1 && one_each {
        return Err(WrongUse {
            message: format!(
                "--mac, --uuid and --address are one node's, and {} are named",
                names.len()
            ),
            hint: "give their MAC addresses in a file: --macs FILE".to_owned(),
        }
        .into());
    }
    let macs = match &args.macs {
        Some(path) => read_macs(path, names.len())?
            .into_iter()
            .map(|mac| vec![mac])
            .collect(),
        None => vec![args.mac.clone(); names.len()],
    };
    let spec = |(name, macs): (&rootstock_core::NodeName, Vec<MacAddress>)| NodeSpec {
        name: name.clone(),
        macs,
        uuid: args.uuid.clone(),
        address: args.address,
        profile: args.profile.clone(),
        settings: args.settings.settings(),
    };
    let create = NodeCreate {
        nodes: names.iter().zip(macs).map(spec).collect(),
    };
    let added = session.client()?.node_create(&create)?;
    if session.json() {
        return output::json(&added);
    }
    let names: Vec<_> = added.nodes.into_iter().map(|node| node.name).collect();
    output::line(&format!("added: {}", fold(&names)))
}

fn read_macs(path: &std::path::Path, count: usize) -> anyhow::Result<Vec<MacAddress>> {
    let text = super::text::read(path)?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim());
    let lines = lines.enumerate().filter(|(_, line)| !line.is_empty());
    let mac = |(place, line): (usize, &str)| {
        line.parse::<MacAddress>()
            .with_context(|| format!("line {} of '{}' is wrong", place + 1, path.display()))
    };
    let macs: Vec<MacAddress> = lines.map(mac).collect::<anyhow::Result<_>>()?;
    if macs.len() != count {
        return Err(WrongUse {
            message: format!(
                "'{}' has {}, and {} are named",
                path.display(),
                output::count(macs.len() as u64, "MAC address").replace("addresss", "addresses"),
                output::count(count as u64, "node")
            ),
            hint: "write one MAC address on each line, in the order of the names".to_owned(),
        }
        .into());
    }
    Ok(macs)
}
