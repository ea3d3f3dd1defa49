//! `rootstock image import`: a disk becomes a version.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;
use rootstock_api::{ImportCommitted, Outcome};
use rootstock_client::push::{Counts, Push, push};
use rootstock_core::{
    ImageName, TagName,
    units::{DISK_BYTES_MAX, parse_size_bytes},
};
use rootstock_image::inspect::{DiskReport, FreeSpace, inspect};
use serde_json::json;

use crate::{
    error::Failure,
    output,
    progress::{self, Importing},
    session::{self, Session},
    source::{self, Opened, detect::Format, file::Writes},
};

const EXAMPLES: &str = "\
Sources: a raw disk image, a block device, qcow2, VMDK, VDI, VHD, VHDX, an OVA, a
Vagrant box, any of them packed with gzip, xz or zstd, and - for standard input.

The work is done here: holes and free space are skipped, and only what the daemon
lacks is sent. If it is interrupted, run the same command again: it goes on where
it was. A source that is the image's newest version already makes no new one.

Examples:
  rootstock image import lab disk.qcow2
  rootstock image import lab disk.img.xz --tag test -m 'kernel 6.1.99'
  sudo rootstock image import lab /dev/sda --api https://server:8443
  curl -s https://example.org/disk.raw.gz | rootstock image import lab -";

/// What to import, and as what.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportArgs {
    /// The image that gets the version; made when it does not exist
    name: ImageName,
    /// The disk: a file, a block device, or - for standard input
    source: PathBuf,
    /// Point this tag at the version
    #[arg(long)]
    tag: Option<TagName>,
    /// What there is to say about the version
    #[arg(long, short)]
    message: Option<String>,
    /// Keep what file systems have free, such as deleted files
    #[arg(long)]
    keep_free_space: bool,
    /// Take the source for this format instead of looking
    #[arg(long)]
    format: Option<Format>,
    /// The member of an OVA or box that is the disk, when there are several
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Where streams and packed sources are unpacked to
    #[arg(
        long,
        value_name = "DIR",
        env = "TMPDIR",
        default_value = "/var/tmp",
        hide_env = true
    )]
    spool: PathBuf,
    /// The largest disk to accept
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    max_size: Option<u64>,
    /// Accept a source that is written to while it is read, such as the disk of
    /// the running system: its file systems may need their repair
    #[arg(long)]
    allow_changes: bool,
    /// Accept a disk whose end is missing, by what its partition table says
    #[arg(long)]
    allow_truncated: bool,
}

/// Imports.
pub(crate) fn run(args: &ImportArgs, session: &Session) -> anyhow::Result<()> {
    let cancel = session::cancel_on_signals()?;
    // Asked before long work, so that nobody waits to learn of a missing daemon.
    session.client()?.site()?;
    let begin = Instant::now();
    let Opened {
        disk,
        formats,
        is_in_use,
    } = open(args, session)?;
    if is_in_use && session.chatty() {
        eprintln!(
            "note:  '{}' is in use: what is free in it is kept",
            args.source.display()
        );
    }
    let keep = match (args.keep_free_space || is_in_use, args.allow_changes) {
        (true, _) => FreeSpace::Keep,
        (false, true) => FreeSpace::DropIfMarked,
        (false, false) => FreeSpace::Drop,
    };
    let report = inspect(disk.as_ref(), keep)
        .with_context(|| format!("'{}' cannot be read", args.source.display()))?;
    refuse_truncated(args, &report)?;
    if session.chatty() {
        for note in &report.notes {
            eprintln!("note:  {note}");
        }
    }
    let facts = rootstock_client::facts(&report);
    let bar = Importing::new(session, report.grid.disk_bytes());
    let result = push(
        session.client()?,
        &Push {
            source: disk.as_ref(),
            grid: &report.grid,
            free: &report.free,
            facts: &facts,
            image: &args.name,
            source_name: &source_name(&args.source),
            tag: args.tag.as_ref(),
            message: args.message.as_deref(),
            progress: &bar,
            cancel: &cancel,
        },
    );
    let counts = bar.finish();
    let committed = result?;
    let done = Done {
        committed: &committed,
        formats: &formats,
        report: &report,
        counts,
        seconds: begin.elapsed().as_secs_f64(),
    };
    if session.json() {
        return output::json(&done.json());
    }
    output::line(&done.text(args))
}

