//! `rootstock image set`: what may be done with an image.

use clap::{Args, ValueEnum};
use rootstock_core::ImageName;

use crate::{output, session::Session};

/// What may be done with which image.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rootstock image set lab --nfs yes     machines may have it as their root over NFS

With --nfs yes the kernel of the head mounts file systems of this image, read-only. A
file system made by an enemy may attack the kernel that mounts it: allow it for images
that you trust as much as the head.")]
pub(crate) struct SetArgs {
    /// The image
    image: ImageName,
    /// Whether its versions may be the roots of machines over NFS (mode nfs)
    #[arg(long)]
    nfs: Answer,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Answer {
    Yes,
    No,
}

/// Says it to the daemon.
pub(crate) fn run(args: &SetArgs, session: &Session) -> anyhow::Result<()> {
    let set = session
        .client()?
        .image_nfs(&args.image, args.nfs == Answer::Yes)?;
    if session.json() {
        return output::json(&set);
    }
    output::line(&match set.allowed {
        true => format!("{} may be a root over NFS", args.image),
        false => format!(
            "{} may be no root over NFS: machines that run it go on until they boot again",
            args.image
        ),
    })
}
