//! `rootstock image history`.

use clap::Args;
use rootstock_api::{HistoryEntry, HistoryEvent};
use rootstock_core::ImageName;

use crate::{
    output::{self, Column},
    session::Session,
};

/// Whose history.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The image
    image: ImageName,
}

/// Shows what happened to an image, oldest first.
pub(crate) fn run(args: &HistoryArgs, session: &Session) -> anyhow::Result<()> {
    let history = session.client()?.history(&args.image)?;
    if session.json() {
        return output::json(&history);
    }
    output::line(&table(&history.entries))
}

fn table(entries: &[HistoryEntry]) -> String {
    let columns = [
        Column::Text("TIME"),
        Column::Text("WHAT"),
        Column::Number("VERSION"),
        Column::Text("TAG"),
        Column::Text("BY"),
        Column::Text("DETAIL"),
    ];
    let row = |entry: &HistoryEntry| {
        let event = match entry.event {
            HistoryEvent::Imported => "imported",
            HistoryEvent::Committed => "committed",
            HistoryEvent::Tagged => "tagged",
            HistoryEvent::Untagged => "untagged",
            HistoryEvent::Deleted => "deleted",
            HistoryEvent::NfsSet => "NFS root",
            HistoryEvent::Unknown => "something newer",
        };
        vec![
            output::time(&entry.time),
            event.to_owned(),
            output::or_dash(entry.version),
            output::or_dash(entry.tag.as_ref()),
            entry.actor.clone(),
            entry.detail.clone(),
        ]
    };
    output::table(&columns, entries.iter().map(row).collect())
}
