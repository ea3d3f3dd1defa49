//! The images that are measured: real files of this machine in a real file system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Bench, process};
use crate::command::find_program;

/// Where real files come from, until there are enough of them.
const TREES: [&str; 4] = ["/usr/lib", "/usr/share", "/usr/bin", "/usr/local"];

/// A disk with a GPT and one ext4 partition, filled with real files.
pub(crate) fn filled_disk(bench: &Bench) -> Result<PathBuf> {
    let disk = bench.scratch("disk.raw");
    if disk.exists() {
        return Ok(disk);
    }
    let wanted = bench.args.used_mib << 20;
    println!(
        "making an image with {} MiB of real files",
        bench.args.used_mib
    );
    let tree = bench.scratch("tree");
    fs::create_dir(&tree)?;
    let mut copied = 0;
    for from in TREES {
        copy_tree(
            Path::new(from),
            &tree.join(from.trim_start_matches('/')),
            wanted,
            &mut copied,
        )?;
    }
    let disk_bytes = wanted * 3 / 2 + (1 << 30);
    let disk_bytes = disk_bytes.next_multiple_of(1 << 20);
    fs::File::create(&disk)?.set_len(disk_bytes)?;
    partition(&disk, disk_bytes)?;
    let blocks = (disk_bytes - (2 << 20)) / 4096;
    process::output(
        Command::new(find_program("mke2fs").context("mke2fs")?)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-b",
                "4096",
                "-E",
                "offset=1048576",
                "-d",
            ])
            .arg(&tree)
            .arg(&disk)
            .arg(blocks.to_string()),
    )?;
    fs::remove_dir_all(&tree)?;
    Ok(disk)
}

fn partition(disk: &Path, disk_bytes: u64) -> Result<String> {
    let sectors = (disk_bytes - (2 << 20)) / 512;
    let script = disk.with_extension("sfdisk");
    fs::write(
        &script,
        format!("label: gpt\nstart=2048, size={sectors}, type=linux\n"),
    )?;
    let sfdisk = find_program("sfdisk").context("sfdisk")?;
    // sfdisk reads its script from standard input only.
    let command = format!(
        "{} --quiet {} < {}",
        sfdisk.display(),
        disk.display(),
        script.display()
    );
    process::output(Command::new("sh").args(["-c", &command]))
}

/// Copies regular files until `copied` reaches `wanted`.
fn copy_tree(from: &Path, to: &Path, wanted: u64, copied: &mut u64) -> Result<()> {
    let mut entries: Vec<_> = match fs::read_dir(from) {
        Ok(entries) => entries.filter_map(Result::ok).collect(),
        Err(_) => return Ok(()),
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir_all(to)?;
    for entry in entries {
        if *copied >= wanted {
            break;
        }
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target, wanted, copied)?;
        } else if kind.is_file() {
            *copied += fs::copy(entry.path(), &target).unwrap_or(0);
        }
    }
    Ok(())
}

/// 1 GiB of real data without holes, for the NBD servers.
pub(crate) fn gigabyte(bench: &Bench) -> Result<PathBuf> {
    let file = bench.scratch("gigabyte.raw");
    if !file.exists() {
        let mut out = fs::File::create(&file)?;
        append_tree(Path::new("/usr/lib"), &mut out, 1 << 30)?;
        out.set_len(1 << 30)?;
    }
    Ok(file)
}

fn append_tree(from: &Path, out: &mut fs::File, wanted: u64) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from)?.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if out.metadata()?.len() >= wanted {
            return Ok(());
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            append_tree(&entry.path(), out, wanted)?;
        } else if kind.is_file() {
            std::io::copy(&mut fs::File::open(entry.path())?, out)?;
        }
    }
    Ok(())
}
