//! `rootstock image export`: a version becomes a file.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use rootstock_client::pull::{self, PullError};
use rootstock_core::VersionSpec;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::{
    error::{Failure, WrongUse},
    output,
    progress::{self, Exporting},
    session::{self, Session},
    source::{SourceError, detect::Foreign, qemu},
};

const EXAMPLES: &str = "\
The file appears when it is whole, and zeros take no room in it.

Examples:
  rootstock image export lab:3 lab.img
  rootstock image export lab@production lab.qcow2 --format qcow2";

/// How long a conversion may take: a day.
const CONVERT_SECONDS_MAX: u64 = 24 * 60 * 60;

/// The format of an exported file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// The disk's bytes, with holes for zeros
    Raw,
    /// QEMU, KVM, Proxmox, OpenStack
    Qcow2,
    /// VMware (stream-optimized, one file)
    Vmdk,
    /// VirtualBox
    Vdi,
    /// Hyper-V
    Vhdx,
}

/// What to export, and where to.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExportArgs {
    /// The version: NAME, NAME:3 or NAME@tag
    version: VersionSpec,
    /// The file to write
    file: PathBuf,
    /// The file's format
    #[arg(long, value_enum, default_value = "raw")]
    format: ExportFormat,
    /// Replace the file if there is one
    #[arg(long, short)]
    force: bool,
}

/// Exports.
pub(crate) fn run(args: &ExportArgs, session: &Session) -> anyhow::Result<()> {
    let cancel = session::cancel_on_signals()?;
    if !args.force && args.file.symlink_metadata().is_ok() {
        return Err(WrongUse {
            message: format!("'{}' exists", args.file.display()),
            hint: "name another file, or replace it with --force".to_owned(),
        }
        .into());
    }
    if args.force && args.file.metadata().is_ok_and(|file| !file.is_file()) {
        return Err(WrongUse {
            message: format!("'{}' is not a file", args.file.display()),
            hint: "export to a file, and write that to a device with 'dd'".to_owned(),
        }
        .into());
    }
    let begin = Instant::now();
    let client = session.client()?;
    let pulled = pull::manifest(client, &args.version)?;
    let grid = pulled.manifest.grid();
    let raw = beside(&args.file)?;
    let bar = Exporting(progress::bytes(session, "exporting", grid.disk_bytes()));
    let result = pull::pull(client, &pulled.manifest, raw.as_file(), &bar, &cancel);
    bar.0.finish_and_clear();
    result?;
    let whole = match args.format {
        ExportFormat::Raw => raw,
        format => convert(&raw, &args.file, format)?,
    };
    if cancel.load(Ordering::Relaxed) {
        return Err(PullError::Cancelled.into());
    }
    put(whole, &args.file, args.force)?;
    let file_bytes = std::fs::metadata(&args.file).map_or(0, |file| {
        use std::os::unix::fs::MetadataExt as _;
        file.blocks() * 512
    });
    let seconds = begin.elapsed().as_secs_f64();
    if session.json() {
        return output::json(&json!({
            "version": pulled.version,
            "manifest": pulled.manifest.id(),
            "file": args.file,
            "disk_bytes": grid.disk_bytes(),
            "file_bytes": file_bytes,
            "seconds": seconds,
        }));
    }
    output::line(&format!(
        "{} is in {}: disk {}, takes {} ({seconds:.1} s)",
        pulled.version,
        args.file.display(),
        output::bytes(grid.disk_bytes()),
        output::bytes(file_bytes)
    ))
}

/// A new file in the directory of the target, gone when it is not finished.
fn beside(target: &Path) -> anyhow::Result<NamedTempFile> {
    let dir = match target.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".rootstock-export-");
    // As any new file, by the umask, and not for its owner only.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    builder.permissions(permissions);
    builder.tempfile_in(dir).map_err(|error| {
        Failure {
            message: format!("'{}' cannot be written to: {error}", dir.display()),
            hint: "name a file in a directory that is there and that you may write to".to_owned(),
        }
        .into()
    })
}

fn convert(
    raw: &NamedTempFile,
    target: &Path,
    format: ExportFormat,
) -> anyhow::Result<NamedTempFile> {
    let (driver, options, foreign): (_, &[&str], _) = match format {
        ExportFormat::Raw | ExportFormat::Qcow2 => ("qcow2", &[], Foreign::Qcow2),
        ExportFormat::Vmdk => ("vmdk", &["-o", "subformat=streamOptimized"], Foreign::Vmdk),
        ExportFormat::Vdi => ("vdi", &[], Foreign::Vdi),
        ExportFormat::Vhdx => ("vhdx", &["-o", "subformat=dynamic"], Foreign::Vhdx),
    };
    let whole = beside(target)?;
    // Paths that qemu-img cannot take for a protocol.
    let path = |file: &NamedTempFile| std::path::absolute(file.path());
    let (from, to) = (path(raw)?, path(&whole)?);
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", "raw", "-O", driver])
        .args(options)
        .arg(from)
        .arg(to);
    let failed = |reason| SourceError::Convert {
        path: target.to_owned(),
        format: foreign,
        reason,
    };
    qemu::run(
        &mut command,
        Duration::from_secs(CONVERT_SECONDS_MAX),
        failed,
    )?;
    // qemu-img may have made the file anew: what is there now is to be kept.
    std::fs::File::open(whole.path())
        .and_then(|file| file.sync_all())
        .with_context(|| format!("'{}' cannot be written", target.display()))?;
    Ok(whole)
}

fn put(whole: NamedTempFile, target: &Path, force: bool) -> anyhow::Result<()> {
    let result = if force {
        whole.persist(target)
    } else {
        whole.persist_noclobber(target)
    };
    let Err(error) = result else {
        return Ok(());
    };
    if error.error.kind() == io::ErrorKind::AlreadyExists {
        return Err(WrongUse {
            message: format!("'{}' appeared meanwhile", target.display()),
            hint: "name another file, or replace it with --force".to_owned(),
        }
        .into());
    }
    Err(error.error).with_context(|| format!("'{}' cannot be written", target.display()))
}
