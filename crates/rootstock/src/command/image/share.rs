//! `rootstock image share` and `unshare`.

use clap::Args;
use rootstock_core::VersionSpec;

use crate::{command::share, output, session::Session};

/// With whom a version is shared, and how.
#[derive(Debug, Args)]
#[command(after_help = "\
The initiator reads the version as a disk, and cannot write to it. What is shared is
the version that a name or a tag means now; it cannot be deleted until it is unshared.

Examples:
  rootstock image share lab:3 --initiator iqn.1993-08.org.debian:01:abc --chap
  rootstock image share lab@production --initiator iqn.2026-11.example:backup")]
pub(crate) struct ShareArgs {
    /// The version: NAME, NAME:3 or NAME@tag
    version: VersionSpec,
    #[command(flatten)]
    with: share::WithArgs,
}

/// With whom a version is not shared any more.
#[derive(Debug, Args)]
pub(crate) struct UnshareArgs {
    /// The version: NAME, NAME:3 or NAME@tag
    version: VersionSpec,
    /// The initiator's name
    #[arg(long, value_name = "NAME")]
    initiator: String,
}

/// Shares a version.
pub(crate) fn run(args: &ShareArgs, session: &Session) -> anyhow::Result<()> {
    let request = args.with.request();
    let shared = session.client()?.version_share(&args.version, &request)?;
    share::told(session, &shared)
}

/// Ends a share.
pub(crate) fn run_unshare(args: &UnshareArgs, session: &Session) -> anyhow::Result<()> {
    let UnshareArgs { version, initiator } = args;
    let left = session.client()?.version_unshare(version, initiator)?;
    if session.json() {
        return output::json(&left);
    }
    output::line(&format!(
        "{version} is not shared with {initiator} any more"
    ))
}
