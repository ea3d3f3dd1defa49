//! The two files in which a machine keeps who it is in the swarm: the older one is
//! overwritten, so that a power cut leaves the other.

use std::io;

use rootstock_core::Digest;

use super::disk::StartDisk;
use super::files::{KEPT, StartFiles};
use crate::disk::find::Devices;
use crate::swarm::membership::{MEMBERSHIP_BYTES_MAX, number};

/// Their names. In [`KEPT`].
pub(crate) const NAMES: [&str; 2] = ["MEMBER.A", "MEMBER.B"];

/// The disk that has them.
pub(crate) struct MemberDisk {
    devices: Devices,
    disk: StartDisk,
}

impl MemberDisk {
    /// For the disk that has this cache; nothing when no machine starts from it.
    pub(crate) fn of_cache(cache: &str) -> Option<Self> {
        let devices = Devices::open().ok()?;
        let disk = StartDisk::of_cache(&devices, cache)?;
        Some(Self { devices, disk })
    }

    /// What was written last, if that can be read.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let files = StartFiles::open(&self.disk.device, self.disk.start()).ok()?;
        newest(&files).ok()?
    }

    /// Replaces the older file by what `text` makes for a number that is greater than
    /// the newer one's.
    ///
    /// # Errors
    /// The disk's, and `ResourceBusy` while somebody else uses the partition.
    pub(crate) fn write(&self, text: impl FnOnce(u64) -> io::Result<Vec<u8>>) -> io::Result<()> {
        self.claimed(|files| write(files, text))
    }

    /// Has the machine be in no swarm that it remembers.
    ///
    /// # Errors
    /// As [`MemberDisk::write`].
    pub(crate) fn clear(&self) -> io::Result<()> {
        let files = StartFiles::open(&self.disk.device, self.disk.start())?;
        if newest(&files)?.is_none() {
            return Ok(());
        }
        drop(files);
        self.claimed(clear)
    }

    fn claimed(&self, change: impl FnOnce(&StartFiles<'_>) -> io::Result<()>) -> io::Result<()> {
        let partition = self.disk.start_partition();
        let claimed = self.devices.claim(&partition);
        let _claim = claimed.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        let files = StartFiles::open(&self.disk.device, self.disk.start())?;
        change(&files)?;
        files.close()
    }
}

/// The newer of the files that are whole; one that is not when neither is.
///
/// # Errors
/// The disk's.
pub(super) fn newest(files: &StartFiles<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut found = Vec::new();
    for name in NAMES {
        found.extend(files.read(&path(name), MEMBERSHIP_BYTES_MAX)?);
    }
    Ok(found.into_iter().max_by_key(|text| number(text)))
}

fn write(files: &StartFiles<'_>, text: impl FnOnce(u64) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let mut numbers = [None; NAMES.len()];
    for (found, name) in numbers.iter_mut().zip(NAMES) {
        let read = files.read(&path(name), MEMBERSHIP_BYTES_MAX)?;
        *found = read.and_then(|text| number(&text));
    }
    let newest = numbers.iter().flatten().max();
    let text = text(newest.map_or(0, |newest| newest.saturating_add(1)))?;
    let len_bytes = text.len() as u64;
    if len_bytes > MEMBERSHIP_BYTES_MAX {
        let what = format!("{len_bytes} B are more than {MEMBERSHIP_BYTES_MAX} B");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let older = usize::from(numbers[1] < numbers[0]);
    let path = path(NAMES[older]);
    files.put(&path, len_bytes, Digest::of(&text), &mut &text[..])
}

fn clear(files: &StartFiles<'_>) -> io::Result<()> {
    for name in NAMES {
        files.remove(&path(name))?;
    }
    Ok(())
}

fn path(name: &str) -> String {
    format!("{KEPT}/{name}")
}

#[cfg(test)]
mod tests {
    use rootstock_core::ByteRange;
    use rootstock_store::disk::{Disk, DiskFile, Fault, SimDisk};

    use super::*;
    use crate::swarm::membership::tests::text;

    /// The smallest that FAT32 takes, nearly.
    const PLACE: ByteRange = ByteRange::new(8192, 36 << 20);

    fn disk() -> SimDisk {
        let disk = SimDisk::new();
        let file = disk.create("disk").expect("made");
        file.set_len(PLACE.end()).expect("long");
        StartFiles::format(&*file, PLACE, 7).expect("formatted");
        disk.sync_dir("").expect("kept");
        disk
    }

    fn put(disk: &dyn DiskFile) -> io::Result<()> {
        let files = StartFiles::open(disk, PLACE)?;
        write(&files, |number| Ok(text(number)))?;
        files.close()
    }

    fn found(disk: &SimDisk) -> Option<u64> {
        let file = disk.open("disk").expect("there");
        let files = StartFiles::open(&*file, PLACE).expect("opens");
        let text = newest(&files).expect("read")?;
        Some(number(&text).expect("is whole"))
    }

    #[test]
    fn the_newer_one_is_found_and_the_older_one_replaced() {
        let disk = disk();
        assert_eq!(found(&disk), None);
        for expected in 0..4 {
            put(&*disk.open("disk").expect("there")).expect("written");
            assert_eq!(found(&disk), Some(expected));
        }
        let file = disk.open("disk").expect("there");
        let files = StartFiles::open(&*file, PLACE).expect("opens");
        assert_eq!(files.names(KEPT).expect("read").len(), 3);
        clear(&files).expect("cleared");
        clear(&files).expect("there is nothing to clear");
        assert_eq!(newest(&files).expect("read"), None);
        let long = write(&files, |_| Ok(vec![0; MEMBERSHIP_BYTES_MAX as usize + 1]));
        assert!(long.is_err());
        assert_eq!(newest(&files).expect("read"), None);
    }

    #[test]
    fn the_power_may_go_at_any_moment() {
        let ready = disk();
        for _ in 0..2 {
            put(&*ready.open("disk").expect("there")).expect("written");
        }
        let operations = {
            let disk = ready.crash(0);
            put(&*disk.open("disk").expect("there")).expect("written");
            disk.operations()
        };
        for cut in 0..operations {
            let disk = ready.crash(cut);
            disk.fail_at(cut, Fault::PowerCut);
            let _ = put(&*disk.open("disk").expect("there"));
            let disk = disk.crash(cut * 7 + 1);
            let number = found(&disk);
            assert!([Some(1), Some(2)].contains(&number), "{cut}: {number:?}");
            put(&*disk.open("disk").expect("there")).expect("written after all");
            assert!(found(&disk) > number, "{cut}");
        }
    }
}
