//! The disk that an image may be laid out on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rootstock_api::install::InstallOrder;
use rootstock_store::disk::DiskFile;
use rustix::fs::{Dir, Mode, OFlags, openat};

use super::layout::TABLE_BYTES;
use super::mark::{self, Mark};
use crate::disk::device::Device;
use crate::disk::find::{Devices, OTHERS};
use crate::disk::prepare;

/// Disks that are looked at, at most.
const DISKS_MAX: usize = 64;
/// The sectors that images count in.
const SECTOR_BYTES: &str = "512";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// The named one.
    #[error("{device} is not a disk of this machine, or is a part of one: name a whole disk")]
    NoDisk {
        /// Its name.
        device: String,
    },
    /// It is used.
    #[error("{device} cannot be opened: it is mounted, swapped to, or keeps chunks")]
    Open {
        /// Its name.
        device: String,
        #[source]
        source: io::Error,
    },
    /// Its sectors.
    #[error("{device} has sectors of {bytes} B, and images are made for 512")]
    Sectors {
        /// Its name.
        device: String,
        /// Their length.
        bytes: String,
    },
    /// None was named, and none may be taken without.
    #[error("no disk was named, and none of this machine's is empty{found}")]
    NoneEmpty {
        /// What is on them.
        found: String,
    },
    /// None was named, and several could be taken.
    #[error("no disk was named, and several could be meant: {devices}")]
    Several {
        /// Their names.
        devices: String,
    },
    /// The system does not tell.
    #[error("the machine's disks cannot be looked at")]
    Look(#[source] io::Error),
}

/// A disk that may be written.
pub(crate) struct Target {
    /// Its name, such as `/dev/sda`.
    pub(crate) device: String,
    /// The disk, for this process alone.
    pub(crate) disk: Device,
}

/// The machine's whole disks, open before the first stage's paths go away.
pub(crate) struct Disks {
    devices: Devices,
    block: OwnedFd,
}

/// What a disk without a name is.
enum Holds {
    /// What was installed for this node.
    Ours,
    Nothing,
    Something(String),
}

