//! Mounts of a test's own, and a small file system to be filled to the brim.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::tool;
use crate::undo::{Action, Undo};

/// Gives this thread, and what it starts, mounts of its own.
///
/// Another test's namespace would take a copy of a mount with it, and the file system
/// would live on behind whoever has unmounted it here.
///
/// # Errors
/// When this is not root.
pub fn own_mounts() -> Result<()> {
    // SAFETY: only `UnshareFlags::FILES` takes descriptors from other threads.
    #[expect(unsafe_code, reason = "there is no other call")]
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    unshared.context("make a namespace for mounts")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("keep mounts to oneself")
}

/// The file that takes the free space.
const BALLAST: &str = "ballast";
const BLOCK_BYTES: usize = 64 * 1024;

/// A mounted file system, unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
    _undo: Undo,
}

impl SmallDisk {
    /// Makes an ext4 of `disk_bytes` in the file `image` and mounts it at `path`.
    ///
    /// # Errors
    /// When this is not root, who alone may mount, or a tool fails.
    pub fn mount(image: &Path, path: &Path, disk_bytes: u64) -> Result<Self> {
        ensure!(
            tool::run("id", ["-u"])?.trim() == "0",
            "this test mounts a file system: run it as root"
        );
        File::create(image)?.set_len(disk_bytes)?;
        // Nothing is kept back for root, as whom the test may run.
        let mut mke2fs = Command::new("mke2fs");
        tool::run_command(
            mke2fs
                .args(["-q", "-F", "-t", "ext4", "-m", "0"])
                .arg(image),
        )?;
        fs::create_dir_all(path)?;
        tool::run_command(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(image)
                .arg(path),
        )?;
        let undo = Undo::new(Action::Unmount(path.to_owned()));
        Ok(Self {
            path: path.to_owned(),
            _undo: undo,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all free space but `left_bytes`.
    ///
    /// # Errors
    /// When writing fails otherwise than by the disk being full.
    pub fn fill(&self, left_bytes: u64) -> Result<()> {
        let mut ballast = File::create(self.path.join(BALLAST))?;
        let block = vec![0xA5; BLOCK_BYTES];
        loop {
            match ballast.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
        let length = ballast.metadata()?.len();
        ballast.set_len(length.saturating_sub(left_bytes))?;
        ballast.sync_all()?;
        Ok(())
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.path.join(BALLAST)).context("free the disk's space")
    }
}
