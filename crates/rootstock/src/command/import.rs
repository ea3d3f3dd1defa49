//! `rootstock import`: imports that are not finished.

use clap::{Args, Subcommand};
use rootstock_api::Import;
use serde_json::json;

use crate::{
    output::{self, Column},
    session::Session,
};

/// What can be done with unfinished imports.
#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// List imports that were begun and not finished
    #[command(visible_alias = "ls")]
    List,
    /// Give up an import, so that gc frees what was sent
    Abort(AbortArgs),
}

/// Which import.
#[derive(Debug, Args)]
pub(crate) struct AbortArgs {
    /// Its id, from 'rootstock import list'
    id: String,
}

/// Does what the command says.
pub(crate) fn run(command: &ImportCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        ImportCommand::List => list(session),
        ImportCommand::Abort(args) => abort(args, session),
    }
}

fn list(session: &Session) -> anyhow::Result<()> {
    let imports = session.client()?.imports()?;
    if session.json() {
        return output::json(&imports);
    }
    if imports.imports.is_empty() {
        return output::line("no import is open");
    }
    output::line(&table(&imports.imports))
}

fn table(imports: &[Import]) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("IMAGE"),
        Column::Number("DISK"),
        Column::Number("SENT"),
        Column::Text("LAST HEARD OF"),
        Column::Text("EXPIRES"),
        Column::Text("SOURCE"),
    ];
    let row = |import: &Import| {
        vec![
            import.id.clone(),
            import.image.to_string(),
            output::bytes(import.disk_bytes),
            output::bytes(import.added_bytes),
            output::time(&import.active),
            output::time(&import.expires),
            import.source.clone(),
        ]
    };
    output::table(&columns, imports.iter().map(row).collect())
}

fn abort(args: &AbortArgs, session: &Session) -> anyhow::Result<()> {
    session.client()?.import_abort(&args.id)?;
    if session.json() {
        return output::json(&json!({"aborted": args.id}));
    }
    output::line(&format!("import {} is given up", args.id))
}
