//! Dividing a whole disk, so that its machine can start from it.

use std::fs;
use std::io;
use std::path::Path;

use rootstock_image::layout::{Ids, Layout, SECTOR_BYTES};
use rootstock_store::disk::DiskFile;
use rustix::rand::{GetRandomFlags, getrandom};

use super::PrepareError;
use crate::disk::device::Device;
use crate::local::files::StartFiles;

/// What is cleared at the beginning: labels and file systems that were there.
const CLEARED_BYTES: usize = 1 << 20;

/// Plans the parts of a disk, and makes the file system of the one it starts from.
pub(super) fn divide(disk: &Device, device: &str) -> Result<Layout, PrepareError> {
    must_be_whole(device)?;
    let failed = |source| PrepareError::Divide {
        device: device.to_owned(),
        source,
    };
    let disk_bytes = disk.len().map_err(failed)?;
    let layout = Layout::plan(disk_bytes).map_err(|source| PrepareError::TooSmall {
        device: device.to_owned(),
        source,
    })?;
    disk.write_at(0, &vec![0; CLEARED_BYTES]).map_err(failed)?;
    let id = u32::from_le_bytes(random().map_err(failed)?);
    StartFiles::format(disk, layout.start, id).map_err(failed)?;
    Ok(layout)
}

/// Writes the partition table.
pub(super) fn finish(disk: &Device, device: &str, layout: &Layout) -> Result<(), PrepareError> {
    let write = || {
        let ids = Ids {
            disk: guid()?,
            partitions: [guid()?, guid()?, guid()?],
        };
        for (at, bytes) in layout.table(disk.len()?, &ids) {
            disk.write_at(at, &bytes)?;
            disk.sync_data()?;
        }
        Ok(())
    };
    write().map_err(|source| PrepareError::Divide {
        device: device.to_owned(),
        source,
    })
}

/// Partitions and disks with other sectors are refused.
fn must_be_whole(device: &str) -> Result<(), PrepareError> {
    let path = fs::canonicalize(device).unwrap_or_else(|_| device.into());
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let block = Path::new("/sys/class/block").join(name);
    if block.join("partition").exists() {
        return Err(PrepareError::NotWhole {
            device: device.to_owned(),
        });
    }
    let sectors = fs::read_to_string(block.join("queue/logical_block_size"));
    let sector_bytes = sectors.ok().and_then(|text| text.trim().parse().ok());
    match sector_bytes {
        Some(sector_bytes) if sector_bytes != SECTOR_BYTES => Err(PrepareError::Sectors {
            device: device.to_owned(),
            sector_bytes,
        }),
        // A file in the place of a disk has none.
        _ => Ok(()),
    }
}

/// A random GUID (RFC 9562, section 5.4), as it lies on a disk.
fn guid() -> io::Result<[u8; 16]> {
    let mut bytes: [u8; 16] = random()?;
    bytes[7] = bytes[7] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

fn random<const LEN: usize>() -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes)
}
