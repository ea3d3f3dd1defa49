//! Looking for the disk that was prepared as a cache.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rootstock_api::boot::CacheChoice;
use rootstock_cache::{Cache, LABEL_BYTES, Label};
use rootstock_core::ByteRange;
use rootstock_store::disk::DiskFile;
use rustix::fs::{Mode, OFlags};

use super::device::{self, Claim, Device};
use crate::console;

/// Disks that are looked at, at most: a machine with more has them for something else.
const DISKS_MAX: usize = 256;

/// What is read of a disk to see that it is none of ours.
const BEGIN_BYTES: usize = 4096;

/// Kinds of disks that are of the kernel's own making, or our own.
pub(crate) const OTHERS: [&str; 8] = ["loop", "ram", "zram", "nbd", "dm-", "md", "sr", "fd"];

/// Room for a machine's own writes that is less is none.
pub(crate) const SPARE_BYTES_MIN: u64 = 64 << 20;
const SPARE_ALIGN_BYTES: u64 = 1 << 20;

/// Where devices are, open before the first stage's paths go away.
pub(crate) struct Devices {
    dev: OwnedFd,
    block: PathBuf,
}

/// A cache in service.
pub(crate) struct Found {
    /// The device, such as `/dev/sda3`.
    pub(crate) device: String,
    /// What is on it.
    pub(crate) cache: Cache,
    /// The right to it.
    pub(crate) claim: Arc<Claim>,
    /// What lies behind the cache, for the machine's own writes.
    pub(crate) spare: Option<ByteRange>,
}

/// What a disk has behind its last slot, if it is worth anything.
pub(crate) fn spare(label: &Label, disk_bytes: u64) -> Option<ByteRange> {
    let start = label.end_bytes().next_multiple_of(SPARE_ALIGN_BYTES);
    let len = disk_bytes.checked_sub(start)? / SPARE_ALIGN_BYTES * SPARE_ALIGN_BYTES;
    (len >= SPARE_BYTES_MIN).then(|| ByteRange::new(start, len))
}

