//! `rootstock image show`.

use clap::Args;
use rootstock_api::{
    BootSet, FsFacts, ImageBootFacts, ImageDetail, PartitionFacts, RecipeSummary, VersionDetail,
    VersionSummary, swarm::LiveCopies,
};
use rootstock_core::{TagName, VersionSelector, VersionSpec};

use crate::{
    command::share,
    output::{self, Column},
    session::Session,
};

/// What to show.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rootstock image show lab             all its versions
  rootstock image show lab:3           one version: partitions, kernels, what it needs
  rootstock image show lab@production")]
pub(crate) struct ShowArgs {
    /// The image, or a version of it: NAME, NAME:3 or NAME@tag
    version: VersionSpec,
}

/// Shows an image or a version.
pub(crate) fn run(args: &ShowArgs, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    if args.version.selector == VersionSelector::Latest {
        let image = client.image(&args.version.image)?;
        if session.json() {
            return output::json(&image);
        }
        return output::line(&image_text(&image));
    }
    let version = client.version(&args.version)?;
    if session.json() {
        return output::json(&version);
    }
    output::line(&version_text(&version))
}

fn image_text(image: &ImageDetail) -> String {
    let columns = [
        Column::Text("VERSION"),
        Column::Text("MADE"),
        Column::Number("DISK"),
        Column::Number("USED"),
        Column::Number("ADDED"),
        Column::Text("TAGS"),
        Column::Text("MESSAGE"),
    ];
    let row = |version: &VersionSummary| {
        vec![
            format!("{}:{}", image.name, version.version),
            output::time(&version.created),
            output::bytes(version.disk_bytes),
            output::bytes(version.used_bytes),
            output::bytes(version.added_bytes),
            tags(version),
            output::or_dash(version.message.as_deref().map(first_line)),
        ]
    };
    let table = output::table(&columns, image.versions.iter().map(row).collect());
    match image.nfs {
        true => format!("{table}\nthe head may mount its versions, as roots over NFS"),
        false => table,
    }
}

fn version_text(version: &VersionDetail) -> String {
    let (summary, size, facts) = (&version.summary, &version.size, &version.facts);
    let mut fields = vec![
        ("version", format!("{}:{}", version.image, summary.version)),
        ("tags", tags(summary)),
        ("made", output::time(&summary.created)),
        ("from", version.source.clone()),
        ("parent", output::or_dash(version.parent.as_ref())),
        ("disk", output::bytes(summary.disk_bytes)),
        ("used", output::bytes(summary.used_bytes)),
        (
            "unique",
            format!(
                "{} ({} stored, freed if it is deleted)",
                output::bytes(size.unique_bytes),
                output::bytes(size.stored_unique_bytes)
            ),
        ),
        (
            "shared",
            format!("{} with other versions", output::bytes(size.shared_bytes)),
        ),
        (
            "stored",
            format!(
                "{} in {}",
                output::bytes(size.stored_bytes),
                output::count(size.chunk_count, "chunk")
            ),
        ),
        (
            "left out",
            format!("{} of free space", output::bytes(facts.dropped_free_bytes)),
        ),
        ("system", output::or_dash(facts.os.as_deref())),
        (
            "kernels",
            output::or_dash((!facts.kernels.is_empty()).then(|| facts.kernels.join(", "))),
        ),
        ("manifest", version.manifest.to_string()),
    ];
    if version.recipes.is_empty() {
        fields.push(("recipe", "-".to_owned()));
    }
    for recipe in &version.recipes {
        fields.push(("recipe", recipe_text(recipe)));
    }
    if let Some(boot) = &facts.boot {
        fields.push(("boots", boots(boot)));
    }
    if let Some(set) = &version.boot_set {
        fields.push(("boot set", boot_set(set)));
    }
    if let Some(live) = &version.live_copies {
        fields.push(("live copies", live_copies(*live)));
    }
    if !version.shares.is_empty() {
        let shares: Vec<_> = version.shares.iter().map(share::text).collect();
        fields.push(("target", version.target.clone()));
        fields.push(("initiators", shares.join("; ")));
    }
    if !version.volumes.is_empty() {
        fields.push(("volumes", version.volumes.join(", ")));
    }
    if let Some(message) = &summary.message {
        fields.push(("message", message.clone()));
    }
    let mut text = output::fields(&fields);
    if !facts.partitions.is_empty() {
        text.push_str("\n\n");
        text.push_str(&partitions(&facts.table, &facts.partitions));
    }
    text
}