fn open(args: &ImportArgs, session: &Session) -> anyhow::Result<Opened> {
    let options = source::Options {
        format: args.format,
        member: args.member.clone(),
        spool_dir: args.spool.clone(),
        disk_bytes_max: args.max_size.unwrap_or(DISK_BYTES_MAX),
        writes: if args.allow_changes {
            Writes::Allow
        } else {
            Writes::Refuse
        },
    };
    let bar = progress::endless(session, "unpacking");
    let opened = source::open(&args.source, &options, &mut |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    Ok(opened?)
}

/// Refuses a disk that was cut short, which its partition table tells.
fn refuse_truncated(args: &ImportArgs, report: &DiskReport) -> Result<(), Failure> {
    let Some(said_bytes) = report.table_says_bytes.filter(|_| !args.allow_truncated) else {
        return Ok(());
    };
    let disk_bytes = report.grid.disk_bytes();
    Err(Failure {
        message: format!(
            "'{}' is cut short: its partition table says that the disk has {} ({said_bytes} \
             bytes), and there are {} ({disk_bytes} bytes)",
            args.source.display(),
            output::bytes(said_bytes),
            output::bytes(disk_bytes)
        ),
        hint: "copy or fetch it again, whole; --allow-truncated takes what there is".to_owned(),
    })
}

/// The source as the daemon keeps it: the same wherever the command was run.
fn source_name(path: &Path) -> String {
    if path == Path::new("-") {
        return "standard input".to_owned();
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = absolute.display().to_string();
    // The end of a long path tells more than its beginning.
    let skip = text.chars().count().saturating_sub(200);
    text.chars().skip(skip).collect()
}

struct Done<'a> {
    committed: &'a ImportCommitted,
    formats: &'a [Format],
    report: &'a DiskReport,
    counts: Counts,
    seconds: f64,
}

impl Done<'_> {
    fn json(&self) -> serde_json::Value {
        let mut document = json!(self.committed);
        let formats: Vec<String> = self.formats.iter().map(ToString::to_string).collect();
        document["formats"] = json!(formats);
        document["seconds"] = json!(self.seconds);
        document["read_bytes"] = json!(self.counts.read_bytes);
        document["skipped_bytes"] = json!(self.counts.skipped_bytes);
        document["sent_bytes"] = json!(self.counts.sent_bytes);
        document["dropped_free_bytes"] = json!(self.report.free.total_bytes());
        document["notes"] = json!(self.report.notes);
        document
    }

    fn text(&self, args: &ImportArgs) -> String {
        let done = self.committed;
        let spec = format!("{}:{}", done.image, done.version);
        let tag = args.tag.as_ref();
        let tagged = tag.map_or(String::new(), |tag| format!(", tagged {tag}"));
        if done.outcome == Outcome::Unchanged {
            return format!(
                "{} is {spec} already: no new version{tagged} ({:.1} s)",
                args.source.display(),
                self.seconds
            );
        }
        let parent = done.parent.as_ref();
        let beside = parent.map_or(String::new(), |parent| format!(" beside {parent}"));
        format!(
            "{spec}{tagged}: disk {}, used {}, new in the store{beside}: {} in {} ({:.1} s)",
            output::bytes(done.disk_bytes),
            output::bytes(done.used_bytes),
            output::bytes(done.added_bytes),
            output::count(done.added_chunk_count, "chunk"),
            self.seconds
        )
    }
}
