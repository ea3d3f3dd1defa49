//! `rootstock image delete`.

use clap::Args;
use rootstock_core::{VersionSelector, VersionSpec};
use serde_json::json;

use crate::{error::WrongUse, output, session::Session};

/// What to delete.
#[derive(Debug, Args)]
#[command(after_help = "\
A version that a volume, a tag or a client needs is not deleted. Space is freed by
'rootstock gc'.

Examples:
  rootstock image delete lab:3
  rootstock image delete lab --all")]
pub(crate) struct DeleteArgs {
    /// The version: NAME:3 or NAME@tag; or the image, with --all
    version: VersionSpec,
    /// Delete the image with all its versions
    #[arg(long)]
    all: bool,
}

/// Deletes a version or an image.
pub(crate) fn run(args: &DeleteArgs, session: &Session) -> anyhow::Result<()> {
    let VersionSpec { image, selector } = &args.version;
    let whole = *selector == VersionSelector::Latest;
    if whole != args.all {
        let (message, hint) = if args.all {
            (
                format!("--all deletes an image, and {} is a version", args.version),
                format!("write '{image} --all', or '{}' without --all", args.version),
            )
        } else {
            (
                format!("'{image}' is an image, and which version is to go is not said"),
                format!("write {image}:NUMBER, or --all for all of them"),
            )
        };
        return Err(WrongUse { message, hint }.into());
    }
    let client = session.client()?;
    if whole {
        client.delete_image(image)?;
    } else {
        client.delete_version(&args.version)?;
    }
    if session.json() {
        return output::json(&json!({"deleted": args.version}));
    }
    output::line(&format!("{} is deleted", args.version))
}
