//! `rootstock gc`.

use clap::Args;
use rootstock_api::{CollectEvent, CollectReport};

use crate::{output, progress, session::Session};

/// Nothing to choose.
#[derive(Debug, Args)]
#[command(after_help = "\
Frees the chunks that no version, tag, volume, client or open import needs. It may
run at any time, whatever else is going on.")]
pub(crate) struct GcArgs {}

/// Frees what nothing needs.
pub(crate) fn run(_: &GcArgs, session: &Session) -> anyhow::Result<()> {
    let bar = progress::endless(session, "looking for what is needed");
    let report = session.client()?.collect(|event| match event {
        CollectEvent::Marking {
            done_count,
            total_count,
        } => bar.set_message(format!("version {done_count} of {total_count}")),
        CollectEvent::Sweeping { .. } => bar.set_message("freeing"),
        CollectEvent::Done(_) | CollectEvent::Failed(_) => {}
    });
    bar.finish_and_clear();
    let report = report?;
    if session.json() {
        return output::json(&report);
    }
    output::line(&text(&report))
}

fn text(report: &CollectReport) -> String {
    format!(
        "{} freed: {} removed, {} written anew, {} dropped, {} kept",
        output::bytes(report.freed_bytes),
        output::count(report.removed_pack_count, "pack"),
        output::count(report.rewritten_pack_count, "pack"),
        output::count(report.freed_chunk_count, "chunk"),
        output::count(report.live_chunk_count, "chunk"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report() {
        let report = CollectReport {
            live_chunk_count: 8000,
            freed_chunk_count: 1,
            freed_bytes: 32 << 20,
            removed_pack_count: 2,
            rewritten_pack_count: 1,
        };
        insta::assert_snapshot!(text(&report), @"33.6 MB freed: 2 packs removed, 1 pack written anew, 1 chunk dropped, 8000 chunks kept");
    }
}
