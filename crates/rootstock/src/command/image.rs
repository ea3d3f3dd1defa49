//! `rootstock image`: images and their versions.

mod delete;
mod diff;
mod export;
mod history;
mod import;
mod list;
mod set;
mod share;
mod show;
mod tag;
mod verify;

use clap::Subcommand;

use crate::session::Session;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make a version of a disk image, a block device or standard input
    Import(import::ImportArgs),
    /// Write a version to a file: raw, qcow2, vmdk, vdi or vhdx
    Export(export::ExportArgs),
    /// List the images
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show an image, or one of its versions in full
    Show(show::ShowArgs),
    /// Say what a machine that has one version must fetch for another
    Diff(diff::DiffArgs),
    /// Say what may be done with an image, such as a root over NFS
    Set(set::SetArgs),
    /// Point a tag, such as production, at a version
    Tag(tag::TagArgs),
    /// Point a tag at the version that it pointed at before
    Rollback(tag::TaggedArgs),
    /// Take a tag away
    Untag(tag::TaggedArgs),
    /// Let an initiator read a version over iSCSI
    Share(share::ShareArgs),
    /// Let it read the version no longer
    Unshare(share::UnshareArgs),
    /// Show what happened to an image
    History(history::HistoryArgs),
    /// Read a version anew and name what is damaged
    Verify(verify::VerifyArgs),
    /// Delete a version, or an image with all of them
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
}

/// Does what the command says.
pub(crate) fn run(command: &ImageCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(args) => import::run(args, session),
        ImageCommand::Export(args) => export::run(args, session),
        ImageCommand::List(args) => list::run(args, session),
        ImageCommand::Show(args) => show::run(args, session),
        ImageCommand::Diff(args) => diff::run(args, session),
        ImageCommand::Set(args) => set::run(args, session),
        ImageCommand::Tag(args) => tag::run(args, session),
        ImageCommand::Rollback(args) => tag::run_rollback(args, session),
        ImageCommand::Untag(args) => tag::run_untag(args, session),
        ImageCommand::Share(args) => share::run(args, session),
        ImageCommand::Unshare(args) => share::run_unshare(args, session),
        ImageCommand::History(args) => history::run(args, session),
        ImageCommand::Verify(args) => verify::run(args, session),
        ImageCommand::Delete(args) => delete::run(args, session),
    }
}
