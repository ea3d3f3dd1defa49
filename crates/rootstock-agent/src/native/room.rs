//! A full overlay is a full file system: writers are told in time, and nothing else breaks.
//!
//! The kernel gives up a snapshot whose room is used up, and with it the machine.
//! So ext4 is told to keep as many clusters back as have no room behind them
//! (`reserved_clusters` of `Documentation/ABI/testing/sysfs-fs-ext4`): its writers
//! get `ENOSPC`, and `df` shows what there really is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, fstat, fstatfs, openat};

use super::Usage;
use crate::mapper::DeviceNumber;

/// The part of the room that is left to what overwrites files in place, and to the
/// file system itself.
const MARGIN_PART: u64 = 32;
const MARGIN_BYTES: (u64, u64) = (16 << 20, 1 << 30);

/// The kernel's views, open from before the first stage's paths go away.
pub(super) struct Views {
    sys: OwnedFd,
    proc: OwnedFd,
}

/// A mounted ext4 and its knobs.
pub(super) struct Room {
    root: OwnedFd,
    reserved: File,
    delayed: File,
    cluster_bytes: u64,
    /// What was set last.
    set: Option<u64>,
    /// The most that was used so far.
    used_bytes_max: u64,
}

/// What a file system and what is below it have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    /// Free in the file system.
    free_bytes: u64,
    /// Promised to what is not written out yet.
    delayed_bytes: u64,
    /// Used once, and free again: below it is room for it.
    freed_bytes: u64,
}

impl Views {
    pub(super) fn open() -> io::Result<Self> {
        let directory = |path| {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
            rustix::fs::open(path, flags, Mode::empty())
        };
        Ok(Self {
            sys: directory("/sys")?,
            proc: directory("/proc")?,
        })
    }

    /// Has the kernel do something at once (`Documentation/admin-guide/sysrq.rst`).
    pub(super) fn trigger(&self, what: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let trigger: File = openat(&self.proc, "sysrq-trigger", flags, Mode::empty())?.into();
        trigger.write_all_at(what, 0)
    }

    /// The machine's root, once it is on this device; `None` until then.
    pub(super) fn root(
        &self,
        root: DeviceNumber,
        kernel_name: &str,
        cluster_bytes: u64,
    ) -> io::Result<Option<Room>> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        // What the first process sees; a link that leads there whatever paths say.
        let directory = openat(&self.proc, "1/root", flags, Mode::empty())?;
        if DeviceNumber::of(fstat(&directory)?.st_dev) != root {
            return Ok(None);
        }
        let knob = |name: &str, flags| -> io::Result<File> {
            let path = format!("fs/ext4/{kernel_name}/{name}");
            let file = openat(&self.sys, path, flags | OFlags::CLOEXEC, Mode::empty())?;
            Ok(file.into())
        };
        Ok(Some(Room {
            root: directory,
            reserved: knob("reserved_clusters", OFlags::RDWR)?,
            delayed: knob("delayed_allocation_blocks", OFlags::RDONLY)?,
            cluster_bytes,
            set: None,
            used_bytes_max: 0,
        }))
    }
}

impl Room {
    /// Has the file system keep back what has no room below it.
    pub(super) fn keep(&mut self, usage: Usage) -> io::Result<()> {
        let facts = fstatfs(self.root.as_fd())?;
        let block = facts.f_bsize as u64;
        let used_bytes = facts.f_blocks.saturating_sub(facts.f_bfree) * block;
        self.used_bytes_max = self.used_bytes_max.max(used_bytes);
        let left = Left {
            free_bytes: facts.f_bfree * block,
            delayed_bytes: number(&self.delayed)? * block,
            freed_bytes: self.used_bytes_max - used_bytes,
        };
        let clusters = reserved_bytes(usage, left).div_ceil(self.cluster_bytes);
        if self.set != Some(clusters) {
            self.reserved
                .write_all_at(clusters.to_string().as_bytes(), 0)?;
            self.set = Some(clusters);
        }
        Ok(())
    }
}

