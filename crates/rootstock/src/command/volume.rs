//! `rootstock volume`: writable clones.

use clap::{ArgGroup, Args, Subcommand, builder::TypedValueParser as _};
use rootstock_api::{Outcome, ShareSet, Volume, VolumeCommit, VolumeCommitted, VolumeCreate};
use rootstock_core::{ImageName, TagName, VersionSpec, VolumeName, units::parse_size_bytes};
use serde_json::json;

use super::share;
use crate::{
    output::{self, Column},
    session::Session,
};

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a writable clone of a version, or an empty disk, at no cost
    Create(CreateArgs),
    /// List the volumes
    #[command(visible_alias = "ls")]
    List,
    /// Show a volume
    Show(NameArgs),
    /// Delete a volume and what was written to it
    #[command(visible_alias = "rm")]
    Delete(NameArgs),
    /// Make a volume larger
    Resize(ResizeArgs),
    /// Copy a volume as it is now into a new one
    Snapshot(SnapshotArgs),
    /// Make a volume's contents a new version (café and lab words: apply, keep)
    Commit(CommitArgs),
    /// Drop what was written to a volume (empty its writeback)
    Reset(NameArgs),
    /// Let an initiator use a volume over iSCSI
    #[command(visible_alias = "attach")]
    Share(ShareArgs),
    /// Let it use the volume no longer
    #[command(visible_alias = "detach")]
    Unshare(UnshareArgs),
}

/// Which volume.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The volume
    name: VolumeName,
}

/// What to make.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("begins").required(true), after_help = "\
A machine opens it over NBD as volume/NAME. What it writes (its writeback) stays in
the volume; the version is not touched. To change an image, as with a 'super
client', write to a volume and commit it.

Examples:
  rootstock volume create seat-7 --from lab@production
  rootstock volume create kiosk --from lab:3 --ephemeral
  rootstock volume create big --from lab --size 200G
  rootstock volume create new --blank 20G")]
pub(crate) struct CreateArgs {
    /// The new volume
    name: VolumeName,
    /// The version to clone: NAME, NAME:3 or NAME@tag
    #[arg(long, value_name = "VERSION", group = "begins")]
    from: Option<VersionSpec>,
    /// Its size, larger than the version's disk: 200G, 1.5T
    #[arg(long, value_parser = parse_size_bytes)]
    size: Option<u64>,
    /// An empty disk of this size, for a system to be installed on: 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes, group = "begins",
        conflicts_with = "size")]
    blank: Option<u64>,
    /// Drop what was written when the last client leaves (frozen, no writeback kept)
    #[arg(long)]
    ephemeral: bool,
    /// The logical blocks of its disk over iSCSI: 512 or 4096 bytes. An image that was
    /// made for the other size has partitions that are not found
    #[arg(long, value_name = "BYTES", default_value_t = 512,
        value_parser = clap::builder::PossibleValuesParser::new(["512", "4096"])
            .map(|text| if text == "4096" { 4096_u32 } else { 512 }))]
    block_size: u32,
}

/// How large it gets.
#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// The volume
    name: VolumeName,
    /// Its new size, larger than before: 200G, 1.5T
    #[arg(value_parser = parse_size_bytes)]
    size: u64,
}

/// What is copied where.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// The volume
    name: VolumeName,
    /// The new volume
    snapshot: VolumeName,
}

/// What becomes a version of what.
#[derive(Debug, Args)]
#[command(after_help = "\
Only what was written is read and stored; the volume stays as it is.

Example:
  rootstock volume commit seat-7 lab --tag test -m 'office suite added'")]
pub(crate) struct CommitArgs {
    /// The volume
    name: VolumeName,
    /// The image that gets the version; made when it does not exist
    image: ImageName,
    /// Point this tag at the version
    #[arg(long)]
    tag: Option<TagName>,
    /// What there is to say about the version
    #[arg(long, short)]
    message: Option<String>,
}

/// With whom a volume is shared, and how.
#[derive(Debug, Args)]
#[command(after_help = "\
Nobody may use a volume over iSCSI who is not named here. With --chap the daemon makes
a secret and shows it this once; sharing again makes another. open-iscsi keeps its own
name in /etc/iscsi/initiatorname.iscsi.

