//! `rootstock image list`.

use clap::Args;
use rootstock_api::ImageSummary;

use crate::{
    output::{self, Column},
    session::Session,
};

/// Nothing to choose.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {}

/// Lists the images.
pub(crate) fn run(_: &ListArgs, session: &Session) -> anyhow::Result<()> {
    let images = session.client()?.images()?;
    if session.json() {
        return output::json(&images);
    }
    if images.images.is_empty() {
        return output::line("no images yet: 'rootstock image import NAME SOURCE' makes one");
    }
    output::line(&table(&images.images))
}

fn table(images: &[ImageSummary]) -> String {
    let columns = [
        Column::Text("IMAGE"),
        Column::Number("VERSIONS"),
        Column::Number("LATEST"),
        Column::Number("DISK"),
        Column::Number("USED"),
        Column::Text("CHANGED"),
        Column::Text("TAGS"),
    ];
    let row = |image: &ImageSummary| {
        let latest = image.latest.as_ref();
        let tags: Vec<String> = image
            .tags
            .iter()
            .map(|tag| format!("{}={}", tag.name, tag.version))
            .collect();
        vec![
            image.name.to_string(),
            image.version_count.to_string(),
            output::or_dash(latest.map(|version| version.version)),
            output::or_dash(latest.map(|version| output::bytes(version.disk_bytes))),
            output::or_dash(latest.map(|version| output::bytes(version.used_bytes))),
            latest.map_or_else(
                || output::time(&image.created),
                |version| output::time(&version.created),
            ),
            output::or_dash((!tags.is_empty()).then(|| tags.join(" "))),
        ]
    };
    output::table(&columns, images.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use serde_json::json;

    #[test]
    fn a_list() {
        let images: Vec<ImageSummary> = serde_json::from_value(json!([
            {"name": "lab", "version_count": 2, "created": "x", "tags": [{"name": "test", "version": 2}],
             "latest": {"version": 2, "created": "soon", "disk_bytes": 8589934592_u64,
                        "used_bytes": 2050000000, "added_bytes": 5, "tags": ["test"]}},
            {"name": "empty", "version_count": 0, "created": "then", "tags": [], "latest": null}
        ]))
        .expect("a list");
        assert_snapshot!(table(&images), @r"
        IMAGE  VERSIONS  LATEST     DISK     USED  CHANGED  TAGS
        lab           2       2  8.59 GB  2.05 GB  soon     test=2
        empty         0       -        -        -  then     -
        ");
    }
}