fn number(file: &File) -> io::Result<u64> {
    let mut text = [0; 32];
    let len = file.read_at(&mut text, 0)?;
    let text = std::str::from_utf8(&text[..len]).unwrap_or_default();
    let number = text.trim().parse();
    number.map_err(|_| io::Error::other("the kernel does not tell a number"))
}

/// What of the free room is not to be given to anybody.
fn reserved_bytes(usage: Usage, left: Left) -> u64 {
    let margin = usage.bytes_max / MARGIN_PART;
    let margin = margin
        .clamp(MARGIN_BYTES.0, MARGIN_BYTES.1)
        .min(usage.bytes_max / 4);
    let below = usage.bytes_max.saturating_sub(usage.used_bytes);
    let below = below.saturating_sub(left.delayed_bytes);
    // The file system may take fresh blocks for what could have those that were
    // freed: half of the margin is for that.
    let freed = if below > margin / 2 {
        left.freed_bytes
    } else {
        0
    };
    let may_take = below.saturating_sub(margin) + freed;
    left.free_bytes.saturating_sub(may_take)
}

/// The unit that ext4 allocates and reserves in, by its superblock ("Super Block",
/// `Documentation/filesystems/ext4/super.rst`).
pub(super) fn cluster_bytes(superblock: &[u8]) -> Option<u64> {
    /// `RO_COMPAT_BIGALLOC`.
    const BIGALLOC: u32 = 0x200;
    let field = |at: usize| {
        let bytes = superblock.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    if superblock.get(0x38..0x3a)? != [0x53, 0xef] {
        return None;
    }
    let at = if field(0x64)? & BIGALLOC != 0 {
        0x1c
    } else {
        0x18
    };
    1024_u64.checked_shl(field(at)?.min(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_has_no_room_below_is_kept_back() {
        let usage = |used: u64, max: u64| Usage {
            used_bytes: used * MIB,
            bytes_max: max * MIB,
        };
        let left = |free: u64, delayed: u64, freed: u64| Left {
            free_bytes: free * MIB,
            delayed_bytes: delayed * MIB,
            freed_bytes: freed * MIB,
        };
        for (usage, left, expected) in [
            // More room below than there is above: nothing is kept back.
            (usage(0, 6400), left(1000, 0, 0), 0),
            // 3200 below, 100 of them margin.
            (usage(0, 3200), left(10_000, 0, 0), 6900),
            (usage(1000, 3200), left(9000, 0, 0), 6900),
            (usage(1000, 3200), left(9000, 500, 0), 7400),
            // What was freed has its room.
            (usage(1000, 3200), left(9400, 0, 400), 6900),
            // Of the margin itself only what was freed is given out again.
            (usage(3120, 3200), left(7850, 0, 1000), 6850),
            (usage(3120, 3200), left(6850, 0, 0), 6850),
            // Half of it is left: nothing is given out, whatever was freed.
            (usage(3150, 3200), left(6850, 0, 0), 6850),
            (usage(3150, 3200), left(7850, 0, 1000), 7850),
            (usage(4000, 3200), left(10, 0, 0), 10),
        ] {
            assert_eq!(
                reserved_bytes(usage, left),
                expected * MIB,
                "{usage:?} {left:?}"
            );
        }
    }

    #[test]
    fn clusters_are_blocks_unless_the_file_system_says_otherwise() {
        let mut superblock = vec![0; 1024];
        assert_eq!(cluster_bytes(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        superblock[0x18] = 2;
        superblock[0x1c] = 6;
        assert_eq!(cluster_bytes(&superblock), Some(4096));
        superblock[0x65] = 2;
        assert_eq!(cluster_bytes(&superblock), Some(65_536));
        assert_eq!(cluster_bytes(&superblock[..0x60]), None);
    }
}
