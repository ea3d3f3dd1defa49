//! `rootstock image diff`.

use clap::Args;
use rootstock_api::{DiffReport, RecipeDiff};
use rootstock_core::VersionSpec;

use crate::{output, session::Session};

/// What to compare.
#[derive(Debug, Args)]
#[command(after_help = "\
The bytes on the wire are what a machine that has the first version is sent: frames, or,
once the recipe between the two versions is made, deltas and the frames of the rest.

Example:
  rootstock image diff lab@production lab@test")]
pub(crate) struct DiffArgs {
    /// The version that a machine has
    from: VersionSpec,
    /// The version that it is to get
    to: VersionSpec,
}

/// Says what a holder of one version must fetch for another.
pub(crate) fn run(args: &DiffArgs, session: &Session) -> anyhow::Result<()> {
    let report = session.client()?.diff(&args.from, &args.to)?;
    if session.json() {
        return output::json(&report);
    }
    output::line(&text(&report))
}

fn text(report: &DiffReport) -> String {
    let mut fields = vec![
        (
            "to fetch",
            format!(
                "{} in {} ({} unpacked), and {} of manifest pages",
                output::bytes(report.fetch_bytes),
                output::count(report.fetch_chunk_count, "chunk"),
                output::bytes(report.fetch_raw_bytes),
                output::bytes(report.fetch_page_bytes)
            ),
        ),
        ("on the wire", output::bytes(report.wire_bytes)),
        (
            "with recipe",
            match &report.recipe {
                Some(recipe) => with_recipe(recipe, report.wire_bytes),
                None => "-".to_owned(),
            },
        ),
        (
            "changed",
            format!(
                "{} of the disk, at {}",
                output::bytes(report.changed_bytes),
                output::count(report.changed_chunk_count, "place")
            ),
        ),
    ];
    if report.from_disk_bytes != report.to_disk_bytes {
        fields.push((
            "disk",
            format!(
                "{} becomes {}",
                output::bytes(report.from_disk_bytes),
                output::bytes(report.to_disk_bytes)
            ),
        ));
    }
    format!(
        "from {} to {}\n{}",
        report.from,
        report.to,
        output::fields(&fields)
    )
}

/// What a machine that has the first version is sent.
fn with_recipe(recipe: &RecipeDiff, plain_bytes: u64) -> String {
    let less = plain_bytes.saturating_sub(recipe.wire_bytes) * 100;
    let less_percent = less.checked_div(plain_bytes).unwrap_or(0);
    format!(
        "{} on the wire, {less_percent} % less: {} rebuilt from {}",
        output::bytes(recipe.wire_bytes),
        output::count(recipe.delta_count, "chunk"),
        output::bytes(recipe.delta_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn a_difference() {
        let report = DiffReport {
            from: "lab:1".parse().expect("a version"),
            to: "lab:2".parse().expect("a version"),
            changed_chunk_count: 1900,
            changed_bytes: 498_000_000,
            fetch_chunk_count: 1,
            fetch_raw_bytes: 470_000_000,
            fetch_bytes: 331_000_000,
            fetch_page_bytes: 131_104,
            wire_bytes: 331_300_000,
            recipe: None,
            from_disk_bytes: 8 << 30,
            to_disk_bytes: 9 << 30,
        };
        assert_snapshot!(text(&report), @r"
        from lab:1 to lab:2
        to fetch     331 MB in 1 chunk (470 MB unpacked), and 131 kB of manifest pages
        on the wire  331 MB
        with recipe  -
        changed      498 MB of the disk, at 1900 places
        disk         8.59 GB becomes 9.66 GB
        ");
    }

    #[test]
    fn a_recipe() {
        let recipe = RecipeDiff {
            delta_count: 1500,
            delta_bytes: 180_000_000,
            fetch_bytes: 253_000_000,
            wire_bytes: 254_000_000,
        };
        assert_snapshot!(with_recipe(&recipe, 331_300_000), @"254 MB on the wire, 23 % less: 1500 chunks rebuilt from 180 MB");
    }
}