Examples:
  rootstock volume share seat-7 --initiator iqn.1993-08.org.debian:01:abc --chap
  rootstock volume share seat-7 --initiator iqn.2010-04.org.ipxe:seat-7 --from 10.0.0.7
  rootstock volume share data-2 --initiator iqn.2026-11.example:db --target db --lun 2")]
pub(crate) struct ShareArgs {
    /// The volume
    name: VolumeName,
    #[command(flatten)]
    with: share::WithArgs,
    /// Make it a disk of this target, beside others; first it has a target of its own
    #[arg(long, value_name = "NAME")]
    target: Option<VolumeName>,
    /// Its number there: the lowest that is free, unless said
    #[arg(long, value_name = "NUMBER", requires = "target")]
    lun: Option<u16>,
}

/// With whom a volume is not shared any more.
#[derive(Debug, Args)]
pub(crate) struct UnshareArgs {
    /// The volume
    name: VolumeName,
    /// The initiator's name
    #[arg(long, value_name = "NAME")]
    initiator: String,
}

/// Does what the command says.
pub(crate) fn run(command: &VolumeCommand, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    match command {
        VolumeCommand::Create(args) => {
            let volume = client.volume_create(&VolumeCreate {
                name: args.name.clone(),
                from: args.from.clone(),
                size_bytes: args.size.or(args.blank),
                ephemeral: args.ephemeral,
                block_bytes: args.block_size,
            })?;
            told(session, &volume, "is ready")
        }
        VolumeCommand::List => list(session),
        VolumeCommand::Show(args) => {
            let volume = client.volume(&args.name)?;
            if session.json() {
                return output::json(&volume);
            }
            output::line(&show(&volume))
        }
        VolumeCommand::Delete(args) => {
            client.volume_delete(&args.name)?;
            done(session, &args.name, "deleted")
        }
        VolumeCommand::Resize(args) => {
            let volume = client.volume_resize(&args.name, args.size)?;
            told(session, &volume, "is resized")
        }
        VolumeCommand::Snapshot(args) => {
            let volume = client.volume_snapshot(&args.name, &args.snapshot)?;
            told(session, &volume, "is ready")
        }
        VolumeCommand::Commit(args) => commit(args, session),
        VolumeCommand::Reset(args) => {
            client.volume_reset(&args.name)?;
            done(session, &args.name, "reset")
        }
        VolumeCommand::Share(args) => share(args, session),
        VolumeCommand::Unshare(args) => {
            let volume = client.volume_unshare(&args.name, &args.initiator)?;
            if session.json() {
                return output::json(&volume);
            }
            output::line(&format!(
                "{} is not shared with {} any more",
                volume.name, args.initiator
            ))
        }
    }
}

fn share(args: &ShareArgs, session: &Session) -> anyhow::Result<()> {
    let request = ShareSet {
        target: args.target.clone(),
        lun: args.lun,
        ..args.with.request()
    };
    let shared = session.client()?.volume_share(&args.name, &request)?;
    share::told(session, &shared)
}

fn told(session: &Session, volume: &Volume, how: &str) -> anyhow::Result<()> {
    if session.json() {
        return output::json(volume);
    }
    output::line(&format!(
        "{} {how}: {} from {}, open it as {}",
        volume.name,
        output::bytes(volume.size_bytes),
        volume.base,
        volume.export
    ))
}

fn done(session: &Session, name: &VolumeName, how: &str) -> anyhow::Result<()> {
    if session.json() {
        return output::json(&json!({ how: name }));
    }
    output::line(&format!("{name} is {how}"))
}

fn list(session: &Session) -> anyhow::Result<()> {
    let volumes = session.client()?.volumes()?;
    if session.json() {
        return output::json(&volumes);
    }
    if volumes.volumes.is_empty() {
        return output::line(
            "no volumes yet: 'rootstock volume create NAME --from IMAGE' makes one",
        );
    }
    output::line(&table(&volumes.volumes))
}

