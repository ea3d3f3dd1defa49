//! `rootstock node commit`: what a personal machine wrote becomes a version.

use std::{thread, time::Duration};

use clap::Args;
use rootstock_api::{NodeCommit, NodeCommitState, VolumeCommit};
use rootstock_core::{ImageName, NodeName, TagName};

use crate::{command::volume, error::Failure, output, progress, session::Session};

/// How often the daemon is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What becomes a version of what.
#[derive(Debug, Args)]
#[command(after_help = "\
The machine runs on: its file system is at rest for a moment, and what was written until
then is sent, as far as the server lacks it. It goes on when this command is interrupted.
What is written later stays on the machine, over the version that it runs.

Example:
  rootstock node commit master lab --tag test -m 'office suite added'")]
pub(crate) struct CommitArgs {
    /// The node, whose mode is personal
    node: NodeName,
    /// The image that gets the version; made when it does not exist
    #[arg(required_unless_present = "abort")]
    image: Option<ImageName>,
    /// Point this tag at the version
    #[arg(long)]
    tag: Option<TagName>,
    /// What there is to say about the version
    #[arg(long, short)]
    message: Option<String>,
    /// Give the commit up that is on its way
    #[arg(long, conflicts_with_all = ["image", "tag", "message"])]
    abort: bool,
}

/// Does what the command says.
pub(super) fn run(args: &CommitArgs, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let Some(image) = &args.image else {
        let given_up = client.node_commit_abort(&args.node)?;
        if session.json() {
            return output::json(&given_up);
        }
        return output::line(&format!("{}: given up", args.node));
    };
    let mut commit = client.node_commit(
        &args.node,
        &VolumeCommit {
            image: image.clone(),
            tag: args.tag.clone(),
            message: args.message.clone(),
        },
    )?;
    let bar = progress::bytes(session, "sending", 0);
    while matches!(
        commit.state,
        NodeCommitState::Waiting | NodeCommitState::Going
    ) {
        bar.set_length(commit.progress.total_bytes);
        bar.set_position(commit.progress.done_bytes);
        thread::sleep(ASK_EVERY);
        let now = client.node_commit_show(&args.node)?;
        if now.begun != commit.begun {
            return Err(Failure {
                message: format!("what {} wrote is no version: it was given up", args.node),
                hint: "somebody else has a commit of that node made now".to_owned(),
            }
            .into());
        }
        commit = now;
    }
    bar.finish_and_clear();
    done(args, session, &commit)
}

fn done(args: &CommitArgs, session: &Session, commit: &NodeCommit) -> anyhow::Result<()> {
    if let Some(committed) = &commit.committed {
        return volume::committed(session, &args.node.to_string(), committed);
    }
    let reason = commit.reason.as_deref().unwrap_or("no reason was given");
    Err(Failure {
        message: format!("what {} wrote is no version: {reason}", args.node),
        hint: "what was sent helps the next try".to_owned(),
    }
    .into())
}