/// Which kernel boots a machine, or why none does.
fn boots(boot: &ImageBootFacts) -> String {
    if let Some(why) = &boot.why_not {
        return format!("no: {why}");
    }
    let place = match boot.partition {
        None | Some(0) => "the disk".to_owned(),
        Some(number) => format!("partition {number}"),
    };
    let stage = boot.initrd_bytes.map_or_else(String::new, |len| {
        format!(", first stage of {}", output::bytes(len))
    });
    let iscsi = match boot.has_initiator {
        Some(true) => ", its own initrd knows iSCSI",
        _ => "",
    };
    format!(
        "kernel {}, {} on {place}{stage}{iscsi}",
        output::or_dash(boot.kernel.as_ref()),
        output::or_dash(boot.fs.as_ref())
    )
}

/// What a machine is sent first, and how that is known.
fn boot_set(set: &BootSet) -> String {
    let learnt = match &set.source {
        Some(source) if set.boots == 0 => format!("carried over from {source}"),
        _ => format!("learnt from {}", output::count(set.boots, "boot")),
    };
    format!(
        "{}, {} ({} to send), {learnt}",
        output::count(set.chunk_count, "chunk"),
        output::bytes(set.raw_bytes),
        output::bytes(set.frame_bytes)
    )
}

/// How many machines hold what the fewest hold.
fn live_copies(live: LiveCopies) -> String {
    let LiveCopies {
        rarest_count,
        machine_count,
    } = live;
    let machines = output::count(machine_count.into(), "machine");
    format!("{rarest_count} of the rarest chunk (of {machines})")
}

/// How much less a machine fetches that has another version.
fn recipe_text(recipe: &RecipeSummary) -> String {
    format!(
        "from {}: {} rebuilt from {} instead of {}, {} stored",
        recipe.from,
        output::count(recipe.delta_count, "chunk"),
        output::bytes(recipe.delta_bytes),
        output::bytes(recipe.frame_bytes),
        output::bytes(recipe.stored_bytes)
    )
}

fn partitions(table: &str, partitions: &[PartitionFacts]) -> String {
    let columns = [
        Column::Text("PARTITION"),
        Column::Number("START"),
        Column::Number("SIZE"),
        Column::Text("TYPE"),
        Column::Text("FILE SYSTEM"),
        Column::Text("LABEL"),
        Column::Number("USED"),
        Column::Text("REMARK"),
    ];
    let mut rows = Vec::new();
    for partition in partitions {
        let number = match partition.number {
            0 => "whole disk".to_owned(),
            number => format!("{table} {number}"),
        };
        let head = [
            number,
            output::bytes(partition.start_bytes),
            output::bytes(partition.len_bytes),
            partition.type_name.clone(),
        ];
        push_rows(&mut rows, head, partition.fs.as_ref(), 1);
    }
    output::table(&columns, rows)
}

/// A line of what it is in, and one of each volume in it.
fn push_rows(rows: &mut Vec<Vec<String>>, head: [String; 4], fs: Option<&FsFacts>, depth: usize) {
    let remark = fs.and_then(|fs| fs.kept_whole_because.as_deref());
    let rest = [
        output::or_dash(fs.map(|fs| fs.kind.as_str())),
        output::or_dash(fs.and_then(|fs| fs.label.as_deref())),
        output::or_dash(fs.and_then(|fs| fs.used_bytes).map(output::bytes)),
        remark.map_or_else(String::new, |why| format!("kept whole: {why}")),
    ];
    rows.push(head.into_iter().chain(rest).collect());
    for volume in fs.iter().flat_map(|fs| &fs.volumes) {
        let head = [
            format!("{}{}", "  ".repeat(depth), volume.name),
            "-".to_owned(),
            output::bytes(volume.len_bytes),
            "volume".to_owned(),
        ];
        push_rows(rows, head, volume.fs.as_ref(), depth + 1);
    }
}

