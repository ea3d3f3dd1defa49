//! The image of the node that is measured: fio is in it, and files for it to read.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rootstock_core::CHUNK_BYTES;
use rootstock_tests::disk::{self, FIRST_PARTITION_BYTES};
use rootstock_tests::golden::{self, Golden};
use rootstock_tests::tool;
use rootstock_tests::undo::{Action, Undo};

use crate::command;

/// The file whose chunks are read, each once.
pub(super) const READ: &str = "srv/read";
/// It does not compress, so that each chunk takes its time on the wire.
const READ_BYTES: u64 = 640 << 20;
/// What the fill has to do meanwhile, in front of it.
const BALLAST: &str = "srv/ballast";
const BALLAST_BYTES: u64 = 512 << 20;
/// A read of the guest's own is as short as its file system's blocks.
const READ_LEN: u64 = 4096;

/// Makes it below `directory`, with the lists for two passes of each round.
pub(super) fn make(directory: &Path, rounds: u32) -> Result<PathBuf> {
    let say = |line: &str| println!("  {line}");
    let cache = command::target().join("demo-cache");
    let golden = golden::build(&cache, Golden::Fio, &say)?;
    let image = directory.join("image.img");
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]);
    tool::run_command(cp.arg(&golden).arg(&image))?;
    let tree = directory.join("tree");
    fs::create_dir(&tree)?;
    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("loop,offset={FIRST_PARTITION_BYTES}")]);
    tool::run_command(mount.arg(&image).arg(&tree))?;
    let mounted = Undo::new(Action::Unmount(tree.clone()));
    disk::noise(&tree.join(BALLAST), BALLAST_BYTES, 1)?;
    disk::noise(&tree.join(READ), READ_BYTES, 2)?;
    for (pass, list) in lists(2 * rounds as usize).iter().enumerate() {
        fs::write(tree.join(&list_path(pass)[1..]), list)?;
    }
    mounted.now()?;
    Ok(image)
}

/// Where the machine finds the list of a pass.
pub(super) fn list_path(pass: usize) -> String {
    format!("/srv/pass-{pass}")
}

/// For each pass the reads of its own part of the chunks, in an order of chance, as fio
/// is told of them ("Trace file format v2" of its documentation).
fn lists(passes: usize) -> Vec<String> {
    let mut chunks: Vec<u64> = (0..READ_BYTES / CHUNK_BYTES).collect();
    let mut random = 5_u64;
    for at in (1..chunks.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        chunks.swap(at, (random % (at as u64 + 1)) as usize);
    }
    let list = |chunks: &[u64]| {
        let mut list = format!("fio version 2 iolog\n/{READ} add\n/{READ} open\n");
        for chunk in chunks {
            let at = chunk * CHUNK_BYTES;
            // Writing to a string does not fail.
            let _ = writeln!(list, "/{READ} read {at} {READ_LEN}");
        }
        let _ = writeln!(list, "/{READ} close");
        list
    };
    chunks
        .chunks_exact(chunks.len() / passes)
        .map(list)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_chunk_is_read_twice() {
        let lists = lists(6);
        assert_eq!(lists.len(), 6);
        let reads = lists.iter().flat_map(|list| list.lines());
        let reads: Vec<_> = reads.filter(|line| line.contains(" read ")).collect();
        let different: BTreeSet<_> = reads.iter().collect();
        assert_eq!(reads.len(), different.len());
        assert_eq!(reads.len() as u64, READ_BYTES / CHUNK_BYTES / 6 * 6);
    }
}