impl Disks {
    /// The machine's.
    ///
    /// # Errors
    /// When `/dev` or `/sys` is not there.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            devices: Devices::open()?,
            block: rustix::fs::open("/sys/block", flags, Mode::empty())?,
        })
    }

    /// The disk that is meant: the named one, or the only one that is empty or was
    /// installed for this node.
    ///
    /// # Errors
    /// [`TargetError`].
    pub(crate) fn find(&self, order: &InstallOrder, mark: &Mark) -> Result<Target, TargetError> {
        match &order.disk {
            Some(disk) => self.named(disk.as_str()),
            None => self.free(mark),
        }
    }

    /// A claim on a disk that was found, after the first was given up.
    ///
    /// # Errors
    /// When somebody else has it.
    pub(crate) fn claim_again(&self, target: &Target) -> io::Result<Device> {
        let name = target.device.strip_prefix("/dev/");
        self.devices.open_device(name.unwrap_or(&target.device))
    }

    fn named(&self, device: &str) -> Result<Target, TargetError> {
        let name = self.devices.name(Path::new(device));
        let name = name.filter(|name| self.attribute(name, "size").is_some());
        let name = name.ok_or_else(|| TargetError::NoDisk {
            device: device.to_owned(),
        })?;
        self.open_disk(&name)
    }

    fn open_disk(&self, name: &str) -> Result<Target, TargetError> {
        let device = format!("/dev/{name}");
        let bytes = self.attribute(name, "queue/logical_block_size");
        if let Some(bytes) = bytes.filter(|bytes| bytes != SECTOR_BYTES) {
            return Err(TargetError::Sectors { device, bytes });
        }
        match self.devices.open_device(name) {
            Ok(disk) => Ok(Target { device, disk }),
            Err(source) => Err(TargetError::Open { device, source }),
        }
    }

    fn free(&self, mark: &Mark) -> Result<Target, TargetError> {
        let (mut ours, mut empty, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for name in self.names().map_err(TargetError::Look)? {
            // What is in use, or could not be used, is none of those.
            let Ok(target) = self.open_disk(&name) else {
                continue;
            };
            match holds(&target.disk, mark) {
                Ok(Holds::Ours) => ours.push(target),
                Ok(Holds::Nothing) => empty.push(target),
                Ok(Holds::Something(what)) => {
                    others.push(format!("{} holds {what}", target.device));
                }
                Err(error) => others.push(format!("{}: {error}", target.device)),
            }
        }
        let mut meant = if ours.is_empty() { empty } else { ours };
        match (meant.pop(), meant.is_empty()) {
            (Some(target), true) => Ok(target),
            (Some(target), false) => {
                meant.push(target);
                let devices: Vec<_> = meant.iter().map(|one| one.device.as_str()).collect();
                let devices = devices.join(", ");
                Err(TargetError::Several { devices })
            }
            (None, _) => Err(TargetError::NoneEmpty {
                found: match others.is_empty() {
                    true => String::new(),
                    false => format!(" ({})", others.join("; ")),
                },
            }),
        }
    }

    /// Disks that stay in the machine, by name.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.block)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let is_other = OTHERS.iter().any(|other| name.starts_with(other));
            let is = |attribute: &str| self.attribute(name, attribute).as_deref() == Some("1");
            if !name.starts_with('.') && !is_other && !is("removable") && !is("ro") {
                names.push(name.to_owned());
            }
            if names.len() > DISKS_MAX {
                let what = format!("there are more than {DISKS_MAX}: name one");
                return Err(io::Error::other(what));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What the kernel tells of a whole disk.
    fn attribute(&self, name: &str, attribute: &str) -> Option<String> {
        let path = format!("{name}/{attribute}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file: File = openat(self.block.as_fd(), path, flags, Mode::empty())
            .ok()?
            .into();
        let mut text = String::new();
        file.take(64).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }
}

fn holds(disk: &Device, mark: &Mark) -> io::Result<Holds> {
    let mut block = vec![0; mark::BYTES];
    if disk.len()? > mark::AT_BYTES + mark::BYTES as u64 {
        disk.read_at(mark::AT_BYTES, &mut block)?;
    }
    let mut front = vec![0; TABLE_BYTES as usize];
    if disk.len()? > TABLE_BYTES {
        disk.read_at(0, &mut front)?;
    }
    match Mark::decode(&block) {
        // Somebody may have given the disk another use since.
        Some(found) if found.is_for(mark) => Ok(match found.is_on(&front) {
            true => Holds::Ours,
            false => Holds::Something("another table than the one installed there".to_owned()),
        }),
        Some(found) => Ok(Holds::Something(format!(
            "what was installed for the node {}",
            found.node.escape_debug()
        ))),
        None => Ok(match prepare::holds(disk)? {
            Some(what) => Holds::Something(what),
            None => Holds::Nothing,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    use rustix::fs::open;

    use super::*;

    fn mark(node: &str) -> Mark {
        Mark {
            site: "site".to_owned(),
            node: node.to_owned(),
            table: mark::table_of(&gpt()),
        }
    }

    /// The first sectors of a disk with a GPT.
    fn gpt() -> Vec<u8> {
        let mut front = vec![0; 4096];
        front[510..520].copy_from_slice(b"\x55\xaaEFI PART");
        front[568..584].fill(7);
        front
    }

    /// A disk's name, and what is where on it.
    type Disk<'a> = (&'a str, &'a [(u64, Vec<u8>)]);

    /// Directories in the place of `/dev` and `/sys/block`, and files of disks.
    fn disks(directory: &Path, disks: &[Disk<'_>]) -> Disks {
        let (dev, block) = (directory.join("dev"), directory.join("block"));
        fs::create_dir_all(&dev).expect("dev");
        for (name, parts) in disks {
            fs::create_dir_all(block.join(name)).expect("block");
            fs::write(block.join(name).join("size"), "8192\n").expect("size");
            let file = File::create(dev.join(name)).expect("a disk");
            file.set_len(4 << 20).expect("long");
            for (at, bytes) in *parts {
                file.write_all_at(bytes, *at).expect("written");
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Disks {
            devices: Devices::at(&dev, &block).expect("dev"),
            block: open(&block, flags, Mode::empty()).expect("block"),
        }
    }

    fn found(disks: &Disks, disk: Option<&str>) -> Result<String, String> {
        let order = InstallOrder {
            disk: disk.map(|disk| disk.parse().expect("a disk")),
        };
        let target = disks.find(&order, &mark("n1"));
        let target = target.map(|target| target.device);
        target.map_err(|error| error.to_string())
    }

    #[test]
    fn nobodys_data_is_lost_without_a_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let block = |node: &str| (mark::AT_BYTES, mark(node).encode().expect("has room"));
        let data = (0, vec![1; 4096]);
        let tail = ((4 << 20) - 512, vec![1; 512]);
        let ours = [(0, gpt()), block("n1")];
        let half = [block("n1")];
        let theirs = [(0, gpt()), block("n2")];
        // It was ours, and somebody gave it another table since, or none.
        let other = [data.clone(), block("n1")];
        let (data, tail) = ([data], [tail]);
        let cases: [(&[Disk<'_>], Result<&str, &str>); 9] = [
            (&[("sda", &[]), ("sdb", &half)], Ok("/dev/sdb")),
            (
                &[("sda", &data), ("sdb", &other)],
                Err("sdb holds another table"),
            ),
            (&[("sda", &[])], Ok("/dev/sda")),
            (&[("sda", &data), ("sdb", &[])], Ok("/dev/sdb")),
            (&[("sda", &[]), ("sdb", &ours)], Ok("/dev/sdb")),
            (&[("sda", &data), ("sdb", &tail)], Err("sdb holds data")),
            (&[("sda", &theirs)], Err("installed for the node n2")),
            (&[("sda", &[]), ("sdb", &[])], Err("several could be")),
            (&[("loop0", &[]), ("nbd0", &[])], Err("is empty")),
        ];
        for (number, (all, expected)) in cases.into_iter().enumerate() {
            let disks = disks(&directory.path().join(number.to_string()), all);
            match (found(&disks, None), expected) {
                (Ok(device), Ok(expected)) => assert_eq!(device, expected),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (other, _) => panic!("case {number}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_named_disk_is_taken_whatever_it_holds() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = [(0, vec![1; 4096])];
        let all = disks(directory.path(), &[("sda", &data), ("sdb", &[])]);
        assert_eq!(found(&all, Some("/dev/sda")).as_deref(), Ok("/dev/sda"));
        for device in ["/dev/sdc", "/dev/sda1", "/dev/disk/by-id/none"] {
            let error = found(&all, Some(device)).expect_err(device);
            assert!(error.contains("name a whole disk"), "{error}");
        }
        let sectors = directory.path().join("block/sdb/queue");
        fs::create_dir(&sectors).expect("made");
        fs::write(sectors.join("logical_block_size"), "4096\n").expect("written");
        let error = found(&all, Some("/dev/sdb")).expect_err("sectors");
        assert!(error.contains("sectors of 4096 B"), "{error}");
    }
}
