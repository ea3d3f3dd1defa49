//! What makes an installed system this machine's own: written into its root before the
//! disk boots.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use rootstock_api::boot::{Identity, RootPlace};
use rootstock_core::ByteRange;
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::confined::Root;
use crate::console;
use crate::disk::device::Claim;
use crate::identity;
use crate::mapper::{Kind, Mapped, Mapper, SECTOR_BYTES, Target};
use crate::switch;

/// In the first stage's root, which nobody but this process sees.
const DEVICE: &str = "/rootstock-installed";
const MOUNT: &str = "/rootstock-installed.root";
const NAME: &str = "rootstock-installed";

/// File systems that can be mounted while another one with the same UUID is, and how.
const KINDS: [(&str, &str); 2] = [("ext4", ""), ("xfs", "nouuid")];

/// Where the root is, and the kernel's help to mount it: its partition is in no table
/// that the kernel knows.
pub(crate) struct OwnRoot {
    mapper: Mapper,
    partition: ByteRange,
    kind: &'static str,
    options: CString,
}

impl OwnRoot {
    /// Looks at the root that runs, from the first stage, once its device is there.
    ///
    /// # Errors
    /// When the installed one could not be mounted beside it.
    pub(crate) fn look(place: &RootPlace) -> io::Result<Self> {
        if place.partition == 0 {
            return Err(io::Error::other(
                "the image has no partition table: firmware would not start it from a disk",
            ));
        }
        let kind = KINDS.into_iter().find(|(kind, _)| *kind == place.fs);
        let Some((kind, more)) = kind else {
            return Err(io::Error::other(format!(
                "the image's root is {}, and only ext4 and XFS can be installed",
                place.fs
            )));
        };
        let options = [place.options.as_str(), more];
        let options: Vec<_> = options.into_iter().filter(|one| !one.is_empty()).collect();
        let mapper = Mapper::open().map_err(|error| {
            io::Error::other(format!("the image's kernel has no device mapper: {error}"))
        })?;
        Ok(Self {
            mapper,
            partition: switch::partition_range(place.partition)?,
            kind,
            options: CString::new(options.join(","))?,
        })
    }

    /// Writes who the machine is into the root on this disk. The claim on it is given up.
    ///
    /// # Errors
    /// When it cannot be mounted or written; it is not mounted afterwards.
    pub(crate) fn write(&self, disk: &Claim, identity: &Identity) -> io::Result<()> {
        // The mapper is to have it.
        disk.give_up();
        let target = Target {
            sectors: self.partition.len / SECTOR_BYTES,
            kind: Kind::Linear {
                device: disk.number(),
                start_sectors: self.partition.start / SECTOR_BYTES,
            },
        };
        let mapped = self.mapper.create(NAME, &[target]);
        mapped.and_then(|mapped| {
            let written = self.write_mapped(&mapped, identity);
            let _ = fs::remove_file(DEVICE);
            self.mapper.remove(&mapped);
            written
        })
    }

    fn write_mapped(&self, mapped: &Mapped, identity: &Identity) -> io::Result<()> {
        let _ = fs::remove_file(DEVICE);
        let number = rustix::fs::makedev(mapped.number.0, mapped.number.1);
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, DEVICE, FileType::BlockDevice, mode, number)?;
        fs::create_dir_all(MOUNT)?;
        let flags = MountFlags::NOATIME;
        mount(DEVICE, MOUNT, self.kind, flags, self.options.as_c_str())?;
        let written = identity::apply_own(identity, &Root::new(Path::new(MOUNT)));
        let unmounted = unmount(MOUNT, UnmountFlags::empty());
        written.map_err(|error| io::Error::other(console::chain(&error)))?;
        Ok(unmounted?)
    }
}