impl Devices {
    /// The machine's.
    ///
    /// # Errors
    /// When there is no `/dev`.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            dev: rustix::fs::open("/dev", flags, Mode::empty())?,
            block: PathBuf::from("/sys/class/block"),
        })
    }

    /// As [`Devices::open`], of directories in the place of the machine's.
    #[cfg(test)]
    pub(crate) fn at(dev: &Path, block: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            dev: rustix::fs::open(dev, flags, Mode::empty())?,
            block: block.to_owned(),
        })
    }

    /// The cache that `choice` allows, if it is there by now. A disk that is not
    /// labelled as one is only read.
    pub(crate) fn find(&self, choice: &CacheChoice) -> Option<Found> {
        match choice {
            CacheChoice::None => None,
            CacheChoice::Device(path) => {
                let name = self.name(Path::new(path))?;
                self.labelled(&name)?;
                self.take(&name)
            }
            CacheChoice::Auto => {
                let mut labels: Vec<(u64, String)> = self
                    .names()
                    .into_iter()
                    .filter_map(|name| Some((self.labelled(&name)?.slot_count, name)))
                    .collect();
                // The largest: there should be one.
                labels.sort_unstable_by(|one, two| two.cmp(one));
                labels.into_iter().find_map(|(_, name)| self.take(&name))
            }
        }
    }

    /// All disks and partitions that are there by now, each with its first bytes.
    pub(crate) fn heads(&self, len: usize) -> Vec<(String, Vec<u8>)> {
        let names = self.names().into_iter();
        names
            .filter_map(|name| Some((device::head(self.dev.as_fd(), &name, len).ok()?, name)))
            .map(|(head, name)| (name, head))
            .collect()
    }

    /// The start of a disk, read as anybody may.
    pub(crate) fn head(&self, name: &str, len: usize) -> io::Result<Vec<u8>> {
        device::head(self.dev.as_fd(), name, len)
    }

    /// A disk, parts of which may be in use.
    pub(crate) fn open_shared(&self, name: &str) -> io::Result<Device> {
        Device::open_shared(self.dev.as_fd(), name)
    }

    /// A partition that nobody else uses.
    pub(crate) fn claim(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let claim = rustix::fs::openat(&self.dev, name, flags, Mode::empty())?;
        Ok(claim)
    }

    /// All disks and partitions that are there by now.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.block).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !OTHERS.iter().any(|other| name.starts_with(other)))
            .take(DISKS_MAX)
            .collect();
        names.sort_unstable();
        names
    }

    /// Opens a device for this process alone.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open_device(&self, name: &str) -> io::Result<Device> {
        Device::open_at(self.dev.as_fd(), name)
    }

    /// A device's name below `/dev`, of a link such as those in `/dev/disk/by-id`, too.
    pub(crate) fn name(&self, path: &Path) -> Option<String> {
        let inside = path.strip_prefix("/dev").ok()?;
        let target = rustix::fs::readlinkat(&self.dev, inside, Vec::new());
        let name = match target {
            Ok(target) => Path::new(target.to_str().ok()?).file_name()?.to_owned(),
            Err(rustix::io::Errno::INVAL) => inside.as_os_str().to_owned(),
            Err(_) => return None,
        };
        name.into_string().ok()
    }

    /// The label of a disk, if it has one that holds.
    fn labelled(&self, name: &str) -> Option<Label> {
        let read = |len| device::head(self.dev.as_fd(), name, len).ok();
        if !Label::begins(&read(BEGIN_BYTES)?) {
            return None;
        }
        let head = read(LABEL_BYTES)?;
        match Label::decode(&head) {
            Ok(label) => Some(label),
            Err(rootstock_cache::LabelError::Magic) => None,
            Err(error) => {
                console::warn(format_args!("/dev/{name} is not used: {error}"));
                None
            }
        }
    }

    fn take(&self, name: &str) -> Option<Found> {
        let device = format!("/dev/{name}");
        let opened = Device::open_at(self.dev.as_fd(), name)
            .map_err(|error| error.to_string())
            .and_then(|device| {
                let (claim, len_bytes) = (device.claim(), device.len().unwrap_or(0));
                let cache =
                    Cache::open(Box::new(device)).map_err(|error| console::chain(&error))?;
                let spare = spare(cache.label(), len_bytes);
                Ok((cache, claim, spare))
            });
        match opened {
            Ok((cache, claim, spare)) => Some(Found {
                device,
                cache,
                claim,
                spare,
            }),
            Err(reason) => {
                console::warn(format_args!("the cache on {device} is not used: {reason}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A directory in the place of `/dev`, with files in the place of disks.
    fn devices(directory: &Path, disks: &[(&str, u64, bool)]) -> Devices {
        let (dev, block) = (directory.join("dev"), directory.join("block"));
        for (name, bytes, prepared) in disks {
            fs::create_dir_all(block.join(name)).expect("sys");
            fs::create_dir_all(&dev).expect("dev");
            let path = dev.join(name);
            File::create(&path)
                .and_then(|file| file.set_len(*bytes))
                .expect("a disk");
            if *prepared {
                let device = Device::open(&path).expect("opens");
                let label = Label::for_disk([1; 16], *bytes).expect("room");
                Cache::format(&device, &label).expect("prepared");
            }
        }
        Devices::at(&dev, &block).expect("dev")
    }

    #[test]
    fn only_what_is_labelled_is_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let all = devices(
            directory.path(),
            &[
                ("sda", 64 << 20, false),
                ("sda1", 8 << 20, true),
                ("sdb", 16 << 20, true),
                ("nbd0", 32 << 20, true),
            ],
        );
        std::os::unix::fs::symlink("../sda1", directory.path().join("dev/link")).expect("a link");
        let device = |text: &str| CacheChoice::Device(text.to_owned());
        for (choice, expected) in [
            (CacheChoice::Auto, Some("/dev/sdb")),
            (CacheChoice::None, None),
            (device("/dev/sda1"), Some("/dev/sda1")),
            (device("/dev/link"), Some("/dev/sda1")),
            (device("/dev/sda"), None),
            (device("/dev/sdz"), None),
        ] {
            let found = all.find(&choice).map(|found| found.device);
            assert_eq!(found.as_deref(), expected, "{choice}");
        }
    }
}
