//! `rootstock nfs`: versions exported over NFS.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rootstock_nfs::{NbdAddress, Options};
use rootstock_server::config::LogConfig;

use crate::{error::WrongUse, session::Session};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum NfsCommand {
    /// Mount the versions that machines in the mode nfs run, and export them with
    /// nfs-ganesha
    ///
    /// It runs as root beside the daemon (rootstock-nfs.service), asks it what is wanted,
    /// and does not end. Each version has a TCP port and an nfs-ganesha of its own; only
    /// images that `rootstock image set NAME --nfs yes` names are mounted, read-only, and
    /// only addresses of machines that boot them are let in.
    Serve(ServeArgs),
    /// One version of `nfs serve`
    #[command(hide = true)]
    Export,
}

/// How it serves.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The daemon's NBD server: HOST:PORT or unix:PATH, without TLS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10809")]
    nbd: NbdAddress,
    /// The TCP ports to use, one for each version that runs
    #[arg(long, value_name = "FIRST-LAST", default_value = "2049-2080", value_parser = ports)]
    ports: RangeInclusive<u16>,
    /// Where versions are mounted while they are exported
    #[arg(long, value_name = "DIR", default_value = "/run/rootstock-nfs")]
    run_dir: PathBuf,
    /// Where it is kept which version has which port
    #[arg(long, value_name = "DIR", default_value = "/var/lib/rootstock-nfs")]
    state_dir: PathBuf,
    /// Seconds that a version stays exported after nobody uses it any more
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    linger: u64,
    /// What is logged: info, debug, rootstock_nfs=debug,info
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = || -> Option<RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    };
    range().ok_or_else(|| "write a range such as 2049-2080".to_owned())
}

/// Does it.
pub(crate) fn run(verb: &NfsCommand, session: &Session) -> anyhow::Result<()> {
    match verb {
        NfsCommand::Serve(args) => serve(args, session),
        NfsCommand::Export => {
            super::serve::start_log(&LogConfig::default())?;
            Ok(rootstock_nfs::export()?)
        }
    }
}

fn serve(args: &ServeArgs, session: &Session) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(WrongUse {
            message: "mounting versions takes root".to_owned(),
            hint: "start rootstock-nfs.service, or this command as root".to_owned(),
        }
        .into());
    }
    super::serve::start_log(&LogConfig {
        filter: args.log.clone(),
        ..LogConfig::default()
    })?;
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let program = program.to_str().context("this program's path is no text")?;
    let options = Options {
        program: vec![program.to_owned(), "nfs".to_owned(), "export".to_owned()],
        nbd: args.nbd.clone(),
        run_dir: args.run_dir.clone(),
        state_dir: args.state_dir.clone(),
        ports: args.ports.clone(),
        linger: Duration::from_secs(args.linger),
    };
    Ok(rootstock_nfs::serve(session.own_client()?, options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_range() {
        for (text, expected) in [
            ("2049-2080", Some(2049..=2080)),
            ("2049", Some(2049..=2049)),
            ("2080-2049", None),
            ("0-1", None),
            ("a", None),
        ] {
            assert_eq!(ports(text).ok(), expected, "{text}");
        }
    }
}