fn table(volumes: &[Volume]) -> String {
    let columns = [
        Column::Text("VOLUME"),
        Column::Text("FROM"),
        Column::Number("SIZE"),
        Column::Number("WRITTEN"),
        Column::Number("CLIENTS"),
        Column::Text("MADE"),
        Column::Text(""),
    ];
    let row = |volume: &Volume| {
        vec![
            volume.name.to_string(),
            volume.base.to_string(),
            output::bytes(volume.size_bytes),
            output::bytes(volume.used_bytes),
            volume.clients.len().to_string(),
            output::time(&volume.created),
            if volume.ephemeral { "ephemeral" } else { "" }.to_owned(),
        ]
    };
    output::table(&columns, volumes.iter().map(row).collect())
}

fn show(volume: &Volume) -> String {
    let clients = &volume.clients;
    let shares: Vec<_> = volume.shares.iter().map(share::text).collect();
    output::fields(&[
        ("volume", volume.name.to_string()),
        ("from", volume.base.to_string()),
        (
            "size",
            if volume.block_bytes == 512 {
                output::bytes(volume.size_bytes)
            } else {
                format!(
                    "{} in blocks of {} B",
                    output::bytes(volume.size_bytes),
                    volume.block_bytes
                )
            },
        ),
        ("written", output::bytes(volume.used_bytes)),
        (
            "writes",
            if volume.ephemeral {
                "dropped when the last client leaves"
            } else {
                "kept"
            }
            .to_owned(),
        ),
        ("made", output::time(&volume.created)),
        ("export", volume.export.clone()),
        ("target", share::target_text(&volume.target, volume.lun)),
        (
            "initiators",
            output::or_dash((!shares.is_empty()).then(|| shares.join("; "))),
        ),
        (
            "clients",
            output::or_dash((!clients.is_empty()).then(|| clients.join(", "))),
        ),
    ])
}

fn commit(args: &CommitArgs, session: &Session) -> anyhow::Result<()> {
    let committed = session.client()?.volume_commit(
        &args.name,
        &VolumeCommit {
            image: args.image.clone(),
            tag: args.tag.clone(),
            message: args.message.clone(),
        },
    )?;
    self::committed(session, args.name.as_str(), &committed)
}

/// Says what became a version.
pub(super) fn committed(
    session: &Session,
    name: &str,
    committed: &VolumeCommitted,
) -> anyhow::Result<()> {
    if session.json() {
        return output::json(committed);
    }
    let spec = format!("{}:{}", committed.image, committed.version);
    if committed.outcome == Outcome::Unchanged {
        return output::line(&format!("{name} is {spec} already: no new version"));
    }
    output::line(&format!(
        "{name} is {spec}: disk {}, used {}, new in the store: {} in {}",
        output::bytes(committed.disk_bytes),
        output::bytes(committed.used_bytes),
        output::bytes(committed.added_bytes),
        output::count(committed.added_chunk_count, "chunk")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use rootstock_api::{ChapMode, Share};

    #[test]
    fn volumes_read_well() {
        let volume = Volume {
            name: "seat-7".parse().expect("a name"),
            base: "lab:3".parse().expect("a version"),
            size_bytes: 8 << 30,
            used_bytes: 41_000_000,
            ephemeral: true,
            block_bytes: 4096,
            created: "now".to_owned(),
            export: "volume/seat-7".to_owned(),
            clients: vec!["10.0.0.7:40112".to_owned()],
            target: "iqn.2026-11.example.site:volume.seat-7".to_owned(),
            lun: 0,
            shares: vec![Share {
                initiator: "iqn.2010-04.org.ipxe:seat-7".to_owned(),
                from: Some("10.0.0.0/24".to_owned()),
                chap: ChapMode::OneWay,
                redirect: None,
            }],
        };
        assert_snapshot!(table(std::slice::from_ref(&volume)), @r"
        VOLUME  FROM      SIZE  WRITTEN  CLIENTS  MADE
        seat-7  lab:3  8.59 GB  41.0 MB        1  now   ephemeral
        ");
        assert_snapshot!(show(&volume), @r"
        volume      seat-7
        from        lab:3
        size        8.59 GB in blocks of 4096 B
        written     41.0 MB
        writes      dropped when the last client leaves
        made        now
        export      volume/seat-7
        target      iqn.2026-11.example.site:volume.seat-7
        initiators  iqn.2010-04.org.ipxe:seat-7 from 10.0.0.0/24, CHAP
        clients     10.0.0.7:40112
        ");
    }
}
