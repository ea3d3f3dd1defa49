//! `rootstock plan`: what something would take, before it is done.

mod storm;

use clap::Subcommand;

use crate::session::Session;

/// What can be planned.
#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Estimate how long many machines take that boot at once
    Storm(storm::StormArgs),
}

/// Does what the command says.
pub(crate) fn run(command: &PlanCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        PlanCommand::Storm(args) => storm::run(args, session),
    }
}
