//! GRUB for a BIOS: where it looks for itself, which is written into it.
//!
//! The firmware starts the first sector (`boot.img`), that one loads the first
//! sector of `core.img`, and that one the rest, by a list of blocks. Both places are
//! numbers in GRUB's own files (its grub-core/boot/i386/pc/boot.S and diskboot.S,
//! include/grub/i386/pc/boot.h); its manual's section "BIOS installation" has where
//! they lie on a disk with a GUID partition table.

use std::io;

use rootstock_core::ByteRange;
use rootstock_image::layout::BOOT_CODE_BYTES;
use rootstock_store::disk::DiskFile;

const SECTOR: usize = 512;
/// What is read and written of a disk at once.
const PAGE: usize = 4096;

/// `GRUB_BOOT_MACHINE_KERNEL_SECTOR`: the sector that `boot.img` loads.
const KERNEL_SECTOR: usize = 0x5c;
/// `GRUB_BOOT_MACHINE_DRIVE_CHECK`: two bytes that are a jump over a check of what
/// the firmware says of the drive. For a disk the check is wanted.
const DRIVE_CHECK: usize = 0x66;
const JUMP: u8 = 0xeb;
const NO_OPERATION: u8 = 0x90;
/// `firstlist - GRUB_BOOT_MACHINE_LIST_SIZE`: the one block of the list, at the end
/// of the first sector of `core.img`: its sector (8 bytes), how many sectors it has
/// (2), and the segment that it is loaded to (2).
const BLOCK: usize = SECTOR - 12;
/// `GRUB_BOOT_MACHINE_KERNEL_SEG` and the sector that is loaded already.
const SEGMENT: u16 = 0x820;

/// Why GRUB cannot be put on the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    /// The files are not those that are known.
    #[error("the server's {name} is no GRUB for a BIOS that this release knows")]
    Unknown {
        /// The file.
        name: &'static str,
    },
    /// There is no room twice.
    #[error("core.img of {len_bytes} B has no room on the disk, which has {room_bytes} B for it")]
    NoRoom {
        /// Its length.
        len_bytes: u64,
        /// The room.
        room_bytes: u64,
    },
    /// The disk's error.
    #[error("the boot loader cannot be written to the disk")]
    Disk(#[from] io::Error),
}

/// Has a BIOS start GRUB from this disk. What was started before is, until the first
/// sector is another: one sector is written whole or not.
pub(crate) fn install(
    disk: &dyn DiskFile,
    place: ByteRange,
    boot: &[u8],
    core: &[u8],
) -> Result<(), LoaderError> {
    let mut first = vec![0; PAGE];
    disk.read_at(0, &mut first)?;
    let room_bytes = place.len / 2 / PAGE as u64 * PAGE as u64;
    let len_bytes = core.len() as u64;
    if len_bytes > room_bytes {
        return Err(LoaderError::NoRoom {
            len_bytes,
            room_bytes,
        });
    }
    let places = [place.start, place.start + room_bytes];
    let mut written = None;
    for at in places {
        let sector = at / SECTOR as u64;
        let (boot, core) = (
            boot_sector(&first, boot, sector)?,
            core_image(core, sector)?,
        );
        let mut found = vec![0; core.len()];
        disk.read_at(at, &mut found)?;
        if first[..SECTOR] == boot && found == core {
            return Ok(());
        }
        let is_in_use = first[KERNEL_SECTOR..][..8] == sector.to_le_bytes();
        if !is_in_use && written.is_none() {
            written = Some((at, boot, core));
        }
    }
    let (at, boot, core) = written.ok_or(LoaderError::Unknown {
        name: "boot sector",
    })?;
    disk.write_at(at, &core)?;
    disk.sync_data()?;
    first[..SECTOR].copy_from_slice(&boot);
    disk.write_at(0, &first)?;
    disk.sync_data()?;
    Ok(())
}

/// The first sector with GRUB's code, and the disk's own records.
fn boot_sector(old: &[u8], boot: &[u8], core_sector: u64) -> Result<Vec<u8>, LoaderError> {
    let is_known = boot.len() == SECTOR
        && boot[KERNEL_SECTOR..][..8] == 1_u64.to_le_bytes()
        && boot[DRIVE_CHECK] == JUMP
        && boot[SECTOR - 2..] == [0x55, 0xaa];
    if !is_known {
        return Err(LoaderError::Unknown { name: "boot.img" });
    }
    let mut sector = old[..SECTOR].to_vec();
    sector[..BOOT_CODE_BYTES].copy_from_slice(&boot[..BOOT_CODE_BYTES]);
    sector[KERNEL_SECTOR..][..8].copy_from_slice(&core_sector.to_le_bytes());
    sector[DRIVE_CHECK..][..2].fill(NO_OPERATION);
    Ok(sector)
}

/// `core.img` for this place, in whole pages.
fn core_image(core: &[u8], sector: u64) -> Result<Vec<u8>, LoaderError> {
    let unknown = LoaderError::Unknown { name: "core.img" };
    let Some(block) = core.get(BLOCK..SECTOR) else {
        return Err(unknown);
    };
    let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let sectors = (core.len() - SECTOR).div_ceil(SECTOR);
    if usize::from(u16_at(8)) != sectors || u16_at(10) != SEGMENT {
        return Err(unknown);
    }
    let mut image = core.to_vec();
    image.resize(core.len().next_multiple_of(PAGE), 0);
    image[BLOCK..][..8].copy_from_slice(&(sector + 1).to_le_bytes());
    Ok(image)
}

