//! Map logs of overlays as fuzz inputs: their checksums are set here.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use rootstock_core::{BLOCK_BYTES, Digest};
use rootstock_image::{grid::Grid, manifest::Manifest};
use rootstock_store::{ChunkStore, StoreOptions, disk::Disk, objects::MemoryObjects};
use rootstock_volume::{Base, ChunkCache, OverlayOptions, VersionDisk, Volume};

/// Bytes of the volume that logs are made for.
pub const DISK_BYTES: u64 = 64 * BLOCK_BYTES;

/// The volume's directory.
pub const DIR: &str = "v";

/// Bytes of a log's header, of a part before its runs, and of its digest, as
/// docs/formats/overlay.md has them.
const HEADER_BYTES: usize = 64;
const PART_HEAD_BYTES: usize = 40;
const DIGEST_BYTES: usize = 32;

/// The most parts whose digests are set.
const PARTS_MAX: usize = 64;

/// A disk of zeros, the base of the volume.
///
/// # Panics
/// Never: its parameters are good.
#[must_use]
pub fn base() -> Base {
    static DISK: OnceLock<Arc<VersionDisk>> = OnceLock::new();
    let disk = DISK.get_or_init(|| {
        let objects = Arc::new(MemoryObjects::new());
        let store = ChunkStore::open(objects, StoreOptions::default()).expect("an empty store");
        let grid = Grid::whole(DISK_BYTES).expect("a small disk");
        let cache = ChunkCache::new(store, 1 << 20);
        Arc::new(VersionDisk::new(Manifest::zero(grid), Arc::new(cache)))
    });
    Arc::clone(disk).into_base()
}

/// Makes an empty volume and returns the path of its log.
///
/// # Errors
/// None on a simulated disk that is sound.
pub fn create(disk: &Arc<dyn Disk>) -> io::Result<(Volume, String)> {
    let options = OverlayOptions::default();
    let volume = Volume::create(Arc::clone(disk), DIR, base(), DISK_BYTES, options)
        .map_err(io::Error::other)?;
    let name = disk.list(DIR)?.into_iter().find(|n| n.starts_with("map-"));
    let name = name.ok_or(io::ErrorKind::NotFound)?;
    Ok((volume, format!("{DIR}/{name}")))
}

/// Sets the header's base and checksum, and the digests of its parts.
pub fn mend(log: &mut [u8]) {
    let Some((header, mut parts)) = log.split_first_chunk_mut::<HEADER_BYTES>() else {
        return;
    };
    header[24..56].copy_from_slice(base().id.as_bytes());
    let sum = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&sum.to_le_bytes());
    for _ in 0..PARTS_MAX {
        let Some(head) = parts.first_chunk::<PART_HEAD_BYTES>() else {
            return;
        };
        let body_bytes = u32::from_le_bytes([36, 37, 38, 39].map(|i| head[i])) as usize;
        let signed = PART_HEAD_BYTES.saturating_add(body_bytes);
        let Some((part, rest)) = parts.split_at_mut_checked(signed.saturating_add(DIGEST_BYTES))
        else {
            return;
        };
        let (signed, digest) = part.split_at_mut(signed);
        digest.copy_from_slice(Digest::of(signed).as_bytes());
        parts = rest;
    }
}
