//! `rootstock profile`: settings that nodes inherit.

use clap::{Args, Subcommand};
use rootstock_api::{Change, Profile, ProfileCreate, ProfileRollback, ProfileSet, Setting};
use rootstock_core::ProfileName;
use serde_json::json;

use super::settings::{self, ConfirmArgs, DryRun, SettingArgs};
use crate::{
    output::{self, Column},
    session::Session,
};

/// What can be done with profiles.
#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Make a profile
    Create(CreateArgs),
    /// List the profiles
    #[command(visible_alias = "ls")]
    List,
    /// Show a profile and what its heirs get
    Show(NameArgs),
    /// Change a profile; what changes is shown first
    Set(SetArgs),
    /// Take settings away, so that they are inherited
    Unset(UnsetArgs),
    /// Go back to the image that was set before; what changes is shown first
    Rollback(RollbackArgs),
    /// Delete a profile that nothing inherits from
    #[command(visible_alias = "rm")]
    Delete(NameArgs),
}

/// Which profile.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The profile
    name: ProfileName,
}

/// What goes back.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The profile
    name: ProfileName,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What to make.
#[derive(Debug, Args)]
#[command(after_help = "\
Nodes and other profiles inherit what a profile sets; the nearest setting holds.

Examples:
  rootstock profile create lab --image lab@production --mode frozen
  rootstock profile create lab-gpu --parent lab --kernel-arguments nomodeset
  rootstock profile set lab --exam yes
  rootstock node set n[001-300] --profile lab")]
pub(crate) struct CreateArgs {
    /// The new profile
    name: ProfileName,
    /// The profile it inherits from
    #[arg(long, value_name = "PROFILE")]
    parent: Option<ProfileName>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The profile
    name: ProfileName,
    /// The profile it inherits from
    #[arg(long, value_name = "PROFILE")]
    parent: Option<ProfileName>,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What to take away.
#[derive(Debug, Args)]
pub(crate) struct UnsetArgs {
    /// The profile
    name: ProfileName,
    /// Settings, or parent
    #[arg(required = true, value_name = "SETTING")]
    settings: Vec<String>,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// Does what the command says.
pub(crate) fn run(command: &ProfileCommand, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        ProfileCommand::Create(args) => {
            let profile = client.profile_create(&ProfileCreate {
                name: args.name.clone(),
                parent: args.parent.clone(),
                settings: args.settings.settings(),
            })?;
            if session.json() {
                return output::json(&profile);
            }
            output::line(&format!("{} is ready", profile.name))
        }
        ProfileCommand::List => list(session),
        ProfileCommand::Show(args) => {
            let profile = client.profile(&args.name)?;
            if session.json() {
                return output::json(&profile);
            }
            output::line(&show(&profile))
        }
        ProfileCommand::Set(args) => {
            let set = ProfileSet {
                set: args.settings.settings(),
                parent: args.parent.clone().map_or(Change::Keep, Change::Set),
                ..ProfileSet::default()
            };
            change(session, &args.name, args.confirm, &set)
        }
        ProfileCommand::Unset(args) => {
            let mut set = ProfileSet::default();
            for word in &args.settings {
                match word.as_str() {
                    "parent" => set.parent = Change::Unset,
                    _ => set.unset.push(setting(word)?),
                }
            }
            change(session, &args.name, args.confirm, &set)
        }
        ProfileCommand::Rollback(args) => settings::change(session, args.confirm, |dry_run| {
            let rollback = ProfileRollback {
                dry_run: dry_run == DryRun::Yes,
            };
            Ok(client.profile_rollback(&args.name, &rollback)?)
        }),
        ProfileCommand::Delete(args) => {
            client.profile_delete(&args.name)?;
            if session.json() {
                return output::json(&json!({ "deleted": args.name }));
            }
            output::line(&format!("{} is deleted", args.name))
        }
    }
}

/// A setting by its name.
pub(super) fn setting(word: &str) -> anyhow::Result<Setting> {
    word.parse().map_err(|error: rootstock_api::SettingError| {
        crate::error::WrongUse {
            message: error.to_string(),
            hint: "'rootstock node set --help' says what each is".to_owned(),
        }
        .into()
    })
}

fn change(
    session: &Session,
    name: &ProfileName,
    confirm: ConfirmArgs,
    set: &ProfileSet,
) -> anyhow::Result<()> {
    let client = session.client()?;
    settings::change(session, confirm, |dry_run| {
        let set = ProfileSet {
            dry_run: dry_run == DryRun::Yes,
            ..set.clone()
        };
        Ok(client.profile_set(name, &set)?)
    })
}

fn list(session: &Session) -> anyhow::Result<()> {
    let profiles = session.client()?.profiles()?;
    if session.json() {
        return output::json(&profiles);
    }
    if profiles.profiles.is_empty() {
        return output::line("no profiles yet: 'rootstock profile create NAME' makes one");
    }
    let columns = [
        Column::Text("PROFILE"),
        Column::Text("PARENT"),
        Column::Text("IMAGE"),
        Column::Text("MODE"),
        Column::Number("NODES"),
    ];
    let row = |profile: &Profile| {
        vec![
            profile.name.to_string(),
            output::or_dash(profile.parent.as_ref()),
            output::or_dash(profile.effective.image.as_ref()),
            output::or_dash(profile.effective.mode),
            profile.node_count.to_string(),
        ]
    };
    output::line(&output::table(
        &columns,
        profiles.profiles.iter().map(row).collect(),
    ))
}

fn show(profile: &Profile) -> String {
    let mut fields = vec![
        ("profile", profile.name.to_string()),
        ("parent", output::or_dash(profile.parent.as_ref())),
        ("nodes", profile.node_count.to_string()),
        ("made", output::time(&profile.created)),
    ];
    // A profile's own settings are marked by no origin, as a node's are.
    let own = |name: &String| {
        rootstock_api::Origin::Profile {
            name: profile.name.clone(),
        } != profile.origins[name]
    };
    let origins = profile.origins.iter().filter(|(name, _)| own(name));
    let origins = origins
        .map(|(name, origin)| (name.clone(), origin.clone()))
        .collect();
    fields.extend(settings::effective(&profile.effective, &origins));
    output::fields(&fields)
}
