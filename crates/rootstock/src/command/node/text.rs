//! `rootstock node import` and `export`: nodes as text.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use rootstock_api::{NodeFormat, NodeImport};

use crate::{
    command::settings::{self, ConfirmArgs, DryRun},
    error::WrongUse,
    output,
    session::Session,
};

/// The longest file that is read, in bytes.
const TEXT_BYTES_MAX: u64 = 960 << 10;

/// How nodes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON document
    Json,
    /// TOML with a [[nodes]] table for each
    Toml,
    /// A line for each network card, for spreadsheets
    Csv,
}

impl From<Format> for NodeFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Toml => Self::Toml,
            Format::Csv => Self::Csv,
        }
    }
}

/// What to import.
#[derive(Debug, Args)]
#[command(after_help = "\
Nodes that the file does not name stay as they are. A CSV file has the columns mac
and name, and, as needed, profile, uuid, address, and any setting; a node with two
cards has two lines.

Example:
  rootstock node export --format csv > nodes.csv
  rootstock node import nodes.csv")]
pub(crate) struct ImportArgs {
    /// The file ('-' is stdin)
    file: PathBuf,
    /// How it is written; by the file's name when not given
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// How to export.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// How it is written
    #[arg(long, value_enum, default_value = "csv")]
    format: Format,
}

/// Adds and changes nodes so that they are as a file says.
pub(crate) fn import(args: &ImportArgs, session: &Session) -> anyhow::Result<()> {
    let format = args.format.or_else(|| by_name(&args.file));
    let format = format.ok_or_else(|| WrongUse {
        message: format!(
            "'{}' does not say by its name how it is written",
            args.file.display()
        ),
        hint: "give --format json, toml or csv".to_owned(),
    })?;
    let text = read(&args.file)?;
    let client = session.client()?;
    settings::change(session, args.confirm, |dry_run| {
        Ok(client.node_import(&NodeImport {
            format: format.into(),
            text: text.clone(),
            dry_run: dry_run == DryRun::Yes,
        })?)
    })
}

/// Writes all nodes.
pub(crate) fn export(args: &ExportArgs, session: &Session) -> anyhow::Result<()> {
    let format = if session.json() {
        Format::Json
    } else {
        args.format
    };
    let text = session.client()?.node_export(format.into())?;
    output::line(text.text.trim_end())
}

fn by_name(file: &Path) -> Option<Format> {
    match file.extension()?.to_str()? {
        "json" => Some(Format::Json),
        "toml" => Some(Format::Toml),
        "csv" => Some(Format::Csv),
        _ => None,
    }
}

/// A short text file, or stdin.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .take(TEXT_BYTES_MAX + 1)
            .read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("'{}' cannot be read", path.display()))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(WrongUse {
            message: format!("'{}' is longer than {TEXT_BYTES_MAX} bytes", path.display()),
            hint: "split it".to_owned(),
        }
        .into());
    }
    Ok(text)
}
