//! Small real disks, made with real tools and without mounting anything.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::tool;

/// Where the first partition of a disk made here begins.
pub const FIRST_PARTITION_BYTES: u64 = 1024 * 1024;

const SECTOR_BYTES: u64 = 512;

/// Writes a disk of `disk_bytes` with an MBR and one bootable ext4 partition
/// labelled `root` that holds the files below `tree`.
///
/// # Errors
/// When a tool fails or the files do not fit.
pub fn ext4_on_mbr(path: &Path, disk_bytes: u64, tree: &Path) -> Result<()> {
    let partition_bytes = disk_bytes - FIRST_PARTITION_BYTES;
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(disk_bytes)?;
    let table = format!(
        "label: dos\nstart={}, size={}, type=83, bootable\n",
        FIRST_PARTITION_BYTES / SECTOR_BYTES,
        partition_bytes / SECTOR_BYTES
    );
    let mut sfdisk = Command::new("sfdisk");
    tool::run_with_input(sfdisk.arg("--quiet").arg(path), table.as_bytes())?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", "root"])
        .args([
            "-E",
            &format!("offset={FIRST_PARTITION_BYTES},lazy_itable_init=0"),
        ])
        .arg("-d")
        .arg(tree)
        .arg(path)
        .arg(format!("{}k", partition_bytes / 1024));
    tool::run_command(&mut mke2fs)?;
    Ok(())
}

/// Gives a disk with an MBR one more partition, at its end, from which UEFI starts
/// `loader`.
///
/// # Errors
/// When a tool fails.
pub fn add_system_partition(path: &Path, loader: &Path) -> Result<()> {
    const PARTITION_BYTES: u64 = 33 << 20;
    let file = File::options().write(true).open(path)?;
    let start_bytes = file.metadata()?.len();
    file.set_len(start_bytes + PARTITION_BYTES)?;
    let line = format!("start={}, type=ef\n", start_bytes / SECTOR_BYTES);
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["--quiet", "--append"]).arg(path);
    tool::run_with_input(&mut sfdisk, line.as_bytes())?;
    let mut mkfs = Command::new("mkfs.fat");
    mkfs.args(["-F", "16", "--offset"])
        .arg((start_bytes / SECTOR_BYTES).to_string())
        .arg(path)
        .arg((PARTITION_BYTES / 1024).to_string());
    tool::run_command(&mut mkfs)?;
    let image = format!("{}@@{start_bytes}", path.display());
    tool::run("mmd", ["-i", &image, "::EFI", "::EFI/BOOT"])?;
    let mut mcopy = Command::new("mcopy");
    mcopy
        .args(["-i", &image])
        .arg(loader)
        .arg("::EFI/BOOT/BOOTX64.EFI");
    tool::run_command(&mut mcopy)?;
    Ok(())
}

/// Writes `len_bytes` of data that does not compress and differs for each `seed`.
///
/// # Errors
/// When the file cannot be written.
pub fn noise(path: &Path, len_bytes: u64, seed: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut block = vec![0; 64 * 1024];
    let mut left_bytes = len_bytes;
    while left_bytes > 0 {
        fill_with_noise(&mut block, &mut state);
        let count = usize::try_from(left_bytes).map_or(block.len(), |left| left.min(block.len()));
        file.write_all(&block[..count])?;
        left_bytes -= count as u64;
    }
    Ok(())
}

/// The SHA-256 of a file, as `sha256sum` prints it.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let line = tool::run("sha256sum", [path])?;
    let sum = line
        .split_whitespace()
        .next()
        .context("sha256sum said nothing")?;
    Ok(sum.to_owned())
}

/// How many bytes of the disk a file takes, holes left out.
///
/// # Errors
/// When it cannot be looked at.
pub fn allocated_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)?.blocks() * SECTOR_BYTES)
}

/// Xorshift: fast, and nothing here needs better.
fn fill_with_noise(block: &mut [u8], state: &mut u64) {
    for word in block.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_length_and_follows_its_seed() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["a", "b", "c"].map(|name| directory.path().join(name));
        for (file, seed) in files.iter().zip([1, 1, 2]) {
            noise(file, 100_000, seed).unwrap();
        }
        let [a, b, c] = files.map(|file| fs::read(file).unwrap());
        assert_eq!(a.len(), 100_000);
        assert_eq!(a, b);
        assert_ne!(a, c);
    }
}
