//! A full overlay is a full file system: writers are told in time, and nothing else breaks.
//!
//! The kernel gives up a snapshot whose room is used up, and with it the machine; and
//! what a file system promised to a program and cannot write is lost.
//! So ext4 is told to keep as many clusters back as have no room behind them
//! (`reserved_clusters` of `Documentation/ABI/testing/sysfs-fs-ext4`): its writers
//! get `ENOSPC`, and `df` shows what there really is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, fstat, fstatfs, openat};

use crate::console;
use crate::mapper::DeviceNumber;
use crate::overlay::Fill;

/// The part of the room that is left to what overwrites files in place, and to the
/// file system itself.
const MARGIN_PART: u64 = 32;
const MARGIN_BYTES: (u64, u64) = (16 << 20, 1 << 30);

/// How much of the writes' room is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// What is used.
    pub(crate) used_bytes: u64,
    /// What there is.
    pub(crate) bytes_max: u64,
}

impl Usage {
    /// The part that is used.
    pub(crate) fn percent(self) -> u8 {
        (self.used_bytes.saturating_mul(100) / self.bytes_max.max(1)).min(100) as u8
    }

    /// As machines report it.
    pub(crate) fn fill(self) -> Fill {
        Fill {
            used_bytes: self.used_bytes,
            bytes_max: self.bytes_max,
            percent: self.percent(),
        }
    }
}

/// Keeps a root's writers within their room.
pub(crate) struct Warden {
    views: Views,
    /// The root's device, and the kernel's name of it.
    device: (DeviceNumber, String),
    superblock: Superblock,
    room: Option<Room>,
    /// Whether it was said that the file system cannot be told.
    is_told: bool,
}

impl Warden {
    /// For the root on this device, once it is mounted.
    pub(crate) fn new(
        views: Views,
        device: (DeviceNumber, String),
        superblock: Superblock,
    ) -> Self {
        Self {
            views,
            device,
            superblock,
            room: None,
            is_told: false,
        }
    }

    /// Has the file system keep back what has no room below it.
    pub(crate) fn keep(&mut self, usage: Usage) {
        if self.room.is_none() {
            let (number, name) = &self.device;
            // An image's kernel without these has no such limit.
            self.room = self
                .views
                .root(*number, name, self.superblock)
                .unwrap_or_default();
        }
        if let Some(room) = &mut self.room
            && let Err(error) = room.keep(usage)
            && !std::mem::replace(&mut self.is_told, true)
        {
            console::warn(format_args!("the room for writes: {error}"));
        }
    }

    /// The kernel's views.
    pub(crate) fn views(&self) -> &Views {
        &self.views
    }
}

/// The kernel's views, open from before the first stage's paths go away.
pub(crate) struct Views {
    sys: OwnedFd,
    proc: OwnedFd,
}

/// A mounted ext4 and its knobs.
struct Room {
    root: OwnedFd,
    reserved: File,
    delayed: File,
    superblock: Superblock,
    /// What was set last.
    set: Option<u64>,
    /// What was used at first.
    used_first_bytes: Option<u64>,
    /// The most that was used and written out so far.
    used_bytes_max: u64,
}

/// What a file system and what is below it have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    /// Free in the file system.
    free_bytes: u64,
    /// Promised to what is not written out yet.
    delayed_bytes: u64,
    /// What more is used than at first.
    grown_bytes: u64,
    /// Used since then, and free again: below it is room for it.
    freed_bytes: u64,
}

impl Views {
    pub(crate) fn open() -> io::Result<Self> {
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
    pub(crate) fn trigger(&self, what: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let trigger: File = openat(&self.proc, "sysrq-trigger", flags, Mode::empty())?.into();
        trigger.write_all_at(what, 0)
    }

    /// What the first process has for its root, for a file system's own calls.
    pub(crate) fn root_directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.proc, "1/root", flags, Mode::empty())?)
    }

    /// The machine's root, once it is on this device; `None` until then.
    fn root(
        &self,
        root: DeviceNumber,
        kernel_name: &str,
        superblock: Superblock,
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
            superblock,
            set: None,
            used_first_bytes: None,
            used_bytes_max: 0,
        }))
    }
}

