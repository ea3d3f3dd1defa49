//! `rootstock rollout`: a version brought to many nodes, a few at first.

use std::{thread, time::Duration};

use clap::{Args, Subcommand};
use rootstock_api::{
    Rollout, RolloutCounts, RolloutDetail, RolloutList, RolloutReboot, RolloutStart,
    RolloutStarted, RolloutState,
};
use rootstock_client::Client;
use rootstock_core::{HostList, ProfileName, VersionSpec};

use super::settings::{ConfirmArgs, DryRun, agreed, asks};
use crate::{
    error::{Failure, WrongUse},
    output::{self, Column},
    session::Session,
};

mod text;

/// Between two looks at a rollout that is followed.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);

/// What can be done with rollouts.
#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Bring a version to many nodes; what it means is shown first
    Start(StartArgs),
    /// List the rollouts that are not over, and the last that are
    #[command(visible_alias = "ls")]
    List,
    /// Show how far a rollout is
    Status(StatusArgs),
    /// Halt a rollout: no node is touched any more
    Pause(WhichArgs),
    /// Have a rollout go on that was paused or stopped
    Resume(WhichArgs),
    /// End a rollout: nodes that did not come up with the version go back
    Abort(WhichArgs),
}

/// What to bring where.
#[derive(Debug, Args)]
#[command(after_help = "\
Machines fetch what they lack while they run. First come the canaries; when they are
up with the version, the others follow, --batch of them at a time. A node that does
not come up with it goes back to what it ran before by itself, and counts as a failure.
A canary that fails stops the rollout, and so do more than --max-failures others.

At the end a profile has the version itself, and its nodes inherit it. Nodes with an
image of their own, and personal ones, are left alone.

Examples:
  rootstock rollout start lab:8 --profile room-a --canary 2 --batch 20
  rootstock rollout start lab@test --nodes n[001-040] --dry-run
  rootstock rollout start lab:8 --profile room-a --at 02:00 --wake --reboot now --yes
  rootstock rollout status --follow")]
pub(crate) struct StartArgs {
    /// The version: lab:8, lab@test
    version: VersionSpec,
    /// Nodes that inherit their image from this profile
    #[arg(long, required_unless_present = "nodes", conflicts_with = "nodes")]
    profile: Option<ProfileName>,
    /// These nodes: n[001-300] or a,b[1,3-5]
    #[arg(long)]
    nodes: Option<HostList>,
    /// Nodes that must come up with it before all others; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    canary: u32,
    /// Nodes that are under way at once after that
    #[arg(long, value_name = "NUMBER", default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Failures that do not stop it
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    max_failures: u32,
    /// When machines start anew that have it: once nobody is logged in, now, or no
    /// (with their next boot)
    #[arg(long, value_enum, default_value_t = Reboot::Idle)]
    reboot: Reboot,
    /// Not before this time of the day, by the site's clock: 02:00
    #[arg(long, value_name = "HH:MM")]
    at: Option<String>,
    /// Wake machines that are off, by Wake-on-LAN
    #[arg(long)]
    wake: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// When machines start anew.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Reboot {
    Idle,
    Now,
    No,
}

/// Which rollout to show.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Its number; the newest one without
    rollout: Option<u64>,
    /// Go on until it is over, or needs somebody
    #[arg(long, short)]
    follow: bool,
}

/// Which rollout.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// Its number; not needed when there is one
    rollout: Option<u64>,
}

/// Does what the command says.
pub(crate) fn run(command: &RolloutCommand, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        RolloutCommand::Start(args) => start(args, session),
        RolloutCommand::List => list(session, &client.rollouts()?),
        RolloutCommand::Status(args) => {
            let id = match args.rollout {
                Some(id) => id,
                None => newest(&client.rollouts()?)?,
            };
            if args.follow {
                return follow(session, client, id);
            }
            show(session, &client.rollout(id)?)
        }
        RolloutCommand::Pause(args) => {
            let id = the_one(client, args)?;
            show(session, &client.rollout_pause(id)?)
        }
        RolloutCommand::Resume(args) => {
            let id = the_one(client, args)?;
            show(session, &client.rollout_resume(id)?)
        }
        RolloutCommand::Abort(args) => {
            let id = the_one(client, args)?;
            show(session, &client.rollout_abort(id)?)
        }
    }
}

