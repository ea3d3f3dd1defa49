//! Finding the disk that the machine starts from.

use std::io;

use rootstock_core::ByteRange;
use rootstock_image::layout::{CACHE_NUMBER, Layout};

use super::files::{KEPT, StartFiles};
use super::{DOCUMENT_BYTES_MAX, is_file_name, member};
use crate::console;
use crate::disk::device::{Blocks, Device};
use crate::disk::find::Devices;

/// Two sectors: a disk whose second one does not begin so has no such table.
const HEAD_BYTES: usize = 1024;
const SIGNATURE: &[u8] = b"EFI PART";
const SIGNATURE_AT: usize = 512;

/// The number of the partition that is written to.
const START_NUMBER: u32 = 2;

/// A whole disk with a start partition.
pub(crate) struct StartDisk {
    /// Its name, such as `sda`.
    name: String,
    /// All of it, others use a part.
    pub(crate) device: Device,
    /// Where everything is.
    pub(crate) layout: Layout,
}

impl StartDisk {
    /// The disk that this cache is on, if it can be started from: `/dev/sda3`.
    pub(crate) fn of_cache(devices: &Devices, cache: &str) -> Option<Self> {
        let partition = cache.strip_prefix("/dev/")?;
        let name = whole_disk(partition, CACHE_NUMBER)?;
        Self::open(devices, name)
    }

    fn open(devices: &Devices, name: &str) -> Option<Self> {
        let head = devices.head(name, HEAD_BYTES).ok()?;
        if !head.get(SIGNATURE_AT..)?.starts_with(SIGNATURE) {
            return None;
        }
        let read = || {
            let device = devices.open_shared(name)?;
            let layout = Layout::read(&Blocks(&device))?;
            Ok((device, layout))
        };
        match read() {
            Ok((device, layout)) => Some(Self {
                name: name.to_owned(),
                device,
                layout: layout?,
            }),
            Err(error) => {
                let error: io::Error = error;
                console::warn(format_args!("/dev/{name} cannot be read: {error}"));
                None
            }
        }
    }

    /// The whole disk, such as `/dev/sda`.
    pub(crate) fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// The partition that is written to, such as `sda2`.
    pub(crate) fn start_partition(&self) -> String {
        partition(&self.name, START_NUMBER)
    }

    /// Where that is.
    pub(crate) fn start(&self) -> ByteRange {
        self.layout.start
    }
}

/// What a start is read from.
pub(crate) struct Document {
    /// The disk, such as `/dev/sda`.
    pub(crate) disk: String,
    /// The document.
    pub(crate) text: Vec<u8>,
    /// What the machine keeps of the swarm, if it does.
    pub(crate) membership: Option<Vec<u8>>,
}

/// The document of this name, and what lies beside it; nothing while there is none.
pub(crate) fn document(devices: &Devices, name: &str) -> Option<Document> {
    debug_assert!(is_file_name(name), "a name that was checked");
    devices.names().into_iter().find_map(|disk| {
        let disk = StartDisk::open(devices, &disk)?;
        let path = format!("{KEPT}/{name}");
        let read = StartFiles::open(&disk.device, disk.start()).and_then(|files| {
            let text = files.read(&path, DOCUMENT_BYTES_MAX)?;
            // The machine starts without it, too.
            Ok(text.map(|text| (text, member::newest(&files).ok().flatten())))
        });
        match read {
            Ok(found) => found.map(|(text, membership)| Document {
                disk: disk.path(),
                text,
                membership,
            }),
            Err(error) => {
                console::warn(format_args!("{} cannot be read: {error}", disk.path()));
                None
            }
        }
    })
}

/// The name of a partition: a number comes after a `p` where the disk's own name ends
/// in one.
fn partition(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{separator}{number}")
}

/// The disk of a partition with this number.
fn whole_disk(name: &str, number: u32) -> Option<&str> {
    let rest = name.strip_suffix(&number.to_string())?;
    let disk = rest.strip_suffix('p').unwrap_or(rest);
    [disk, rest]
        .into_iter()
        .find(|disk| partition(disk, number) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_partitions_have_the_kernels_names() {
        for (name, expected) in [
            ("sda3", Some("sda")),
            ("vda3", Some("vda")),
            ("nvme0n1p3", Some("nvme0n1")),
            ("mmcblk0p3", Some("mmcblk0")),
            ("sdp3", Some("sdp")),
            ("sda", None),
            ("sda2", None),
        ] {
            assert_eq!(whole_disk(name, 3), expected, "{name}");
        }
        assert_eq!(partition("sdp", 2), "sdp2");
        assert_eq!(partition("nvme0n1", 2), "nvme0n1p2");
    }
}