#[cfg(test)]
mod tests {
    use rootstock_store::disk::{Disk, Fault, SimDisk};

    use super::*;

    const PLACE: ByteRange = ByteRange::new(1 << 20, 1 << 20);

    fn boot() -> Vec<u8> {
        let mut boot = vec![0xb0; SECTOR];
        boot[KERNEL_SECTOR..][..8].copy_from_slice(&1_u64.to_le_bytes());
        boot[DRIVE_CHECK] = JUMP;
        boot[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
        boot
    }

    fn core(len: usize, fill: u8) -> Vec<u8> {
        let mut core = vec![fill; len];
        let sectors = (len - SECTOR).div_ceil(SECTOR) as u16;
        core[BLOCK..][..8].copy_from_slice(&2_u64.to_le_bytes());
        core[BLOCK + 8..][..2].copy_from_slice(&sectors.to_le_bytes());
        core[BLOCK + 10..][..2].copy_from_slice(&SEGMENT.to_le_bytes());
        core
    }

    fn disk() -> SimDisk {
        let disk = SimDisk::new();
        let file = disk.create("disk").expect("made");
        file.write_at(0, &[0x11; SECTOR]).expect("written");
        file.set_len(3 << 20).expect("long");
        file.sync_data().expect("kept");
        disk.sync_dir("").expect("kept");
        disk
    }

    /// What a BIOS would start, if it is whole.
    fn started(disk: &SimDisk) -> Option<u8> {
        let file = disk.open("disk").expect("there");
        let mut first = vec![0; SECTOR];
        file.read_at(0, &mut first).expect("read");
        assert_eq!(first[BOOT_CODE_BYTES..], [0x11; SECTOR - BOOT_CODE_BYTES]);
        if first[0] != 0xb0 {
            return None;
        }
        assert_eq!(first[DRIVE_CHECK..][..2], [NO_OPERATION; 2]);
        let sector = u64::from_le_bytes(first[KERNEL_SECTOR..][..8].try_into().expect("8"));
        let mut head = vec![0; SECTOR];
        let at = sector * SECTOR as u64;
        file.read_at(at, &mut head).expect("read");
        let next = u64::from_le_bytes(head[BLOCK..][..8].try_into().expect("8"));
        assert_eq!(next, sector + 1);
        let sectors = u16::from_le_bytes([head[BLOCK + 8], head[BLOCK + 9]]);
        let mut rest = vec![0; usize::from(sectors) * SECTOR];
        file.read_at(at + SECTOR as u64, &mut rest).expect("read");
        let fill = head[0];
        let len = rest.len() - SECTOR + 1;
        assert!(rest[..len].iter().all(|byte| *byte == fill), "whole");
        Some(fill)
    }

    fn put(disk: &SimDisk, fill: u8) -> Result<(), LoaderError> {
        let file = disk.open("disk").expect("there");
        install(&*file, PLACE, &boot(), &core(40_000 + 7, fill))
    }

    #[test]
    fn the_firmware_finds_what_was_put_there() {
        let disk = disk();
        assert_eq!(started(&disk), None);
        for fill in [1, 2, 3] {
            put(&disk, fill).expect("put");
            assert_eq!(started(&disk), Some(fill));
        }
        let operations = disk.operations();
        put(&disk, 3).expect("there already");
        assert_eq!(disk.operations(), operations);
    }

    #[test]
    fn the_power_may_go_at_any_moment() {
        let ready = disk();
        put(&ready, 1).expect("put");
        put(&ready, 2).expect("put");
        let operations = {
            let disk = ready.crash(0);
            put(&disk, 3).expect("put");
            disk.operations()
        };
        for cut in 0..operations {
            for seed in 0..8 {
                let disk = ready.crash(seed);
                disk.fail_at(cut, Fault::PowerCut);
                put(&disk, 3).expect_err("cut");
                let disk = disk.crash(seed);
                assert!(matches!(started(&disk), Some(2 | 3)), "{cut} {seed}");
                put(&disk, 3).expect("put after all");
                assert_eq!(started(&disk), Some(3));
            }
        }
    }

    #[test]
    fn other_files_are_refused() {
        let disk = disk();
        let file = disk.open("disk").expect("there");
        let put = |boot: &[u8], core: &[u8]| {
            let error = install(&*file, PLACE, boot, core).expect_err("refused");
            error.to_string()
        };
        let mut strange = boot();
        strange[KERNEL_SECTOR] = 7;
        let (good, long) = (core(40_000, 1), core(600 << 10, 1));
        for (error, expected) in [
            (put(&strange, &good), "boot.img"),
            (put(&boot()[..100], &good), "boot.img"),
            (put(&boot(), &good[..100]), "core.img"),
            (put(&boot(), &good[..30_000]), "core.img"),
            (put(&boot(), &long), "no room"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(started(&disk), None);
    }
}