fn start(args: &StartArgs, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let request = |dry_run| RolloutStart {
        version: args.version.clone(),
        profile: args.profile.clone(),
        nodes: args.nodes.clone(),
        canary_count: args.canary,
        batch_count: args.batch,
        failures_max: args.max_failures,
        reboot: match args.reboot {
            Reboot::Idle => RolloutReboot::Idle,
            Reboot::Now => RolloutReboot::Now,
            Reboot::No => RolloutReboot::No,
        },
        at: args.at.clone(),
        wake: args.wake,
        dry_run: dry_run == DryRun::Yes,
    };
    let planned = client.rollout_start(&request(DryRun::Yes))?;
    let tell = |started: &RolloutStarted| match session.json() {
        true => output::json(started),
        false => output::line(&text::started(started, &request(DryRun::No))),
    };
    if args.confirm.dry_run {
        return tell(&planned);
    }
    if asks(args.confirm) {
        eprintln!("{}", text::started(&planned, &request(DryRun::Yes)));
        if !agreed("start this?")? {
            return Err(Failure {
                message: "no rollout was started".to_owned(),
                hint: "say yes, or give --yes".to_owned(),
            }
            .into());
        }
    }
    tell(&client.rollout_start(&request(DryRun::No))?)
}

/// The newest rollout.
fn newest(list: &RolloutList) -> anyhow::Result<u64> {
    let newest = list.rollouts.first().map(|rollout| rollout.rollout);
    newest.ok_or_else(|| {
        Failure {
            message: "there is no rollout yet".to_owned(),
            hint: "'rootstock rollout start --help' says how one begins".to_owned(),
        }
        .into()
    })
}

/// The rollout that is meant: the only one that is not over, when none is named.
fn the_one(client: &Client, args: &WhichArgs) -> anyhow::Result<u64> {
    if let Some(id) = args.rollout {
        return Ok(id);
    }
    let rollouts = client.rollouts()?.rollouts;
    let open: Vec<u64> = rollouts
        .iter()
        .filter(|rollout| !rollout.state.is_over())
        .map(|rollout| rollout.rollout)
        .collect();
    match open[..] {
        [id] => Ok(id),
        [] => Err(Failure {
            message: "no rollout is under way".to_owned(),
            hint: "'rootstock rollout list' shows the last ones".to_owned(),
        }
        .into()),
        _ => Err(WrongUse {
            message: format!("{} rollouts are under way", open.len()),
            hint: "name one: 'rootstock rollout list' shows them".to_owned(),
        }
        .into()),
    }
}

fn list(session: &Session, list: &RolloutList) -> anyhow::Result<()> {
    if session.json() {
        return output::json(list);
    }
    if list.rollouts.is_empty() {
        return output::line("no rollouts yet: 'rootstock rollout start' begins one");
    }
    let columns = [
        Column::Number("ROLLOUT"),
        Column::Text("VERSION"),
        Column::Text("PROFILE"),
        Column::Text("STATE"),
        Column::Text("NODES"),
        Column::Text("BEGUN"),
    ];
    let row = |rollout: &Rollout| {
        vec![
            rollout.rollout.to_string(),
            rollout.version.to_string(),
            output::or_dash(rollout.profile.as_ref()),
            rollout.state.as_str().to_owned(),
            text::counts(&rollout.counts),
            output::time(&rollout.created),
        ]
    };
    let rows = list.rollouts.iter().map(row).collect();
    output::line(&output::table(&columns, rows))
}

fn show(session: &Session, detail: &RolloutDetail) -> anyhow::Result<()> {
    match session.json() {
        true => output::json(detail),
        false => output::line(&text::detail(detail)),
    }
}

/// A line for each change, until nothing changes any more by itself.
fn follow(session: &Session, client: &Client, id: u64) -> anyhow::Result<()> {
    let mut told: Option<(RolloutState, RolloutCounts)> = None;
    loop {
        let detail = client.rollout(id)?;
        let rollout = &detail.rollout;
        let now = (rollout.state, rollout.counts);
        let halts = !matches!(
            rollout.state,
            RolloutState::Running | RolloutState::Scheduled
        );
        if told != Some(now) {
            match session.json() {
                true => output::json_line(&detail)?,
                false => output::line(&text::line(rollout))?,
            }
            told = Some(now);
        }
        if halts {
            return match (rollout.state, session.json()) {
                (RolloutState::Done, _) | (_, true) => Ok(()),
                _ => output::line(&text::detail(&detail)),
            };
        }
        thread::sleep(FOLLOW_INTERVAL);
    }
}
