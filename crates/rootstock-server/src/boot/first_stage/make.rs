//! Makes a version's first stage out of its disk.

use std::sync::Arc;

use jiff::Timestamp;
use rootstock_api::boot::{RootPlace, SiteFile};
use rootstock_image::{
    ReadAt,
    boot::{
        self, Ext4Fs, Ingredients, Kernel, OpenFs, OpenFsError, Opened, RootFs as _, System,
        SystemError,
    },
    inspect::{self, PartitionReport},
};

use rootstock_mount::Kind;

use super::{FirstStageError, Site, Wanted, agent::Agent, disk::DiskBytes, mounted};
use crate::{http::chain, volumes::Volumes};

/// The format of the site's file.
const SITE_FORMAT: u32 = 1;

/// What was made.
pub(super) struct Made {
    pub(super) kernel: Vec<u8>,
    pub(super) initrd: Vec<u8>,
    pub(super) kernel_version: String,
    pub(super) root: RootPlace,
    pub(super) arguments: Vec<String>,
    pub(super) module_count: usize,
    pub(super) firmware_count: usize,
    pub(super) firmware_left_out: Vec<String>,
}

impl Made {
    /// A stage without an initrd.
    pub(super) fn of(system: &System, kernel: &Kernel) -> Result<Self, FirstStageError> {
        Ok(Self {
            kernel: system.fs.read(&kernel.path, boot::KERNEL_BYTES_MAX)?,
            initrd: Vec::new(),
            arguments: boot::kept_arguments(&system.fs)?,
            module_count: 0,
            firmware_count: 0,
            firmware_left_out: Vec::new(),
            kernel_version: kernel.version.clone(),
            root: RootPlace {
                partition: system.partition,
                fs: system.fs_kind.to_owned(),
                options: system.options.clone(),
                init: system.init.clone(),
            },
        })
    }
}

/// Finds a version's system and the kernel that boots it.
pub(super) fn look(
    volumes: &Volumes,
    wanted: &Wanted,
) -> Result<(System, Kernel), FirstStageError> {
    let version = volumes
        .version_disk(wanted.manifest)
        .map_err(|error| FirstStageError::Version(error.0.detail))?;
    let disk: Arc<dyn ReadAt> = Arc::new(DiskBytes(version));
    find(disk, wanted)
}

/// Finds the system of a disk and the kernel that boots it.
fn find(disk: Arc<dyn ReadAt>, wanted: &Wanted) -> Result<(System, Kernel), FirstStageError> {
    let partitions = partitions(&*disk)?;
    find_in(&partitions, disk, wanted.root, wanted.kernel.as_deref())
}

/// The same, of a disk whose partitions are known.
pub(super) fn find_in(
    partitions: &[PartitionReport],
    disk: Arc<dyn ReadAt>,
    root: Option<u32>,
    kernel: Option<&str>,
) -> Result<(System, Kernel), FirstStageError> {
    let system = boot::find_system(partitions, &Opener { disk }, root)?;
    let kernel = boot::choose_kernel(&system.fs, kernel)?;
    Ok((system, kernel))
}

pub(super) fn partitions(disk: &dyn ReadAt) -> Result<Vec<PartitionReport>, FirstStageError> {
    inspect::partitions(disk).map_err(|source| {
        let path = "the partition table".to_owned();
        SystemError::Fs(boot::FsError::Io { path, source }).into()
    })
}

/// Whether the image's own initrd logs in to a disk over iSCSI; unknown where it has none
/// that can be read.
pub(super) fn has_initiator(system: &System, kernel: &Kernel) -> Option<bool> {
    let bytes = own_initrd(system, kernel, None).ok()??;
    let arguments = boot::iscsi_arguments(&system.fs).ok()?;
    Some(boot::Initrd::read(&bytes).ok()?.logs_in(arguments))
}

/// The image's own initrd, if it has one: for its kernel, or the one that is asked for.
pub(super) fn own_initrd(
    system: &System,
    kernel: &Kernel,
    wanted: Option<&str>,
) -> Result<Option<Vec<u8>>, FirstStageError> {
    let path = match wanted {
        Some(path) => Some(path.to_owned()),
        None => boot::own_initrd(&system.fs, kernel)?,
    };
    let bytes = path.map(|path| system.fs.read(&path, boot::INITRD_BYTES_MAX));
    Ok(bytes.transpose()?)
}

/// Makes the stage.
pub(super) fn make(
    volumes: &Volumes,
    agent: &Agent,
    site: &Site,
    wanted: &Wanted,
) -> Result<Made, FirstStageError> {
    let (system, kernel) = look(volumes, wanted)?;
    let mut made = Made::of(&system, &kernel)?;
    if let Some(path) = &wanted.initrd {
        made.initrd = system.fs.read(path, boot::INITRD_BYTES_MAX)?;
        return Ok(made);
    }
    let agent = agent.read()?;
    // Strings and numbers always serialize.
    let site = serde_json::to_vec(&site.file()).unwrap_or_default();
    let ingredients = Ingredients {
        agent: &agent,
        site: &site,
    };
    // Where the head mounts the root, the machine needs NFS in place of its file system.
    let root_fs = if wanted.nfs {
        boot::NFS
    } else {
        system.fs_kind
    };
    let assembled = boot::assemble(&system.fs, &kernel, root_fs, ingredients)?;
    made.initrd = assembled.initrd;
    made.module_count = assembled.module_count;
    made.firmware_count = assembled.firmware_count;
    made.firmware_left_out = assembled.firmware_left_out;
    Ok(made)
}

impl Site {
    /// What a machine is given of it.
    pub(crate) fn file(&self) -> SiteFile {
        SiteFile {
            format: SITE_FORMAT,
            public_key: self.public_key.clone(),
            authority_pem: self.authority_pem.clone(),
            made_seconds: Timestamp::now().as_second(),
        }
    }
}

/// Opens what this daemon can.
struct Opener {
    disk: Arc<dyn ReadAt>,
}

impl OpenFs for Opener {
    fn open(&self, partition: &PartitionReport) -> Result<Vec<Opened>, OpenFsError> {
        let (start, len) = (partition.start_bytes, partition.len_bytes);
        let kind = partition.fs.as_ref().map_or("", |fs| fs.kind.as_str());
        match kind {
            "ext" => Ok(vec![Opened {
                fs: Box::new(Ext4Fs::open(Arc::clone(&self.disk), start, len)?),
                kind: "ext4",
                options: String::new(),
            }]),
            "xfs" => mounted::open(&self.disk, start, len, Kind::Xfs),
            "btrfs" => mounted::open(&self.disk, start, len, Kind::Btrfs),
            _ => Ok(Vec::new()),
        }
    }
}

/// The causes of an error in one line, for what takes only text.
pub(super) fn because(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error)
}