impl Room {
    /// Has the file system keep back what has no room below it.
    fn keep(&mut self, usage: Usage) -> io::Result<()> {
        let facts = fstatfs(self.root.as_fd())?;
        let block = facts.f_bsize as u64;
        let delayed_bytes = number(&self.delayed)? * block;
        let used_bytes = facts.f_blocks.saturating_sub(facts.f_bfree) * block;
        let first = *self.used_first_bytes.get_or_insert(used_bytes);
        let written_bytes = used_bytes.saturating_sub(delayed_bytes);
        self.used_bytes_max = self.used_bytes_max.max(written_bytes);
        let left = Left {
            free_bytes: facts.f_bfree * block,
            delayed_bytes,
            grown_bytes: used_bytes.saturating_sub(first),
            freed_bytes: self.used_bytes_max.saturating_sub(used_bytes.max(first)),
        };
        let reserved = reserved_bytes(usage, left, self.superblock.journal_bytes);
        let clusters = reserved.div_ceil(self.superblock.cluster_bytes);
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
fn reserved_bytes(usage: Usage, left: Left, journal_bytes: u64) -> u64 {
    let margin = usage.bytes_max / MARGIN_PART;
    let margin = margin.clamp(MARGIN_BYTES.0, MARGIN_BYTES.1) + journal_bytes;
    let margin = margin.min(usage.bytes_max / 4);
    // What was given out and is not written yet: delayed, or allocated beforehand.
    let promised = left
        .delayed_bytes
        .max(left.grown_bytes.saturating_sub(usage.used_bytes));
    let below = usage.bytes_max.saturating_sub(usage.used_bytes + promised);
    // The file system may take fresh blocks for what could have those that were
    // freed, so no more is given out at once than there is, with half of the margin.
    let may_take = below.saturating_sub(margin) + left.freed_bytes;
    let may_take = may_take.min(below.saturating_sub(margin / 2));
    left.free_bytes.saturating_sub(may_take)
}

/// What the superblock says ("Super Block", `Documentation/filesystems/ext4/super.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The file system's blocks.
    pub(crate) block_bytes: u64,
    /// The unit that it allocates and reserves in.
    pub(crate) cluster_bytes: u64,
    /// The journal's length, as far as it tells.
    pub(crate) journal_bytes: u64,
}

impl Superblock {
    /// Of a device, if there is an ext4 on it.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn of(device: &str) -> io::Result<Option<Self>> {
        let mut bytes = [0; 1024];
        File::open(device)?.read_exact_at(&mut bytes, 1024)?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        /// `RO_COMPAT_BIGALLOC`.
        const BIGALLOC: u32 = 0x200;
        /// The journal's inode is copied to `s_jnl_blocks`.
        const JOURNAL_COPIED: u8 = 1;
        let field = |at: usize| {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        if bytes.get(0x38..0x3a)? != [0x53, 0xef] {
            return None;
        }
        let unit = |at| 1024_u64.checked_shl(field(at)?.min(32));
        let block_bytes = unit(0x18)?;
        let has_clusters = field(0x64)? & BIGALLOC != 0;
        let is_copied = *bytes.get(0xfd)? == JOURNAL_COPIED;
        Some(Self {
            block_bytes,
            cluster_bytes: if has_clusters {
                unit(0x1c)?
            } else {
                block_bytes
            },
            journal_bytes: if is_copied { field(0x14c)?.into() } else { 0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn percents_end_at_a_hundred() {
        let usage = |used_bytes, bytes_max| Usage {
            used_bytes,
            bytes_max,
        };
        assert_eq!(usage(1, 4).percent(), 25);
        assert_eq!(usage(9, 4).percent(), 100);
        assert_eq!(usage(0, 0).percent(), 0);
    }

    #[test]
    fn what_has_no_room_below_is_kept_back() {
        let usage = |used: u64, max: u64| Usage {
            used_bytes: used * MIB,
            bytes_max: max * MIB,
        };
        let left = |free: u64, delayed: u64, grown: u64, freed: u64| Left {
            free_bytes: free * MIB,
            delayed_bytes: delayed * MIB,
            grown_bytes: grown * MIB,
            freed_bytes: freed * MIB,
        };
        for (usage, left, expected) in [
            // More room below than there is above: nothing is kept back.
            (usage(0, 6400), left(1000, 0, 0, 0), 0),
            // 3200 below, 100 of them margin.
            (usage(0, 3200), left(10_000, 0, 0, 0), 6900),
            (usage(1000, 3200), left(9000, 0, 1000, 0), 6900),
            (usage(1000, 3200), left(9000, 500, 1500, 0), 7400),
            // Allocated beforehand and not written: it is given out once.
            (usage(1000, 3200), left(7000, 0, 3000, 0), 6900),
            // What was freed has its room, but no more is given out than there is.
            (usage(1000, 3200), left(9400, 0, 600, 40), 7260),
            (usage(3000, 3200), left(9000, 0, 0, 3000), 8850),
            (usage(3120, 3200), left(7850, 0, 2120, 1000), 7820),
            // Half of the margin is left: nothing is given out, whatever was freed.
            (usage(3150, 3200), left(7850, 0, 2150, 1000), 7850),
            (usage(4000, 3200), left(10, 0, 0, 0), 10),
        ] {
            let reserved = reserved_bytes(usage, left, 0);
            assert_eq!(reserved, expected * MIB, "{usage:?} {left:?}");
        }
        let with_journal = reserved_bytes(usage(0, 3200), left(10_000, 0, 0, 0), 64 * MIB);
        assert_eq!(with_journal, 6964 * MIB);
    }

    #[test]
    fn clusters_are_blocks_unless_the_file_system_says_otherwise() {
        let mut bytes = vec![0; 1024];
        assert_eq!(Superblock::parse(&bytes), None);
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x18] = 2;
        bytes[0x1c] = 6;
        let facts = |bytes: &[u8]| {
            let found = Superblock::parse(bytes)?;
            Some((found.block_bytes, found.cluster_bytes, found.journal_bytes))
        };
        assert_eq!(facts(&bytes), Some((4096, 4096, 0)));
        bytes[0x65] = 2;
        bytes[0xfd] = 1;
        bytes[0x14e] = 0x40;
        assert_eq!(facts(&bytes), Some((4096, 65_536, 4 << 20)));
        assert_eq!(facts(&bytes[..0x60]), None);
    }
}
