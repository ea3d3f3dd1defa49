//! `rootstock installer`: installers of distributions, and what machines get of them.

use clap::{Args, Subcommand};
use rootstock_api::{Installer, InstallerEnd, InstallerRender};
use rootstock_core::{InstallerName, NodeName};

use crate::{
    output::{self, Column},
    session::Session,
};

/// What can be done with installers.
#[derive(Debug, Subcommand)]
pub(crate) enum InstallerCommand {
    /// List the installers, and what is wrong with them
    #[command(visible_alias = "ls")]
    List,
    /// Show an installer
    Show(ShowArgs),
    /// Print what an installer would be given on a node, to try its templates
    Render(RenderArgs),
}

/// Which installer.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Its name
    name: InstallerName,
}

/// Which installer, where.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  rootstock installer render debian-12 --node n07 preseed.cfg")]
pub(crate) struct RenderArgs {
    /// Its name
    name: InstallerName,
    /// The node that it would run on
    #[arg(long)]
    node: NodeName,
    /// One of its files alone, or `arguments` for those of its kernel
    file: Option<String>,
}

/// Does what the command says.
pub(crate) fn run(command: &InstallerCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        InstallerCommand::List => list(session),
        InstallerCommand::Show(args) => show(args, session),
        InstallerCommand::Render(args) => render(args, session),
    }
}

fn list(session: &Session) -> anyhow::Result<()> {
    let list = session.client()?.installers()?;
    if session.json() {
        return output::json(&list);
    }
    if list.installers.is_empty() {
        return output::line(&format!(
            "there are no installers: make a folder for each in {} on the server",
            list.directory
        ));
    }
    let columns = [
        Column::Text("INSTALLER"),
        Column::Text("TITLE"),
        Column::Text("FILES"),
        Column::Text("PROBLEM"),
    ];
    let row = |one: &Installer| {
        vec![
            one.name.to_string(),
            one.title.clone(),
            output::or_dash((!one.files.is_empty()).then(|| one.files.join(" "))),
            one.problem.clone().unwrap_or_default(),
        ]
    };
    let rows = list.installers.iter().map(row).collect();
    output::line(&output::table(&columns, rows))
}

fn show(args: &ShowArgs, session: &Session) -> anyhow::Result<()> {
    let one = session.client()?.installer(&args.name)?;
    if session.json() {
        return output::json(&one);
    }
    output::line(&output::fields(&fields(&one)))
}

fn fields(one: &Installer) -> Vec<(&'static str, String)> {
    let mut fields = vec![("installer", one.name.to_string())];
    if !one.title.is_empty() {
        fields.push(("title", one.title.clone()));
    }
    if let Some(problem) = &one.problem {
        fields.push(("problem", problem.clone()));
    }
    if one.kernel.is_empty() {
        return fields;
    }
    let ends = match one.ends {
        InstallerEnd::Call => "when it calls home",
        InstallerEnd::Restart => "when the machine starts again",
    };
    fields.extend([
        ("kernel", one.kernel.clone()),
        (
            "initrd",
            output::or_dash((!one.initrd.is_empty()).then(|| one.initrd.join(" "))),
        ),
        (
            "files",
            output::or_dash((!one.files.is_empty()).then(|| one.files.join(" "))),
        ),
        ("done", ends.to_owned()),
        ("started", format!("{} times at most", one.starts_max)),
    ]);
    fields
}

fn render(args: &RenderArgs, session: &Session) -> anyhow::Result<()> {
    let node = args.node.clone();
    let mut rendered = session
        .client()?
        .installer_render(&args.name, &InstallerRender { node })?;
    if session.json() {
        return output::json(&rendered);
    }
    let arguments = rendered.arguments.join(" ");
    match args.file.as_deref() {
        None => {
            output::line(&format!("# arguments\n{arguments}"))?;
            for (name, text) in &rendered.files {
                output::line(&format!("\n# {name}\n{}", text.trim_end()))?;
            }
            Ok(())
        }
        Some("arguments") => output::line(&arguments),
        Some(name) => match rendered.files.remove(name) {
            Some(text) => output::line(text.trim_end()),
            None => anyhow::bail!(
                "the installer {} has no file '{}': it has {}",
                args.name,
                name.escape_debug(),
                rendered.files.into_keys().collect::<Vec<_>>().join(", ")
            ),
        },
    }
}
