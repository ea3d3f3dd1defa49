//! `rootstock token`: who may use the API over the network.

use clap::{Args, Subcommand, ValueEnum};
use rootstock_api::{Token, TokenCreate, TokenRole};
use rootstock_core::ImageName;
use serde_json::json;

use crate::{
    output::{self, Column},
    session::Session,
};

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it, this once
    Create(CreateArgs),
    /// List the tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token at once
    Revoke(RevokeArgs),
}

/// What to make.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  rootstock token create laptop --role admin > laptop.token
  rootstock image list --api https://server:8443 --token-file laptop.token")]
pub(crate) struct CreateArgs {
    /// A name to know it by: a person, a machine, a job
    name: String,
    /// What it allows
    #[arg(long, value_enum, default_value = "reader")]
    role: Role,
}

/// Which token.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// Its name
    name: String,
}

/// A role on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// List, show, export
    Reader,
    /// Everything
    Admin,
}

/// Does what the command says.
pub(crate) fn run(command: &TokenCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(args) => create(args, session),
        TokenCommand::List => list(session),
        TokenCommand::Revoke(args) => revoke(args, session),
    }
}

fn create(args: &CreateArgs, session: &Session) -> anyhow::Result<()> {
    let created = session.client()?.token_create(&TokenCreate {
        name: args.name.clone(),
        role: match args.role {
            Role::Reader => TokenRole::Reader,
            Role::Admin => TokenRole::Admin,
        },
    })?;
    if session.json() {
        return output::json(&created);
    }
    if session.chatty() {
        eprintln!("keep it: it is not shown again");
    }
    output::line(&created.secret)
}

fn list(session: &Session) -> anyhow::Result<()> {
    let tokens = session.client()?.tokens()?;
    if session.json() {
        return output::json(&tokens);
    }
    if tokens.tokens.is_empty() {
        return output::line("no tokens yet: 'rootstock token create NAME' makes one");
    }
    output::line(&table(&tokens.tokens))
}

fn table(tokens: &[Token]) -> String {
    let columns = [
        Column::Text("TOKEN"),
        Column::Text("ROLE"),
        Column::Text("MADE"),
        Column::Text("LAST USED"),
        Column::Text("REVOKED"),
    ];
    let row = |token: &Token| {
        vec![
            token.name.clone(),
            token.role.as_str().to_owned(),
            output::time(&token.created),
            output::or_dash(token.last_used.as_deref().map(output::time)),
            output::or_dash(token.revoked.as_deref().map(output::time)),
        ]
    };
    output::table(&columns, tokens.iter().map(row).collect())
}

fn revoke(args: &RevokeArgs, session: &Session) -> anyhow::Result<()> {
    // It becomes a part of a path, and has the rules of all names.
    let name: ImageName = args.name.parse()?;
    session.client()?.token_revoke(name.as_str())?;
    if session.json() {
        return output::json(&json!({"revoked": args.name}));
    }
    output::line(&format!("{} is revoked", args.name))
}