fn tags(version: &VersionSummary) -> String {
    let tags: Vec<&str> = version.tags.iter().map(TagName::as_str).collect();
    output::or_dash((!tags.is_empty()).then(|| tags.join(" ")))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use serde_json::json;

    #[test]
    fn a_version_in_full() {
        let version: VersionDetail = serde_json::from_value(json!({
            "image": "lab", "version": 2, "created": "soon", "disk_bytes": 8589934592_u64,
            "used_bytes": 2050000000, "added_bytes": 331000000, "tags": ["production", "test"],
            "message": "51 packages", "manifest": "ab".repeat(32), "seal": "", "source": "/srv/lab.qcow2",
            "parent": "lab:1",
            "size": {"chunk_count": 7900, "unique_bytes": 700000000, "shared_bytes": 1350000000,
                     "stored_bytes": 790000000, "stored_unique_bytes": 331000000},
            "facts": {"table": "gpt", "kernels": ["6.1.0-28-amd64"], "os": "Debian GNU/Linux 12",
                      "dropped_free_bytes": 540000000,
                      "partitions": [
                        {"number": 1, "start_bytes": 1048576, "len_bytes": 536870912, "type_name": "EFI system",
                         "fs": {"kind": "fat32", "label": "EFI", "used_bytes": 12000000}},
                        {"number": 2, "start_bytes": 537919488, "len_bytes": 8050966528_u64, "type_name": "Linux root",
                         "fs": {"kind": "f2fs", "kept_whole_because": "the free space of f2fs is not looked for"}},
                        {"number": 3, "start_bytes": 8588886016_u64, "len_bytes": 1048064, "type_name": "Linux LVM",
                         "fs": {"kind": "lvm2 physical volume", "label": "lab", "used_bytes": 900000, "volumes": [
                            {"name": "home", "len_bytes": 700000, "fs": {"kind": "ext4", "used_bytes": 40000}},
                            {"name": "raw", "len_bytes": 200000}]}}]},
            "boot_set": {"chunk_count": 507, "raw_bytes": 126000000, "frame_bytes": 37500000, "boots": 3},
            "live_copies": {"rarest_count": 3, "machine_count": 12},
            "volumes": ["seat-1"],
            "recipes": [{"from": "lab:1", "to": "lab:2", "delta_count": 1500, "delta_bytes": 180000000,
                         "frame_bytes": 257000000, "stored_bytes": 180300000, "created": "soon"}]
        }))
        .expect("a version");
        assert_snapshot!(version_text(&version), @r"
        version      lab:2
        tags         production test
        made         soon
        from         /srv/lab.qcow2
        parent       lab:1
        disk         8.59 GB
        used         2.05 GB
        unique       700 MB (331 MB stored, freed if it is deleted)
        shared       1.35 GB with other versions
        stored       790 MB in 7900 chunks
        left out     540 MB of free space
        system       Debian GNU/Linux 12
        kernels      6.1.0-28-amd64
        manifest     abababababababababababababababababababababababababababababababab
        recipe       from lab:1: 1500 chunks rebuilt from 180 MB instead of 257 MB, 180 MB stored
        boot set     507 chunks, 126 MB (37.5 MB to send), learnt from 3 boots
        live copies  3 of the rarest chunk (of 12 machines)
        volumes      seat-1
        message      51 packages

        PARTITION    START     SIZE  TYPE        FILE SYSTEM           LABEL     USED  REMARK
        gpt 1      1.05 MB   537 MB  EFI system  fat32                 EFI    12.0 MB
        gpt 2       538 MB  8.05 GB  Linux root  f2fs                  -            -  kept whole: the free space of f2fs is not looked for
        gpt 3      8.59 GB  1.05 MB  Linux LVM   lvm2 physical volume  lab     900 kB
          home           -   700 kB  volume      ext4                  -      40.0 kB
          raw            -   200 kB  volume      -                     -            -
        ");
    }

    #[test]
    fn a_boot_set_says_how_it_is_known() {
        for (boots, source, expected) in [
            (
                1,
                None,
                "2 chunks, 900 B (300 B to send), learnt from 1 boot",
            ),
            (
                0,
                Some("lab:3"),
                "2 chunks, 900 B (300 B to send), carried over from lab:3",
            ),
        ] {
            let set = BootSet {
                chunk_count: 2,
                raw_bytes: 900,
                frame_bytes: 300,
                boots,
                source: source.map(|text| text.parse().expect("a version")),
            };
            assert_eq!(boot_set(&set), expected);
        }
    }

    #[test]
    fn an_image() {
        let image: ImageDetail = serde_json::from_value(json!({
            "name": "lab", "created": "then", "tags": [],
            "versions": [
                {"version": 1, "created": "then", "disk_bytes": 1000, "used_bytes": 900, "added_bytes": 300},
                {"version": 2, "created": "now", "disk_bytes": 1000, "used_bytes": 900, "added_bytes": 12,
                 "tags": ["test"], "message": "a word\nand more"}]
        }))
        .expect("an image");
        assert_snapshot!(image_text(&image), @r"
        VERSION  MADE     DISK   USED  ADDED  TAGS  MESSAGE
        lab:1    then  1.00 kB  900 B  300 B  -     -
        lab:2    now   1.00 kB  900 B   12 B  test  a word
        ");
    }
}
